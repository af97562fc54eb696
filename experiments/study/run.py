"""Runs the jobs of a study, each in a process of its own.

  1. `list_turns` puts them in order: all of the first seed, then of the next, so
     that what there is early is whole.
  2. `run` skips those that OUT/finished.jsonl has, and writes a line there behind
     each that ends well. What they print is in OUT/PART/seed_0/NAME.log. A job
     whose seconds a claim is about has the machine to itself. Of others several
     are at work at once, each on cores of its own, of which small models do not
     fill many.
  3. A job that fails costs those that need it, and no others. Ctrl-C and SIGTERM
     are passed on: a run stops after a checkpoint, and the same command goes on
     from there.

Checkpoints that no other job needs are deleted once a run is finished: a study
keeps its curves and samples.
"""

import contextlib
import dataclasses
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence

from dash_jax.runs import checkpoint, jsonl, metrics, signals
from experiments.study import curves, findings, jobs

FINISHED_NAME = 'finished.jsonl'
_LOOK_S = 0.5  # between two looks at a job
_TAIL = 2_000  # characters of a failed job's log
# Of a job that was asked to end.
_STOPPED = (signals.STOPPED, -signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Turn:
  """One job of one seed."""

  part: jobs.Part
  seed: int
  job: jobs.Job

  @property
  def key(self) -> tuple[str, int, str]:
    return self.part.name, self.seed, self.job.name

  @property
  def title(self) -> str:
    return f'{self.part.name} seed {self.seed} {self.job.name}'


def list_turns(
  parts: Sequence[jobs.Part], seeds: Iterable[int], only: Sequence[str] = ()
) -> list[Turn]:
  """Returns the turns in order: of each seed those that may share the machine
  come before those that are timed, which need no wait for cores.

  Args:
    parts: of the suite.
    seeds: which.
    only: names of jobs, which come with all that they need; () is all jobs.

  Raises:
    ValueError: no part has a job of such a name.
  """
  known = dict.fromkeys(job.name for part in parts for job in part.jobs)
  for name in only:
    if name not in known:
      raise ValueError(f'no job is named {name!r}: take {", ".join(known)}')
  turns = []
  for seed in seeds:
    of_seed = []
    for part in parts:
      chosen = set(only or known)
      for job in reversed(part.jobs):  # what is needed comes before
        if job.name in chosen:
          chosen.update(job.needs)
      of_seed += [Turn(part, seed, j) for j in part.jobs if j.name in chosen]
    turns += sorted(of_seed, key=lambda turn: turn.job.is_timed)
  return turns


class Record:
  """What is finished: the lines of OUT/finished.jsonl.

  Each has part, seed, job, command (Python's arguments, with {folder} for the
  seed's) and seconds.
  """

  def __init__(self, out: pathlib.Path):
    self._path = out / FINISHED_NAME
    rows = jsonl.read(self._path) if self._path.exists() else []
    self.rows = {(r['part'], r['seed'], r['job']): r for r in rows}

  def has(self, turn: Turn, command: str) -> bool:
    """Returns whether a turn is finished.

    Raises:
      ValueError: it is, and was another command.
    """
    row = self.rows.get(turn.key)
    if row and row['command'] != command:
      raise ValueError(
        f'{self._path}: {turn.title} was made by another command,'
        f' {row["command"]}; now it is {command}: name another --out, or delete'
        ' that line and the folder'
      )
    return row is not None

  def add(self, turn: Turn, command: str, seconds: float) -> None:
    part, seed, job = turn.key
    self.rows[turn.key] = {
      'part': part,
      'seed': seed,
      'job': job,
      'command': command,
      'seconds': seconds,
    }
    jsonl.write(self._path, list(self.rows.values()))

  def estimate(self, turns: Sequence[Turn], at_once: int = 1) -> float | None:
    """Returns the seconds that some turns will take: as those of other seeds did,
    or as is known of them, at the pace of what is finished; None if nobody
    knows.

    Args:
      turns: which.
      at_once: how many are at work, of those that are not timed.
    """
    taken = {}
    for (part, _, job), row in self.rows.items():
      taken.setdefault((part, job), []).append(row['seconds'])
    parts = {turn.part.name: turn.part for turn in turns}
    known = {
      (name, job.name): job.seconds
      for name, part in parts.items()
      for job in part.jobs
    }
    of_both = [key for key in taken if known.get(key)]
    pace = 1.0
    if of_both:
      means = [sum(taken[key]) / len(taken[key]) for key in of_both]
      pace = sum(means) / sum(known[key] for key in of_both)
    total = 0.0
    for turn in turns:
      key = turn.part.name, turn.job.name
      if key in taken:
        seconds = sum(taken[key]) / len(taken[key])
      elif turn.job.seconds is None:
        return None
      else:
        seconds = pace * turn.job.seconds
      total += seconds if turn.job.is_timed else seconds / at_once
    return total


def run(
  turns: Sequence[Turn],
  out: pathlib.Path,
  changes: Sequence[str] = (),
  at_once: int = 1,
) -> int:
  """Runs what is not finished; returns an exit code: 0, 1 where a job failed,
  75 where a signal asked for the end.

  Args:
    turns: of `list_turns`.
    out: the study's folder.
    changes: as `jobs.make_command`'s.
    at_once: jobs at work, of those that are not timed, but no more than there
      are cores; 1 where a system does not let a process choose its cores.

  Raises:
    ValueError: what is finished is another study.
  """
  out.mkdir(parents=True, exist_ok=True)
  works = []
  record, line, stop = Record(out), _Line(), _Stop(works)
  commands = {
    turn.key: shlex.join(
      jobs.make_command(turn.job, turn.seed, '{folder}', changes)
    )
    for turn in turns
  }
  left = [turn for turn in turns if not record.has(turn, commands[turn.key])]
  slots = split_cores(at_once)
  lost = {}  # failed, or without what it needs
  with stop:
    while True:
      while len(works) < len(slots) and not stop.asked:
        turn = _take_next(left, works, lost, out)
        if turn is None:
          break
        taken = [work.cores for work in works]
        cores = None
        if not turn.job.is_timed:
          cores = next(some for some in slots if some not in taken)
        works.append(_Work(turn, out, changes, cores))
        if stop.asked:  # while it began
          works[-1].process.terminate()
        line.expect(_estimate_rest(record, works, left, len(slots)))
      if not works:
        break
      line.show([work.turn.title for work in works], len(works) + len(left))
      time.sleep(_LOOK_S)
      for work in [w for w in works if w.process.poll() is not None]:
        works.remove(work)
        turn, code = work.turn, work.process.returncode
        if not code:
          record.add(turn, commands[turn.key], work.seconds)
          _delete_checkpoints(turns, record, out)
        elif not (stop.asked and code in _STOPPED):
          lost[turn.key] = f'ended with {code}'
          line.say(f'{turn.title} ended with {code}:\n{_read_tail(turn, out)}')
  for key, why in lost.items():
    line.say(f'{" ".join(map(str, key))}: {why}')
  if stop.asked:
    line.say('Stopped. The same command goes on from there.')
    return signals.STOPPED
  return int(bool(lost))


def read_runs(
  out: pathlib.Path, part: jobs.Part, seeds: Iterable[int]
) -> findings.Runs:
  """Returns the curves of the finished runs of a part."""
  record, runs = Record(out), {}
  for turn in list_turns([part], seeds):
    folder = find_workdir(out, turn)
    if turn.key in record.rows and folder:
      runs.setdefault(turn.job.name, {})[turn.seed] = curves.read(folder)
  return runs


def find_workdir(out: pathlib.Path, turn: Turn) -> pathlib.Path | None:
  """Returns the workdir of a run that has taken a step, None for other jobs."""
  folder = jobs.find_folder(out, turn.part, turn.seed) / turn.job.name
  return folder if (folder / metrics.METRICS_NAME).exists() else None


def split_cores(num: int) -> list[list[int] | None]:
  """Returns the cores of each of so many jobs, None for all of them; of fewer jobs
  where there are fewer cores. Those that share a core's threads are not told
  apart."""
  if num == 1 or not hasattr(os, 'sched_getaffinity'):
    return [None]
  cores = sorted(os.sched_getaffinity(0))
  num = min(num, len(cores))
  each = len(cores) // num
  return [cores[i * each : (i + 1) * each] for i in range(num)]


def _take_next(left, works, lost, out):
  """Takes the first turn of a list that waits for none, None where all do; moves
  those that will never have what they need to `lost`. One that is timed waits
  for those at work, and others for it."""
  if any(work.turn.job.is_timed for work in works):
    return None
  unfinished = {turn.key for turn in (*left, *(work.turn for work in works))}
  for turn in list(left):
    part, seed, _ = turn.key
    needs = [(part, seed, name) for name in turn.job.needs]
    missing = [name for part, seed, name in needs if (part, seed, name) in lost]
    if missing:
      left.remove(turn)
      lost[turn.key] = f'needs {", ".join(missing)}'
      continue
    if unfinished.intersection(needs):
      continue
    if turn.job.is_timed and works:
      return None
    left.remove(turn)
    folder = jobs.find_folder(out, turn.part, seed)
    gone = [
      name
      for name in turn.job.asks
      if not checkpoint.list_committed(folder / name)
    ]
    if not gone:
      return turn
    lost[turn.key] = (
      f'needs the checkpoint of {gone[0]}, which was deleted when nothing'
      f' waited for it: delete its line of {FINISHED_NAME} and its folder'
    )
  return None


def _estimate_rest(record, works, left, at_once):
  """Returns the seconds until all is finished, None if nobody knows."""
  rest = record.estimate(left, at_once)
  current = [record.estimate([work.turn]) for work in works]
  if rest is None or None in current:
    return None
  return rest + max(
    max(seconds - work.seconds, 0)
    for seconds, work in zip(current, works, strict=True)
  )


@contextlib.contextmanager
def _on_cores(cores):
  """What is started inside has these cores, from its first instruction on."""
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


class _Work:
  """A job at work; on all cores where `cores` is None."""

  def __init__(self, turn, out, changes, cores):
    folder = jobs.find_folder(out, turn.part, turn.seed)
    folder.mkdir(parents=True, exist_ok=True)
    if turn.job.module not in jobs.RESUMING:
      shutil.rmtree(folder / turn.job.name, ignore_errors=True)
    self.turn, self.cores = turn, cores
    self._start = time.monotonic()
    log_path = folder / f'{turn.job.name}.log'
    with open(log_path, 'ab') as log, _on_cores(cores):
      self.process = subprocess.Popen(
        [
          sys.executable,
          *jobs.make_command(turn.job, turn.seed, folder, changes),
        ],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=_share_programs(out) | os.environ,
        # A terminal's Ctrl-C reaches it from here, and so once.
        start_new_session=True,
      )

  @property
  def seconds(self) -> float:
    return time.monotonic() - self._start


def _share_programs(out):
  """Returns environment: what one run has compiled, the others read."""
  return {
    'JAX_COMPILATION_CACHE_DIR': str((out / 'programs').absolute()),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


def _read_tail(turn, out):
  folder = jobs.find_folder(out, turn.part, turn.seed)
  text = (folder / f'{turn.job.name}.log').read_text(errors='replace')
  return text[-_TAIL:]


def _delete_checkpoints(turns, record, out):
  """Deletes those of finished runs that no job of the part waits for, whether or
  not it is of these turns."""
  for turn in turns:
    part, seed, name = turn.key
    is_waited_for = any(
      name in job.needs and (part, seed, job.name) not in record.rows
      for job in turn.part.jobs
    )
    if turn.key in record.rows and not is_waited_for:
      folder = jobs.find_folder(out, turn.part, seed) / name
      shutil.rmtree(folder / 'checkpoints', ignore_errors=True)


class _Stop:
  """Passes SIGTERM and Ctrl-C on to the jobs at work; a context, which none of
  them outlives."""

  def __init__(self, works):
    self.asked = False
    self._works = works

  def __enter__(self):
    numbers = signal.SIGTERM, signal.SIGINT
    self._before = {n: signal.signal(n, self._pass_on) for n in numbers}
    return self

  def __exit__(self, *exc_info):
    for work in self._works:  # none, but for an error
      work.process.terminate()
      work.process.wait()
    for number, before in self._before.items():
      signal.signal(number, before)

  def _pass_on(self, number, frame):
    del number, frame
    self.asked = True
    for work in self._works:
      work.process.terminate()


class _Line:
  """One line of progress, which changes on a terminal; elsewhere one whenever a
  job begins or ends."""

  def __init__(self):
    self._is_terminal = sys.stdout.isatty()
    self._shown = None
    self._since = self._expected = None

  def expect(self, seconds: float | None) -> None:
    """Sets what all that is left takes from now on, if anybody knows."""
    self._since, self._expected = time.monotonic(), seconds

  def show(self, titles: Sequence[str], num_left: int) -> None:
    """Shows the jobs at work, and how many are not finished, with these."""
    title = f'{num_left} to go: {", ".join(titles)}'
    if not self._is_terminal and title == self._shown:
      return
    text = title
    if self._expected is not None:
      left = self._expected - (time.monotonic() - self._since)
      text += f', {show_seconds(max(left, 0))} left in all'
    if self._is_terminal:
      width = shutil.get_terminal_size().columns - 1
      print(f'\r\x1b[K{text[:width]}', end='', flush=True)
    else:
      print(text, flush=True)
    self._shown = title

  def say(self, text: str) -> None:
    """Shows lines that stay."""
    if self._is_terminal and self._shown:
      print()
    print(text, flush=True)


def show_seconds(seconds: float) -> str:
  """Returns hours, minutes and seconds."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}'
