"""What filtering keeps, and that it changes no gradient."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_rows

from dash_jax.learning import filtering

B = 8
# Rows 2, 3, 6 and 7 are of groups that agree.
GAIN = np.float32([0.5, -0.5, 0, 0, 1.5, -1.5, 0, 0])
ROLLOUTS = tiny_rows.draw_rollouts(B)


def test_rows_are_kept_by_the_size_of_their_advantage():
  gain = np.float32([0, -0.0, 1e-9, -2, 0.5, -0.5])
  np.testing.assert_array_equal(
    filtering.select(gain, 0.0), [False, False, True, True, True, True]
  )
  np.testing.assert_array_equal(
    filtering.select(gain, 0.5), [False, False, False, True, False, False]
  )
  assert filtering.select(gain, -1.0).all()


@pytest.mark.parametrize('size', [1, 2, 3, 5, 8, 11])
@pytest.mark.parametrize('num_kept', [0, 1, 4, 8])
def test_kept_rows_come_once_in_order_and_fillers_weigh_nothing(size, num_kept):
  """Advantages here name the rows. Shapes do not depend on what is kept, so
  that one compiled program serves every step."""
  names = np.arange(1, B + 1, dtype=np.float32)
  keep = np.random.default_rng(0).permutation(B) < num_kept
  minibatches, n = filtering.cut(ROLLOUTS, names, keep, names / 4, size)
  assert n == -(-num_kept // size)
  M = -(-B // size)
  assert minibatches.weight.shape == minibatches.advantages.shape == (M, size)
  assert minibatches.rollouts.tokens.shape == (M, size, 10)
  real = minibatches.weight > 0
  np.testing.assert_array_equal(minibatches.advantages[real], names[keep])
  np.testing.assert_array_equal(minibatches.weight[real], names[keep] / 4)
  jax.tree.map(
    lambda x, rows: np.testing.assert_array_equal(x[real], rows[keep]),
    minibatches.rollouts,
    ROLLOUTS,
  )
  assert not real[n:].any()
  # Fillers come last: no minibatch before n is left half used.
  assert (np.diff(real.reshape(-1).astype(int)) <= 0).all()


@pytest.fixture
def shallow(tiny):
  return dataclasses.replace(tiny, num_layers=1)


def update(shallow, keep, denominator):
  params = tiny_rows.draw_params(shallow)
  minibatches, n = tiny_rows.cut(
    ROLLOUTS, GAIN, keep=keep, denominator=denominator
  )
  state, metrics = tiny_rows.take_step(shallow, params, minibatches, n)
  change = jax.tree.map(np.subtract, jax.device_get(state.params), params)
  return (
    np.concatenate([x.ravel() for x in jax.tree.leaves(change)]),
    metrics,
    n,
  )


def test_the_filtered_gradient_equals_the_full_one(mesh, shallow):
  """Without KL, rows of no advantage add nothing to the sum, and over sampled
  rows the denominator stays: half the minibatches give the whole update."""
  keep = filtering.select(GAIN, 0.0)
  full, metrics, n = update(shallow, np.ones(B, bool), 'sampled')
  filtered, others, fewer = update(shallow, keep, 'sampled')
  assert (n, fewer) == (2, 1)
  assert np.abs(full).max() > 1e-3
  np.testing.assert_allclose(filtered, full, atol=1e-6)
  assert others['loss'] == pytest.approx(metrics['loss'], abs=1e-6)
  assert others['grad_norm'] == pytest.approx(metrics['grad_norm'], rel=1e-5)


def test_over_kept_rows_the_step_grows_by_the_share_that_was_dropped(
  mesh, shallow
):
  """Half the rows are kept: the same direction, twice the length."""
  keep = filtering.select(GAIN, 0.0)
  sampled, _, _ = update(shallow, keep, 'sampled')
  kept, _, _ = update(shallow, keep, 'kept')
  np.testing.assert_allclose(kept, 2 * sampled, atol=1e-5)


def test_what_filler_rows_hold_does_not_matter(mesh, shallow):
  """They copy row 0: with an advantage and logprobs that would explode, the
  update of the others is the same to the bit."""
  params = tiny_rows.draw_params(shallow)
  keep = np.arange(B) >= B - 3
  minibatches, n = tiny_rows.cut(ROLLOUTS, GAIN, keep=keep)
  assert n == 1
  filler = minibatches.weight == 0
  assert filler[0].sum() == 1
  straight, metrics = tiny_rows.take_step(shallow, params, minibatches, n)
  hostile = jax.tree.map(np.copy, minibatches)
  hostile.advantages[filler] = 1e30
  hostile.rollouts.logprobs[filler] = -1e30
  other, others = tiny_rows.take_step(shallow, params, hostile, n)
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(straight.params),
    jax.device_get(other.params),
  )
  assert metrics == others
