"""One optimizer step over the minibatches that carry signal.

  1. A loop over the first n of M minibatches runs the reference (if the loss
     has a KL term) and the policy, and adds up the gradient in float32. n is a
     value of the program: no step compiles, and cost follows n.
  2. The optimizer changes the weights once.

The gradient is a plain sum over rows (see losses.py), so any minibatch size
and any number of accumulation steps give the same update.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dash_jax import batches
from dash_jax.learning import losses
from dash_jax.model import llama, lora
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
    frozen=frozen,
  )


def abstract_state(model: llama.Llama, optimizer) -> batches.TrainState:
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
  step = place(jax.ShapeDtypeStruct((), jnp.int32))
  return batches.TrainState(step, params, opt_state)


def completion_logprobs(
  model: llama.Llama,
  params: dict,
  rollouts: batches.Rollouts,
  decoding: decoding_lib.Decoding,
  dropout_key: jax.Array | None = None,
):
  """Returns f32[Q, G, C], log-probabilities of the completions' tokens.

  Slots after a row's end hold arbitrary finite values.
  """
  apply = functools.partial(model.apply, {'params': params})
  prompts = rollouts.prompts
  hidden = apply(
    prompts.tokens,
    prompts.mask,
    rollouts.tokens,
    dropout_key,
    method=llama.Llama.read_group,
  )
  logits = apply(hidden, dropout_key, method=llama.Llama.logits)
  slots = jnp.arange(rollouts.tokens.shape[-1])
  return decoding_lib.token_logprobs(logits, rollouts.tokens, slots, decoding)


def minibatch_loss(
  params,
  model,
  minibatch,
  ref_params,
  decoding,
  objective,
  frozen=None,
  dropout_key=None,
):
  """Returns the loss of one minibatch and sums for the metrics.

  Args:
    params: weights to differentiate.
    model: the architecture.
    minibatch: batches.Minibatches without the leading M.
    ref_params: reference weights, used when objective.kl_coef > 0.
    decoding: the distribution the rows were sampled from.
    objective: what to minimise.
    frozen: the model's other weights, if these are adapters; the reference's
      are the same.
    dropout_key: noise of the adapters' dropout, if they have any.
  """
  frozen = frozen or {}
  rollouts = minibatch.rollouts
  weight = minibatch.weight[..., None]
  mask = rollouts.mask & (weight > 0)
  logprobs = completion_logprobs(
    model, lora.join(params, frozen), rollouts, decoding, dropout_key
  )

  def on_tokens(x):
    # Slots without a token must not overflow a ratio: their gradient would be
    # 0 times infinity.
    return jnp.where(mask, x, jax.lax.stop_gradient(logprobs))

  if objective.supervised:
    old = jax.lax.stop_gradient(logprobs)
    loss, clipped = -logprobs, jnp.zeros_like(mask)
  else:
    old = on_tokens(rollouts.logprobs)
    loss, clipped = losses.clipped_policy_loss(
      logprobs,
      old,
      minibatch.advantages,
      objective.clip_low,
      objective.clip_high,
    )
  kl = jnp.zeros_like(logprobs)
  if objective.kl_coef:
    ref = completion_logprobs(
      model, lora.join(ref_params, frozen), rollouts, decoding
    )
    kl = losses.k3_kl(logprobs, on_tokens(jax.lax.stop_gradient(ref)))
    loss = loss + objective.kl_coef * kl

  def total(x):
    return jnp.sum(jnp.where(mask, x, 0.0))

  sums = {
    'tokens': total(1.0),
    'kl': total(kl),
    'entropy': total(-logprobs),
    'clipped': total(clipped.astype(jnp.float32)),
    'gap': total(jnp.abs(logprobs - old)),
  }
  return total(loss * weight), sums


@functools.partial(
  jax.jit,
  static_argnames=('model', 'optimizer', 'objective'),
  donate_argnames=('state',),
)
def update(
  state: batches.TrainState,
  minibatches: batches.Minibatches,
  num_minibatches: jax.Array,
  ref_params: dict | None,
  decoding: decoding_lib.Decoding,
  dropout_key: jax.Array | None = None,
  *,
  model: llama.Llama,
  optimizer: optax.GradientTransformation,
  objective: losses.Objective,
) -> tuple[batches.TrainState, dict]:
  """Takes one optimizer step.

  Args:
    state: donated.
    minibatches: M minibatches, of which the first n hold rows to learn from.
    num_minibatches: i32[], n.
    ref_params: the reference policy, of the weights that are trained; None when
      objective.kl_coef is 0.
    decoding: the distribution the rows were sampled from.
    dropout_key: noise of the run, needed if adapters have dropout; a step uses
      of it what belongs to its number.
    model, optimizer, objective: parts of the program.

  Returns:
    The new state, and f32[] metrics: loss, grad_norm, kl, entropy (Monte
    Carlo: mean of -logprob over trained tokens), clip_fraction, logprob_gap.
  """
  grad_fn = jax.value_and_grad(minibatch_loss, has_aux=True)
  has_dropout = model.config.lora is not None and model.config.lora.dropout > 0
  if has_dropout:
    step_key = jax.random.fold_in(dropout_key, state.step)

  def accumulate(i, carry):
    def pick(x):
      return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)

    (loss, sums), grads = grad_fn(
      state.params,
      model,
      jax.tree.map(pick, minibatches),
      ref_params,
      decoding,
      objective,
      state.frozen,
      jax.random.fold_in(step_key, i) if has_dropout else None,
    )
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    return jax.tree.map(jnp.add, carry, (loss, sums, grads))

  zero = jnp.float32(0)
  names = ('tokens', 'kl', 'entropy', 'clipped', 'gap')
  loss, sums, grads = jax.lax.fori_loop(
    0,
    num_minibatches,
    accumulate,
    (
      zero,
      dict.fromkeys(names, zero),
      jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), state.params),
    ),
  )
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  new_state = batches.TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    frozen=state.frozen,
  )
  tokens = jnp.maximum(sums['tokens'], 1.0)
  metrics = {
    'loss': loss,
    'grad_norm': optax.tree.norm(grads),
    'kl': sums['kl'] / tokens,
    'entropy': sums['entropy'] / tokens,
    'clip_fraction': sums['clipped'] / tokens,
    'logprob_gap': sums['gap'] / tokens,
  }
  return new_state, metrics
