"""Tables and curves of one run, or of several beside each other.

  python -m dash_jax.report DIR [DIR ..] --out=DIR

The life of a curve:
  1. metrics.jsonl and evals.jsonl of each workdir are read.
  2. Wall seconds are the sum of step_s up to a step; evaluation is not in them.
  3. `summarize` adds up a run for the table; `draw` makes curves.png.
"""

import argparse
import os
import pathlib
from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from dash_jax.model import fields
from dash_jax.runs import checkpoint, metrics, progress

CURVES_NAME = 'curves.png'

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_RUN_COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#000000',
)
_LINE_STYLES = ('-', '--', '-.', ':')
_TIMELINE_STEPS = 10
# What is read of each step.
_STEP_KEYS = {
  'sft': ('step_s', 'learn_s'),
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
_PARTS = (
  ('sample_s', 'sampling', '#56B4E9'),
  ('reward_s', 'reward', '#E69F00'),
  ('learn_s', 'learning', '#009E73'),
  ('rest_s', 'rest', '#BBBBBB'),
)


def summarize(workdir: str | os.PathLike) -> dict:
  """Returns the figures of a run's table.

  Returns:
    name: the workdir as it was given.
    algorithm: from config.json, or 'rl' where that names none.
    start_eval, sft_eval, rl_eval: lines of evals.jsonl, or None where there is
      no such evaluation: before any step, the last of the SFT phase and the
      last of the RL phase, all of the split that was evaluated last.
    sft_steps, rl_steps: optimizer steps of each phase.
    sft_s: seconds of all SFT steps.
    sample_s, reward_s, learn_s: seconds, summed over the RL steps.
    eval_s: seconds of all evaluations.
    sampled_rows, kept_rows, sampled_tokens: summed over the RL steps.

  Raises:
    FileNotFoundError: `workdir` holds no metrics.jsonl.
    ValueError: a file there is damaged; the message names it.
  """
  steps, evals = _read(workdir)
  sft = [row for row in steps if row['phase'] == 'sft']
  rl = [row for row in steps if row['phase'] == 'rl']
  shown = [row for row in evals if row['split'] == evals[-1]['split']]

  def last(phase):
    rows = [row for row in shown if row['phase'] == phase and row['step'] > 0]
    return rows[-1] if rows else None

  start = [row for row in shown if row['step'] == 0]
  return {
    'name': str(workdir),
    'algorithm': _algorithm(workdir),
    'start_eval': start[0] if start else None,
    'sft_eval': last('sft'),
    'rl_eval': last('rl'),
    'sft_steps': len(sft),
    'sft_s': _sum(sft, 'step_s'),
    'rl_steps': len(rl),
    'sample_s': _sum(rl, 'sample_s'),
    'reward_s': _sum(rl, 'reward_s'),
    'learn_s': _sum(rl, 'learn_s'),
    'eval_s': _sum(evals, 'eval_s'),
    'sampled_rows': _sum(rl, 'sampled_rows'),
    'kept_rows': _sum(rl, 'kept_rows'),
    'sampled_tokens': _sum(rl, 'sampled_tokens'),
  }


def draw(
  workdirs: Sequence[str | os.PathLike], out_path: str | os.PathLike
) -> None:
  """Draws the curves of `workdirs` into the PNG file `out_path`.

  Raises:
    FileNotFoundError: a workdir holds no metrics.jsonl.
  """
  # A figure without pyplot: it needs no display and changes no global state.
  figure = matplotlib.figure.Figure(figsize=(12, 8), layout='constrained')
  grid = figure.add_gridspec(2, 2)
  held_out = figure.add_subplot(grid[0, 0])
  sampled = figure.add_subplot(grid[0, 1])
  seconds = figure.add_subplot(grid[1, 0])
  lengths_grid = grid[1, 1].subgridspec(2, 1)
  lengths = figure.add_subplot(lengths_grid[0])
  kept = figure.add_subplot(lengths_grid[1], sharex=lengths)

  runs = [(str(workdir), *_read(workdir)) for workdir in workdirs]
  for i, (name, steps, evals) in enumerate(runs):
    style = {
      'color': _RUN_COLOURS[i % len(_RUN_COLOURS)],
      'linestyle': _LINE_STYLES[i // len(_RUN_COLOURS) % len(_LINE_STYLES)],
      'label': name,
    }
    _draw_held_out(held_out, steps, evals, style)
    rl = [row for row in steps if row['phase'] == 'rl']
    _draw_smoothed(sampled, rl, 'reward_mean', style)
    _draw_smoothed(lengths, rl, 'completion_len_mean', style)
    _draw_share(kept, rl, style)
  ahead = [row for row in runs[0][1] if 'wait_s' in row]
  if len(runs) == 1 and ahead:
    _draw_timeline(seconds, ahead)
  elif len(runs) == 1:
    _draw_seconds_by_step(seconds, runs[0][1])
  else:
    _draw_seconds_by_run(seconds, runs)

  _label(
    held_out,
    'A  Held-out accuracy, 95% interval (hollow: SFT)',
    'wall seconds',
    'accuracy',
  )
  held_out.yaxis.set_major_formatter('{x:.0%}')
  _label(
    sampled,
    'B  Reward of samples, and its mean over 5 steps',
    'optimizer step',
    'mean reward',
  )
  _label(lengths, 'D  Completions', '', 'tokens, mean')
  lengths.tick_params(labelbottom=False)
  _label(kept, '', 'optimizer step', 'rows kept')
  kept.set_ylim(0, 1)
  kept.yaxis.set_major_formatter('{x:.0%}')
  if len(runs) > 1:
    sampled.legend(frameon=False)
  else:
    figure.suptitle(runs[0][0])
  out_path = pathlib.Path(out_path)
  out_path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out_path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table per run and writes curves.png."""
  parser = argparse.ArgumentParser(
    prog='python -m dash_jax.report', description=__doc__.splitlines()[0]
  )
  parser.add_argument('workdirs', nargs='+', metavar='DIR', help='a workdir')
  parser.add_argument('--out', required=True, help='folder for curves.png')
  args = parser.parse_args(argv)
  for workdir in args.workdirs:
    if not (pathlib.Path(workdir) / metrics.METRICS_NAME).is_file():
      parser.error(
        f'{workdir} holds no {metrics.METRICS_NAME}: give the --workdir of '
        'a run that has taken a step'
      )
  out_path = pathlib.Path(args.out) / CURVES_NAME
  try:
    summaries = [summarize(workdir) for workdir in args.workdirs]
    out_path.parent.mkdir(parents=True, exist_ok=True)
  except (ValueError, OSError) as error:
    parser.error(str(error))
  for summary in summaries:
    progress.print_summary(summary)
  draw(args.workdirs, out_path)
  print(out_path)


def _read(workdir):
  workdir = pathlib.Path(workdir)
  path = workdir / metrics.METRICS_NAME
  steps = metrics.read(path)
  if not steps:
    raise ValueError(f'{path}: no step yet; wait for the first')
  for number, row in enumerate(steps, start=1):
    _check_keys(f'{path}:{number}', row, _STEP_KEYS[row['phase']])
  path = workdir / metrics.EVALS_NAME
  evals = metrics.read(path) if path.exists() else []
  for number, row in enumerate(evals, start=1):
    _check_keys(f'{path}:{number}', row, metrics.EVAL_KEYS)
  return steps, evals


def _check_keys(where, row, keys):
  missing = [key for key in keys if key not in row]
  if missing:
    raise ValueError(f'{where}: no {missing[0]}, which dash_jax writes')


def _algorithm(workdir):
  path = pathlib.Path(workdir) / checkpoint.CONFIG_NAME
  if not path.exists():
    return 'rl'
  section = fields.read_json(path).get('algorithm')
  return section.get('name', 'rl') if isinstance(section, dict) else 'rl'


def _sum(rows, key):
  return sum(row[key] for row in rows)


def _column(rows, key):
  return np.array([row[key] for row in rows], float)


def _wall_s(steps, at_steps):
  """Returns the summed step_s of all steps up to each of `at_steps`."""
  ends = np.concatenate([[0.0], np.cumsum(_column(steps, 'step_s'))])
  counts = np.searchsorted(_column(steps, 'step'), at_steps, side='right')
  return ends[counts]


def _draw_held_out(axes, steps, evals, style):
  shown = [row for row in evals if row['split'] == evals[-1]['split']]
  if not shown:
    return
  wall_s = _wall_s(steps, _column(shown, 'step'))
  accuracy = _column(shown, 'accuracy')
  axes.plot(wall_s, accuracy, marker='o', markersize=4, **style)
  axes.fill_between(
    wall_s,
    _column(shown, 'accuracy_low'),
    _column(shown, 'accuracy_high'),
    color=style['color'],
    alpha=0.2,
    linewidth=0,
  )
  # Hollow where supervised fine-tuning had the word.
  sft = np.array([row['phase'] == 'sft' for row in shown])
  axes.plot(
    wall_s[sft],
    accuracy[sft],
    linestyle='',
    marker='o',
    markersize=4,
    markerfacecolor='white',
    color=style['color'],
  )


def _draw_smoothed(axes, rows, key, style):
  if not rows:
    return
  step, values = _column(rows, 'step'), _column(rows, key)
  axes.plot(step, values, color=style['color'], alpha=0.25, linewidth=1)
  # The mean of up to 5 steps around each.
  means = [np.mean(values[max(0, i - 2) : i + 3]) for i in range(len(values))]
  axes.plot(step, means, **style)


def _draw_share(axes, rows, style):
  if not rows:
    return
  share = _column(rows, 'kept_rows') / _column(rows, 'sampled_rows')
  axes.plot(_column(rows, 'step'), share, **style)


def _parts(rows):
  """Returns f64[parts, steps], seconds; the last part is what is left. Of what is
  done ahead only the waiting counts, as sampling."""
  rows = [
    row | {'sample_s': row['wait_s'], 'reward_s': 0} if 'wait_s' in row else row
    for row in rows
  ]
  parts = [_column(rows, key) for key, _, _ in _PARTS[:-1]]
  # Clocks differ by microseconds: no negative area.
  rest = np.maximum(_column(rows, 'step_s') - sum(parts), 0.0)
  return np.stack([*parts, rest])


def _draw_seconds_by_step(axes, steps):
  rl = [row for row in steps if row['phase'] == 'rl']
  _label(axes, 'C  Seconds of a step', 'optimizer step', 'seconds')
  if not rl:
    return
  axes.stackplot(
    _column(rl, 'step'),
    _parts(rl),
    labels=[label for _, label, _ in _PARTS],
    colors=[colour for _, _, colour in _PARTS],
  )
  # The first steps compile: their seconds may leave the picture, so that those
  # of the rest can be read. Room at the top, so that the legend covers none.
  step_s = _column(rl, 'step_s')
  usual_s = (step_s[2:] if len(step_s) > 2 else step_s).max()
  axes.set_ylim(0, 1.25 * usual_s)
  if step_s.max() > 1.25 * usual_s:
    axes.set_title(
      f'C  Seconds of a step (longest: {step_s.max():.1f} s)',
      loc='left',
      fontweight='bold',
    )
  axes.legend(frameon=False, ncols=len(_PARTS), loc='upper right')


def _draw_timeline(axes, rows):
  """Draws when the rows of the newest steps were sampled and learned from."""
  rows = rows[-_TIMELINE_STEPS:]
  # A run that went on has a clock of its own since.
  restarts = np.flatnonzero(np.diff(_column(rows, 'learning_at_s')) < 0) + 1
  rows = rows[restarts[-1] if restarts.size else 0 :]
  lanes = {
    'sampling_at_s': (1, ('sample_s', 'reward_s')),
    'learning_at_s': (0, ('learn_s',)),
  }
  shades = {key: colour for key, _, colour in _PARTS}
  for begin, (lane, keys) in lanes.items():
    for row in rows:
      left = row[begin]
      for key in keys:
        axes.barh(
          lane, row[key], left=left, height=0.6, color=shades[key],
          edgecolor='white',
        )  # fmt: skip
        left += row[key]
      middle = (row[begin] + left) / 2
      axes.text(middle, lane, f'{row["step"]:.0f}', ha='center', va='center')
  _label(
    axes, 'C  Rows of each step (number), sampled ahead', 'wall seconds', ''
  )
  axes.set_yticks([0, 1], ['learning', 'sampling,\nreward'])
  axes.grid(axis='y', visible=False)


def _draw_seconds_by_run(axes, runs):
  _label(axes, 'C  Seconds of a step, mean', 'seconds', '')
  axes.grid(axis='y', visible=False)
  left = np.zeros(len(runs))
  means = np.zeros((len(_PARTS), len(runs)))
  for i, (_, steps, _) in enumerate(runs):
    rl = [row for row in steps if row['phase'] == 'rl']
    if rl:
      means[:, i] = _parts(rl).mean(axis=1)
  names = [name for name, _, _ in runs]
  for values, (_, label, colour) in zip(means, _PARTS, strict=True):
    axes.barh(range(len(runs)), values, left=left, color=colour, label=label)
    left += values
  axes.set_yticks(range(len(runs)), names)
  axes.set_ylim(len(runs) - 0.4, -1.0)
  axes.legend(frameon=False, ncols=len(_PARTS), loc='upper right')


def _label(axes, title, x_label, y_label):
  axes.set_title(title, loc='left', fontweight='bold')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


if __name__ == '__main__':
  main()
