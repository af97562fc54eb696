"""The weights that the sampler uses: joined, and in eight bits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from llama_test import roughen

from dash_jax import batches
from dash_jax.learning import learner, losses, packing
from dash_jax.model import decoder, llama
from dash_jax.sampling import decoding

P = 5
TOKENS = np.arange(2 * P).reshape(2, P).astype(np.int32)
MASK = np.arange(P) >= np.array([[0], [2]])


def find_logits(config, params, quantize):
  model = llama.Llama(config)

  @jax.jit
  def run(params):
    weights = decoder.prepare(params, model, quantize)
    return decoder.prefill(weights, model, TOKENS, MASK, quantize=False)[0]

  return np.asarray(run(params))


@pytest.mark.parametrize('full', [False, True])
def test_joined_weights_are_the_same_model(mesh, tiny, full):
  """With biases, norms of queries and keys and a tied embedding, and without."""
  config = dataclasses.replace(tiny, tied=full, qkv_bias=full, qk_norm=full)
  params = roughen(llama.init_params(config, jax.random.key(0), jnp.float32))
  model = llama.Llama(config)
  hidden = model.apply({'params': params}, TOKENS, MASK)
  expected = model.apply({'params': params}, hidden[:, -1], method='logits')
  found = find_logits(config, params, quantize=False)
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
def test_eight_bit_weights_are_those_of_their_rounding(mesh, tiny, tied):
  """Logits equal those of a plain model whose matrices are rounded output by
  output to 127 steps of their largest weight, and differ from the model's."""
  config = dataclasses.replace(tiny, tied=tied)
  params = llama.init_params(config, jax.random.key(0), jnp.float32)

  def rounded(x, axes):
    x = np.asarray(x)
    step = np.abs(x).max(axis=axes, keepdims=True) / 127
    return np.round(x / step) * step

  layers = dict(params['layers'])
  for name in ('wq', 'wk', 'wv', 'w_gate', 'w_up', 'w_down'):
    layers[name] = rounded(layers[name], 1)
  layers['wo'] = rounded(layers['wo'], (1, 2))
  coarse = params | {'layers': layers}
  if tied:
    coarse['embed'] = rounded(coarse['embed'], 1)
  else:
    coarse['unembed'] = rounded(coarse['unembed'], 0)
  found = find_logits(config, params, quantize=True)
  np.testing.assert_allclose(
    found, find_logits(config, coarse, quantize=False), atol=1e-4
  )
  gap = np.abs(found - find_logits(config, params, quantize=False))
  assert 1e-3 < gap.max() < 0.3


def test_the_gradient_of_rows_from_a_quantised_sampler_is_not_biased(
  mesh, tiny
):
  """The expectation over what the quantised sampler draws, by adding up all
  one-token replies with their true probabilities, is the policy gradient of the
  unquantised weights: the ratio to the recorded log-probability corrects for
  it. Taking the learner's own log-probability instead would not."""
  params = llama.init_params(tiny, jax.random.key(0), jnp.float32)
  # Larger weights, so that eight bits of them move probabilities a lot.
  params = jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x, params)
  V, Q = tiny.vocab_size, len(TOKENS)
  model, how = llama.Llama(tiny), decoding.make_decoding(1.0)
  q = jax.nn.softmax(find_logits(tiny, params, quantize=True))
  p = jax.nn.softmax(find_logits(tiny, params, quantize=False))
  assert np.abs(q - p).sum() > 0.02
  gain = np.random.default_rng(0).normal(size=(Q, V)).astype(np.float32)

  room = packing.make_room(Q * V, V, P, 1)

  @jax.jit
  def differentiate(minibatch):
    return jax.grad(learner.minibatch_loss, has_aux=True)(
      params, model, minibatch, None, how,
      losses.Objective(clip_low=1.0, clip_high=1e6),
    )[0]  # fmt: skip

  def gradient(old, weight):
    ones = np.ones((Q, V), np.int32)
    rows = batches.Rollouts(
      prompts=batches.PromptBatch(TOKENS, MASK.sum(-1), np.arange(Q)),
      tokens=np.tile(np.arange(V), (Q, 1))[..., None],
      lengths=ones,
      logprobs=np.log(old)[..., None],
      truncated=ones == 0,
      policy_step=ones,
    )
    (minibatch,) = packing.make_minibatches(
      rows, gain, weight > 0, weight, room
    )
    return differentiate(minibatch)

  def distance(x, y):
    return float(optax.tree.norm(optax.tree.sub(x, y)) / optax.tree.norm(y))

  exact = gradient(p, p)
  assert distance(gradient(q, q), exact) < 1e-4
  assert distance(gradient(p, q), exact) > 1e-2
