"""The figures of a report, by matplotlib: for a page (SVG) and others (PNG).

`draw` makes those that lines have numbers for, `draw_curves` one of curves. They
differ in colour, dashes and marks, and areas in hatches, so that they can be told
apart without colours and on paper.
"""

import dataclasses
import io
import math
from collections.abc import Sequence

import matplotlib
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from dash_jax.reporting import workdirs

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#000000')
_LINE_STYLES = ('-', '--', '-.', ':')
_MARKS = 'os^Dv'
_SECONDS = (
  ('supervised', '#CC79A7', '\\\\'),
  *(part[1:] for part in workdirs.PARTS),
  ('evaluation', '#F0E442', '//'),
)
_LEGEND_COLUMNS = 2
_MOST_LABEL = 44
_BAND = (
  "Bands: 95% intervals; over seeds by Student's t where a line has several, of"
  ' the evaluation where it has one.'
)
_SMOOTHED = (
  f'Means of {workdirs.SMOOTHED_STEPS} optimizer steps, or of'
  f' {workdirs.SMOOTHED_SHARE:.1%} of them if that is more; bands over seeds,'
  ' 95%.'
)


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure.

  Attributes:
    name: a word for its file.
    title, caption: plain text; the title says what is against what.
    svg, png: the picture.
  """

  name: str
  title: str
  caption: str
  svg: bytes
  png: bytes


def draw(lines: Sequence[workdirs.Line]) -> list[Figure]:
  """Returns the figures of some lines; those without a number are left out."""
  if not lines:
    return []
  labels = shorten([line.label for line in lines])
  of_steps = (
    ('reward', 'Reward of samples', 'mean reward', 'reward_mean'),
    ('length', 'Length of completions', 'tokens, mean', 'completion_len_mean'),
    ('kept', 'Rows learned from', 'share of those sampled', 'kept_share'),
    ('entropy', 'Entropy of the policy', 'nats a token', 'entropy'),
  )  # fmt: skip
  drawn = [
    draw_curves(
      'accuracy_time', 'Held-out accuracy against time',
      'seconds of optimizer steps, evaluation left out', 'accuracy',
      [workdirs.find_accuracy(line, 'seconds') for line in lines], labels,
      _BAND + ' Supervised steps count.', is_share=True,
    ),
    draw_curves(
      'accuracy_samples', 'Held-out accuracy against samples',
      'replies sampled', 'accuracy',
      [workdirs.find_accuracy(line, 'samples') for line in lines], labels, _BAND,
      is_share=True,
    ),
    _draw_seconds(lines, labels),
    draw_curves(
      'drift', 'KL divergence from where RL began', 'replies sampled',
      'nats a token', [*map(workdirs.find_drift, lines)], labels,
      'At evaluations, on one batch of replies; bands over seeds, 95%.',
    ),
  ]  # fmt: skip
  for name, title, y_label, key in of_steps:
    drawn.append(
      draw_curves(
        name,
        title,
        'replies sampled',
        y_label,
        [workdirs.find_curve(line, key) for line in lines],
        labels,
        _SMOOTHED,
        is_share=key == 'kept_share',
        is_dense=True,
      )
    )
  return [figure for figure in drawn if figure]


def draw_curves(
  name: str,
  title: str,
  x_label: str,
  y_label: str,
  curves: Sequence[workdirs.Curve],
  labels: Sequence[str],
  caption: str,
  *,
  is_share: bool = False,
  is_dense: bool = False,
  doubles: bool = False,
) -> Figure | None:
  """Returns a figure of curves with their bands, None if none has a point.

  Args:
    name, title, caption: as `Figure`'s.
    x_label, y_label: of the axes.
    curves: those without a point are left out.
    labels: of each; see `shorten`.
    is_share: whether y is one, from 0 to 1.
    is_dense: whether points are so many that only some are marked.
    doubles: whether each x is twice the one before, as sizes are.
  """
  if not any(np.isfinite(curve.mean).any() for curve in curves):
    return None
  figure, axes = _begin(len(curves))
  for i, (curve, label) in enumerate(zip(curves, labels, strict=True)):
    if not np.isfinite(curve.mean).any():
      continue
    style = make_style(i)
    if is_dense:
      style = mark_some(style, curve.x)
    axes.plot(curve.x, curve.mean, label=label, **style)
    if np.isfinite(curve.low).any():
      axes.fill_between(
        curve.x, curve.low, curve.high,
        color=style['color'], alpha=0.15, linewidth=0,
      )  # fmt: skip
  axes.set_xlabel(x_label)
  axes.set_ylabel(y_label)
  if doubles:
    ticks = sorted({x for curve in curves for x in curve.x})
    axes.set_xscale('log', base=2)
    axes.set_xticks(ticks)
    axes.set_ylim(bottom=0)
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.grid(alpha=0.3)
  if is_share:
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter('{x:.0%}')
  _put_legend(figure, axes)
  return _end(figure, name, title, caption)


def make_style(i: int) -> dict:
  """Returns how the i-th line is drawn, as matplotlib has it."""
  return {
    'color': _COLOURS[i % len(_COLOURS)],
    'linestyle': _LINE_STYLES[i % len(_LINE_STYLES)],
    'marker': _MARKS[i % len(_MARKS)],
    'markersize': 4.5,
    'linewidth': 1.6,
  }


def mark_some(style: dict, x: Sequence[float]) -> dict:
  """Returns the style of a line of so many points that only some are marked."""
  return style | {'markevery': max(1, len(x) // 8)}


def _draw_seconds(lines, labels):
  """Returns the figure of what a run's seconds were spent on."""
  seconds = [workdirs.find_seconds(line) for line in lines]
  figure, axes = _begin(0, 1.5 + 0.34 * len(lines))
  left = np.zeros(len(lines))
  for name, colour, hatch in _SECONDS:
    values = np.array([by_part[name] for by_part in seconds])
    if not values.any():
      continue
    axes.barh(
      range(len(lines)), values, left=left, color=colour, label=name,
      hatch=hatch, edgecolor='white', height=0.7,
    )  # fmt: skip
    left += values
  axes.set_yticks(range(len(lines)), labels)
  axes.invert_yaxis()
  axes.set_xlabel('seconds of a run')
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.grid(axis='x', alpha=0.3)
  axes.set_axisbelow(True)
  _put_legend(figure, axes, 3)
  return _end(
    figure, 'seconds', 'Where the time goes',
    'Whole runs, means over seeds. Of rows that were sampled ahead only the'
    ' waiting counts.',
  )  # fmt: skip


