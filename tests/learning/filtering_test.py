"""What filtering keeps, and that it changes no gradient."""

import dataclasses
import math

import jax
import numpy as np
import pytest
import tiny_rows

from dash_jax.learning import filtering

Q, G = 4, 2
# Two of the groups agree.
GAIN = np.float32([[0.5, -0.5], [0, 0], [1.5, -1.5], [0, 0]])
ROLLOUTS = tiny_rows.draw_rollouts(Q, G)


def test_rows_are_kept_by_the_size_of_their_advantage():
  gain = np.float32([0, -0.0, 1e-9, -2, 0.5, -0.5])
  np.testing.assert_array_equal(
    filtering.select(gain, 0.0), [False, False, True, True, True, True]
  )
  np.testing.assert_array_equal(
    filtering.select(gain, 0.5), [False, False, False, True, False, False]
  )
  assert filtering.select(gain, -1.0).all()


@pytest.mark.parametrize('num_samples', [4, 6])
@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 8, 12, 24, 40])
@pytest.mark.parametrize('num_kept', [0, 1, 7, 24])
def test_kept_rows_come_once_in_order_and_fillers_weigh_nothing(
  num_samples, size, num_kept
):
  """Advantages here name the rows. Shapes do not depend on what is kept, so
  that one compiled program serves every step."""
  shape = (24 // num_samples, num_samples)
  rollouts = tiny_rows.draw_rollouts(*shape)
  names = np.arange(1, 25, dtype=np.float32).reshape(shape)
  keep = np.random.default_rng(0).permutation(24).reshape(shape) < num_kept
  minibatches, n = filtering.cut(rollouts, names, keep, names / 4, size)
  s = math.gcd(size, num_samples)
  M = -(-24 // size)
  assert minibatches.weight.shape == (M, size // s, s)
  assert minibatches.rollouts.tokens.shape == (M, size // s, s, tiny_rows.C)
  real = minibatches.weight > 0
  np.testing.assert_array_equal(minibatches.advantages[real], names[keep])
  np.testing.assert_array_equal(minibatches.weight[real], names[keep] / 4)
  for x, rows in zip(
    jax.tree.leaves(dataclasses.replace(minibatches.rollouts, prompts=None)),
    jax.tree.leaves(dataclasses.replace(rollouts, prompts=None)),
    strict=True,
  ):
    np.testing.assert_array_equal(x[real], rows[keep])
  # Each row stands behind its own question's prompt.
  question = (names - 1) // num_samples
  uids = np.broadcast_to(
    minibatches.rollouts.prompts.uids[..., None], real.shape
  )
  np.testing.assert_array_equal(uids[real], question[keep])
  np.testing.assert_array_equal(
    minibatches.rollouts.prompts.tokens,
    rollouts.prompts.tokens[minibatches.rollouts.prompts.uids],
  )
  # Each question takes as many prompts as its rows need, and no more.
  prompts = -(-keep.sum(axis=1) // s)
  assert n == -(-prompts.sum() // (size // s))
  # Those from n on are not run, and none before it is run for nothing.
  np.testing.assert_array_equal(real.any((1, 2)), np.arange(M) < n)


@pytest.mark.parametrize('size', [2, 4, 8, 16])
def test_whole_groups_leave_no_filler_between(size):
  """Of a binary reward groups stay or go whole: then n is the least there is,
  and the cost follows the rows that survive."""
  rollouts = tiny_rows.draw_rollouts(8, 4)
  keep = np.zeros((8, 4), bool)
  keep[[1, 3, 4, 6, 7]] = True
  ones = np.ones((8, 4), np.float32)
  minibatches, n = filtering.cut(rollouts, ones, keep, ones, size)
  assert n == -(-20 // size)
  real = minibatches.weight.reshape(-1) > 0
  np.testing.assert_array_equal(real, np.arange(32) < 20)


def test_every_shard_of_a_minibatch_holds_whole_prompts():
  """b = 8 rows over four shards leave two rows a prompt; the prompts divide
  over the shards."""
  ones = np.ones((8, 4), np.float32)
  minibatches, _ = filtering.cut(
    tiny_rows.draw_rollouts(8, 4), ones, ones > 0, ones, 8, num_shards=4
  )
  assert minibatches.weight.shape == (4, 4, 2)


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
  full, metrics, n = update(shallow, np.ones((Q, G), bool), 'sampled')
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
  """They copy other rows: with an advantage and logprobs that would explode, the
  update of the others is the same to the bit."""
  params = tiny_rows.draw_params(shallow)
  keep = np.array([[False, False], [True, False], [True, True], [False] * 2])
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
