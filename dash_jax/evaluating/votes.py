"""The majority of the answers that replies to a question state.

1. The answer of a reply is what `rewards/answers.py` finds in it. One that ran
   out of room has none, and does not vote.
2. Answers of one value are one answer: numbers are read here; other LaTeX is
   compared in worker processes, where it can take no longer than it may, and
   only for questions whose majority hangs on it.
3. The answer with the most votes wins. Where several have as many, the one wins
   that was stated first, by the number of the reply: a rule that does not look
   at the right answer. It is right if the reply that stated it first is.
"""

import collections
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from dash_jax.rewards import rationals

Pair = tuple[str, str]


def find_majorities(
  answers: Sequence[Sequence[str | None]],
  right: np.ndarray,
  style: str,
  compare: Callable[[list[Pair]], Sequence[bool]],
) -> np.ndarray | None:
  """Returns bool[Q], whether the majority of each question is right; False where
  no reply states an answer, and None in place of all if that is so everywhere.

  Args:
    answers: of Q questions the answer of each of G replies, None for none.
    right: bool[Q, G], whether the reply is right.
    style: of the answers, one of answers.STYLES.
    compare: says of pairs of answers whether they are equal; it is called once at
      most, for style 'boxed' alone.
  """
  if not any(answer is not None for row in answers for answer in row):
    return None
  names = [[_name(answer, style) for answer in row] for row in answers]
  asked = {}
  if style == 'boxed':
    for q, row in enumerate(names):
      if _is_open(row, right[q]):
        for pair in itertools.combinations(_list_texts(row), 2):
          asked.setdefault(pair)
  if asked:
    pairs = list(asked)
    asked = dict(zip(pairs, compare(pairs), strict=True))
  found = np.zeros(len(names), bool)
  for q, row in enumerate(names):
    first = _find_winner(_join(row, asked))
    found[q] = first is not None and right[q][first]
  return found


def _name(answer, style):
  """Returns what answers of one value share, as far as it is seen at once: a number
  or a text."""
  if answer is None:
    return None
  if len(answer) > rationals.MAX_ANSWER_LEN:
    return answer.strip()
  text = rationals.tidy(answer)
  # As answers.equal reads them: in LaTeX, letters behind a number are no units.
  value = rationals.read(text, plain_units=style != 'boxed')
  return text if value is None else value


def _is_open(names, right):
  """Returns whether joining answers could change what the majority is."""
  votes = collections.Counter(name for name in names if name is not None)
  # A majority of all votes stays one, and where all replies are right or none is,
  # so is whatever wins.
  return (
    any(right)
    and not all(right)
    and 2 * max(votes.values(), default=0) <= votes.total()
  )


def _list_texts(names):
  """Returns the different answers, as text that can be compared."""
  return [str(name) for name in dict.fromkeys(names) if name is not None]


def _join(names, equal):
  """Returns the names, those of equal answers by the first of them."""
  chosen = {}
  for name in dict.fromkeys(names):
    if name is not None:
      same = (x for x in chosen.values() if equal.get((str(x), str(name))))
      chosen[name] = next(same, name)
  return [chosen.get(name) for name in names]


def _find_winner(names):
  """Returns the number of the reply that first states the winner, if any does."""
  votes = collections.Counter(name for name in names if name is not None)
  # most_common keeps the order in which they came.
  return names.index(votes.most_common(1)[0][0]) if votes else None
