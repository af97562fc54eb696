"""The optimizers, from optax, and what their state is kept in.

1. `make_optimizer` builds one of NAMES, with a clip of the global norm in front
   and a schedule. It computes in float32, whatever the weights are in.
2. Moments rest in float32, or in fewer bits (`_keep_in`), rounded
   stochastically: to the nearest, a second moment in bfloat16 would not move by
   1 - b2 of itself.
3. `add_updates` changes weights, and rounds those of bfloat16 stochastically
   too, so that updates below their precision are not lost.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from dash_jax import batches

NAMES = ('adamw', 'adafactor', 'lion', 'muon')
MOMENTS = ('float32', 'bfloat16', 'int8')
SCHEDULES = ('constant', 'linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """An optimizer and its schedule.

  Attributes:
    learning_rate: the peak.
    schedule: constant, or linear or cosine decay to 0 over `total_steps`.
    warmup_steps: steps of linear rise before the schedule begins; step i of
      them has (i + 1) / (warmup_steps + 1) of the peak.
    total_steps: optimizer steps of the phase, warm-up included.
    weight_decay: decoupled, on matrices only: not on norms and biases.
    max_grad_norm: global-norm clip; 0 clips nothing.
    b1, b2: of AdamW's moments.
    name: of NAMES.
    moments: of MOMENTS, what AdamW's and Lion's rest in.
  """

  learning_rate: float
  schedule: str
  warmup_steps: int
  total_steps: int
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999
  name: str = 'adamw'
  moments: str = 'float32'


def make_schedule(config: OptimConfig) -> optax.Schedule:
  """Returns the learning rate as a function of the steps taken."""
  rest = max(config.total_steps - config.warmup_steps, 1)
  after = {
    'constant': optax.constant_schedule(config.learning_rate),
    'linear': optax.linear_schedule(config.learning_rate, 0.0, rest),
    'cosine': optax.cosine_decay_schedule(config.learning_rate, rest),
  }[config.schedule]
  # From above 0: a step of rate 0 would sample a batch for nothing.
  first = config.learning_rate / (config.warmup_steps + 1)
  rise = optax.linear_schedule(first, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([rise, after], [config.warmup_steps])


@functools.cache  # equal ones are one, and so are the programs they are part of
def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """Returns the optimizer.

  Source: AdamW, arXiv 1711.05101; Adafactor, arXiv 1804.04235, without its
    relative steps; Lion, arXiv 2302.06675; Muon, github.com/KellerJordan/Muon,
    for matrices of the layers, with AdamW for all else.
  """
  rate = make_schedule(config)
  decay = {'weight_decay': config.weight_decay, 'mask': _select_matrices}
  if config.name == 'adamw':
    inner = optax.adamw(rate, b1=config.b1, b2=config.b2, **decay)
  elif config.name == 'lion':
    inner = optax.lion(rate, **decay)
  elif config.name == 'adafactor':
    inner = optax.chain(
      optax.scale_by_factored_rms(),
      optax.clip_by_block_rms(1.0),
      optax.add_decayed_weights(**decay),
      optax.scale_by_learning_rate(rate),
    )
  else:
    inner = optax.contrib.muon(
      rate,
      weight_decay=config.weight_decay,
      weight_decay_mask=_select_matrices,
      adam_b1=config.b1,
      adam_b2=config.b2,
      muon_weight_dimension_numbers=_find_muon_axes,
      consistent_rms=0.2,
    )
  if config.name in ('adafactor', 'muon'):
    inner = _in_auto_mode(inner)
  if config.moments != 'float32':
    inner = _keep_in(config.moments, inner)
  if config.max_grad_norm:
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    inner = optax.chain(clip, inner)
  return _in_float32(inner)


def add_updates(params: dict, updates: dict, key: jax.Array) -> dict:
  """Returns params + updates; bfloat16 is rounded stochastically.

  Args:
    params: weights.
    updates: float32, of the same shapes.
    key: noise of the rounding.
  """
  leaves, treedef = jax.tree.flatten(params)

  def add(i, x, update):
    total = x.astype(jnp.float32) + update
    if x.dtype == jnp.float32:
      return total
    return _round_to_bfloat16(total, jax.random.fold_in(key, i))

  return treedef.unflatten(
    [
      add(i, x, update)
      for i, (x, update) in enumerate(
        zip(leaves, jax.tree.leaves(updates), strict=True)
      )
    ]
  )


def _round_to_bfloat16(x, key):
  """Rounds f32 up or down at random, so that the mean is x."""
  noise = jax.random.bits(
    key, x.shape, jnp.uint16, out_sharding=jax.typeof(x).sharding
  )
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # To what is cut off a number below its unit is added: it carries over as
  # often as the part that is cut off is large.
  bits = (bits + noise.astype(jnp.uint32)) & jnp.uint32(0xFFFF0000)
  return jax.lax.bitcast_convert_type(bits, jnp.float32).astype(jnp.bfloat16)


@batches.pytree
class Bits8:
  """A moment in 8 bits, with a scale for each slice along the last axis.

  Attributes:
    values: int8, from -127 to 127.
    scale: f32, the shape of values but for a last axis of 1.
  """

  values: jax.Array
  scale: jax.Array


def _to_8_bits(x, key, is_square):
  """Returns Bits8 of a moment, rounded stochastically.

  Of a second moment the root is kept, and what is not zero is at least 1: a
  root of 0 would be divided by.
  """
  x = jnp.sqrt(x) if is_square else x
  scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
  noise = jax.random.uniform(key, x.shape, out_sharding=jax.typeof(x).sharding)
  values = jnp.floor(x / jnp.where(scale > 0, scale, 1.0) + noise)
  if is_square:
    values = jnp.where(x > 0, jnp.maximum(values, 1.0), 0.0)
  return Bits8(jnp.clip(values, -127, 127).astype(jnp.int8), scale)


def _from_8_bits(kept, is_square):
  x = kept.values.astype(jnp.float32) * kept.scale
  return x * x if is_square else x


def _keep_in(moments, inner):
  """Keeps the moments of matrices in fewer bits between updates."""

  def is_moment(path):
    names = {getattr(key, 'name', None) for key in path}
    return bool(names & {'mu', 'nu'})

  def is_square(path):
    return any(getattr(key, 'name', None) == 'nu' for key in path)

  def compress(state, key):
    num = 0

    def convert(path, x):
      nonlocal num
      num += 1
      if not is_moment(path) or x.ndim < 2:
        return x
      noise = jax.random.fold_in(key, num)
      if moments == 'int8':
        return _to_8_bits(x, noise, is_square(path))
      return _round_to_bfloat16(x, noise)

    return jax.tree_util.tree_map_with_path(convert, state)

  def expand(state):
    def convert(path, x):
      if isinstance(x, Bits8):
        return _from_8_bits(x, is_square(path))
      return x.astype(jnp.float32) if is_moment(path) else x

    return jax.tree_util.tree_map_with_path(
      convert, state, is_leaf=lambda x: isinstance(x, Bits8)
    )

  def update(grads, state, params):
    count, state = state
    updates, state = inner.update(grads, expand(state), params)
    key = jax.random.fold_in(jax.random.key(0), count)
    return updates, (count + 1, compress(state, key))

  return optax.GradientTransformation(
    init=lambda params: (
      jnp.int32(0),
      compress(inner.init(params), jax.random.key(0)),
    ),
    update=update,
  )


def _in_auto_mode(inner):
  """Lets the compiler lay out what is inside an update, and returns arrays in
  the layouts that they came in."""

  def layouts(tree):
    return jax.tree.map(lambda x: jax.typeof(x).sharding, tree)

  def update(grads, state, params):
    out = (layouts(grads), layouts(state))
    return jax.sharding.auto_axes(inner.update, out_sharding=out)(
      grads, state, params
    )

  return optax.GradientTransformation(inner.init, update)


def _in_float32(inner) -> optax.GradientTransformation:
  """Computes in float32 whatever the weights are in."""

  def widen(params):
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)

  return optax.GradientTransformation(
    init=lambda params: inner.init(widen(params)),
    update=lambda grads, state, params: inner.update(
      grads, state, widen(params)
    ),
  )


def _find_muon_axes(params: dict) -> dict:
  """Returns which axes of a weight are a matrix's inputs and outputs: of those
  inside layers, whose first axis counts the layers; None is left to AdamW."""
  outputs = {'wo': (3,)}

  def find(path, x):
    name = path[-1].key
    if path[0].key != 'layers' or name not in _LAYER_MATRICES:
      return None
    axes = tuple(range(1, x.ndim))
    out = outputs.get(name, axes[1:])
    inputs = tuple(axis for axis in axes if axis not in out)
    return optax.contrib.MuonDimensionNumbers(inputs, out)

  return jax.tree_util.tree_map_with_path(find, params)


_LAYER_MATRICES = ('wq', 'wk', 'wv', 'wo', 'w_gate', 'w_up', 'w_down')


def _select_matrices(params: dict) -> dict:
  # By name: stacked over layers, norms and biases have two axes or more too.
  def is_matrix(path, _):
    name = path[-1].key
    return not (name.endswith('norm') or name in ('bq', 'bk', 'bv'))

  return jax.tree_util.tree_map_with_path(is_matrix, params)
