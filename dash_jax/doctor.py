"""What is the matter with a run, in plain words.

    python -m dash_jax.doctor DIR

  1. Where the run is: complete, or after which step, and what goes on from there.
  2. Its files: lines that are torn or missing, checkpoints that do not hold what
     was saved. Each is read whole, on the CPU, beside a run that goes on.
  3. The alarms that its numbers raise (runs/health.py), the same as the run's
     own.

Exit codes: 0 nothing is wrong; 1 something is; 2 there is no run to look at.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

import jax

from dash_jax import commands, updates
from dash_jax import config as config_lib
from dash_jax.runs import (
  alarms,
  checkpoint,
  health,
  metrics,
  ownership,
  sizes,
  symptoms,
)

SICK = 1

# A run is taken to go on where its last line is younger.
_SILENT_STEPS, _SILENT_S = 10, 60.0


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """What was found.

  Attributes:
    state: lines on where the run is.
    notes: lines that ask for nothing.
    problems: lines on what is wrong with files.
    alarms: those that hold after the last row.
    past: those that held before.
  """

  state: list[str]
  notes: list[str]
  problems: list[str]
  alarms: list[health.Alarm]
  past: list[health.Alarm]


def diagnose(workdir: str | os.PathLike) -> Diagnosis:
  """Returns what is the matter with a run that has ended, was killed or goes on,
  with the mesh in use.

  Raises:
    FileNotFoundError: `workdir` holds no run.
    ValueError: its config.json is not one.
  """
  workdir = pathlib.Path(workdir)
  config = ownership.read_config(workdir)
  notes, problems = _check_files(workdir)
  rows = _read(_read_steps, workdir / metrics.METRICS_NAME, problems)
  evals = _read(metrics.read, workdir / metrics.EVALS_NAME, problems)
  problems += find_gaps([row['step'] for row in rows])
  torn = checkpoint.find_torn(workdir)
  problems += filter(None, torn.values())
  whole = [step for step, reason in torn.items() if not reason]
  seen = health.Health(config)
  raised = {}
  for alarm in seen.add_all(rows, evals):
    raised.setdefault(alarm.name, alarm)
  # What the run saw of its process.
  shown = [
    alarm
    for alarm in _read(alarms.read, workdir, problems)
    if alarm.name not in raised
  ]
  if rows and not symptoms.is_finite(rows[-1]):
    problems.append(
      f'the loss or the gradient of step {rows[-1]["step"]}, the last, is not'
      ' finite'
    )
  return Diagnosis(
    state=_find_state(workdir, config, rows, evals, whole),
    notes=notes,
    problems=problems,
    alarms=[*seen.ringing.values(), *shown],
    past=[a for name, a in raised.items() if name not in seen.ringing],
  )


@contextlib.contextmanager
def on_cpu():
  """Makes one CPU the mesh in use: accelerators are for the run, which may go on."""
  jax.config.update('jax_platforms', 'cpu')
  mesh = jax.make_mesh((1,), ('data',), devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    yield


def find_gaps(steps: Sequence[int]) -> list[str]:
  """Returns a line for each place where steps are not 1, 2, 3, and so on."""
  return [
    f'{metrics.METRICS_NAME} has step {now} behind step {before}'
    for before, now in zip([0, *steps], steps, strict=False)
    if now != before + 1
  ]


def _read(read, path, problems):
  """Returns what is in a file; nothing, and a problem more, if it is damaged."""
  if not path.exists():
    return []
  try:
    return read(path)
  except ValueError as error:
    problems.append(
      f'{error}: the run cannot go on with it; cut the file off before this line'
    )
    return []


def _read_steps(path):
  rows = metrics.read(path)
  metrics.check_keys(path, rows, health.STEP_KEYS)
  return rows


def _check_files(workdir):
  """Returns lines on what killed processes left, and on what is wrong."""
  notes = []
  lines = [*workdir.glob('*.jsonl'), *workdir.glob('**/rollouts/*.jsonl')]
  for path in sorted(lines):
    size = path.stat().st_size
    with open(path, 'rb') as file:
      file.seek(max(size - 1, 0))
      if file.read() not in (b'', b'\n'):
        notes.append(
          f'the last line of {path} is torn, and is cut off when the run goes on'
        )
  left = [*workdir.glob('**/*.tmp'), *workdir.glob('checkpoints/*tmp*')]
  notes += [f'{path} was being written, and is not used' for path in left]
  problems = []
  for path in sorted(workdir.glob(f'**/{sizes.SIZES_NAME}')):
    try:
      sizes.Found(path.parent, '')
    except ValueError as error:
      problems.append(str(error))
  aside = workdir / checkpoint.TORN_NAME
  if aside.exists():
    steps = ', '.join(sorted(path.name for path in aside.iterdir()))
    notes.append(f'{aside} holds torn checkpoints, of steps {steps}')
  for folder in sorted(workdir.glob(f'**/{updates.NONFINITE_NAME}')):
    num = len(list(folder.iterdir()))
    problems.append(
      f'{folder} holds the minibatches of {num} changes of the weights whose'
      ' loss or gradient was not finite. '
      + health.say_where('Lower optim.learning_rate or optim.max_grad_norm')
    )
  return notes, problems


def _find_state(workdir, config, rows, evals, whole):
  """Returns lines on where a run is and what goes on."""
  sft_steps = config.algorithm.sft_steps
  total = sft_steps + config_lib.sizes(config).rl_steps
  done = rows[-1]['step'] if rows else 0
  saved = whole[-1] if whole else 0
  phase = 'SFT' if done <= sft_steps and sft_steps else 'RL'
  state = [
    f'{done:,} of {total:,} steps, the last of them of {phase}'
    if done
    else f'no step of {total:,} is taken yet'
  ]
  if evals:
    row = evals[-1]
    state.append(
      f'accuracy {row["accuracy"]:.1%} [{row["accuracy_low"]:.1%},'
      f' {row["accuracy_high"]:.1%}] after step {row["step"]:,}'
    )
  kept = ', '.join(f'{step:,}' for step in whole) or 'none'
  state.append(f'checkpoints that are whole: {kept}')
  if done == saved == total and evals and evals[-1]['step'] == total:
    return ['complete', *state]
  if rows:
    path = workdir / metrics.METRICS_NAME
    age_s = time.time() - path.stat().st_mtime
    step_s = statistics.median(row['step_s'] for row in rows[-9:])
    state.append(
      f'the last step took {step_s:.1f} s and ended {age_s:,.0f} s ago'
    )
    if age_s < max(_SILENT_STEPS * step_s, _SILENT_S):
      return ['unfinished, and seems to go on', *state]
  return [
    'unfinished',
    *state,
    'python -m dash_jax.main with the --config of this run, its --config.'
    f' fields and --workdir={workdir} goes on from step {saved:,}',
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a diagnosis and returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m dash_jax.doctor', description=__doc__.splitlines()[0]
  )
  parser.add_argument('workdir', metavar='DIR', help='the workdir of a run')
  args = parser.parse_args(argv)
  try:
    with on_cpu():
      found = diagnose(args.workdir)
  except commands.INPUT_ERRORS as error:
    parser.error(str(error))
  for title, lines in (
    (f'{args.workdir}:', found.state),
    ('Files:', found.notes + found.problems),
    ('Alarms that are over:', [a.text for a in found.past]),
    ('Alarms:', [a.text for a in found.alarms]),
  ):
    if lines:
      print(title, *(f'  {line}' for line in lines), sep='\n')
  if found.problems or found.alarms:
    return SICK
  print('Nothing is wrong.')
  return 0


if __name__ == '__main__':
  sys.exit(main())
