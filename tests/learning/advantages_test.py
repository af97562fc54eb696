"""Closed forms of advantages."""

import numpy as np
import pytest

from dash_jax.learning import advantages


def find(rewards, baseline='group_mean', scale='std', **options):
  return advantages.find_advantages(
    np.float32(rewards), baseline=baseline, scale=scale, **options
  )


def test_one_right_of_four():
  """mean 1/4; unbiased variance (3 / 16 * 4) / 3 = 1 / 4, so std 1/2; the mean
  of the others is 1/3 for a wrong row and 0 for the right one."""
  rewards = [[0, 1, 0, 0]]
  plain = find(rewards, scale='none')
  np.testing.assert_array_equal(plain, [[-0.25, 0.75, -0.25, -0.25]])
  scaled = find(rewards)
  np.testing.assert_allclose(scaled, plain / (0.5 + 1e-4), rtol=1e-6)
  assert scaled.dtype == np.float32
  np.testing.assert_allclose(
    find(rewards, 'leave_one_out', 'none'), [[-1 / 3, 1, -1 / 3, -1 / 3]],
    rtol=1e-6,
  )  # fmt: skip
  np.testing.assert_allclose(find(rewards, scale='mean'), [[-1, 3, -1, -1]])
  np.testing.assert_array_equal(find(rewards, 'none', 'none'), rewards)


def test_std_is_unbiased():
  """For a pair the unbiased std is |a - b| / sqrt(2), the biased one
  |a - b| / 2: they give 0.707 and 1."""
  found = find([[3.0, 1.0]])
  np.testing.assert_allclose(found, [[2**-0.5, -(2**-0.5)]], rtol=1e-4)


@pytest.mark.parametrize('scale', advantages.SCALES)
@pytest.mark.parametrize('baseline', ['group_mean', 'leave_one_out'])
def test_groups_that_agree_are_exactly_zero(baseline, scale):
  """0.1 * 3 is not 0.3 in binary, so a mean of equal rewards may miss them;
  exact zeros are what filtering relies on."""
  rewards = np.float32([0.0, 1.0, 0.1, 7.3e5, 1e-30])[:, None].repeat(7, 1)
  rewards = np.concatenate([rewards, [[0, 1] * 3 + [0]]])
  found = find(rewards, baseline, scale)
  assert (found[:-1] == 0).all()
  assert (found[-1] != 0).all()


@pytest.mark.parametrize('scale', ['none', 'std'])
def test_groups_do_not_mix(scale):
  """Each group alone, in float64, gives the same; and every group sums to 0."""
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(6, 5)).astype(np.float32)
  found = find(rewards, scale=scale)
  for group, gain in zip(rewards, found, strict=True):
    expected = group.astype(np.float64) - sum(map(float, group)) / 5
    if scale == 'std':
      expected /= (sum(x**2 for x in expected) / 4) ** 0.5 + 1e-4
    np.testing.assert_allclose(gain, expected, rtol=1e-5)
    assert abs(gain.sum()) < 1e-5


@pytest.mark.parametrize('baseline', ['none', 'group_mean'])
def test_over_the_batch_advantages_are_standardised(baseline):
  """Of all rows together mean 0 and deviation 1: two processes that add up
  their sums find what one finds."""
  rng = np.random.default_rng(0)
  rewards = rng.normal(3, 2, size=(8, 4)).astype(np.float32)
  whole = find(rewards, baseline, 'batch')
  assert whole.mean() == pytest.approx(0, abs=1e-6)
  assert whole.std() == pytest.approx(1, rel=1e-3)
  halves, sums = [rewards[:3], rewards[3:]], []
  for half in halves:
    find(half, baseline, 'batch', sum_over_hosts=lambda s: sums.append(s) or s)
  both = {name: sum(s[name] for s in sums) for name in sums[0]}
  found = [
    find(h, baseline, 'batch', sum_over_hosts=lambda s: both) for h in halves
  ]
  np.testing.assert_allclose(np.concatenate(found), whole, rtol=1e-5)


def test_rows_that_do_not_count_are_as_if_they_were_not_there():
  rewards = [[5.0, 1.0, 0.0, 0.0, 1.0]]
  among = np.array([[False, True, True, False, True]])
  for baseline in advantages.BASELINES:
    for scale in advantages.SCALES:
      found = find(rewards, baseline, scale, among=among)
      alone = find([[1.0, 0.0, 1.0]], baseline, scale)
      np.testing.assert_allclose(found[among], alone[0], rtol=1e-6)
      assert (found[~among] == 0).all()


def test_a_negative_mean_divides_nothing():
  with pytest.raises(ValueError, match=r"scale='mean' .* a reward is -1\.0"):
    find([[-1.0, 2.0]], scale='mean')


def test_the_penalty_grows_over_the_last_tokens():
  found = advantages.overlong_penalty(np.array([[3, 6, 7, 8, 10]]), 10, 4)
  np.testing.assert_allclose(found, [[0, 0, -0.25, -0.5, -1]])
  assert (advantages.overlong_penalty(np.array([[10]]), 10, 0) == 0).all()


@pytest.mark.parametrize(('discount', 'decay'), [(1, 1), (0.9, 0.8), (0.9, 0)])
def test_gae_is_the_weighted_sum_of_later_errors(discount, decay):
  """Each token by the definition, A_t = sum over l of (discount decay)^l
  delta_{t+l}, one row at a time."""
  rng = np.random.default_rng(0)
  lengths = np.array([[1, 4, 6], [3, 6, 2]])
  rewards, values = rng.normal(size=(2, 2, 3, 6))
  gains, returns = advantages.estimate_gae(
    rewards, values, lengths, discount=discount, decay=decay
  )
  for row, n in np.ndenumerate(lengths):
    r, v = rewards[row][:n], np.append(values[row][:n], 0.0)
    delta = r + discount * v[1:] - v[:-1]
    for t in range(n):
      expected = sum(
        (discount * decay) ** (i - t) * delta[i] for i in range(t, n)
      )
      assert gains[row][t] == pytest.approx(expected, abs=1e-6)
      assert returns[row][t] == pytest.approx(expected + v[t], abs=1e-6)
    assert not gains[row][n:].any()
    assert not returns[row][n:].any()
  if discount == decay == 1:
    # The sum of the rewards to come, whatever the critic says.
    np.testing.assert_allclose(
      returns[1, 1], rewards[1, 1][::-1].cumsum()[::-1], atol=1e-6
    )
