"""What a finished run's metrics.jsonl and evals.jsonl say of time and accuracy.

Seconds are those of optimizer steps alone. The first step compiles, which takes
as long for a run of an hour as for one of a minute, so that it counts as the
median of the next. Between two evaluations accuracy is a straight line.
"""

import dataclasses
import math
import os
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from dash_jax.runs import metrics

# Of the gain that two runs share: the level that both have reached. Less than
# _LEAST_GAIN is no gain to take a share of.
_SHARE = 0.9
_LEAST_GAIN = 0.03
_NEXT = 3


@dataclasses.dataclass(frozen=True)
class Curve:
  """One run.

  Attributes:
    steps: lines of metrics.jsonl, of its last phase.
    evals: lines of evals.jsonl, of that phase.
  """

  steps: list[dict]
  evals: list[dict]

  @property
  def accuracy(self) -> float:
    """The last, as a share."""
    return self.evals[-1]['accuracy']

  @property
  def num_questions(self) -> int:
    """Of an evaluation."""
    return self.evals[-1]['num_questions']

  @property
  def completion_len(self) -> float:
    """Tokens of a reply at the last evaluation, mean."""
    return self.evals[-1]['completion_len_mean']

  @property
  def accuracies(self) -> dict[int, float]:
    """Those of evaluations, by the steps before them."""
    return {row['step']: row['accuracy'] for row in self.evals}

  @property
  def sampled_accuracies(self) -> dict[int, float]:
    """Those of replies that were sampled to learn from, by the steps behind the
    weights that sampled them."""
    found = {}
    for i, row in enumerate(self.steps):
      found.setdefault(i - round(row['staleness']), []).append(row['accuracy'])
    return {steps: statistics.fmean(some) for steps, some in found.items()}

  @property
  def drift(self) -> float:
    """Nats a token from where RL began, at the last evaluation."""
    return self.evals[-1]['drift_kl']

  def seconds(self, key: str = 'step_s') -> float:
    """Returns the seconds of all steps that `key` counts."""
    return float(self._add_up(key)[-1])

  def total(self, key: str) -> float:
    """Returns the sum of a metric over the steps."""
    return sum(row[key] for row in self.steps)

  def mean(self, key: str) -> float | None:
    """Returns the mean of a metric over the steps that learned from a token; None
    if none did."""
    found = [row[key] for row in self.steps if row['trained_tokens']]
    return statistics.fmean(found) if found else None

  def accuracy_at(self, seconds: float) -> float:
    """Returns the accuracy after so many seconds of steps; a run that ended
    before has that of its end."""
    shares = [row['accuracy'] for row in self.evals]
    at = self._add_up('step_s')[self._steps_at_evals()]
    return float(np.interp(seconds, at, shares))

  def seconds_to(
    self, accuracy: float, key: str = 'step_s'
  ) -> tuple[float, float, float]:
    """Returns the seconds that `key` counts until accuracy is first so high.

    It is so behind a step: the first that is on a straight line between two
    evaluations. Behind that come the seconds if it is the step behind the former
    evaluation, and if it is the step before the latter.

    Raises:
      ValueError: it never is.
    """
    at, after = self._add_up(key), self._steps_at_evals()
    shares = [row['accuracy'] for row in self.evals]
    reached = [i for i, share in enumerate(shares) if share >= accuracy]
    if not reached:
      raise ValueError(f'accuracy {accuracy:.3f} is not reached')
    i = reached[0]
    if not i:
      return 0.0, 0.0, 0.0
    before, num = after[i - 1], after[i] - after[i - 1]
    part = (accuracy - shares[i - 1]) / (shares[i] - shares[i - 1])
    likely = max(math.ceil(part * num), 1)
    return tuple(float(at[before + steps]) for steps in (likely, 1, num))

  def _add_up(self, key):
    """Returns f64[steps + 1], the seconds before each step and after the last."""
    seconds = np.array([row[key] for row in self.steps], float)
    seconds[0] = count_first(seconds)
    return np.concatenate([[0.0], np.cumsum(seconds)])

  def _steps_at_evals(self):
    first = self.steps[0]['step'] - 1
    return [max(row['step'] - first, 0) for row in self.evals]


def count_first(seconds: Sequence[float]) -> float:
  """Returns what the first of some steps counts as: the median of the next _NEXT,
  which learn from about as many rows; or its own seconds if it is alone."""
  return float(
    np.median(seconds[1 : 1 + _NEXT] if len(seconds) > 1 else seconds)
  )


def read(workdir: str | os.PathLike) -> Curve:
  """Returns the last phase of a finished run.

  Raises:
    FileNotFoundError, ValueError: as `metrics.read`.
  """
  folder = pathlib.Path(workdir)
  steps = metrics.read(folder / metrics.METRICS_NAME)
  phase = steps[-1]['phase']
  steps = [row for row in steps if row['phase'] == phase]
  evals = metrics.read(folder / metrics.EVALS_NAME)
  first = steps[0]['step'] - 1
  return Curve(steps, [row for row in evals if row['step'] >= first])


def find_level(ours: Curve, theirs: Curve) -> float | None:
  """Returns an accuracy that both runs reach: 0.9 of the smaller gain above the
  start; None if one has gained less than _LEAST_GAIN."""
  start = max(ours.evals[0]['accuracy'], theirs.evals[0]['accuracy'])
  gain = min(ours.accuracy, theirs.accuracy) - start
  return start + _SHARE * gain if gain >= _LEAST_GAIN else None
