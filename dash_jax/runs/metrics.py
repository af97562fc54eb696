"""What a run measured: one JSON line per optimizer step, and live boards.

The life of a number:
  1. The training loop calls `write(step, values)` once per optimizer step.
     Steps count optimizer updates of all phases together; `values['phase']` is
     'sft' or 'rl'.
  2. The line goes to metrics.jsonl at once, so that a killed run loses none. What
     a checkpoint counts on is on the disk before it, by `sync`, so that a loss of
     power takes none either.
  3. The same values go to TensorBoard, and to Weights & Biases if that is asked
     for, as '<phase>/<key>'.
  4. A run that resumes at step s cuts every later line off both files before
     it writes, so that no step appears twice.

Numbers that are not finite are the strings 'nan', 'inf' and '-inf' in the files
(see jsonl.py) and floats again in what `read` returns.
"""

import os
import pathlib
from collections.abc import Sequence

import tensorboardX
from absl import logging

from dash_jax.runs import jsonl, wandb_board

METRICS_NAME = 'metrics.jsonl'
EVALS_NAME = 'evals.jsonl'

PHASES = ('sft', 'rl')

EVAL_KEYS = (
  'step',
  'phase',
  'split',
  'num_questions',
  'accuracy',
  'accuracy_low',
  'accuracy_high',
  'completion_len_mean',
  'reward_timeouts',
  'reward_errors',
  'eval_s',
)

# The only keys whose values are text.
_TEXT_KEYS = ('phase', 'split')
_NOT_FINITE = ('nan', 'inf', '-inf')


class MetricsWriter:
  """Writes metrics.jsonl, evals.jsonl and what boards show; a context.

  In a job of several processes only one of them makes a writer.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    resume_step: int = 0,
    board: wandb_board.Board | None = None,
  ):
    """Opens the files of `workdir`, which is made if it is missing.

    Args:
      workdir: the run's folder.
      resume_step: optimizer steps that the run has behind it. Lines of later
        steps belong to work that will be done again, and are cut off.
      board: is told the same as TensorBoard, and closed with the rest.
    """
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    kept = _cut(self._workdir / METRICS_NAME, resume_step)
    self._last_step = kept[-1]['step'] if kept else None
    if (self._last_step or 0) < resume_step:
      logging.warning(
        '%s ends at step %d, and the run goes on from step %d: the lines between'
        ' are lost',
        self._workdir / METRICS_NAME,
        self._last_step or 0,
        resume_step,
      )
    kept = _cut(self._workdir / EVALS_NAME, resume_step)
    self._evals = {_eval_key(row): row['accuracy'] for row in kept}
    self._metrics_file = _append(self._workdir / METRICS_NAME)
    self._evals_file = _append(self._workdir / EVALS_NAME)
    self._tensorboard = tensorboardX.SummaryWriter(
      logdir=str(self._workdir / 'tensorboard'),
      # Hides the events of an earlier process from this step on.
      purge_step=resume_step + 1,
    )
    self._boards = [board] if board else []

  def __enter__(self):
    return self

  def __exit__(self, unused_kind, error, unused_trace):
    for file in (
      self._metrics_file, self._evals_file, self._tensorboard, *self._boards,
    ):  # fmt: skip
      try:
        file.close()
      except OSError:
        # Of a full disk, which the first error has told of.
        if error is None:
          raise

  def sync(self) -> None:
    """Returns when all lines, and the files' names, are on the disk."""
    for name in (METRICS_NAME, EVALS_NAME, ''):
      jsonl.sync(self._workdir / name)

  def write(self, step: int, values: dict[str, float | int | str]) -> None:
    """Writes one optimizer step.

    Args:
      step: optimizer steps taken so far, in all phases; grows with each call.
      values: one number per key, and 'phase', which is 'sft' or 'rl'.

    Raises:
      ValueError: `step` does not grow, the phase is missing or unknown, or
        `values` holds a step of its own.
      TypeError: a value is not one number; the message names its key.
    """
    if self._last_step is not None and step <= self._last_step:
      raise ValueError(
        f'step {step} follows step {self._last_step} in '
        f'{self._workdir / METRICS_NAME}: steps must grow, over all phases'
      )
    if 'step' in values:
      raise ValueError("values holds 'step': it is the first argument")
    phase = _check_phase(values)
    _emit(self._metrics_file, {'step': step, **values})
    self._last_step = step
    self._show(
      {
        f'{phase}/{key}': float(value)
        for key, value in values.items()
        if key != 'phase'
      },
      step,
    )

  def write_eval(self, values: dict[str, float | int | str]) -> None:
    """Writes one evaluation: at least `EVAL_KEYS`.

    Raises:
      ValueError: a key is missing, the phase is unknown, or this split was
        already evaluated at this step of this phase.
      TypeError: a value is not one number; the message names its key.
    """
    missing = [key for key in EVAL_KEYS if key not in values]
    if missing:
      raise ValueError(f'an evaluation needs {", ".join(missing)} too')
    phase = _check_phase(values)
    if _eval_key(values) in self._evals:
      raise ValueError(
        f'split {values["split"]!r} is already evaluated at step '
        f'{values["step"]} of phase {phase!r}: ask has_eval first'
      )
    _emit(self._evals_file, values)
    self._evals[_eval_key(values)] = values['accuracy']
    self._show(
      {
        f'{phase}/{values["split"]}_{key}': float(value)
        for key, value in values.items()
        if key not in ('step', *_TEXT_KEYS)
      },
      values['step'],
    )

  def _show(self, values, step):
    for tag, value in values.items():
      self._tensorboard.add_scalar(tag, value, step)
    for board in self._boards:
      board.write(values, step)

  def has_eval(self, step: int, phase: str, split: str) -> bool:
    """Returns whether evals.jsonl holds this evaluation already.

    A run that died between an evaluation and the next step resumes before the
    evaluation, and need not repeat it.
    """
    return (step, phase, split) in self._evals

  def find_best(self, num: int, steps: list[int]) -> list[int]:
    """Returns those of some steps, `num` at most, after which RL had the highest
    accuracies, the best first; of equals the earlier is better."""
    found = {
      step: accuracy
      for (step, phase, _), accuracy in self._evals.items()
      if phase == 'rl' and step in steps
    }
    return sorted(found, key=lambda step: (-found[step], step))[:num]


