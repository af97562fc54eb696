"""A window of a run's steps, traced: where their time goes.

1. `Window` is the steps that --profile=FIRST:LAST names; `begin` and `end` are
   called around each step of the run.
2. JAX's trace of them goes to profile/ in the workdir, which TensorBoard's
   profile plugin and, unpacked, Perfetto open.
3. Behind the last, a table has the seconds of each part of a step, by its
   metrics, and of each program that ran, by the trace.
"""

import collections
import glob
import os
import pathlib
import re
from collections.abc import Iterable

import jax
import numpy as np
import rich.box
import rich.table

from dash_jax.reporting import workdirs

FOLDER_NAME = 'profile'

# What a trace calls the runs of whole programs on a device; elsewhere their
# parts name the program.
_DEVICE_LINE = 'XLA Modules'
_PROGRAM_KEY = 'hlo_module'
_MOST_PROGRAMS = 8


class Window:
  """The steps to trace, which may be none."""

  def __init__(self, text: str, workdir: str | os.PathLike, num_steps: int):
    """
    Args:
      text: 'FIRST:LAST', numbers of steps as metrics.jsonl has them, or ''.
      workdir: of the run, or of this process in it.
      num_steps: that the run takes.

    Raises:
      ValueError: `text` is no such pair.
    """
    self._folder = pathlib.Path(workdir) / FOLDER_NAME
    self._is_open = False
    self._seen = []
    self._first, self._last = 0, -1
    if text:
      match = re.fullmatch(r'(\d+):(\d+)', text)
      first, last = map(int, match.groups()) if match else (0, 0)
      if not 1 <= first <= last <= num_steps:
        raise ValueError(
          f'--profile={text!r}: wanted FIRST:LAST, steps of 1 to {num_steps},'
          " the run's last"
        )
      self._first, self._last = first, last

  def begin(self, step: int) -> None:
    """Begins the trace, if `step` is in the window."""
    if self._first <= step <= self._last and not self._is_open:
      options = jax.profiler.ProfileOptions()
      # Every call of Python would hide the rest.
      options.python_tracer_level = 0
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._is_open = True

  def end(self, step: int, values: dict) -> rich.table.Table | None:
    """Ends the trace behind the last step.

    Args:
      step: that `begin` was called before.
      values: its metrics.

    Returns:
      Where the time of the window went, behind its last step.
    """
    if not self._is_open:
      return None
    self._seen.append(values)
    if step < self._last:
      return None
    self.close()
    newest = max(
      glob.glob(f'{self._folder}/**/*.xplane.pb', recursive=True),
      key=os.path.getmtime,
    )
    return _make_table(
      f'steps {step + 1 - len(self._seen)} to {step}',
      find_parts(self._seen),
      find_programs(newest),
    )

  def close(self) -> None:
    """Ends a trace that is open."""
    if self._is_open:
      jax.profiler.stop_trace()
      self._is_open = False


def find_parts(rows: list[dict]) -> dict[str, float]:
  """Returns the seconds of each part of some steps, by their metrics."""
  # Supervised steps sample nothing.
  rows = [{'sample_s': 0.0, 'reward_s': 0.0} | row for row in rows]
  seconds = workdirs.find_parts(rows).sum(axis=1)
  return {
    label: float(s)
    for (_, label, *_), s in zip(workdirs.PARTS, seconds, strict=True)
  }


def find_programs(path: str | os.PathLike) -> dict[str, float]:
  """Returns the seconds in which each program ran, the longest first.

  Args:
    path: an .xplane.pb file; of several devices the mean is taken.
  """
  by_device, by_host = [], []
  for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
    spans = collections.defaultdict(list)
    for line in plane.lines:
      for event in line.events:
        name = dict(event.stats).get(_PROGRAM_KEY)
        if line.name == _DEVICE_LINE:
          name = event.name.partition('(')[0]
        if name:
          span = event.start_ns, event.start_ns + event.duration_ns
          spans[name].append(span)
    if spans:
      # Beside a device, the host's are of those who begin its programs.
      found = by_device if plane.name.startswith('/device:') else by_host
      found.append({name: measure(s) for name, s in spans.items()})
  by_device = by_device or by_host
  names = {name for seconds in by_device for name in seconds}
  means = {
    name: float(np.mean([seconds.get(name, 0.0) for seconds in by_device]))
    for name in names
  }
  return dict(sorted(means.items(), key=lambda item: -item[1]))


def measure(spans: Iterable[tuple[float, float]]) -> float:
  """Returns the seconds that at least one of some spans covers, in ns."""
  covered, end = 0.0, 0.0
  for start, stop in sorted(spans):
    covered += max(stop - max(start, end), 0.0)
    end = max(end, stop)
  return covered / 1e9


def _make_table(title, parts, programs):
  total = sum(parts.values())
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  for name in (f'profile of {title}', 'seconds', 'share'):
    table.add_column(name, justify='left' if 'profile' in name else 'right')
  for name, seconds in parts.items():
    table.add_row(name, f'{seconds:.3f}', f'{seconds / total:.1%}')
  table.add_section()
  for name, seconds in list(programs.items())[:_MOST_PROGRAMS]:
    table.add_row(f'program {name}', f'{seconds:.3f}', f'{seconds / total:.1%}')
  rest = list(programs.values())[_MOST_PROGRAMS:]
  if rest:
    table.add_row(
      f'{len(rest)} programs more',
      f'{sum(rest):.3f}',
      f'{sum(rest) / total:.1%}',
    )
  return table
