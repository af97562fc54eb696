"""What a report shows of runs, read from their workdirs.

  1. `read` reads metrics.jsonl, evals.jsonl and config.json of a workdir.
  2. `group` puts runs that differ by their seed alone into one `Line`.
  3. `find_accuracy`, `find_curve` and `find_seconds` make what is drawn of a
     line: means over its seeds, with intervals; `find_row` is its row of the
     table.

Wall seconds are the sum of step_s up to a step; evaluation is not in them.
Intervals hold 95%: over several seeds Student's, of their mean; of one seed the
evaluation's own, which is about its questions.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from scipy import special

from dash_jax import config as config_lib
from dash_jax.model import fields
from dash_jax.runs import metrics, ownership

# Means of so many steps are told, and drawn, but for runs of so many steps that
# a share of them is more.
SMOOTHED_STEPS, SMOOTHED_SHARE = 5, 1 / 40
_MOST_POINTS = 100  # of a curve; what is between them is in their means

# What a step's seconds are made of, the last is what is left of them: metric, name,
# colour, and hatches, which tell them apart on paper.
PARTS = (
  ('sample_s', 'sampling', '#56B4E9', ''),
  ('reward_s', 'reward', '#E69F00', 'xx'),
  ('learn_s', 'learning', '#009E73', '..'),
  ('rest_s', 'rest', '#BBBBBB', '||'),
)
# What is read of each step.
_STEP_KEYS = {
  'sft': ('step_s',),
  'rl': (
    'step_s',
    'sample_s',
    'reward_s',
    'learn_s',
    'reward_mean',
    'completion_len_mean',
    'sampled_rows',
    'kept_rows',
    'sampled_tokens',
  ),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """One run, as its files are.

  Attributes:
    workdir: as it was given.
    config: of config.json, {} where there is none.
    steps: lines of metrics.jsonl.
    evals: lines of evals.jsonl.
  """

  workdir: pathlib.Path
  config: dict
  steps: list[dict]
  evals: list[dict]

  @functools.cached_property
  def rl(self) -> list[dict]:
    """The steps of RL."""
    return [row for row in self.steps if row['phase'] == 'rl']

  @functools.cached_property
  def shown(self) -> list[dict]:
    """The evaluations of the split that was evaluated last, one a step."""
    rows = [r for r in self.evals if r['split'] == self.evals[-1]['split']]
    return list({row['step']: row for row in rows}.values())


@dataclasses.dataclass(frozen=True)
class Line:
  """Runs that are drawn as one.

  Attributes:
    label: what it is called.
    runs: they differ by their seed alone.
  """

  label: str
  runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Curve:
  """Points of a line.

  Attributes:
    x: f64[n].
    mean: f64[n], over the seeds.
    low, high: f64[n], the interval; NaN where there is none.
  """

  x: np.ndarray
  mean: np.ndarray
  low: np.ndarray
  high: np.ndarray


def read(workdir: str | os.PathLike) -> Run:
  """Reads a workdir.

  Raises:
    FileNotFoundError: `workdir` holds no metrics.jsonl.
    ValueError: a file there is damaged; the message names it.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / metrics.METRICS_NAME
  steps = metrics.read(path)
  if not steps:
    raise ValueError(f'{path}: no step yet; wait for the first')
  metrics.check_keys(path, steps, _STEP_KEYS)
  path = workdir / metrics.EVALS_NAME
  evals = metrics.read(path) if path.exists() else []
  path = workdir / ownership.CONFIG_NAME
  config = fields.read_json(path) if path.exists() else {}
  return Run(workdir, config, steps, evals)


def group(found: Sequence[Run]) -> list[Line]:
  """Returns lines, in the order of their first runs.

  Runs are of one line if their config.json agree but for `seed`. What lies in
  the folder beside a workdir, as the weights that a seed starts from, is taken
  for the same. Runs with a seed that the line has already, or without a
  config.json, are lines of their own.
  """
  lines = []
  for run in found:
    for runs in lines:
      seeds = [other.config.get('seed') for other in runs if other.config]
      if (
        run.config
        and _without_seed(runs[0]) == _without_seed(run)
        and run.config.get('seed') not in seeds
      ):
        runs.append(run)
        break
    else:
      lines.append([run])
  return [
    Line(_find_name([str(run.workdir) for run in runs]), tuple(runs))
    for runs in lines
  ]


def _without_seed(run):
  text = json.dumps(run.config | {'seed': None}, sort_keys=True)
  beside = str(run.workdir.parent)
  # Of a workdir that is given as a bare name nothing can be told.
  return text if beside == '.' else text.replace(beside, '..')