def _begin(num_labels, height=3.4):
  # A figure without pyplot: it needs no display and changes no global state.
  height += 0.2 * math.ceil(num_labels / _LEGEND_COLUMNS)
  figure = matplotlib.figure.Figure(figsize=(6.4, height), layout='constrained')
  axes = figure.add_subplot()
  axes.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _put_legend(figure, axes, num_columns=_LEGEND_COLUMNS):
  handles, labels = axes.get_legend_handles_labels()
  figure.legend(
    handles, labels, frameon=False,
    loc='outside lower center', ncols=min(num_columns, len(labels)),
    fontsize='small', handlelength=3.2,
  )  # fmt: skip


def shorten(labels: Sequence[str]) -> list[str]:
  """Returns labels that fit beside an axis, without the folders that all begin
  with, and without what could not be drawn."""
  parts = [label.split('/') for label in labels]
  most = min(map(len, parts)) - 2  # of one path, its end
  num = 0
  while num < most and len({tuple(p[: num + 1]) for p in parts}) == 1:
    num += 1
  short = ['/'.join(p[num:]) for p in parts]
  cut = [
    x if len(x) <= _MOST_LABEL else f'…{x[1 - _MOST_LABEL :]}' for x in short
  ]
  # A dollar begins a formula; legends leave out what begins with an underscore.
  return [
    (' ' if x.startswith('_') else '') + x.replace('$', r'\$') for x in cut
  ]


def _end(figure, name, title, caption):
  svg, png = io.BytesIO(), io.BytesIO()
  # The same numbers give the same bytes.
  with matplotlib.rc_context({'svg.hashsalt': name}):
    figure.savefig(svg, format='svg', metadata={'Date': None})
  figure.savefig(png, format='png', dpi=150)
  return Figure(name, title, caption, svg.getvalue(), png.getvalue())
