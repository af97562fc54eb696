"""The checks of the GPU suite: on the device, what the tests hold on CPU.

1. Greedy decoding through the cache picks what one forward picks.
2. The sampler's logprobs are the learner's, in float32 and in bf16.
3. The gradient of the rows that filtering keeps is that of all rows.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dash_jax import batches
from dash_jax.learning import (
  advantages,
  filtering,
  learner,
  losses,
  packing,
  reading,
)
from dash_jax.model import kernels, llama
from dash_jax.sampling import decoding, sampler


def check_all(config: llama.LlamaConfig, Q: int) -> Iterator[dict]:
  """Checks decode against forward, the logprob gap, and the filter, on Q groups."""
  G, P, C = 4, 24, 24
  rng = np.random.default_rng(0)
  prompts = batches.PromptBatch(
    rng.integers(0, config.vocab_size, (Q, P)).astype(np.int32),
    rng.integers(1, P + 1, Q).astype(np.int32),
    np.arange(Q, dtype=np.int32),
  )
  params = _make_params(config)
  greedy, plain = decoding.make_decoding(0.0), decoding.make_decoding(1.0)

  def draw(model, settings):
    return sampler.sample(
      model, params, prompts, jax.random.key(1), settings,
      group_size=G, max_completion_len=C,
    )  # fmt: skip

  @functools.partial(jax.jit, static_argnames='model')
  def find_distance(model, params, rollouts):
    """Returns how far each token's logit is under the best, by one forward of
    whole rows."""
    apply = functools.partial(model.apply, {'params': params})
    rows = [(prompts.tokens, prompts.mask), (rollouts.tokens, rollouts.mask)]
    tokens, mask = (
      jnp.concatenate(
        [jnp.repeat(of_prompt, G, axis=0), own.reshape(Q * G, C)], axis=1
      )
      for of_prompt, own in zip(*rows, strict=True)
    )
    hidden = apply(tokens, mask)[:, P - 1 : -1]
    logits = apply(hidden, method=llama.Llama.logits).reshape(Q, G, C, -1)
    drawn = jnp.arange(logits.shape[-1]) == rollouts.tokens[..., None]
    chosen = jnp.where(drawn, logits, -jnp.inf).max(-1)
    return jnp.where(rollouts.mask, logits.max(-1) - chosen, 0.0)

  def gap(model, rollouts):
    found = reading.completion_logprobs(model, params, rollouts, plain)
    return np.abs(found - rollouts.logprobs)

  with jax.default_matmul_precision('highest'):
    model = llama.Llama(config)
    under = find_distance(model, params, draw(model, greedy))
    yield _check(
      'greedy decode = forward, float32: logit under the best, max',
      float(under.max()),
      1e-3,
    )
    rollouts = draw(model, plain)
    yield _check(
      'logprob gap, float32, max', float(gap(model, rollouts).max()), 1e-4
    )
    yield _compare_filtered(model, rollouts, plain)
  model = llama.Llama(config, dtype=jnp.bfloat16)
  gaps = gap(model, draw(model, plain))
  yield _check('logprob gap, bf16, mean', float(gaps.mean()), 0.05) | {
    'max': float(gaps.max())
  }
  made = sampler.Sampler(
    model, params, num_prompts=Q, group_size=G, max_prompt_len=P,
    max_completion_len=C, attention=kernels.LIBRARY,
  )  # fmt: skip
  gaps = gap(model, made.sample(params, prompts, jax.random.key(1), plain))
  yield _check(
    "logprob gap, bf16, attention 'library', mean", float(gaps.mean()), 0.05
  )


def _make_params(config) -> dict:
  return llama.init_params(config, jax.random.key(0), jnp.float32)


def _compare_filtered(model, rows, settings) -> dict:
  """Checks that the gradient of the kept rows alone is that of all rows."""
  # Lines that cut groups apart: the kept rows meet other neighbours.
  Q, G, C = rows.tokens.shape
  rewards = np.random.default_rng(1).random((Q, G), np.float32)
  rewards[: Q // 2] = 1.0  # groups that agree carry no signal
  gain = advantages.find_advantages(rewards)
  weight, counted = losses.row_weights('sequence', rows.lengths, C)
  room = packing.make_room(
    G - 1, G, max_prompt_len=rows.prompts.tokens.shape[1], max_completion_len=C
  )
  # An optimizer whose state is the gradient.
  keep_gradient = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda grads, _, params: (jax.tree.map(jnp.zeros_like, params), grads),
  )

  def gradient(keep):
    minibatches = packing.make_minibatches(
      rows, gain, keep, weight / counted.sum(), room
    )
    # The update donates its state: each run makes the weights anew.
    state = learner.init_state(_make_params(model.config), keep_gradient)
    state, _ = learner.update(
      state,
      minibatches,
      settings,
      model=model,
      optimizer=keep_gradient,
      objective=losses.Objective(),
    )
    return state.opt_state, len(minibatches)

  full, num_full = gradient(np.ones((Q, G), bool))
  filtered, num_filtered = gradient(filtering.select(gain, 0.0))

  @jax.jit
  def distance(x, y):
    return optax.tree.norm(optax.tree.sub(x, y)) / optax.tree.norm(x)

  row = _check(
    f'gradient of {num_filtered} of {num_full} minibatches = of all,'
    ' relative distance',
    float(distance(full, filtered)),
    1e-5,
  )
  row['passed'] &= num_filtered < num_full
  return row


def _check(measure: str, value: float, limit: float) -> dict:
  # A comparison with NaN is false: not a number never passes.
  return {
    'measure': measure,
    'value': value,
    'limit': limit,
    'passed': value <= limit,
  }
