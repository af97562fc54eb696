"""What a plan is about: a run's model, phases and abstract state on a mesh, and
its real programs, described but not run.

No weight is made or read, no question, no tokenizer: where `model.preset` names
the architecture, files are not looked for.
"""

import dataclasses

import jax
import ml_collections
from jax.sharding import NamedSharding

from dash_jax import batches, checks, meshes, phases, sharding, weights
from dash_jax import config as config_lib
from dash_jax.learning import learner, packing
from dash_jax.model import llama, lora
from dash_jax.planning import devices as devices_lib
from dash_jax.sampling import compiled, sampler


@dataclasses.dataclass(frozen=True)
class Job:
  """A run on devices.

  Attributes:
    config: of the run.
    devices: what it runs on.
    mesh: of those that learn.
    sampling_mesh: of those that sample, the same if all do both.
    model: the architecture, and what it computes in.
    phase: of RL; the supervised one of a run without.
    state: shapes and layouts of what rests on the devices.
  """

  config: ml_collections.ConfigDict
  devices: devices_lib.Devices
  mesh: jax.sharding.Mesh
  sampling_mesh: jax.sharding.Mesh
  model: llama.Llama
  phase: phases.Phase
  state: batches.TrainState

  @property
  def shards(self) -> int:
    """Ways that rows to learn from are split."""
    return sharding.num_batch_shards(self.mesh)

  @property
  def sampling_shards(self) -> int:
    """Ways that rows that are sampled are split."""
    return sharding.num_batch_shards(self.sampling_mesh)

  @property
  def samples_apart(self) -> bool:
    """Whether sampling has devices of its own."""
    return bool(self.config.mesh.sampler_devices)

  @property
  def num_sampler_sets(self) -> int:
    """Sets of weights on a device that samples, at most: one of each step that is
    asked for ahead, where it may still be at the one before."""
    ahead = self.config.algorithm.max_staleness if self.samples_apart else 0
    return 1 + ahead

  @property
  def samples(self) -> bool:
    """Whether the run samples at all."""
    return self.phase.name == 'rl'

  @property
  def num_rows(self) -> int:
    """Rows of a step, B."""
    return self.phase.rows_per_step

  @property
  def group_size(self) -> int:
    """Rows of a prompt, G."""
    return self.phase.group_size

  @property
  def prompt_len(self) -> int:
    """Slots of a prompt, P."""
    return self.config.data.max_prompt_len

  @property
  def completion_len(self) -> int:
    """Slots of a completion, C."""
    return self.config.sampling.max_completion_len

  def describe_sampler(self, rows: int) -> compiled.Compiled:
    """Returns the programs that decode so many rows at once."""
    with jax.set_mesh(self.mesh):
      params = weights.abstract_params(self.model)
    run = sampler.make_programs(
      self.model,
      group_size=self.group_size,
      max_prompt_len=self.prompt_len,
      max_completion_len=self.completion_len,
      quantize_cache=self.config.sampling.quantize_cache,
      quantize_weights=self.config.sampling.quantize_weights,
      attention=self.config.sampling.attention,
    )
    with jax.set_mesh(self.sampling_mesh):
      return sampler.describe_programs(
        params,
        run,
        num_prompts=self.num_rows // self.group_size // self.sampling_shards,
        rows=rows // self.sampling_shards,
        max_completion_len=self.completion_len,
      )

  def lower_sampler(
    self, described: compiled.Compiled, *name
  ) -> jax.stages.Lowered:
    """Returns one of the programs that `describe_sampler` described."""
    with jax.set_mesh(self.sampling_mesh):
      return described.lower_one(*name)

  def make_room(self, minibatch_size: int) -> packing.Room:
    """Returns the shapes of a process's minibatches of so many full rows."""
    with jax.set_mesh(self.mesh):
      return packing.make_room(
        minibatch_size, self.group_size, self.prompt_len, self.completion_len
      )

  def find_lines(self, minibatch_size: int) -> tuple[int, int]:
    """Returns the lines that a device has of a minibatch, and their slots."""
    lines, num_slots = self.make_room(minibatch_size).shapes[0]
    return lines // self._num_local_shards(), num_slots

  def lower_learner(self, minibatch_size: int) -> jax.stages.Lowered:
    """Returns the program that adds gradients of the largest minibatches up."""
    num_local = self._num_local_shards()

    def describe(x):
      # Of all processes, where the room is of one.
      shape = (x.shape[0] // num_local * self.shards, *x.shape[1:])
      axes = ('batch',) + (None,) * (x.ndim - 1)
      layout = NamedSharding(self.mesh, sharding.SAMPLE.spec(*axes))
      return jax.ShapeDtypeStruct(shape, x.dtype, sharding=layout)

    minibatch, *_ = packing.make_filler(self.make_room(minibatch_size))
    with jax.set_mesh(self.mesh):
      return learner.lower(
        self.state,
        jax.tree.map(describe, minibatch),
        self.phase.decoding,
        jax.eval_shape(lambda: jax.random.key(0)),
        model=self.model,
        objective=self.phase.objective,
      )

  def lower_update(self) -> jax.stages.Lowered:
    """Returns the program that changes the weights."""
    with jax.set_mesh(self.mesh):
      return learner.lower_apply(self.state, self.phase.optimizer)

  def _num_local_shards(self):
    with jax.set_mesh(self.mesh):
      return len(sharding.local_shards())


def make_job(config, devices: devices_lib.Devices) -> Job:
  """Describes the run of a checked config.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  config = config.copy_and_resolve_references()
  if config.model.preset != config_lib.AUTO:
    config.model.weights = ''
  model = weights.make_model(config)
  mesh, sampling_mesh = meshes.make_meshes(config, devices.devices)
  checks.check_model_on_mesh(model.config, mesh.shape['tensor'])
  phase = phases.phases(config, stop_ids=())[-1]
  with jax.set_mesh(mesh):
    state = learner.abstract_state(
      model, phase.optimizer, has_reference=phase.needs_reference
    )
    if model.config.lora:
      params = weights.abstract_params(model)
      _, frozen = lora.split(model.config.lora, params)
      state = dataclasses.replace(state, frozen=frozen)
  return Job(config, devices, mesh, sampling_mesh, model, phase, state)
