"""What a person sees while a run goes on, and the table at its end.

On a terminal each phase has a bar that moves with every step:

  DASH ━━━━━━━━ 42/80 reward 0.71 accuracy 74% 5,120 tok/s 0:01:23

Elsewhere (a file, a pipe, a notebook's subprocess) it is a plain line for the
first step, the last step, and about every tenth of the way between.
"""

import math
import time

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

# How a value is shown, by its key; other keys are shown as 'key 1.234'.
_FORMATS = {
  'accuracy': 'accuracy {:.0%}',
  'loss': 'loss {:.3f}',
  'reward': 'reward {:.2f}',
  'tokens_per_s': '{:,.0f} tok/s',
}

_NUM_PLAIN_LINES = 10


class Progress:
  """Shows the phases of a run, one below the other; a context."""

  def __init__(
    self, console: rich.console.Console | None = None, *, shown: bool = True
  ):
    """Shows on `console`, which is standard output if left out, or nowhere: of
    a job's processes one is enough."""
    self._console = console or rich.console.Console(quiet=not shown)
    self._bars = None
    if self._console.is_terminal and not self._console.is_dumb_terminal:
      self._bars = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(bar_width=16),
        rich.progress.MofNCompleteColumn(),
        # Without markup: what it shows is data.
        rich.progress.TextColumn('{task.fields[shown]}', markup=False),
        rich.progress.TimeRemainingColumn(
          compact=True, elapsed_when_finished=True
        ),
        console=self._console,
        # The steps of a large model are minutes apart.
        speed_estimate_period=3600,
        # The host's cores have better things to do.
        refresh_per_second=2,
      )

  def __enter__(self):
    if self._bars:
      self._bars.start()
    return self

  def __exit__(self, *exc_info):
    if self._bars:
      self._bars.stop()

  def phase(
    self, name: str, total_steps: int, done_steps: int = 0
  ) -> '_BarPhase | _PlainPhase':
    """Returns a phase, whose `update` shows a step.

    Args:
      name: as it is shown, such as 'DASH'.
      total_steps: of the whole phase.
      done_steps: those that an earlier process did before a resume.
    """
    if self._bars:
      return _BarPhase(self._bars, name, total_steps, done_steps)
    return _PlainPhase(self._console, name, total_steps, done_steps)

  def warn(self, text: str) -> None:
    """Shows a line that stays, above the bars if there are such."""
    self._console.print(
      f'Warning: {text}',
      style='yellow',
      soft_wrap=True,
      markup=False,
      highlight=False,
    )

  def show(self, table: rich.table.Table) -> None:
    """Shows a table that stays, above the bars if there are such."""
    self._console.print(table)


class _BarPhase:
  """A phase on a terminal."""

  def __init__(self, bars, name, total_steps, done_steps):
    self._bars = bars
    self._task = bars.add_task(
      name, total=total_steps, completed=done_steps, shown=''
    )

  def update(self, step: int, **values: float) -> None:
    """Shows that `step` steps of this phase are done, and its `values`."""
    self._bars.update(self._task, completed=step, shown=_show(values))


class _PlainPhase:
  """A phase in a file or a pipe."""

  def __init__(self, console, name, total_steps, done_steps):
    self._console = console
    self._name = name
    self._total_steps = total_steps
    self._done_steps = done_steps
    self._start_s = time.monotonic()
    self._every_steps = max(1, math.ceil(total_steps / _NUM_PLAIN_LINES))
    self._printed_step = None

  def update(self, step: int, **values: float) -> None:
    """Shows that `step` steps of this phase are done, and its `values`."""
    if (
      self._printed_step is not None
      and step < self._total_steps
      and step // self._every_steps == self._printed_step // self._every_steps
    ):
      return
    self._printed_step = step
    spent_s = time.monotonic() - self._start_s
    line = f'{self._name} {step}/{self._total_steps} {_show(values)}'
    line += f' {_show_seconds(spent_s)} gone'
    if self._done_steps < step < self._total_steps:
      step_s = spent_s / (step - self._done_steps)
      left_s = step_s * (self._total_steps - step)
      line += f' {_show_seconds(left_s)} left'
    # Not the console's own wrapping and colours: a line is a line.
    self._console.print(line, soft_wrap=True, markup=False, highlight=False)


def print_summary(
  summary: dict, console: rich.console.Console | None = None
) -> None:
  """Prints what `report.summarize` found, as a table."""
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
  table.add_column(rich.text.Text(summary['name']))
  table.add_column('', justify='right')
  for label, value in _summary_rows(summary):
    table.add_row(label, value)
  (console or rich.console.Console()).print(table)


def _summary_rows(summary):
  """Yields a label and a figure for each row of the table."""
  algorithm = summary['algorithm'].upper()
  for label, key in (
    ('accuracy at the start', 'start_eval'),
    ('accuracy after SFT', 'sft_eval'),
    (f'accuracy after {algorithm}', 'rl_eval'),
  ):
    if summary[key]:
      yield label, _show_accuracy(summary[key])
  if summary['sft_steps']:
    yield 'SFT, steps', f'{summary["sft_steps"]:,}'
    yield 'SFT, seconds', f'{summary["sft_s"]:,.1f} s'
  if summary['rl_steps']:
    yield f'{algorithm}, steps', f'{summary["rl_steps"]:,}'
    yield f'{algorithm}, sampling', f'{summary["sample_s"]:,.1f} s'
    yield f'{algorithm}, reward', f'{summary["reward_s"]:,.1f} s'
    yield f'{algorithm}, learning', f'{summary["learn_s"]:,.1f} s'
  yield 'evaluation', f'{summary["eval_s"]:,.1f} s'
  kept, sampled = summary['kept_rows'], summary['sampled_rows']
  if sampled:
    share = f'{kept / sampled:.0%}'
    yield 'rows kept / sampled', f'{kept:,} / {sampled:,} ({share})'
    yield 'tokens sampled', f'{summary["sampled_tokens"]:,}'


def _show_accuracy(row):
  return (
    f'{row["accuracy"]:.1%} '
    f'[{row["accuracy_low"]:.1%}, {row["accuracy_high"]:.1%}]'
  )


def _show(values):
  return ' '.join(
    _FORMATS.get(key, key + ' {:.4g}').format(value)
    for key, value in values.items()
  )


def _show_seconds(duration_s):
  minutes, seconds = divmod(round(duration_s), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{seconds:02}'
  return f'{minutes}:{seconds:02}'
