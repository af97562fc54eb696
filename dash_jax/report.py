"""Tables, curves and a page of one run, or of several beside each other.

    python -m dash_jax.report DIR [DIR ..] --out=DIR

The life of a curve:
  1. reporting/workdirs.py reads each workdir.
  2. `summarize` adds up a run for the table that is printed; `draw` makes
     curves.png, which every run draws at its end too.
  3. reporting/page.py writes report.html and its figures. There, runs that
     differ by their seed alone are one line.
"""

import argparse
import os
import pathlib
import shlex
import sys
from collections.abc import Sequence

import matplotlib.figure
import numpy as np

from dash_jax.reporting import figures, page, workdirs
from dash_jax.runs import metrics, progress

CURVES_NAME = 'curves.png'
_TIMELINE_STEPS = 10


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
  run = workdirs.read(workdir)
  sft = [row for row in run.steps if row['phase'] == 'sft']
  rl, evals = run.rl, run.evals
  shown = [row for row in evals if row['split'] == evals[-1]['split']]

  def last(phase):
    rows = [row for row in shown if row['phase'] == phase and row['step'] > 0]
    return rows[-1] if rows else None

  start = [row for row in shown if row['step'] == 0]
  return {
    'name': str(workdir),
    'algorithm': _find_algorithm(run.config),
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
  folders: Sequence[str | os.PathLike], out_path: str | os.PathLike
) -> None:
  """Draws the curves of workdirs into the PNG file `out_path`.

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

  found = [workdirs.read(folder) for folder in folders]
  labels = figures.shorten([str(run.workdir) for run in found])
  for i, (run, label) in enumerate(zip(found, labels, strict=True)):
    style = figures.make_style(i) | {'label': label}
    _draw_held_out(held_out, run, style)
    rl = run.rl
    _draw_smoothed(sampled, rl, 'reward_mean', style)
    _draw_smoothed(lengths, rl, 'completion_len_mean', style)
    _draw_share(kept, rl, style)
  ahead = [row for row in found[0].steps if 'wait_s' in row]
  if len(found) == 1 and ahead:
    _draw_timeline(seconds, ahead)
  elif len(found) == 1:
    _draw_seconds_by_step(seconds, found[0].rl)
  else:
    _draw_seconds_by_run(seconds, found, labels)

  _label(
    held_out,
    'A  Held-out accuracy, 95% interval (hollow: SFT)',
    'wall seconds',
    'accuracy',
  )
  held_out.yaxis.set_major_formatter('{x:.0%}')
  _label(
    sampled,
    'B  Reward of samples, smoothed',
    'optimizer step',
    'mean reward',
  )
  _label(lengths, 'D  Completions', '', 'tokens, mean')
  lengths.tick_params(labelbottom=False)
  _label(kept, '', 'optimizer step', 'rows kept')
  kept.set_ylim(0, 1)
  kept.yaxis.set_major_formatter('{x:.0%}')
  if len(found) > 1:
    sampled.legend(frameon=False)
  else:
    figure.suptitle(str(found[0].workdir))
  out_path = pathlib.Path(out_path)
  out_path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(out_path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
  """Prints a table per run and writes curves.png and the page."""
  parser = argparse.ArgumentParser(
    prog='python -m dash_jax.report', description=__doc__.splitlines()[0]
  )
  parser.add_argument('workdirs', nargs='+', metavar='DIR', help='a workdir')
  parser.add_argument(
    '--out', required=True, help='folder for the page and pictures'
  )
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
  found = [workdirs.read(folder) for folder in args.workdirs]
  options = sys.argv[1:] if argv is None else argv
  command = shlex.join(['python', '-m', 'dash_jax.report', *options])
  section = page.Section('Runs', workdirs.group(found), command)
  try:
    print(page.write(args.out, 'Report', [section], command))
  except ValueError as error:  # of rollouts, which nothing has read before
    parser.error(str(error))


def _find_algorithm(config):
  section = config.get('algorithm')
  return section.get('name', 'rl') if isinstance(section, dict) else 'rl'


def _sum(rows, key):
  return sum(row[key] for row in rows)


def _draw_held_out(axes, run, style):
  shown = run.shown
  if not shown:
    return
  wall_s = workdirs.find_wall_s(run, workdirs.column(shown, 'step'))
  accuracy = workdirs.column(shown, 'accuracy')
  axes.plot(wall_s, accuracy, **style)
  axes.fill_between(
    wall_s,
    workdirs.column(shown, 'accuracy_low'),
    workdirs.column(shown, 'accuracy_high'),
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
    marker=style['marker'],
    markersize=style['markersize'],
    markerfacecolor='white',
    color=style['color'],
  )


def _draw_smoothed(axes, rows, key, style):
  if not rows:
    return
  step, values = workdirs.column(rows, 'step'), workdirs.column(rows, key)
  axes.plot(step, values, color=style['color'], alpha=0.25, linewidth=1)
  axes.plot(step, workdirs.smooth(values), **figures.mark_some(style, step))


def _draw_share(axes, rows, style):
  if not rows:
    return
  share = workdirs.column(rows, 'kept_rows') / workdirs.column(
    rows, 'sampled_rows'
  )
  step = workdirs.column(rows, 'step')
  axes.plot(step, share, **figures.mark_some(style, step))


def _draw_seconds_by_step(axes, rl):
  _label(axes, 'C  Seconds of a step', 'optimizer step', 'seconds')
  if not rl:
    return
  areas = axes.stackplot(
    workdirs.column(rl, 'step'), workdirs.find_parts(rl), edgecolor='white'
  )
  for area, (_, label, colour, hatch) in zip(
    areas, workdirs.PARTS, strict=True
  ):
    area.set(label=label, facecolor=colour, hatch=hatch)
  # The first steps compile: their seconds may leave the picture, so that those
  # of the rest can be read. Room at the top, so that the legend covers none.
  step_s = workdirs.column(rl, 'step_s')
  usual_s = (step_s[2:] if len(step_s) > 2 else step_s).max()
  axes.set_ylim(0, 1.25 * usual_s)
  if step_s.max() > 1.25 * usual_s:
    axes.set_title(
      f'C  Seconds of a step (longest: {step_s.max():.1f} s)',
      loc='left',
      fontweight='bold',
    )
  axes.legend(frameon=False, ncols=len(workdirs.PARTS), loc='upper right')


def _draw_timeline(axes, rows):
  """Draws when the rows of the newest steps were sampled and learned from."""
  rows = rows[-_TIMELINE_STEPS:]
  # A run that went on has a clock of its own since.
  restarts = (
    np.flatnonzero(np.diff(workdirs.column(rows, 'learning_at_s')) < 0) + 1
  )
  rows = rows[restarts[-1] if restarts.size else 0 :]
  lanes = {
    'sampling_at_s': (1, ('sample_s', 'reward_s')),
    'learning_at_s': (0, ('learn_s',)),
  }
  shades = {
    key: {'color': colour, 'hatch': hatch}
    for key, _, colour, hatch in workdirs.PARTS
  }
  for begin, (lane, keys) in lanes.items():
    for row in rows:
      left = row[begin]
      for key in keys:
        axes.barh(
          lane, row[key], left=left, height=0.6, edgecolor='white',
          **shades[key],
        )  # fmt: skip
        left += row[key]
      middle = (row[begin] + left) / 2
      axes.text(middle, lane, f'{row["step"]:.0f}', ha='center', va='center')
  _label(
    axes, 'C  Rows of each step (number), sampled ahead', 'wall seconds', ''
  )
  axes.set_yticks([0, 1], ['learning', 'sampling,\nreward'])
  axes.grid(axis='y', visible=False)


def _draw_seconds_by_run(axes, found, labels):
  _label(axes, 'C  Seconds of a step, mean', 'seconds', '')
  axes.grid(axis='y', visible=False)
  left = np.zeros(len(found))
  means = np.zeros((len(workdirs.PARTS), len(found)))
  for i, run in enumerate(found):
    if run.rl:
      means[:, i] = workdirs.find_parts(run.rl).mean(axis=1)
  for values, part in zip(means, workdirs.PARTS, strict=True):
    _, label, colour, hatch = part
    axes.barh(
      range(len(found)), values, left=left, color=colour, label=label,
      hatch=hatch, edgecolor='white',
    )  # fmt: skip
    left += values
  axes.set_yticks(range(len(found)), labels)
  axes.set_ylim(len(found) - 0.4, -1.0)
  axes.legend(frameon=False, ncols=len(workdirs.PARTS), loc='upper right')


def _label(axes, title, x_label, y_label):
  axes.set_title(title, loc='left', fontweight='bold')
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  axes.grid(alpha=0.3)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)


if __name__ == '__main__':
  main()
