"""Rewards of rows while others are still sampled.

Rows are handed over as they finish. A thread turns them into text and gives
them to the worker processes, all that have come at a time, while the device goes
on; what is left when the last row has finished is all that a step waits for.
`Sampled` is what comes of it.
"""

import concurrent.futures
import dataclasses
import queue
from collections.abc import Callable

import jax
import numpy as np

from dash_jax import batches
from dash_jax.rewards import workers
from dash_jax.runs import watch
from dash_jax.sampling import calls

_PATIENCE_S = 0.5

# Takes i64[n], rows q * G + g; all completions; and of the n rows the texts and
# the scores.
OnScored = Callable[
  [np.ndarray, calls.Completions, list[str], workers.Scores], None
]


@dataclasses.dataclass(frozen=True)
class Sampled:
  """Replies to questions, on the host.

  Attributes:
    asked: Q questions.
    rows: with `tokens` and the rest, of these.
    texts: B texts.
    scores: of the B rows.
    began_at: time.perf_counter() when sampling began.
    sample_s: seconds until the last reply was there.
    reward_s: seconds that were waited for the last score.
    terms: f32[B] by name, what the rewards are made of; {} if it is the scores
      alone.
    weighted: f32[B], the weighted sum of the terms, if there are such.
    replaced_rows, replaced_tokens: of groups that others took the place of.
  """

  asked: list[batches.Question]
  rows: batches.Rollouts
  texts: list[str]
  scores: workers.Scores
  began_at: float
  sample_s: float
  reward_s: float
  terms: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  weighted: np.ndarray | None = None
  replaced_rows: int = 0
  replaced_tokens: int = 0

  @property
  def rewards(self) -> np.ndarray:
    """f32[Q, G], what advantages are taken of."""
    rewards = self.scores.rewards if self.weighted is None else self.weighted
    return rewards.reshape(self.rows.lengths.shape)

  def find_mixed(self) -> np.ndarray:
    """Returns bool[Q], the groups whose rewards do not all agree."""
    rewards = self.rewards
    return (rewards != rewards[:, :1]).any(axis=1)

  def join(self, other: 'Sampled') -> 'Sampled':
    """Returns as many groups as there are here: those of both whose rewards do
    not agree, and of the others as many as are missing."""
    num, G = self.rows.lengths.shape
    mixed = np.concatenate([self.find_mixed(), other.find_mixed()])
    chosen = np.sort(np.argsort(~mixed, kind='stable')[:num])
    asked = [*self.asked, *other.asked]
    texts = [*self.texts, *other.texts]

    rows = jax.tree.map(
      lambda a, b: np.concatenate([a, b])[chosen], self.rows, other.rows
    )
    num_tokens = self.rows.lengths.sum() + other.rows.lengths.sum()

    def choose(a, b):
      return np.concatenate([a, b]).reshape(-1, G)[chosen].reshape(-1)

    return Sampled(
      asked=[asked[q] for q in chosen],
      rows=rows,
      texts=[texts[q * G + g] for q in chosen for g in range(G)],
      scores=workers.Scores(
        rewards=choose(self.scores.rewards, other.scores.rewards),
        timeouts=self.scores.timeouts + other.scores.timeouts,
        errors=self.scores.errors + other.scores.errors,
      ),
      began_at=self.began_at,
      sample_s=self.sample_s + other.sample_s,
      reward_s=self.reward_s + other.reward_s,
      terms=jax.tree.map(choose, self.terms, other.terms),
      weighted=jax.tree.map(choose, self.weighted, other.weighted),
      replaced_rows=self.replaced_rows + other.rows.lengths.size,
      replaced_tokens=self.replaced_tokens
      + int(num_tokens - rows.lengths.sum()),
    )


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
