"""Rows for the learner's tests, and one optimizer step on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dash_jax import batches, sharding
from dash_jax.learning import filtering, learner, losses
from dash_jax.model import llama
from dash_jax.sampling import decoding

P, C = 4, 6
# The update subtracts the gradient itself, so tests can read it.
SGD = optax.sgd(1.0)
POLICY = losses.Objective()


def draw_rollouts(num=8, seed=0) -> batches.Rollouts:
  """Rows of all lengths; padding holds ids as likely as any others. The old
  log-probabilities are far enough off that some ratios are clipped."""
  rng = np.random.default_rng(seed)
  prompt_lens = rng.integers(1, P + 1, num)
  completion_lens = rng.integers(1, C + 1, num)
  in_prompt = np.arange(P) >= P - prompt_lens[:, None]
  in_completion = np.arange(C) < completion_lens[:, None]
  completion_mask = np.concatenate([in_prompt & False, in_completion], axis=1)
  logprobs = -np.log(64) + 0.3 * rng.normal(size=completion_mask.shape)
  return batches.Rollouts(
    tokens=rng.integers(0, 64, completion_mask.shape).astype(np.int32),
    mask=np.concatenate([in_prompt, in_completion], axis=1),
    completion_mask=completion_mask,
    logprobs=np.where(completion_mask, logprobs, 0).astype(np.float32),
    truncated=np.zeros(num, bool),
    policy_step=np.zeros(num, np.int32),
  )


def draw_params(config, seed=1) -> dict:
  """Returns weights on the host."""
  return jax.device_get(
    llama.init_params(config, jax.random.key(seed), jnp.float32)
  )


def put_params(config, params) -> dict:
  """Returns weights in the TRAIN layout of the mesh in use."""
  return jax.tree.map(
    lambda x, like: jax.device_put(x, like.sharding),
    params,
    llama.abstract_params(config, jnp.float32),
  )


def cut(rollouts, gain, *, keep=None, denominator='sampled', size=4):
  """Returns the minibatches and n of a step, as the training loop makes them."""
  if keep is None:
    keep = np.ones(len(gain), bool)
  weight, counted = losses.row_weights(
    'sequence', rollouts.completion_mask.sum(axis=1), C
  )
  if denominator == 'kept':
    counted = counted * keep
  return filtering.cut(
    rollouts, gain, keep, weight / max(counted.sum(), 1), size
  )


def take_step(
  config, params, minibatches, n, *,
  ref_params=None, objective=POLICY, temperature=1.0,
  optimizer=SGD,
):  # fmt: skip
  """Returns the state after one step from host weights, and its metrics."""
  state = learner.init_state(put_params(config, params), optimizer)
  if ref_params is not None:
    ref_params = put_params(config, ref_params)
  state, metrics = learner.update(
    state,
    sharding.put_rows(minibatches, axis=1),
    jnp.int32(n),
    ref_params,
    decoding.make_decoding(temperature),
    model=llama.Llama(config),
    optimizer=optimizer,
    max_completion_len=C,
    objective=objective,
  )
  return state, {name: float(x) for name, x in metrics.items()}
