"""Rewards of rows while others are still sampled.

Rows are handed over as they finish. A thread turns them into text and gives
them to the worker processes, all that have come at a time, while the device goes
on; what is left when the last row has finished is all that a step waits for.
"""

import concurrent.futures
import queue
from collections.abc import Callable

import numpy as np

from dash_jax.rewards import workers
from dash_jax.runs import watch
from dash_jax.sampling import calls

_PATIENCE_S = 0.5

# Takes i64[n], rows q * G + g; all completions; and of the n rows the texts and
# the scores.
OnScored = Callable[
  [np.ndarray, calls.Completions, list[str], workers.Scores], None
]


class Scoring:
  """Scores the rows of one sampling call. A context manager."""

  def __init__(
    self,
    pool: workers.Pool,
    decode: Callable[[np.ndarray], str],
    answers: list[str],
    group_size: int,
    on_scored: OnScored | None = None,
  ):
    """
    Args:
      pool: of worker processes.
      decode: a row's tokens as text.
      answers: of the Q questions.
      group_size: G.
      on_scored: is called with rows that have their scores, from one thread.
    """
    self._pool = pool
    self._decode = decode
    self._answers = [a for a in answers for _ in range(group_size)]
    self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    self._waiting = queue.SimpleQueue()
    self._turns = []
    self._on_scored = on_scored
    self._texts = [''] * len(self._answers)
    self._rewards = np.zeros(len(self._answers), np.float32)
    self._others = {}

  def __enter__(self) -> 'Scoring':
    return self

  def __exit__(self, unused_kind, error, unused_trace) -> None:
    # Where nobody wants the scores any more, the pool's end is the thread's.
    self._thread.shutdown(wait=error is None, cancel_futures=True)

  def add(self, rows: np.ndarray, made: calls.Completions) -> None:
    """Begins to score rows q * G + g that have finished."""
    if not rows.size:
      return
    self._waiting.put((rows, made))
    self._turns.append(self._thread.submit(self._score_waiting))

  def finish(
    self, check: Callable[[], None] | None = None
  ) -> tuple[list[str], workers.Scores]:
    """Returns the texts of all B rows, and their scores.

    Args:
      check: is called while scores are awaited, and may raise.

    Raises:
      ValueError: as `workers.Pool.score`.
    """
    while concurrent.futures.wait(self._turns, timeout=_PATIENCE_S).not_done:
      if check:
        check()
    turns = [turn.result() for turn in self._turns]
    scores = workers.Scores(
      self._rewards,
      timeouts=sum(timeouts for timeouts, _ in turns),
      errors=sum(errors for _, errors in turns),
      others=self._others,
    )
    return self._texts, scores

  def _score_waiting(self) -> tuple[int, int]:
    """Scores all that has come by now, so that no worker waits for the slowest
    row of a few; returns the time-outs and errors."""
    parts = []
    while not self._waiting.empty():
      parts.append(self._waiting.get())
    if not parts:
      return 0, 0
    made = parts[0][1]
    rows = np.concatenate([rows for rows, _ in parts])
    at = np.divmod(rows, made.lengths.shape[1])
    for row, tokens, length in zip(
      rows, made.tokens[at], made.lengths[at], strict=True
    ):
      self._texts[row] = self._decode(tokens[:length])
    watch.mark()
    texts = [self._texts[row] for row in rows]
    scores = self._pool.score(
      texts,
      [self._answers[row] for row in rows],
      made.truncated[at].tolist(),
      # Rows that all come too late may take longer than a run may stand still.
      watch.mark,
    )
    self._rewards[rows] = scores.rewards
    for name, values in scores.others.items():
      whole = self._others.setdefault(name, np.zeros_like(self._rewards))
      whole[rows] = values
    if self._on_scored:
      self._on_scored(rows, made, texts, scores)
    return scores.timeouts, scores.errors
