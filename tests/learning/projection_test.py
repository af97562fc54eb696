"""Chunks of the final projection add up to the whole, gradient included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.learning import projection

b, T, D, V = 2, 13, 8, 24


def _loss(x, weights, values, shared):
  logprobs = jax.nn.log_softmax(x @ weights['w'])
  chosen = jnp.take_along_axis(logprobs, values['tokens'][..., None], -1)[
    ..., 0
  ]
  loss = jnp.sum(jnp.where(values['mask'], chosen**2 * shared, 0.0))
  return loss, {'count': jnp.sum(values['mask'] * 1.0)}


def _draw(mask):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(b, T, D)).astype(np.float32)
  weights = {'w': rng.normal(size=(D, V)).astype(np.float32)}
  values = {'tokens': rng.integers(0, V, (b, T)), 'mask': mask}
  return x, weights, values


@pytest.mark.parametrize('size', [1, 4, 5, 13])
def test_chunks_add_up_to_the_whole_and_its_gradient(mesh, size):
  mask = np.random.default_rng(1).random((b, T)) < 0.7
  x, weights, values = _draw(mask)

  def chunked(x, weights):
    found, sums = projection.sum_over_slots(
      _loss, size, x, weights, values, jnp.float32(0.5)
    )
    return 3 * found, sums

  def whole(x, weights):
    found, sums = _loss(x, weights, values, 0.5)
    return 3 * found, sums

  for function in (chunked, whole):
    function.found = jax.jit(
      jax.value_and_grad(function, argnums=(0, 1), has_aux=True)
    )(x, weights)
  jax.tree.map(
    lambda a, c: np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-5),
    chunked.found,
    whole.found,
  )
  np.testing.assert_allclose(
    chunked(x, weights)[0], whole(x, weights)[0], rtol=1e-5
  )


@pytest.mark.parametrize('first', [0, 5, 13])
def test_chunks_without_a_target_are_not_computed(mesh, first):
  """Their slots hold NaN, which would show."""
  mask = np.zeros((b, T), bool)
  mask[1, first : first + 3] = True
  x, weights, values = _draw(mask)
  size = 2
  used = mask.any(0)[: T + T % 2]
  for i in range(0, T, size):
    if not used[i : i + size].any():
      x[:, i : i + size] = np.nan
  (found, sums), (dx, dw) = jax.value_and_grad(
    lambda x, w: projection.sum_over_slots(
      _loss, size, x, w, values, jnp.float32(1.0)
    ),
    argnums=(0, 1),
    has_aux=True,
  )(x, weights)
  assert sums['count'] == mask.sum()
  assert np.isfinite(found)
  assert np.isfinite(dx).all()
  assert np.isfinite(dw['w']).all()
  assert (np.abs(dw['w']).max() > 0) == mask.any()
  squares = projection.map_over_slots(
    lambda x, values: (x**2).sum(-1), size, x, values
  )
  np.testing.assert_allclose(
    np.where(mask, squares, 0), np.where(mask, (x**2).sum(-1), 0), rtol=1e-6
  )
  assert np.isfinite(squares).all()


def test_no_more_logits_than_said_are_held():
  for num_lines, num_slots, vocab in ((1, 2048, 128_256), (4, 544, 49_152)):
    size = projection.chunk_len(num_lines, num_slots, vocab)
    assert num_lines * size * vocab <= projection._MOST_LOGITS
    assert 2 * num_lines * size * vocab > projection._MOST_LOGITS
  assert projection.chunk_len(2, 100, 512) == 100
  assert projection.chunk_len(64, 100, 10**9) == 1
