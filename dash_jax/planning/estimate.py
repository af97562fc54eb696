"""The memory of a run's programs by arithmetic, on one device.

1. `Needs` says what a program needs by kind. What rests on the device, the
   sampler's weights and the caches follow from shapes alone.
2. What a program makes and throws away is up to the compiler; the rules here
   (`_learning`, `_decoding`, `_admitting`) are those that compiled programs for
   TPUs and CPUs were found to follow. A test holds both within a tenth of each
   other.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import sharding
from dash_jax.learning import projection
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
    sampler: the weights as they are sampled with.
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
    return sum(dataclasses.asdict(self).values())


def find_shape(job: job_lib.Job) -> work.Shape:
  """Returns what the work of a job follows from."""
  config, model = job.config, job.model
  itemsize = jnp.dtype(model.dtype).itemsize
  cache_bytes = float(itemsize)
  if config.sampling.quantize_cache:
    cache_bytes = 1 + 4 / model.config.head_dim
  trained = job_lib.count_bytes(job.state.params)
  param_itemsize = jnp.dtype(model.param_dtype).itemsize
  own = trained / param_itemsize
  return work.Shape(
    config=model.config,
    data=job.mesh.shape['data'],
    fsdp=job.mesh.shape['fsdp'],
    tensor=job.mesh.shape['tensor'],
    prompt_len=job.prompt_len,
    completion_len=job.completion_len,
    group_size=job.group_size,
    itemsize=itemsize,
    param_itemsize=param_itemsize,
    moment_itemsize=job_lib.count_bytes(job.state.opt_state) / own,
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
  held = hold(job)
  gradient = count_gradient(job)
  needs = {}
  if rows:
    sampler = count_sampler_weights(job)
    cache = count_cache(job, rows)
    with_weights = dataclasses.replace(held, sampler=sampler)
    sampling = dataclasses.replace(with_weights, cache=cache)
    needs[PREPARE] = dataclasses.replace(
      with_weights, activations=_preparing(job)
    )
    needs[ADMIT] = dataclasses.replace(
      sampling, activations=_admitting(job, rows)
    )
    needs[DECODE] = dataclasses.replace(
      sampling, activations=_decoding(job, rows)
    )
  learning = dataclasses.replace(held, gradient=gradient)
  needs[GRADIENT] = dataclasses.replace(
    learning, activations=_learning(job, minibatch)
  )
  needs[UPDATE] = dataclasses.replace(learning, activations=_updating(job))
  return needs


def hold(job: job_lib.Job) -> Needs:
  """Returns what rests on a device."""
  state = job.state
  return Needs(
    weights=job_lib.count_bytes((state.params, state.frozen, state.reference)),
    optimizer=job_lib.count_bytes(state.opt_state),
  )


def count_sampler_weights(job: job_lib.Job) -> float:
  """Returns the bytes of the weights that are sampled with."""
  config, t = job.model.config, job.mesh.shape['tensor']
  itemsize = jnp.dtype(job.model.dtype).itemsize
  total = llama.count_params(config) * itemsize / t
  if job.config.sampling.quantize_weights:
    body, head = work.count_matmul_params(config)
    total -= (body + head) * (itemsize - 1) / t
  return total


def count_cache(job: job_lib.Job, rows: int) -> float:
  """Returns the bytes of keys and values of prompts and of rows."""
  config, G = job.model.config, job.group_size
  size = find_shape(job).cache_bytes
  token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size
  token /= job.mesh.shape['tensor']
  own = rows // job.shards
  asked = -(-job.num_rows // G // job.shards)
  prompts = own // G
  if asked > prompts and G > 1:  # others take the places of those that ended
    prompts = min(asked, 3 * prompts, own - 1)
  return token * (prompts * job.prompt_len + own * job.completion_len)


def count_gradient(job):
  own = sum(
    int(np.prod(x.sharding.shard_shape(x.shape)))
    for x in jax.tree.leaves(job.state.params)
  )
  return 4.0 * own


def _preparing(job):
  """Stacked layers are gathered before they are parted."""
  shape = find_shape(job)
  if shape.fsdp == 1:
    return 0.0
  config = shape.config
  largest = config.num_layers * config.embed_dim * config.ffw_dim
  return largest / shape.tensor * shape.itemsize * 2


def _decoding(job, rows):
  shape = find_shape(job)
  own = rows // job.shards
  logits = 3.0 * own * shape.config.vocab_size * 4
  if job.devices.kind.platform == 'tpu':
    # Joined matrices are laid out anew, for the unit that multiplies.
    logits += _count_joined(shape) * shape.weight_bytes
  return logits


def _count_joined(shape):
  """Returns how many weights of a device are in joined matrices."""
  config = shape.config
  heads = config.num_heads + 2 * config.num_kv_heads
  layer = config.embed_dim * (heads * config.head_dim + 2 * config.ffw_dim)
  return config.num_layers * layer / shape.tensor


def _admitting(job, rows):
  shape = find_shape(job)
  config, P, t = shape.config, shape.prompt_len, shape.tensor
  prompts = max(rows // job.shards // shape.group_size, 1)
  prompts = min(prompts, max(2**14 // P, 1))
  tokens = prompts * P
  scores = prompts * config.num_heads / t * P * P * 4
  feed = 3 * tokens * config.ffw_dim / t * shape.itemsize
  stream = 4 * tokens * config.embed_dim * shape.itemsize
  cache = tokens * 2 * config.num_layers * config.num_kv_heads
  cache *= config.head_dim / t * shape.cache_bytes
  logits = 2.0 * prompts * shape.group_size * config.vocab_size * 4
  return max(2 * scores + stream, feed + stream) + cache + logits


def _learning(job, minibatch):
  """The new gradient, a copy of what it is added to, and the more of what the
  last projection and what a layer needs."""
  shape = find_shape(job)
  config, t, a = shape.config, shape.tensor, shape.itemsize
  b, T, S = _find_lines(job, minibatch)
  tokens = b * T
  own = count_gradient(job) / 4
  V, D = config.vocab_size / t, config.embed_dim
  copies = 2 if not config.tied else 1
  table = V * D
  residuals = config.num_layers * tokens * D * a
  chunk = projection.chunk_len(b, T, int(V))
  head = copies * table * (4 + a) + 2.0 * b * chunk * V * 4
  scores = b * config.num_heads / t * T * S * 4
  feed = tokens * config.ffw_dim / t * a
  one_layer = (llama.count_params(config) / t - copies * table) * a
  one_layer /= config.num_layers
  inner = 2 * scores + 5 * feed + 6 * tokens * D * a + 2 * one_layer
  if shape.remat != 'layer':
    # What a layer made is kept, its gathered weights too.
    heads = (config.num_heads * 2 + 2 * config.num_kv_heads) * config.head_dim
    kept = tokens * (heads / t + 3 * config.ffw_dim / t + 3 * D) * a
    gathered = one_layer if shape.fsdp > 1 or shape.param_itemsize != a else 0
    residuals += config.num_layers * (kept + gathered)
  return own * (shape.param_itemsize + 4) + residuals + max(head, inner)


def _find_lines(job, minibatch):
  """Returns lines of a device, their slots, and the slots that each looks at."""
  room = job.make_room(minibatch)
  lines, T = room.shapes[0]
  local = len(sharding.local_shards())
  size = -(-room.max_completion_len // 4)
  seen = room.prompt_slots + 5 * size
  return lines // local, T, min(T, seen)


def _updating(job):
  return 0.02 * count_gradient(job)
