"""Thousands of steps with kills: what grows, what is lost, what compiles again.

  python -m experiments.benchmarks.soak --workdir=DIR [--steps=4000]
      [--kills=8] [--seed=0]

1. `python -m dash_jax.main` runs soak_run.py: a tiny model, replies of random
   lengths, rewards that are slow, hang and die. At random steps of the first
   quarter it is killed (SIGKILL), up to half a second later, and the same command
   goes on.
2. At each step the memory of the process's own and its open files are read. The
   first steps of each process are left out: in them memory falls and settles.
3. Prints a table of what was found and what is allowed. Exit code 0: all holds;
   1: something does not; 2: bad input.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from scipy import stats

from dash_jax import doctor
from dash_jax.runs import metrics, ownership
from experiments.benchmarks import soak_run

# Python gives what was needed to compile back some 60 steps later. Until about here
# the allocator settles, and Python's table of strings doubles once, by 2 MB.
_WARM_UP_STEPS = 800
# Neighbouring steps are alike: their median is one measurement. Saves take and give
# back blocks of 1 to 3 MB, and open files for a step or two.
_BLOCK_STEPS = 50
_POLL_S = 0.02
_KIB = 1024
# A hundred thousand steps, with five thousand saves, may take 200 MB and a thousand
# files more. Some 14 KiB a save stay in TensorStore (0.1.86), which frees no value of
# the JSON that Orbax takes from it: 0.7 KiB a step.
_MAX_BYTES, _MAX_FILES = 2 * _KIB, 0.01
# From so many steps on, growth must be known so well that the limit means something.
_TELLING_STEPS = soak_run.STEPS
_STALLED_S = 600.0


@dataclasses.dataclass(frozen=True)
class Sample:
  """What a process held after a step."""

  process: int
  step: int
  num_bytes: int
  num_files: int


@dataclasses.dataclass(frozen=True)
class Slope:
  """Growth a step, and half of its 95% interval."""

  mean: float
  half: float

  def judge(self, most: float) -> bool | None:
    """Returns whether it is at most `most`; None where the interval has room for
    both that and no growth."""
    if self.mean + self.half <= most:
      return True
    return False if self.mean - self.half > 0 else None


def find_slope(samples: Sequence[Sample], field: str) -> Slope:
  """Returns how a field grows with the steps of a process, in all processes.

  Each has a level of its own. nan where there are too few steps.
  """
  x, y, num_levels = [], [], 0
  for process in sorted({s.process for s in samples}):
    own = [s for s in samples if s.process == process][_WARM_UP_STEPS:]
    num_blocks = len(own) // _BLOCK_STEPS
    if num_blocks < 2:
      continue
    own = own[: num_blocks * _BLOCK_STEPS]
    for values, name in ((x, 'step'), (y, field)):
      found = np.array([getattr(s, name) for s in own], float)
      found = np.median(found.reshape(num_blocks, _BLOCK_STEPS), axis=1)
      values.append(found - found.mean())
    num_levels += 1
  freedom = sum(map(len, x)) - num_levels - 1
  if freedom < 1:
    return Slope(math.nan, math.nan)
  x, y = np.concatenate(x), np.concatenate(y)
  slope = (x @ y) / (x @ x)
  error = math.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x))
  return Slope(slope, stats.t.ppf(0.975, freedom) * error)


def soak(
  workdir: pathlib.Path, steps: int, num_kills: int, seed: int
) -> list[Sample]:
  """Takes the run to its end, through kills.

  Raises:
    RuntimeError: the command failed by itself, or stands still.
  """
  chance = random.Random(seed)
  kill_at = sorted(chance.sample(range(1, steps // 4), num_kills))
  samples, process = [], 0
  # A process that goes on compiles what the first has compiled.
  environment = {
    'JAX_COMPILATION_CACHE_DIR': str(workdir / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  } | os.environ
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'soak.log', 'ab') as log:
    while True:
      running = subprocess.Popen(
        _command(workdir, steps), env=environment, stdout=log, stderr=log
      )
      try:
        killed = _watch(
          running, workdir, process, kill_at, chance.uniform(0, 0.5), samples
        )
      finally:
        running.kill()
        code = running.wait()
      if not killed:
        break
      process += 1
  if code:
    raise RuntimeError(
      f'the command ended with code {code}; see {workdir / "soak.log"}'
    )
  return samples


def _command(workdir, steps):
  return [
    sys.executable,
    '-m',
    'dash_jax.main',
    f'--config={soak_run.__file__}',
    f'--workdir={workdir}',
    f'--config.algorithm.num_samples={steps * soak_run.ROWS}',
  ]


def _watch(running, workdir, process, kill_at, delay_s, samples):
  """Reads what a process holds until it ends, or until its next kill; returns
  whether it was killed."""
  path = workdir / metrics.METRICS_NAME
  step, changed_at = _read_last_step(path), time.monotonic()
  while running.poll() is None:
    time.sleep(_POLL_S)
    before, step = step, _read_last_step(path)
    if step == before:
      if time.monotonic() > changed_at + _STALLED_S:
        raise RuntimeError(f'no step after step {step} in {_STALLED_S:.0f} s')
      continue
    changed_at = time.monotonic()
    # What it goes on from is no step of its own.
    if step > before:
      samples.append(_measure(running.pid, process, step))
    if kill_at and step >= kill_at[0] and step > before:
      del kill_at[0]
      time.sleep(delay_s)
      running.kill()
      return running.wait() < 0
  return False


def _read_last_step(path):
  """Returns the step of the last whole line, 0 if there is none."""
  try:
    with open(path, 'rb') as file:
      file.seek(max(os.fstat(file.fileno()).st_size - 8192, 0))
      lines = file.read().split(b'\n')
  except FileNotFoundError:
    return 0
  return json.loads(lines[-2])['step'] if len(lines) > 1 else 0


def _measure(pid, process, step):
  proc = pathlib.Path('/proc') / str(pid)
  # Not what is resident: files come and go, and the system may swap.
  kib = [
    int(line.split()[1])
    for line in (proc / 'status').read_text().splitlines()
    if line.startswith(('RssAnon:', 'VmSwap:'))
  ]
  return Sample(
    process=process,
    step=step,
    num_bytes=sum(kib) * _KIB,
    num_files=len(list((proc / 'fd').iterdir())),
  )


def judge(
  workdir: pathlib.Path, steps: int, samples: Sequence[Sample]
) -> list[tuple[str, str, str, bool]]:
  """Returns rows of the table: what, found, allowed, and whether it holds."""
  rows = metrics.read(workdir / metrics.METRICS_NAME)
  gaps = doctor.find_gaps([row['step'] for row in rows])
  compiles = max(row['compiles'] for row in rows)
  found = [
    (
      'steps in metrics.jsonl',
      f'{len(rows):,}, ' + (gaps[0] if gaps else 'each once'),
      f'{steps:,}, each once',
      len(rows) == steps and not gaps,
    ),
    ("compiled after a phase's first step", f'{compiles}', '0', not compiles),
  ]
  for what, field, unit, most in (
    ('memory', 'num_bytes', _KIB, _MAX_BYTES),
    ('open files', 'num_files', 1, _MAX_FILES),
  ):
    slope = find_slope(samples, field)
    verdict = slope.judge(most)
    name = ' KiB' if unit == _KIB else ''
    low, mean, high = (
      f'{(slope.mean + part * slope.half) / unit:.3g}' for part in (-1, 0, 1)
    )
    found.append(
      (
        f'{what}, growth a step',
        f'{mean} [{low}, {high}]{name}'
        + (', too few steps to tell' if verdict is None else ''),
        f'up to {most / unit:g}{name}',
        steps < _TELLING_STEPS if verdict is None else verdict,
      )
    )
  whole = doctor.diagnose(workdir)
  found.append(
    (
      'doctor',
      '; '.join([whole.state[0], *whole.problems]),
      'complete',
      whole.state[0] == 'complete' and not whole.problems,
    )
  )
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Soaks, prints the table and returns the exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m experiments.benchmarks.soak',
    description=__doc__.splitlines()[0],
  )
  parser.add_argument('--workdir', required=True, type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=soak_run.STEPS)
  parser.add_argument('--kills', type=int, default=8)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args(argv)
  if ownership.has_begun(args.workdir):
    parser.error(f'--workdir={args.workdir} holds a run: name a new folder')
  most = max(args.steps // 4 - 1, 0)
  if not 0 <= args.kills <= most:
    parser.error(f'--kills={args.kills}: valid are 0 to {most}')
  start = time.monotonic()
  samples = soak(args.workdir, args.steps, args.kills, args.seed)
  spent_s = time.monotonic() - start
  with doctor.on_cpu():
    found = judge(args.workdir, args.steps, samples)
  print(
    f'{args.steps:,} steps, {args.kills} kills, {spent_s / 60:.1f} minutes;'
    f' at most {max(s.num_bytes for s in samples) / 2**20:,.0f} MiB and'
    f' {max(s.num_files for s in samples)} open files'
  )
  print('| | found | allowed | |', '|---|---|---|---|', sep='\n')
  for what, seen, allowed, holds in found:
    print(f'| {what} | {seen} | {allowed} | {"holds" if holds else "FAILS"} |')
  return 0 if all(holds for *_, holds in found) else 1


if __name__ == '__main__':
  sys.exit(main())
