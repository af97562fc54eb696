"""95% intervals over seeds, in closed form.

Seeds are few, so every interval is an exact one of normal samples: Student's t
of a mean, chi-square of a deviation, Fisher's F of a ratio of deviations. What
is compared is paired by seed: two runs of a seed begin with the same weights
and are asked the same questions. Fisher's takes samples that have nothing to do
with each other, so that for such pairs it is too wide.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats

from dash_jax.reporting import workdirs

_LOW, _HIGH = 0.025, 0.975


@dataclasses.dataclass(frozen=True)
class Interval:
  """A figure and its 95% interval.

  Attributes:
    mean: the figure.
    low, high: None of one seed, which has no interval.
    num_seeds: that it is taken over.
  """

  mean: float
  low: float | None
  high: float | None
  num_seeds: int

  def scale(self, factor: float) -> 'Interval':
    """Returns it in another unit; `factor` is above 0."""
    return _map(self, lambda x: factor * x)

  def widen(self, half: float) -> 'Interval':
    """Returns it with ends that are at least so far from the figure."""
    if self.low is None:
      return self
    return dataclasses.replace(
      self,
      low=min(self.low, self.mean - half),
      high=max(self.high, self.mean + half),
    )


def of_mean(values: Sequence[float]) -> Interval:
  """Returns Student's interval of the mean."""
  mean, low, high = map(float, workdirs.average(np.array(values)))
  if len(values) < 2:
    return Interval(mean, None, None, 1)
  return Interval(mean, low, high, len(values))


def of_differences(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
  """Returns that of the mean of ours - theirs; both by seed."""
  return of_mean([a - b for a, b in zip(ours, theirs, strict=True)])


def of_savings(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
  """Returns that of 1 - ours / theirs, as a share; both by seed and above 0.

  The mean is the geometric one of the ratios, whose logarithms are what is
  taken to be normal: twice as fast and half as fast are as far from 1.
  """
  ratios = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
  # The larger the ratio, the smaller the saving.
  return _map(of_mean([-x for x in ratios]), lambda x: -math.expm1(-x))


def of_factors(values: Sequence[float]) -> Interval:
  """Returns that of the geometric mean; all above 0."""
  return _map(of_mean([math.log(x) for x in values]), math.exp)


def of_spread_ratio(ours: Sequence[float], theirs: Sequence[float]) -> Interval:
  """Returns log2 of our standard deviation over theirs; needs two seeds of each,
  and that none is 0."""
  ratio = statistics.stdev(ours) / statistics.stdev(theirs)
  degrees = len(ours) - 1, len(theirs) - 1
  low, high = (
    math.log2(ratio / math.sqrt(float(stats.f.ppf(share, *degrees))))
    for share in (_HIGH, _LOW)
  )
  return Interval(math.log2(ratio), low, high, min(len(ours), len(theirs)))


def _map(interval, function):
  """Returns an interval with its numbers changed by a growing function."""
  ends = (interval.low, interval.high)
  low, high = (None if end is None else function(end) for end in ends)
  return Interval(function(interval.mean), low, high, interval.num_seeds)
