"""What filtering keeps, and that it changes no gradient."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tiny_rows

from dash_jax.learning import filtering

Q, G = 4, 2
# Two of the groups agree.
GAIN = np.float32([[0.5, -0.5], [0, 0], [1.5, -1.5], [0, 0]])
ROLLOUTS = tiny_rows.draw_rollouts(Q, G, seed=3)


def test_rows_are_kept_by_the_size_of_their_advantage():
  gain = np.float32([0, -0.0, 1e-9, -2, 0.5, -0.5])
  np.testing.assert_array_equal(
    filtering.select(gain, 0.0), [False, False, True, True, True, True]
  )
  np.testing.assert_array_equal(
    filtering.select(gain, 0.5), [False, False, False, True, False, False]
  )
  assert filtering.select(gain, -1.0).all()


def test_a_group_stays_whole():
  gain = np.float32([[0.1, -0.5, 0], [0.1, 0.2, 0]])
  keep = filtering.select(gain, 0.3, rule='group')
  np.testing.assert_array_equal(keep, [[True] * 3, [False] * 3])


def test_none_drops_no_row():
  """Nor one that carries no signal: what the baseline of the same batch is."""
  gain = np.float32([[0.1, -0.5, 0], [0, 0, 0]])
  assert filtering.select(gain, 0.0, rule='none').all()


def test_the_largest_are_kept_and_none_without_signal():
  gain = np.float32([[0.1, -0.5, 0], [0.4, -0.4, 0]])
  keep = filtering.select(gain, 0.0, rule='largest', most=2)
  np.testing.assert_array_equal(
    keep, [[False, True, False], [True, False, False]]
  )
  many = filtering.select(gain, 0.0, rule='largest', most=6)
  np.testing.assert_array_equal(many, gain != 0)


@pytest.mark.parametrize('num', [1, 2, 3, 4, 5])
def test_no_other_choice_of_rows_varies_more(num):
  """Against all subsets."""
  rewards = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
  rewards[:5] = rewards[:5].round()
  keep = filtering.most_varied(rewards, num)
  assert (keep.sum(1) == num).all()
  for row, kept in zip(rewards, keep, strict=True):
    best = max(np.var(x) for x in itertools.combinations(row, num))
    assert np.var(row[kept]) == pytest.approx(best, rel=1e-5, abs=1e-7)


@pytest.fixture
def shallow(tiny):
  return dataclasses.replace(tiny, num_layers=1)


def update(shallow, keep, denominator):
  params = tiny_rows.draw_params(shallow)
  minibatches = tiny_rows.cut(
    ROLLOUTS, GAIN, keep=keep, denominator=denominator, size=1
  )
  state, metrics = tiny_rows.take_step(shallow, params, minibatches)
  change = jax.tree.map(np.subtract, jax.device_get(state.params), params)
  return (
    np.concatenate([x.ravel() for x in jax.tree.leaves(change)]),
    metrics,
    len(minibatches),
  )


def test_the_filtered_gradient_equals_the_full_one(mesh, shallow):
  """Without KL, rows of no advantage add nothing to the sum, and over sampled
  rows the denominator stays: fewer minibatches give the whole update."""
  keep = filtering.select(GAIN, 0.0)
  full, metrics, n = update(shallow, np.ones((Q, G), bool), 'sampled')
  filtered, others, fewer = update(shallow, keep, 'sampled')
  assert fewer < n
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
