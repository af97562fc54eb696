"""Rewards of rows while others are still sampled.

Rows are handed over as they finish. A thread turns them into text and gives
them to the worker processes, a batch at a time, while the device goes on; what
is left when the last row has finished is all that a step waits for.
"""

import concurrent.futures
from collections.abc import Callable

import numpy as np

from dash_jax.rewards import workers
from dash_jax.sampling import calls


class Scoring:
  """Scores the rows of one sampling call. A context manager."""

  def __init__(
    self,
    pool: workers.Pool,
    decode: Callable[[np.ndarray], str],
    answers: list[str],
    group_size: int,
  ):
    """
    Args:
      pool: of worker processes; nothing else scores meanwhile.
      decode: a row's tokens as text.
      answers: of the Q questions.
      group_size: G.
    """
    self._pool = pool
    self._decode = decode
    self._answers = [a for a in answers for _ in range(group_size)]
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._parts = []

  def __enter__(self) -> 'Scoring':
    return self

  def __exit__(self, *unused_args) -> None:
    self._thread.shutdown(cancel_futures=True)

  def add(self, rows: np.ndarray, made: calls.Completions) -> None:
    """Begins to score rows q * G + g that have finished."""
    self._parts.append((rows, self._thread.submit(self._score, rows, made)))

  def finish(self) -> tuple[list[str], workers.Scores]:
    """Returns the texts of all B rows, and their scores.

    Raises:
      ValueError: as `workers.Pool.score`.
    """
    texts = [''] * len(self._answers)
    rewards = np.zeros(len(texts), np.float32)
    timeouts = errors = 0
    for rows, part in self._parts:
      found, scores = part.result()
      for row, text in zip(rows, found, strict=True):
        texts[row] = text
      rewards[rows] = scores.rewards
      timeouts += scores.timeouts
      errors += scores.errors
    return texts, workers.Scores(rewards, timeouts, errors)

  def _score(self, rows, made):
    G = made.lengths.shape[1]
    at = np.divmod(rows, G)
    texts = [
      self._decode(tokens[:length])
      for tokens, length in zip(made.tokens[at], made.lengths[at], strict=True)
    ]
    answers = [self._answers[row] for row in rows]
    return texts, self._pool.score(texts, answers, made.truncated[at].tolist())