def read(path: str | os.PathLike) -> list[dict]:
  """Returns the lines of a metrics.jsonl or evals.jsonl, oldest first.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: a line before the last is not a JSON object, or not one of a
      run's; the message names it.
  """
  return [read_numbers(row) for row in _read_rows(path)]


def check_keys(
  path: str | os.PathLike, rows: Sequence[dict], keys: dict[str, Sequence[str]]
) -> None:
  """Refuses lines of a metrics.jsonl that lack what is read of them.

  Args:
    path: of the file.
    rows: of it, as `read` returns them.
    keys: by phase.

  Raises:
    ValueError: names the line and the key.
  """
  for number, row in enumerate(rows, start=1):
    missing = [key for key in keys[row['phase']] if key not in row]
    if missing:
      raise ValueError(
        f'{path}:{number}: no {missing[0]}, which dash_jax writes'
      )


def read_numbers(row: dict) -> dict:
  """Returns a line of the files with floats for 'nan', 'inf' and '-inf'."""
  return {
    key: float(value)
    if isinstance(value, str) and key not in _TEXT_KEYS
    else value
    for key, value in row.items()
  }


def _read_rows(path):
  rows = jsonl.read(path)
  for number, row in enumerate(rows, start=1):
    where = f'{path}:{number}'
    step = row.get('step')
    if type(step) is not int or step < 0:
      raise ValueError(f'{where}: step is {step!r}; wanted: a number of steps')
    try:
      _check_phase(row)
    except ValueError as error:
      raise ValueError(f'{where}: {error}') from error
    missing = [key for key in EVAL_KEYS if key not in row]
    if missing and pathlib.Path(path).name == EVALS_NAME:
      raise ValueError(f'{where}: no {missing[0]}, which dash_jax writes')
    for key, value in row.items():
      is_number = isinstance(value, int | float) or value in _NOT_FINITE
      if key not in _TEXT_KEYS and not is_number:
        raise ValueError(f'{where}: {key} is {value!r}; wanted: one number')
  return rows


def _cut(path, last_step):
  """Drops lines after `last_step` and a torn one; returns the lines left."""
  if not path.exists():
    return []
  kept = [row for row in _read_rows(path) if row['step'] <= last_step]
  jsonl.write(path, kept)
  return kept


def _append(path):
  return open(path, 'a', encoding='utf-8', newline='\n')


def _emit(file, values):
  file.write(jsonl.encode(_check_numbers(values)))
  file.flush()


def _check_numbers(values):
  for key, value in values.items():
    if key not in _TEXT_KEYS and (value is None or isinstance(value, str)):
      raise TypeError(f'{key} is {value!r}, not one number')
  return values


def _check_phase(values):
  phase = values.get('phase')
  if phase not in PHASES:
    raise ValueError(f'phase is {phase!r}; valid: {", ".join(PHASES)}')
  return phase


def _eval_key(row):
  return row['step'], row['phase'], row['split']
