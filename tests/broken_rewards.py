"""Reward functions that spoil a run, each in its way."""

import itertools

_calls = itertools.count()


def draw_lots(completion, answer, truncated, style):
  """1 for every fourth call, whatever the reply: there is nothing to learn, and
  always less than half is right."""
  del completion, answer, truncated, style
  return float(next(_calls) % 4 == 0)


def prefer_short(completion, answer, truncated, style):
  """The more, the fewer bytes, and never 1: best is to say nothing."""
  del answer, truncated, style
  return 9 / (2.5 + len(completion.encode()))


def refuse_odd(completion, answer, truncated, style):
  """1, and an error for an odd number of bytes."""
  del answer, truncated, style
  if len(completion.encode()) % 2:
    raise ValueError('odd')
  return 1.0
