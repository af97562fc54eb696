"""What a study has found: a row for each claim, with interval and verdict.

1. `run.read_runs` reads the finished runs of a part of a study (a model and its
   task), by name and seed.
2. Each `Comparison` of comparisons.py takes a figure of one run, or of two
   runs of the same seed, for every seed that has them.
3. `find` makes a `Finding` of it: the figure with its interval over seeds,
   what the paper has, and the verdict of `judge`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from experiments.study import curves, intervals

# By name of the run and by seed.
Runs = dict[str, dict[int, curves.Curve]]

# Accuracies whose difference is surely less are taken to be the same, in points.
MARGIN = 3.0

_SMALL = ('', 'nats/token')  # units of figures around 1 and below


@dataclasses.dataclass(frozen=True)
class Finding:
  """One row of a study's table.

  Attributes:
    question: its number in comparisons.QUESTIONS.
    part: model and task.
    claim: what the verdict is on, a sentence.
    metric: what the figure is.
    found: the figure and its interval, in `unit`; None where no seed has any.
    unit: such as '%', 'points', 'tokens/s'.
    paper: the paper's figure in words; '' if it has none.
    verdict: in words, of `judge`.
    runs: names of the runs that are compared, the first with the others.
    is_main: whether it belongs in a short table.
  """

  question: int
  part: str
  claim: str
  metric: str
  found: intervals.Interval | None
  unit: str
  paper: str
  verdict: str
  runs: tuple[str, ...]
  is_main: bool = False

  @property
  def figure(self) -> str:
    """The figure and its interval, as text."""
    if self.found is None:
      return 'none'
    known = (self.found.mean, self.found.low or 0, self.found.high or 0)
    digits = 1 if abs(self.found.mean) < 100 else 0
    if self.unit in _SMALL:
      # Two that say something, of figures that are next to nothing.
      largest = max(map(abs, known))
      digits = max(3, 1 - math.floor(math.log10(largest or 1)))
    unit = '%' if self.unit == '%' else f' {self.unit}'.rstrip()
    text = f'{self.found.mean:,.{digits}f}{unit}'
    if self.found.low is not None:
      text += f' [{self.found.low:,.{digits}f}, {self.found.high:,.{digits}f}]'
    return text


@dataclasses.dataclass(frozen=True)
class Comparison:
  """How a claim is decided.

  Attributes:
    question, claim, metric, unit, paper, is_main: as in `Finding`.
    runs: one name, or two: the first is compared with the second.
    measure: takes a curve of each of `runs`; returns a figure of each, or None
      where this seed has none.
    combine: one of COMBINE, over seeds.
    scale: what makes `unit` of it.
    expects: what makes the claim hold: figures 'above' 0 or 'below' it, in points
      not surely within MARGIN; or in points 'near' it, within MARGIN, or 'not
      below' -MARGIN; '' where a figure is no claim.
    paper_value: the paper's figure, in `unit`, if it is of the same kind.
    others: as `measure`, by other readings of the same runs, by which the verdict
      must be the same.
    is_counted: whether figures are shares of the held-out questions, so that none
      is known better than to one question.
  """

  question: int
  claim: str
  metric: str
  runs: tuple[str, ...]
  measure: Callable[..., Sequence[float] | None]
  combine: str
  unit: str
  scale: float = 1.0
  expects: str = ''
  paper: str = ''
  paper_value: float | None = None
  is_main: bool = False
  others: tuple[Callable[..., Sequence[float] | None], ...] = ()
  is_counted: bool = False


COMBINE = {
  'mean': intervals.of_mean,
  'difference': intervals.of_differences,
  'saving': intervals.of_savings,
  'spread': intervals.of_spread_ratio,
}


def find(comparison: Comparison, runs: Runs, part: str) -> Finding | None:
  """Returns what the runs say of a claim, None if they say nothing.

  Args:
    comparison: the claim.
    runs: the finished ones of a part of the study.
    part: its name.
  """
  by_seed = [runs.get(name, {}) for name in comparison.runs]
  seeds = sorted(set.intersection(*(set(found) for found in by_seed)))
  if not seeds:
    return None
  pairs = [[found[seed] for found in by_seed] for seed in seeds]
  readings = []
  for measure in (comparison.measure, *comparison.others):
    figures = [measure(*pair) for pair in pairs]
    known = [some for some in figures if some is not None]
    found = _combine(comparison, list(zip(*known, strict=True)))
    if found and comparison.is_counted:
      found = found.widen(comparison.scale / pairs[0][0].num_questions)
    readings.append(found)
  row = make_finding(comparison, readings[0], part)
  if len(known) < len(seeds):
    missing = f'{len(seeds) - len(known)} of {len(seeds)} seeds'
    return dataclasses.replace(row, verdict=f'not decided: none in {missing}')
  verdicts = [
    make_finding(comparison, found, part).verdict for found in readings
  ]
  # What is behind a comma or a colon says how much.
  if len({re.split('[,:]', verdict)[0] for verdict in verdicts}) > 1:
    verdict = 'not decided: it happened between two evaluations'
    return dataclasses.replace(row, verdict=verdict)
  return row


def _combine(comparison, columns):
  """Returns the interval of figures by seed, a column a run, None of none."""
  if not columns:
    return None
  if comparison.combine == 'spread' and not all(
    len(set(column)) > 1 for column in columns
  ):
    return None  # of one seed, or of seeds that all agree
  return COMBINE[comparison.combine](*columns).scale(comparison.scale)


def make_finding(
  comparison: Comparison, found: intervals.Interval | None, part: str
) -> Finding:
  """Returns the row of a figure in its unit."""
  return Finding(
    question=comparison.question,
    part=part,
    claim=comparison.claim,
    metric=comparison.metric,
    found=found,
    unit=comparison.unit,
    paper=comparison.paper,
    verdict=judge(
      found,
      comparison.expects,
      comparison.paper_value,
      MARGIN if comparison.unit == 'points' else None,
    ),
    runs=comparison.runs,
    is_main=comparison.is_main,
  )


def judge(
  found: intervals.Interval | None,
  expects: str,
  paper_value: float | None = None,
  margin: float | None = None,
) -> str:
  """Returns the verdict on a claim.

  Args:
    found: its figure.
    expects: as `Comparison`'s.
    paper_value: as `Comparison`'s.
    margin: what is taken to be no difference, if that is known in this unit;
      'near' and 'not below' need it.
  """
  if found is None:
    return 'not decided: no figure'
  if not expects:
    return 'measured'
  if found.low is None:
    return 'not decided: one seed has no interval'
  low, high = found.low, found.high
  is_near = margin is not None and low > -margin and high < margin
  if expects in ('near', 'not below'):
    if is_near or (expects == 'not below' and low > -margin):
      return 'holds'
    if high <= -margin or (expects == 'near' and low >= margin):
      return 'does not hold here'
    if high < 0 or (expects == 'near' and low > 0):
      return f'not decided: a difference, and perhaps of less than {margin:g}'
    return f'not decided: interval reaches beyond {margin:g}'
  # It may be as large as the paper's, which may be small.
  reaches = paper_value is not None and (
    high >= paper_value if paper_value > 0 else low <= paper_value
  )
  if is_near and not reaches:
    return f'does not hold here: within {margin:g} of 0'
  if low <= 0 <= high:
    return 'not decided: interval spans 0'
  if (low > 0) != (expects == 'above'):
    return 'does not hold here'
  if paper_value is None or low <= paper_value <= high:
    return 'holds'
  less = abs(found.mean) < abs(paper_value)
  return f'holds, by {"less" if less else "more"} than in the paper'
