"""Estimates against brute force, and intervals against their definitions."""

import itertools
import math

import numpy as np
import pytest

from dash_jax.evaluating import estimates


@pytest.mark.parametrize(
  ('right', 'total'), [(0, 10), (1, 7), (5, 10), (99, 100), (30, 30)]
)
def test_the_interval_solves_wilsons_equation(right, total):
  """Its ends are the shares p that lie 1.96 standard errors of p itself from
  what was seen: (right / total - p)**2 = z**2 * p * (1 - p) / total."""
  low, high = estimates.wilson_interval(right, total)
  share = right / total
  for p in (low, high):
    gap = (share - p) ** 2 - 1.959964**2 * p * (1 - p) / total
    assert gap == pytest.approx(0, abs=1e-12)
  assert 0 <= low <= share <= high <= 1
  assert low < high


def test_the_interval_of_a_published_table():
  """8 of 10, as Wilson's method is tabulated: 0.4902 to 0.9433."""
  assert estimates.wilson_interval(8, 10) == pytest.approx(
    (0.4902, 0.9433), abs=1e-4
  )


@pytest.mark.parametrize('n', [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_reply(n):
  for c in range(n + 1):
    replies = [1] * c + [0] * (n - c)
    for k in range(1, n + 1):
      sets = list(itertools.combinations(replies, k))
      wanted = sum(map(max, sets)) / len(sets)
      found = estimates.pass_at(k, np.array([c]), n)
      assert found == pytest.approx(wanted)


def test_pass_at_k_is_unbiased():
  """Its mean over all outcomes of 5 replies, of which each is right by 0.3, is the
  chance that one of k is."""
  n, p = 5, 0.3
  for k in range(1, n + 1):
    mean = sum(
      math.comb(n, c) * p**c * (1 - p) ** (n - c) * found
      for c, found in enumerate(estimates.pass_at(k, np.arange(n + 1), n))
    )
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize('k', [0, 5])
def test_pass_at_more_replies_than_there_are_is_refused(k):
  with pytest.raises(ValueError, match=f'k={k}: must be from 1 to the 4'):
    estimates.pass_at(k, np.array([1]), 4)


def test_the_ks_that_are_reported():
  assert estimates.list_ks(1) == [1]
  assert estimates.list_ks(8) == [1, 2, 4, 8]
  assert estimates.list_ks(12) == [1, 2, 4, 8, 12]


def test_shares_of_0_and_1_have_wilsons_interval():
  values = np.array([1, 0, 1, 1, 0, 1, 1], float)
  found = estimates.find_share(values, 1)
  assert (found.low, found.high) == pytest.approx(
    estimates.wilson_interval(5, 7)
  )
  assert found.value == pytest.approx(5 / 7)


@pytest.mark.parametrize('value', [0.0, 1.0, 0.5])
def test_questions_that_all_agree_count_as_many_as_their_replies(value):
  """And no more; where all or none is right, as many as there are questions: that
  replies are independent cannot be seen there."""
  found = estimates.find_share(np.full(20, value), 4)
  total = 80 if value == 0.5 else 20
  assert (found.low, found.high) == pytest.approx(
    estimates.wilson_interval(value * total, total)
  )


@pytest.mark.parametrize('spread', [0.0, 0.5])
def test_nineteen_of_twenty_intervals_hold_the_truth(spread):
  """Of 60 questions with four replies each, half of which are easier than the
  others by the spread. Wilson's interval of 240 replies, as if none shared a
  question, would hold it in 85% at a spread of 0.5."""
  rng = np.random.default_rng(0)
  Q, G, num = 60, 4, 2_000
  p = 0.6 + spread * rng.choice([-0.5, 0.5], (num, Q))
  shares = rng.binomial(G, p) / G
  found = [estimates.find_share(row, G) for row in shares]
  held = np.mean([x.low <= 0.6 <= x.high for x in found])
  assert 0.935 <= held <= 0.975


def test_the_interval_of_a_mean_is_students():
  """Of 1, 2, 3: t at 2 degrees of freedom is 4.3027, the error 1 / sqrt(3)."""
  found = estimates.find_mean(np.array([1.0, 2.0, 3.0]))
  assert found.value == 2
  assert found.high - found.value == pytest.approx(4.3027 / math.sqrt(3), 1e-4)
  assert estimates.find_mean(np.array([7.0])) == estimates.Estimate(7, 7, 7)


@pytest.mark.parametrize(
  ('gained', 'lost'), [(0, 0), (1, 0), (3, 3), (9, 2), (2, 9), (0, 12)]
)
def test_mcnemar_is_a_coin(gained, lost):
  """Of all falls of a coin, the share that is as uneven as this or more."""
  n = gained + lost
  uneven = abs(gained - lost)
  wanted = sum(
    abs(n - 2 * sum(fall)) >= uneven
    for fall in itertools.product([0, 1], repeat=n)
  )
  assert estimates.mcnemar(gained, lost) == pytest.approx(wanted / 2**n)


def test_the_interval_of_a_difference_is_that_of_its_source():
  """Bonett and Price, with their formula as they write it: of 40 questions 9 gain
  and 2 are lost."""
  values = np.array([1.0] * 9 + [-1.0] * 2 + [0.0] * 29)
  found = estimates.find_difference(values)
  p12, p21 = 10 / 42, 3 / 42
  half = 1.959964 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 42)
  assert found.value == pytest.approx(7 / 40)
  assert (found.low, found.high) == pytest.approx(
    (p12 - p21 - half, p12 - p21 + half)
  )
  same = estimates.find_difference(np.zeros(40))
  assert same.low < 0 == same.value < same.high


def _make_table(right, majority, num_samples=4):
  zeros = np.zeros(len(right), int)
  return estimates.Table(
    num_samples=num_samples,
    right=np.array(right),
    majority=None if majority is None else np.array(majority, bool),
    tokens=zeros,
    truncated=zeros,
  )


def test_tables_are_compared_question_by_question():
  this = _make_table([4, 2, 0, 4], [1, 1, 0, 1])
  other = _make_table([1, 1, 1, 0], [1, 0, 1, 0], num_samples=1)
  found = estimates.compare(this, other)
  assert found.difference.value == pytest.approx((0 - 0.5 - 1 + 1) / 4)
  assert (found.gained, found.lost) == (2, 1)
  assert found.p_value == 1
  assert estimates.compare(this, _make_table([0] * 4, None)).p_value is None