def _find_name(names):
  """Returns one name for workdirs: a folder in which they differ is a *."""
  parts = [name.split('/') for name in names]
  by_part = [set(same) for same in zip(*parts, strict=False)]
  return '/'.join(same.pop() if len(same) == 1 else '*' for same in by_part)


def find_fields(lines: Sequence[Line]) -> list[str]:
  """Returns, for each line, the fields in which lines differ, as flags give
  them; the seed and what a field has by default are left out."""
  default = _flatten(config_lib.default().to_dict())
  found = [_flatten(line.runs[0].config) for line in lines]
  names = dict.fromkeys(name for config in found for name in config)
  differing = [
    name
    for name in names
    if name != 'seed' and len({str(config.get(name)) for config in found}) > 1
  ]
  return [
    ' '.join(
      f'{name}={config[name]}'
      for name in differing
      if name in config and config[name] != default.get(name)
    )
    for config in found
  ]


def _flatten(config):
  flat = {}
  for section, values in config.items():
    if isinstance(values, dict):
      flat |= {f'{section}.{name}': value for name, value in values.items()}
    else:
      flat[section] = values
  return flat


def average(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the mean over the first axis, and the ends of its 95% interval by
  Student's t, NaN where one value is all there is.

  Args:
    values: f64[n, ..].
  """
  mean = np.mean(values, axis=0)
  num = len(values)
  if num < 2:
    nothing = np.full(mean.shape, np.nan)
    return mean, nothing, nothing
  error = np.std(values, axis=0, ddof=1) / num**0.5
  half = special.stdtrit(num - 1, 0.975) * error
  return mean, mean - half, mean + half


def column(rows: Sequence[dict], key: str) -> np.ndarray:
  """Returns f64[rows]; NaN where a row has no such key."""
  return np.array([row.get(key, np.nan) for row in rows], float)


def find_wall_s(run: Run, at_steps: np.ndarray) -> np.ndarray:
  """Returns the summed step_s of all steps up to each of `at_steps`."""
  return _sum_up_to(run.steps, 'step_s', at_steps)


def _sum_up_to(rows, key, at_steps):
  ends = np.concatenate([[0.0], np.cumsum(column(rows, key))])
  counts = np.searchsorted(column(rows, 'step'), at_steps, side='right')
  return ends[counts]


def find_accuracy(line: Line, against: str) -> Curve:
  """Returns held-out accuracy, at the evaluations that all runs of a line have.

  Args:
    line: of runs.
    against: 'seconds' of steps, their mean over the runs, or 'samples', the
      replies that were sampled before.
  """
  steps, accuracies = _find_evaluated(line, 'accuracy')
  if against == 'seconds':
    x = np.mean([find_wall_s(run, steps) for run in line.runs], axis=0)
  else:
    x = _count_samples(line, steps)
  mean, low, high = average(accuracies)
  if len(line.runs) == 1:
    rows = [row for row in line.runs[0].shown if row['step'] in steps]
    low, high = column(rows, 'accuracy_low'), column(rows, 'accuracy_high')
  return Curve(x, mean, np.clip(low, 0, 1), np.clip(high, 0, 1))


def find_drift(line: Line) -> Curve:
  """Returns the KL divergence from where RL began, at the evaluations that measure
  it in all runs of a line, against the replies that were sampled before."""
  steps, drifts = _find_evaluated(line, 'drift_kl')
  return Curve(_count_samples(line, steps), *average(drifts))


def _find_evaluated(line, key):
  """Returns the steps at which evaluations of all runs have a figure, f64[n], in
  order, and f64[runs, n]."""
  found = [
    {row['step']: row[key] for row in run.shown if key in row}
    for run in line.runs
  ]
  steps = sorted(set.intersection(*map(set, found)))
  values = [[by_step[step] for step in steps] for by_step in found]
  return np.array(steps, float), np.array(values, float)


def _count_samples(line, steps):
  x = [_sum_up_to(run.rl, 'sampled_rows', steps) for run in line.runs]
  return np.mean(x, axis=0)


def find_curve(line: Line, key: str) -> Curve:
  """Returns a metric of the RL steps that all runs of a line have, against the
  replies sampled, each the mean of the steps around it.

  Args:
    line: of runs.
    key: of metrics.jsonl, or 'kept_share'.
  """
  num = min(len(run.rl) for run in line.runs)
  if not num:
    return Curve(*[np.zeros(0)] * 4)
  x = [np.cumsum(column(run.rl, 'sampled_rows'))[:num] for run in line.runs]
  values = [smooth(_get(run, key)[:num]) for run in line.runs]
  curve = Curve(np.mean(x, axis=0), *average(np.stack(values)))
  chosen = np.unique(np.linspace(0, num - 1, min(num, _MOST_POINTS)).round())
  return Curve(*(x[chosen.astype(int)] for x in dataclasses.astuple(curve)))


def _get(run, key):
  if key == 'kept_share':
    return column(run.rl, 'kept_rows') / column(run.rl, 'sampled_rows')
  return column(run.rl, key)


def smooth(values: np.ndarray) -> np.ndarray:
  """Returns f64[steps], of each step the mean of those around it: SMOOTHED_STEPS,
  or SMOOTHED_SHARE of them if that is more."""
  around = max(SMOOTHED_STEPS, round(len(values) * SMOOTHED_SHARE)) // 2
  return np.array(
    [
      np.mean(values[max(0, i - around) : i + around + 1])
      for i in range(len(values))
    ]
  )


def find_parts(rows: Sequence[dict]) -> np.ndarray:
  """Returns f64[parts, rows], seconds of RL steps by PARTS. Of what is done
  ahead only the waiting counts, as sampling."""
  rows = [
    row | {'sample_s': row['wait_s'], 'reward_s': 0} if 'wait_s' in row else row
    for row in rows
  ]
  parts = [column(rows, key) for key, *_ in PARTS[:-1]]
  # Clocks differ by microseconds: no negative area.
  rest = np.maximum(column(rows, 'step_s') - sum(parts), 0.0)
  return np.stack([*parts, rest])


def find_seconds(line: Line) -> dict[str, float]:
  """Returns where a line's time goes: the seconds of a whole run by part, their
  mean over the runs."""
  sums = []
  for run in line.runs:
    sft = [row for row in run.steps if row['phase'] == 'sft']
    parts = find_parts(run.rl).sum(axis=1)
    sums.append(
      {'supervised': column(sft, 'step_s').sum()}
      | {label: s for (_, label, *_), s in zip(PARTS, parts, strict=True)}
      | {'evaluation': column(run.evals, 'eval_s').sum()}
    )
  return {name: float(np.mean([s[name] for s in sums])) for name in sums[0]}


@dataclasses.dataclass(frozen=True)
class Row:
  """A line's row of the table; intervals are pairs, NaN where there is none.

  Attributes:
    label, num_seeds: of the line.
    samples: replies that were sampled for RL, mean.
    first, last: accuracy of the first and the last evaluation, mean.
    last_interval: of the latter.
    gain, gain_interval: last minus first, of each run with itself.
    rl_s, rl_s_interval: seconds of all RL steps.
    kept_share: of the rows sampled.
    completion_len: mean of the last SMOOTHED_STEPS steps, NaN without any.
    drift: the last of `find_drift`, NaN where no evaluation measures it.
  """

  label: str
  num_seeds: int
  samples: float
  first: float
  last: float
  last_interval: tuple[float, float]
  gain: float
  gain_interval: tuple[float, float]
  rl_s: float
  rl_s_interval: tuple[float, float]
  kept_share: float
  completion_len: float
  drift: float


def find_row(line: Line) -> Row:
  """Returns a line's row of the table."""
  accuracy = find_accuracy(line, 'samples')
  _, by_run = _find_evaluated(line, 'accuracy')
  points = by_run.shape[1]
  gains = by_run[:, -1] - by_run[:, 0] if points > 1 else np.array([np.nan])
  gain, *gain_interval = average(gains)
  rl_s, *rl_interval = average(
    np.array([column(run.rl, 'step_s').sum() for run in line.runs])
  )
  sampled = sum(column(run.rl, 'sampled_rows').sum() for run in line.runs)
  kept = sum(column(run.rl, 'kept_rows').sum() for run in line.runs)
  ends = [row for run in line.runs for row in run.rl[-SMOOTHED_STEPS:]]
  lens = column(ends, 'completion_len_mean')
  drift = find_drift(line).mean
  return Row(
    label=line.label,
    num_seeds=len(line.runs),
    samples=float(sampled / len(line.runs)),
    first=float(accuracy.mean[0]) if points else np.nan,
    last=float(accuracy.mean[-1]) if points else np.nan,
    last_interval=(accuracy.low[-1], accuracy.high[-1])
    if points
    else (np.nan, np.nan),
    gain=float(gain),
    gain_interval=tuple(gain_interval),
    rl_s=float(rl_s),
    rl_s_interval=tuple(rl_interval),
    kept_share=float(kept / sampled) if sampled else np.nan,
    completion_len=float(np.mean(lens)) if ends else np.nan,
    drift=float(drift[-1]) if len(drift) else np.nan,
  )
