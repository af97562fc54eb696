"""The majority of answers: values, ties, and what is compared at all."""

import numpy as np
import pytest

from dash_jax.evaluating import votes
from dash_jax.rewards import answers


def find(found, right, style='last_number', compare=None):
  """Returns of one question whether its majority is right."""
  made = votes.find_majorities([found], np.array([right], bool), style, compare)
  return None if made is None else bool(made[0])


@pytest.mark.parametrize(
  ('found', 'right', 'wins'),
  [
    (['4', '5', '4'], [1, 0, 1], True),
    (['4', '5', '5'], [1, 0, 0], False),
    # One value, however it is written.
    (['1/2', '0.5', '7', '$0.50'], [1, 1, 0, 1], True),
    (['7', '7.0', '0.5', '7'], [0, 0, 1, 0], False),
    # A tie goes to what was stated first, right or wrong.
    (['4', '5', '5', '4'], [1, 0, 0, 1], True),
    (['5', '4', '4', '5'], [0, 1, 1, 0], False),
    (['3', '4', '5'], [0, 1, 0], False),
    # What states no answer does not vote.
    ([None, None, '4'], [0, 0, 1], True),
    ([None, '5', None, '4', '4'], [0, 0, 0, 1, 1], True),
    (['x', 'x', '4'], [0, 0, 1], False),
  ],
)
def test_the_majority(found, right, wins):
  assert find(found, right) is wins


def test_a_question_without_an_answer_is_wrong_and_of_no_question_is_none():
  assert find([None, None], [0, 0]) is None
  right = np.array([[0, 0], [1, 1]], bool)
  made = votes.find_majorities(
    [[None, None], ['4', '4']], right, 'last_number', None
  )
  assert made.tolist() == [False, True]


def compare(pairs):
  return [answers.equal(*pair, 'boxed') for pair in pairs]


def test_latex_of_one_value_is_one_answer():
  """Two of five say one half, in ways that only LaTeX's reader sees are alike; two
  say something else, once each, so that each text by itself has one vote."""
  found = [r'2\sqrt{5}', 'x+1', r'\sqrt{20}', 'y', None]
  right = [1, 0, 1, 0, 0]
  assert find(found, right, 'boxed', compare) is True
  # And in second place they win only together.
  found = ['x+1', r'2\sqrt{5}', r'\sqrt{20}', 'y']
  right = [0, 1, 1, 0]
  assert find(found, right, 'boxed', compare) is True
  assert find(found, right, 'boxed', lambda pairs: [False] * len(pairs)) is (
    False
  )


def test_only_what_may_change_the_majority_is_compared():
  asked = []

  def record(pairs):
    asked.extend(pairs)
    return compare(pairs)

  found = [['a', 'b', 'c'], ['a', 'a', 'b'], ['a', 'b', 'c'], ['1', '2', '1.0']]
  right = np.array([[0, 0, 0], [0, 0, 1], [1, 1, 1], [1, 0, 1]], bool)
  made = votes.find_majorities(found, right, 'boxed', record)
  assert made.tolist() == [False, False, True, True]
  assert not asked
  votes.find_majorities([['a', 'b']], np.array([[0, 1]]), 'boxed', record)
  assert asked == [('a', 'b')]
