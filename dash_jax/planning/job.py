"""What a plan is about: a run's model, phases and abstract state on a mesh, and
its real programs, described but not run.

No weight is made or read, no question, no tokenizer: where `model.preset` names
the architecture, files are not looked for.
"""

import dataclasses

import jax
import ml_collections
import numpy as np

from dash_jax import batches, checks, phases, sharding, weights
from dash_jax import config as config_lib
from dash_jax.learning import learner, packing
from dash_jax.model import llama, lora
from dash_jax.planning import devices as devices_lib
from dash_jax.sampling import compiled, sampler


@dataclasses.dataclass(frozen=True)
class Job:
  """A run on devices; the mesh in use is `mesh`.

  Attributes:
    config: of the run.
    devices: what it runs on.
    mesh: how they are arranged.
    model: the architecture, and what it computes in.
    phase: of RL; the supervised one of a run without.
    state: shapes and layouts of what rests on the devices.
  """

  config: ml_collections.ConfigDict
  devices: devices_lib.Devices
  mesh: jax.sharding.Mesh
  model: llama.Llama
  phase: phases.Phase
  state: batches.TrainState

  @property
  def shards(self) -> int:
    """Ways that rows are split."""
    return sharding.num_batch_shards(self.mesh)

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
    return sampler.describe_programs(
      jax.tree.map(compiled.describe, weights.abstract_params(self.model)),
      sampler.make_programs(
        self.model,
        group_size=self.group_size,
        max_prompt_len=self.prompt_len,
        max_completion_len=self.completion_len,
        quantize_cache=self.config.sampling.quantize_cache,
        quantize_weights=self.config.sampling.quantize_weights,
        attention=self.config.sampling.attention,
      ),
      num_prompts=-(-self.num_rows // self.group_size // self.shards),
      rows=rows // self.shards,
      max_completion_len=self.completion_len,
    )

  def make_room(self, minibatch_size: int) -> packing.Room:
    """Returns the shapes of minibatches of so many full rows."""
    return packing.make_room(
      minibatch_size, self.group_size, self.prompt_len, self.completion_len
    )

  def lower_learner(self, minibatch_size: int):
    """Returns the lowered program that adds gradients of the largest minibatches
    up."""
    num_local = len(sharding.local_shards())

    def describe(x):
      # Of all processes, where the room is of one.
      shape = (x.shape[0] // num_local * self.shards, *x.shape[1:])
      axes = ('batch',) + (None,) * (x.ndim - 1)
      layout = jax.NamedSharding(self.mesh, sharding.SAMPLE.spec(*axes))
      return jax.ShapeDtypeStruct(shape, x.dtype, sharding=layout)

    minibatch, *_ = packing.make_filler(self.make_room(minibatch_size))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return learner.lower(
      self.state,
      jax.tree.map(describe, minibatch),
      self.phase.decoding,
      key,
      model=self.model,
      objective=self.phase.objective,
    )

  def lower_update(self):
    """Returns the lowered program that changes the weights."""
    return learner.lower_apply(self.state, self.phase.optimizer)


def make_mesh(config, devices: devices_lib.Devices) -> jax.sharding.Mesh:
  """Returns the mesh of a config on the devices; checks that rows divide.

  Raises:
    ValueError: as a run would.
  """
  try:
    mesh = sharding.make_mesh(
      config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices.devices
    )
  except NotImplementedError as error:  # no such shape on these wires
    raise ValueError(
      f'mesh.data={config.mesh.data}, mesh.fsdp={config.mesh.fsdp},'
      f' mesh.tensor={config.mesh.tensor} on {devices}: {error}'
    ) from error
  hosts = len({device.process_index for device in devices.devices})
  checks.check_mesh(config, sharding.num_batch_shards(mesh), hosts)
  return mesh


def make_job(config, devices: devices_lib.Devices) -> Job:
  """Describes the run of a checked config on the mesh in use.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  config = config.copy_and_resolve_references()
  if config.model.preset != config_lib.AUTO:
    config.model.weights = ''
  model = weights.make_model(config)
  mesh = jax.sharding.get_mesh()
  checks.check_model_on_mesh(model.config, mesh.shape['tensor'])
  phase = phases.phases(config, stop_ids=())[-1]
  state = learner.abstract_state(
    model, phase.optimizer, has_reference=phase.needs_reference
  )
  if model.config.lora:
    _, frozen = lora.split(model.config.lora, weights.abstract_params(model))
    state = dataclasses.replace(state, frozen=frozen)
  return Job(config, devices, mesh, model, phase, state)


def count_bytes(tree) -> int:
  """Returns the bytes of described arrays on one device."""
  return sum(
    int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )
