"""The memory of a run's programs by arithmetic, on one device.

1. `Needs` says what a program needs by kind. What rests on the device, the
   sampler's weights and the caches follow from shapes alone.
2. What a program makes and throws away is up to the compiler; the rules here
   (`_learning`, `_decoding`, `_admitting`) are those that compiled programs for
   TPUs and CPUs were found to follow. A test holds both within a tenth of each
   other.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from dash_jax import sharding
from dash_jax.model import llama
from dash_jax.planning import job as job_lib
from dash_jax.planning import work

# Programs, in the order of a step.
PREPARE, ADMIT, DECODE = 'prepare', 'admit', 'decode'
GRADIENT, UPDATE = 'gradient', 'update'
SAMPLING = (PREPARE, ADMIT, DECODE)
LEARNING = (GRADIENT, UPDATE)


@dataclasses.dataclass(frozen=True)
class Needs:
  """Bytes that a device needs while a program runs.

  Attributes:
    weights: those that are trained, the frozen and the reference's.
    optimizer: its state.
    sampler: the weights as they are sampled with, all sets.
    cache: keys and values.
    gradient: that minibatches add to.
    activations: all that is made and thrown away.
  """

  weights: float
  optimizer: float
  sampler: float = 0.0
  cache: float = 0.0
  gradient: float = 0.0
  activations: float = 0.0

  @property
  def total(self) -> float:
    """Bytes of a device, all together."""
    return sum(dataclasses.asdict(self).values())


def find_shape(
  job: job_lib.Job, mesh: jax.sharding.Mesh | None = None
) -> work.Shape:
  """Returns what the work of a job follows from.

  Args:
    job: the run.
    mesh: None takes that which learns.
  """
  mesh = job.mesh if mesh is None else mesh
  config, model = job.config, job.model
  itemsize = jnp.dtype(model.dtype).itemsize
  cache_bytes = float(itemsize)
  if config.sampling.quantize_cache:
    cache_bytes = 1 + 4 / model.config.head_dim
  param_itemsize = jnp.dtype(model.param_dtype).itemsize
  trained = sharding.count_bytes(job.state.params) / param_itemsize
  return work.Shape(
    config=model.config,
    data=mesh.shape['data'],
    fsdp=mesh.shape['fsdp'],
    tensor=mesh.shape['tensor'],
    prompt_len=job.prompt_len,
    completion_len=job.completion_len,
    group_size=job.group_size,
    itemsize=itemsize,
    param_itemsize=param_itemsize,
    trained_weights=trained,
    moment_itemsize=sharding.count_bytes(job.state.opt_state) / trained,
    weight_bytes=1.0 if config.sampling.quantize_weights else itemsize,
    cache_bytes=cache_bytes,
    remat=model.remat,
    forwards=_count_forwards(job),
  )


def _count_forwards(job):
  objective, phase = job.phase.objective, job.phase
  return sum(
    (
      objective.kl_coef > 0,
      objective.importance_cap > 0,
      phase.kl_in_reward,
      objective.value_coef > 0,
      objective.loss == 'gspo',
      2 * (objective.loss == 'dpo'),
    )
  )


def estimate(job: job_lib.Job, rows: int, minibatch: int) -> dict[str, Needs]:
  """Returns what each program needs.

  Args:
    job: the run.
    rows: decoded at once, on all devices; 0 if it samples none.
    minibatch: rows of a minibatch, on all devices.
  """
  shape, platform = find_shape(job), job.devices.kind.platform
  learning = dataclasses.replace(hold(job), gradient=count_gradient(job))
  needs = {}
  if rows:
    sampling = find_shape(job, job.sampling_mesh)
    size = count_sampler_weights(job)
    cache = count_cache(job, sampling, rows)
    beside = hold_beside_sampler(job)
    own = rows // sampling.shards
    made = {
      ADMIT: _admitting(sampling, own),
      DECODE: _decoding(sampling, own, platform),
    }
    needs[PREPARE] = dataclasses.replace(
      hold(job), sampler=size, activations=_preparing(shape, platform)
    )
    for name, activations in made.items():
      needs[name] = dataclasses.replace(
        beside,
        sampler=size * job.num_sampler_sets,
        cache=cache,
        activations=activations,
      )
  made = {GRADIENT: _learning(job, shape, minibatch), UPDATE: _updating(job)}
  for name, activations in made.items():
    needs[name] = dataclasses.replace(learning, activations=activations)
  return needs


def hold(job: job_lib.Job) -> Needs:
  """Returns what rests on a device that learns."""
  state = job.state
  return Needs(
    weights=sharding.count_bytes((state.params, state.frozen, state.reference)),
    optimizer=sharding.count_bytes(state.opt_state),
  )


def hold_beside_sampler(job: job_lib.Job) -> Needs:
  """Returns what rests on a device while it samples."""
  return Needs(0.0, 0.0) if job.samples_apart else hold(job)


def count_gradient(job: job_lib.Job) -> float:
  """Returns the bytes of a device's gradient in float32."""
  shapes = [
    x.sharding.shard_shape(x.shape) for x in jax.tree.leaves(job.state.params)
  ]
  return 4.0 * sum(map(math.prod, shapes))


def count_sampler_weights(job: job_lib.Job) -> float:
  """Returns the bytes of one set of the weights that are sampled with."""
  config, mesh = job.model.config, job.sampling_mesh
  itemsize = jnp.dtype(job.model.dtype).itemsize

  def count(weight):
    layout = NamedSharding(mesh, sharding.SAMPLE.spec(*weight.axes))
    return itemsize * math.prod(layout.shard_shape(weight.shape))

  declared = llama.weights(config)
  leaves = jax.tree.leaves(declared, is_leaf=llama.is_weight)
  total = float(sum(map(count, leaves)))
  if job.config.sampling.quantize_weights:
    body, head = work.count_matmul_params(config)
    total -= (body + head) * (itemsize - 1) / mesh.shape['tensor']
  return total


def count_cache(job: job_lib.Job, shape: work.Shape, rows: int) -> float:
  """Returns the bytes of keys and values of prompts and of rows.

  Args:
    job: the run.
    shape: of what samples.
    rows: decoded at once, on all devices.
  """
  own, G = rows // shape.shards, shape.group_size
  asked = job.num_rows // G // shape.shards
  prompts = own // G
  if asked > prompts and G > 1:  # others take the places of those that ended
    prompts = min(asked, 3 * prompts, own - 1)
  slots = prompts * shape.prompt_len + own * shape.completion_len
  return slots * shape.token_bytes


def _preparing(shape, platform):
  """Layers are gathered one by one before they are as they should be; on TPUs
  they are laid out anew when all are there, if they are not quantised."""
  if shape.fsdp == 1:
    return 0.0
  at_once = 1.3 / shape.config.num_layers
  if platform == 'tpu' and shape.weight_bytes > 1:
    at_once = 1.05
  return at_once * _count_layers(shape) * shape.itemsize


def _count_layers(shape):
  """Returns the weights of all layers once they are gathered."""
  config = shape.config
  tables = config.vocab_size * config.embed_dim * (1 if config.tied else 2)
  return shape.used_weights - tables / shape.tensor


def _relaying(shape):
  """The embedding is split over its other axis to be looked up."""
  if shape.tensor == 1:
    return 0.0
  table = shape.config.vocab_size * shape.config.embed_dim / shape.tensor
  return 2.0 * table * shape.itemsize


def _decoding(shape, own, platform):
  made = 4.0 * own * shape.config.vocab_size * 4 + _relaying(shape)
  if platform == 'tpu':
    # Matrices of heads are laid out anew, for the unit that multiplies.
    config = shape.config
    heads = config.num_heads + 2 * config.num_kv_heads
    layer = config.embed_dim * heads * config.head_dim / shape.tensor
    made += config.num_layers * layer * shape.weight_bytes
  return made


def _admitting(shape, own):
  config, P, t = shape.config, shape.prompt_len, shape.tensor
  prompts = shape.count_admitted(own)
  tokens = prompts * P
  scores = prompts * config.num_heads / t * P * P * 4
  feed = 3 * tokens * config.ffw_dim / t * shape.itemsize
  stream = 4 * tokens * config.embed_dim * shape.itemsize
  logits = 2.0 * prompts * shape.group_size * config.vocab_size * 4
  made = max(2 * scores, feed) + stream + logits + _relaying(shape)
  return made + tokens * shape.token_bytes


def _learning(job, shape, minibatch):
  """The new gradient, the cast layers, what a forward keeps, and what tables and a
  layer need."""
  config, t, a = shape.config, shape.tensor, shape.itemsize
  on_cpu = job.devices.kind.platform == 'cpu'
  b, T = job.find_lines(minibatch)
  tokens = b * T
  D, L = config.embed_dim, config.num_layers
  num_tables = 1 if config.tied else 2
  table = config.vocab_size / t * D
  layers = _count_layers(shape)
  kept = L * tokens * D * a
  if config.lora:
    cast, tables = 0.0, num_tables * table * a
  else:
    cast = layers / shape.fsdp * a if a != shape.param_itemsize else 0.0
    # Each in float32: the gradient, and what adds it up.
    tables = num_tables * table * (8 + 1)
  scores = b * config.num_heads / t * T * _count_seen(shape, T) * 4
  feed = tokens * config.ffw_dim / t * a
  # Compilers for CPUs take no care to have few arrays at a time.
  copies = 8 if on_cpu else 2
  inner = copies * scores + 5 * feed + 6 * tokens * D * a + 2 * layers / L * a
  if shape.remat != 'layer':
    # What a layer made is kept, its gathered weights too.
    heads = (config.num_heads * 2 + 2 * config.num_kv_heads) * config.head_dim
    kept += L * tokens * (heads / t + 3 * config.ffw_dim / t + 3 * D) * a
    if shape.fsdp > 1 or a != shape.param_itemsize:
      kept += layers * a
  gradient = count_gradient(job) / 4 * shape.param_itemsize
  if on_cpu and shape.fsdp > 1 and L <= llama.UNROLLED_LAYERS:
    tables += layers * a  # whole gradients of layers, before they are split
  made = max(tables, inner) if on_cpu else tables + inner
  return gradient + cast + kept + made


def _count_seen(shape, num_slots):
  """Returns the slots that each slot of a line looks at."""
  block = -(-shape.completion_len // 4)
  rows = max(shape.group_size, 2)
  prompts = 2 * -(-rows // shape.group_size) * shape.prompt_len
  return min(num_slots, prompts + 5 * block)


def _updating(job):
  # On TPUs what is changed takes the place of what was; others hold the changes.
  on_tpu = job.devices.kind.platform == 'tpu'
  return (0.03 if on_tpu else 1.0) * count_gradient(job)
