"""What a finished run's metrics.jsonl and evals.jsonl say of time and accuracy.

Seconds are those of optimizer steps alone. The first step compiles, which takes
as long for a run of an hour as for one of a minute, so that it counts as the
median step. Between two evaluations accuracy is a straight line.
"""

import dataclasses
import os
import pathlib
import statistics

import numpy as np

from dash_jax.runs import metrics

# Of the gain that two runs share: the level that both have reached.
_SHARE = 0.9


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
  def completion_len(self) -> float:
    """Tokens of a reply at the last evaluation, mean."""
    return self.evals[-1]['completion_len_mean']

  @property
  def fall(self) -> float:
    """How far the last accuracy is below the highest."""
    return max(row['accuracy'] for row in self.evals) - self.accuracy

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

  def mean(self, key: str) -> float:
    """Returns the mean of a metric over the steps that have one."""
    return statistics.fmean(row[key] for row in self.steps)

  def accuracy_at(self, seconds: float) -> float:
    """Returns the accuracy after so many seconds of steps; a run that ended
    before has that of its end."""
    shares = [row['accuracy'] for row in self.evals]
    return float(np.interp(seconds, self._at_evals('step_s'), shares))

  def seconds_to(self, accuracy: float, key: str = 'step_s') -> float:
    """Returns the seconds that `key` counts until accuracy is first so high.

    Raises:
      ValueError: it never is.
    """
    at = self._at_evals(key)
    shares = [row['accuracy'] for row in self.evals]
    for i, share in enumerate(shares):
      if share >= accuracy:
        if not i:
          return float(at[0])
        part = (accuracy - shares[i - 1]) / (share - shares[i - 1])
        return float(at[i - 1] + part * (at[i] - at[i - 1]))
    raise ValueError(f'accuracy {accuracy:.3f} is not reached')

  def _add_up(self, key):
    """Returns f64[steps + 1], the seconds before each step and after the last."""
    seconds = np.array([row[key] for row in self.steps], float)
    seconds[0] = np.median(seconds)
    return np.concatenate([[0.0], np.cumsum(seconds)])

  def _at_evals(self, key):
    first = self.steps[0]['step'] - 1
    after = [max(row['step'] - first, 0) for row in self.evals]
    return self._add_up(key)[after]


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
  start; None if one has gained nothing."""
  start = max(ours.evals[0]['accuracy'], theirs.evals[0]['accuracy'])
  gain = min(ours.accuracy, theirs.accuracy) - start
  return start + _SHARE * gain if gain > 0 else None
