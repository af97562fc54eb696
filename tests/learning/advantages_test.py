"""Closed forms of group advantages."""

import numpy as np
import pytest

from dash_jax.learning import advantages


def test_one_right_of_four():
  """mean 1/4; unbiased variance (3 / 16 * 4) / 3 = 1 / 4, so std 1/2."""
  rewards = np.array([[0, 1, 0, 0]], np.float32)
  plain = advantages.group_advantages(rewards, normalize_std=False)
  np.testing.assert_array_equal(plain, [[-0.25, 0.75, -0.25, -0.25]])
  scaled = advantages.group_advantages(rewards, normalize_std=True)
  np.testing.assert_allclose(scaled, plain / (0.5 + 1e-4), rtol=1e-6)
  assert scaled.dtype == np.float32


def test_std_is_unbiased():
  """For a pair the unbiased std is |a - b| / sqrt(2), the biased one
  |a - b| / 2: they give 0.707 and 1."""
  found = advantages.group_advantages(
    np.array([[3.0, 1.0]], np.float32), normalize_std=True
  )
  np.testing.assert_allclose(found, [[2**-0.5, -(2**-0.5)]], rtol=1e-4)


@pytest.mark.parametrize('normalize_std', [False, True])
def test_groups_that_agree_are_exactly_zero(normalize_std):
  """0.1 * 3 is not 0.3 in binary, so a mean of equal rewards may miss them;
  exact zeros are what filtering relies on."""
  rewards = np.float32([0.0, 1.0, 0.1, -7.3e5, 1e-30])[:, None].repeat(7, 1)
  found = advantages.group_advantages(rewards, normalize_std=normalize_std)
  assert (found == 0).all()


@pytest.mark.parametrize('normalize_std', [False, True])
def test_groups_do_not_mix(normalize_std):
  """Each group alone, in float64, gives the same; and every group sums to 0."""
  rng = np.random.default_rng(0)
  rewards = rng.normal(size=(6, 5)).astype(np.float32)
  found = advantages.group_advantages(rewards, normalize_std=normalize_std)
  for group, gain in zip(rewards, found, strict=True):
    expected = group.astype(np.float64) - sum(map(float, group)) / 5
    if normalize_std:
      expected /= (sum(x**2 for x in expected) / 4) ** 0.5 + 1e-4
    np.testing.assert_allclose(gain, expected, rtol=1e-5)
    assert abs(gain.sum()) < 1e-5
