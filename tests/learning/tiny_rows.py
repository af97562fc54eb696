"""Rows for the learner's tests, and one optimizer step on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dash_jax import batches, sharding
from dash_jax.learning import learner, losses, packing
from dash_jax.model import llama
from dash_jax.sampling import decoding

P, C = 4, 6
# The update subtracts the gradient itself, so tests can read it.
SGD = optax.sgd(1.0)
POLICY = losses.Objective()


def draw_rollouts(num_prompts=4, num_samples=2, seed=0) -> batches.Rollouts:
  """Rows of all lengths; padding holds ids as likely as any others. The old
  log-probabilities are far enough off that some ratios are clipped."""
  rng = np.random.default_rng(seed)
  rows = (num_prompts, num_samples)
  lengths = rng.integers(1, C + 1, rows).astype(np.int32)
  logprobs = -np.log(64) + 0.3 * rng.normal(size=(*rows, C))
  mask = np.arange(C) < lengths[..., None]
  return batches.Rollouts(
    prompts=batches.PromptBatch(
      tokens=rng.integers(0, 64, (num_prompts, P)).astype(np.int32),
      lengths=rng.integers(1, P + 1, num_prompts).astype(np.int32),
      uids=np.arange(num_prompts, dtype=np.int32),
    ),
    tokens=rng.integers(0, 64, (*rows, C)).astype(np.int32),
    lengths=lengths,
    logprobs=np.where(mask, logprobs, 0).astype(np.float32),
    truncated=np.zeros(rows, bool),
    policy_step=np.zeros(rows, np.int32),
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


def cut(rollouts, gain, *, keep=None, denominator='sampled', size=4, **more):
  """Returns the minibatches of a step, as the training loop makes them."""
  if keep is None:
    keep = np.ones(gain.shape, bool)
  weight, counted = losses.row_weights('sequence', rollouts.lengths, C)
  if denominator == 'kept':
    counted = counted * keep
  weight = weight / max(counted.sum(), 1)
  return pack(rollouts, gain, keep, weight, size, **more)


def pack(rollouts, gain, keep, weight, size, **more):
  """Returns minibatches with room for `size` full rows, on the host; `more` are
  further fields of theirs, f32[Q, G, C]."""
  _, G, num_slots = rollouts.tokens.shape
  room = packing.make_room(size, G, rollouts.prompts.tokens.shape[1], num_slots)
  values = {
    'logprobs': rollouts.logprobs,
    'old_logprobs': rollouts.logprobs,
    'advantages': gain,
    'weight': weight,
  } | more
  return packing.pack(
    rollouts, packing.lay_out(rollouts, keep, room), room, values
  )


def take_step(
  config, params, minibatches, *,
  ref_params=None, objective=POLICY, temperature=1.0,
  optimizer=SGD,
):  # fmt: skip
  """Returns the state after one step from host weights, and its metrics."""
  state = learner.init_state(put_params(config, params), optimizer)
  if ref_params is not None:
    state = dataclasses.replace(state, reference=put_params(config, ref_params))
  state, metrics = learner.update(
    state,
    [sharding.put_rows(minibatch) for minibatch in minibatches],
    decoding.make_decoding(temperature),
    model=llama.Llama(config),
    optimizer=optimizer,
    objective=objective,
  )
  return state, {name: float(x) for name, x in metrics.items()}
