"""One optimizer step over packed minibatches.

  1. Each minibatch runs the reference (if the loss has a KL term) and the policy,
     and its gradient is added up in float32. There are as many minibatches as
     the kept tokens fill: the cost follows them.
  2. The optimizer changes the weights once.

The gradient is a plain sum over rows (see losses.py), so any minibatch size
and any number of accumulation steps give the same update.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dash_jax import batches
from dash_jax.learning import losses, optim, projection, reading
from dash_jax.model import layers, llama, lora
from dash_jax.sampling import decoding as decoding_lib


def init_state(
  params: dict, optimizer, adapters: lora.Lora | None = None
) -> batches.TrainState:
  """Returns the state before the first step; moments take the weights' layout.

  Args:
    params: the tree of `llama.weights`.
    optimizer: of the weights that are trained.
    adapters: what is trained, if it is not all.
  """
  trained, frozen = lora.split(adapters, params)
  return batches.TrainState(
    step=jnp.int32(0),
    params=trained,
    opt_state=jax.jit(optimizer.init)(trained),
    kl_scale=jnp.float32(1),
    frozen=frozen,
  )


def abstract_state(
  model: llama.Llama, optimizer, *, has_reference: bool = False
) -> batches.TrainState:
  """Returns the state's shapes and layouts, for a checkpoint to fill; it holds
  nothing that is frozen."""
  params = llama.abstract_params(model.config, model.param_dtype)
  params, _ = lora.split(model.config.lora, params)
  mesh = jax.sharding.get_mesh()

  def place(x):
    # Scalars carry no layout: every device holds them.
    spec = x.sharding.spec if x.sharding else PartitionSpec()
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    )

  opt_state = jax.tree.map(place, jax.eval_shape(optimizer.init, params))
  return batches.TrainState(
    step=place(jax.ShapeDtypeStruct((), jnp.int32)),
    params=params,
    opt_state=opt_state,
    kl_scale=place(jax.ShapeDtypeStruct((), jnp.float32)),
    reference=params if has_reference else None,
  )


def minibatch_loss(
  params,
  model,
  minibatch,
  ref_params,
  decoding,
  objective,
  frozen=None,
  dropout_key=None,
  kl_scale=1.0,
):
  """Returns the loss of one minibatch and sums for the metrics.

  Args:
    params: weights to differentiate.
    model: the architecture.
    minibatch: batches.Minibatch.
    ref_params: reference weights, used when objective.kl_coef > 0.
    decoding: the distribution the rows were sampled from.
    objective: what to minimise.
    frozen: the model's other weights, if these are adapters; the reference's
      are the same.
    dropout_key: noise of the adapters' dropout, if they have any.
    kl_scale: f32[], what objective.kl_coef is multiplied by.
  """
  frozen = frozen or {}
  values = reading.find_targets(minibatch) | {
    'sampled': minibatch.logprobs,
    'old': minibatch.old_logprobs,
    'advantages': minibatch.advantages,
    'weight': minibatch.weight,
    'returns': minibatch.returns,
  }
  if dropout_key is not None:
    slots = jnp.arange(minibatch.slots.shape[1])
    values['place'] = jnp.broadcast_to(slots, minibatch.slots.shape)
  if objective.kl_coef:
    values['ref'] = reading.minibatch_logprobs(
      model, lora.join(ref_params, frozen), minibatch, decoding
    )
  x, head = reading.read(
    model, lora.join(params, frozen), minibatch, dropout_key
  )
  return projection.sum_over_slots(
    functools.partial(_sum_losses, model.config, objective),
    reading.chunk_len(model, *minibatch.slots.shape),
    x,
    head,
    values,
    (decoding, dropout_key, kl_scale),
  )


def _sum_losses(config, objective, x, weights, values, shared):
  """Returns the loss of some slots and sums for the metrics."""
  decoding, dropout_key, kl_scale = shared
  mask = values['mask']
  if dropout_key is not None:  # of these slots
    dropout_key = jax.random.fold_in(dropout_key, values['place'].max())
  logits = layers.unembed(config, weights, x, dropout_key)
  logprobs = decoding_lib.token_logprobs(
    logits, values['tokens'], values['slots'], decoding
  )
  # Slots without a target must not overflow a ratio: their gradient would be
  # 0 times infinity.
  logprobs = jnp.where(mask, logprobs, 0.0)
  loss, clipped = losses.policy_loss(
    objective, logprobs, values['old'], values['advantages']
  )
  if objective.importance_cap:
    mismatch = jnp.exp(values['old'] - values['sampled'])
    loss = loss * jnp.minimum(mismatch, objective.importance_cap)
  kl = jnp.zeros_like(logprobs)
  if objective.kl_coef:
    ref = jnp.where(mask, values['ref'], 0.0)
    kl = losses.estimate_kl(objective.kl_estimator, logprobs, ref)
    loss = loss + kl_scale * objective.kl_coef * kl
  entropy = -logprobs
  if objective.entropy_coef:
    entropy = decoding_lib.token_entropy(logits, values['slots'], decoding)
    loss = loss - objective.entropy_coef * entropy
  value_loss = jnp.zeros_like(logprobs)
  if objective.value_coef:
    error = layers.read_score(weights, x) - values['returns']
    value_loss = error**2 / 2
    loss = loss + objective.value_coef * value_loss

  def total(x):
    return jnp.sum(jnp.where(mask, x, 0.0))

  gap = jnp.abs(logprobs - values['sampled'])
  if not objective.is_sampled:
    gap = jnp.zeros_like(gap)
  return total(loss * values['weight']), {
    'tokens': total(1.0),
    'kl': total(kl),
    'entropy': total(entropy),
    'clipped': total(clipped.astype(jnp.float32)),
    'gap': total(gap),
    'value_loss': total(value_loss),
  }


_AT_ONCE = 8  # minibatches that one call has room for
_SUMS = ('tokens', 'kl', 'entropy', 'clipped', 'gap', 'value_loss')


def update(
  state: batches.TrainState,
  minibatches: list[batches.Minibatch],
  decoding: decoding_lib.Decoding,
  dropout_key: jax.Array | None = None,
  *,
  model: llama.Llama,
  optimizer: optax.GradientTransformation,
  objective: losses.Objective,
  change: int = 0,
  is_last: bool = True,
) -> tuple[batches.TrainState, dict]:
  """Changes the weights once.

  Args:
    state: donated.
    minibatches: on the mesh; none leaves the gradient 0.
    decoding: the distribution the rows were sampled from.
    dropout_key: noise of the run, needed if adapters have dropout; a step uses
      of it what belongs to its number.
    model, optimizer, objective: parts of the programs.
    change: the number of the change in its step.
    is_last: whether the step ends with it, and the state's number goes up.

  Returns:
    The new state, and f32[] metrics: tokens, loss, grad_norm, and means over
    these tokens: kl, entropy (Monte Carlo: mean of -logprob), clip_fraction,
    logprob_gap, value_loss.
  """
  totals = sum_gradients(
    state, minibatches, decoding, dropout_key, model=model, objective=objective
  )
  return _apply(
    state, totals, np.int32(change), np.bool_(is_last), optimizer=optimizer
  )


def sum_gradients(
  state: batches.TrainState,
  minibatches: list[batches.Minibatch],
  decoding: decoding_lib.Decoding,
  dropout_key: jax.Array | None = None,
  *,
  model: llama.Llama,
  objective: losses.Objective,
) -> tuple:
  """Returns ((loss, sums), gradient in float32) of all minibatches.

  Args: as `update`'s; nothing is donated. Running it compiles all that `update`
    runs of minibatches of these shapes.
  """
  key = _step_key(model, dropout_key, state.step)
  totals, done = _zeros(state.params), 0
  for stacked, num in _stack(minibatches):
    totals = _accumulate(
      totals, state, stacked, np.int32(num), np.int32(done), decoding, key,
      model=model, objective=objective,
    )  # fmt: skip
    done += num
  return totals


def _stack(minibatches):
  """Yields neighbours of one shape together, as arrays [_AT_ONCE, b, T], and how
  many there are: what is behind them is not looked at.

  One call for several of them gets its memory once, which on CPU is a third of
  the time of a call.
  """
  for _, alike in itertools.groupby(minibatches, lambda m: m.slots.shape):
    alike = list(alike)
    for i in range(0, len(alike), _AT_ONCE):
      some = alike[i : i + _AT_ONCE]
      padded = [*some, *some[:1] * (_AT_ONCE - len(some))]
      yield jax.tree.map(lambda *x: jnp.stack(x), *padded), len(some)


def measure(
  state: batches.TrainState,
  minibatch: batches.Minibatch,
  decoding: decoding_lib.Decoding,
  dropout_key: jax.Array | None = None,
  *,
  model: llama.Llama,
  objective: losses.Objective,
) -> int:
  """Returns the bytes that a device needs beside the state, to learn from
  minibatches of this shape; compiles to find out.

  Args: as `update`'s.

  Raises:
    RuntimeError: RESOURCE_EXHAUSTED, where the compiler itself finds that it
      does not fit.
  """
  lowered = lower(
    state, minibatch, decoding, dropout_key, model=model, objective=objective
  )
  memory = lowered.compile().memory_analysis()
  # The gradient is both an argument and what is returned.
  return memory.temp_size_in_bytes + memory.output_size_in_bytes


def lower(
  state: batches.TrainState,
  minibatch: batches.Minibatch,
  decoding: decoding_lib.Decoding,
  dropout_key: jax.Array | None = None,
  *,
  model: llama.Llama,
  objective: losses.Objective,
) -> jax.stages.Lowered:
  """Returns the program that `sum_gradients` runs of minibatches of this shape.

  Args: as `update`'s; shapes and layouts do.
  """
  stacked = jax.eval_shape(lambda m: next(_stack([m]))[0], minibatch)
  key = jax.eval_shape(
    functools.partial(_step_key, model), dropout_key, state.step
  )
  return _accumulate.lower(
    jax.eval_shape(_zeros, state.params), state, stacked, np.int32(1),
    np.int32(0), decoding, key, model=model, objective=objective,
  )  # fmt: skip


def lower_apply(
  state: batches.TrainState, optimizer: optax.GradientTransformation
) -> jax.stages.Lowered:
  """Returns the program that changes the weights.

  Args: as `update`'s; shapes and layouts do.
  """
  totals = jax.eval_shape(_zeros, state.params)
  return _apply.lower(
    state, totals, np.int32(0), np.bool_(True), optimizer=optimizer
  )


@jax.jit
def compare_gradients(a: dict, b: dict) -> jax.Array:
  """Returns f32[], the cosine between two gradients; 0 where one of them is 0."""
  both = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), a, b))
  norms = optax.tree.norm(a) * optax.tree.norm(b)
  return sum(both) / jnp.where(norms > 0, norms, 1.0)


def _step_key(model, dropout_key, step):
  if model.config.lora is None or not model.config.lora.dropout:
    return None
  return jax.random.fold_in(dropout_key, step)


@jax.jit
def _zeros(params):
  zero = jnp.float32(0)
  grads = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params)
  return (zero, dict.fromkeys(_SUMS, zero)), grads


@functools.partial(
  jax.jit,
  static_argnames=('model', 'objective'),
  donate_argnames=('totals',),
)
def _accumulate(
  totals, state, minibatches, num, first, decoding, step_key, *, model,
  objective,
):  # fmt: skip
  """Returns ((loss, sums), gradient), those of the first `num` minibatches, which
  are stacked, added to `totals`, which are donated.

  Args: `first` is how many minibatches the step has had before.
  """
  differentiate = jax.value_and_grad(minibatch_loss, has_aux=True)

  def add(i, totals):
    minibatch = jax.tree.map(
      lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), minibatches
    )
    key = (
      step_key if step_key is None else jax.random.fold_in(step_key, first + i)
    )
    found = differentiate(
      state.params, model, minibatch, state.reference, decoding, objective,
      state.frozen, key, state.kl_scale,
    )  # fmt: skip
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), totals, found)

  return jax.lax.fori_loop(0, num, add, totals)


def follow_gradient(
  state: batches.TrainState,
  loss: jax.Array,
  grads: dict,
  optimizer: optax.GradientTransformation,
  change: jax.Array | int = 0,
  is_last: jax.Array | bool = True,
) -> batches.TrainState:
  """Returns the state after one change of its weights; where the loss or the
  gradient is not finite, weights and optimizer stay as they were.

  Args:
    state: as it is.
    loss: f32[].
    grads: as `state.params`.
    optimizer: of these.
    change: its number in the step, i32[]: each rounds by noise of its own.
    is_last: whether the step ends with it, and the state's number goes up.
  """
  key = jax.random.fold_in(jax.random.key(1), state.step)
  key = jax.random.fold_in(key, change)

  def follow(params, opt_state):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optim.add_updates(params, updates, key), opt_state

  params, opt_state = jax.lax.cond(
    jnp.isfinite(loss + optax.tree.norm(grads)),
    follow,
    lambda *unchanged: unchanged,
    state.params,
    state.opt_state,
  )
  return dataclasses.replace(
    state,
    step=state.step + jnp.int32(is_last),
    params=params,
    opt_state=opt_state,
  )


@functools.partial(
  jax.jit,
  static_argnames=('optimizer',),
  donate_argnames=('state',),
)
def _apply(state, totals, change, is_last, *, optimizer):
  """Returns the new state and metrics."""
  (loss, sums), grads = totals
  new_state = follow_gradient(state, loss, grads, optimizer, change, is_last)
  tokens = jnp.maximum(sums['tokens'], 1.0)
  metrics = {
    'tokens': sums['tokens'],
    'loss': loss,
    'grad_norm': optax.tree.norm(grads),
    'kl': sums['kl'] / tokens,
    'entropy': sums['entropy'] / tokens,
    'clip_fraction': sums['clipped'] / tokens,
    'logprob_gap': sums['gap'] / tokens,
    'value_loss': sums['value_loss'] / tokens,
  }
  return new_state, metrics
