"""Scores completions in processes that can be killed.

The life of a batch here:

  1. `Pool` starts worker processes (worker.py) and waits until each has
     imported the reward function. What the function prepares goes on behind.
  2. `score` hands rows to idle workers, a few at a time.
  3. A worker answers row by row, in order. One that is silent for `timeout_s`
     is killed with all that it started: the row it was at is a time-out, the
     rows behind it go to another worker.
  4. A row that raises, returns no finite number, or takes its worker down is an
     error. Both score 0, and both are counted, apart from answers that are
     simply wrong. What a row has changed for those after it is brought back, or
     they get another worker.
  5. Other functions than the reward function may score the same rows, in the same
     turn: one that fails scores 0 by itself, and its row counts as an error.
"""

import collections
import contextlib
import dataclasses
import errno
import json
import logging
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import numpy as np

from dash_jax.rewards import leftovers

START_TIMEOUT_S = 120.0
TIMEOUT, ERROR = 'timeout', 'error'  # what may be the matter with a row

# A worker ends itself so long after we should have killed it: we may be gone.
_ALARM_MARGIN_S = 5.0
_ROWS_PER_TURN = 8
_READ_BYTES = 1 << 16
# A reply has a number a function, and an error of so many characters at most.
_MAX_REPLY_BYTES = 1 << 20
# A worker that a signal ends before it is ready is started again; so many in a
# row end the run.
_MAX_LOST_STARTS = 3
_MAX_ROOM_WAIT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Scores:
  """The rewards of B rows.

  Attributes:
    rewards: f32[B]; 0 on rows that timed out or failed.
    timeouts: rows that took longer than allowed.
    errors: rows of which a function raised, crashed or returned no number.
    others: f32[B] by name, of the pool's other functions.
    faults: by row, TIMEOUT or ERROR for those that are counted above.
  """

  rewards: np.ndarray
  timeouts: int
  errors: int
  others: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  faults: dict[int, str] = dataclasses.field(default_factory=dict)


class Pool:
  """Worker processes that share reward functions. A context manager.

  A reward function is called as function(completion, answer, truncated,
  **kwargs) with two strings and a bool, and returns a finite float. If it has
  an attribute `prepare`, then prepare(**kwargs) is called once in every new
  process, outside any row's time-out: the place for slow imports and tables.

  A pool scores one batch at a time; others, of other threads, wait. Its workers
  end with `close`, or when this process ends in whatever way.
  """

  def __init__(
    self,
    function: str = 'dash_jax.rewards.answers:score_one',
    kwargs: dict | None = None,
    num_workers: int = 2,
    timeout_s: float = 5.0,
    others: dict[str, str] | None = None,
  ):
    """Starts the workers and waits until they have imported the function.

    Args:
      function: 'package.module:name' of the reward function.
      kwargs: its keyword arguments, of what JSON can hold.
      num_workers: processes.
      timeout_s: seconds that one row may take, in all functions together.
      others: paths of more functions that score each row, by a name.

    Raises:
      ValueError: an argument is out of range, or a function can't be imported.
    """
    others = others or {}
    for path in (function, *others.values()):
      module, colon, name = path.partition(':')
      if not (module and colon and name.isidentifier()):
        raise ValueError(
          f'function is {path!r}; it must name a module and a function in it,'
          " as in 'dash_jax.rewards.answers:score_one'"
        )
    if num_workers < 1:
      raise ValueError(f'num_workers is {num_workers}; it must be at least 1')
    if not 0 < timeout_s < float('inf'):
      raise ValueError(f'timeout_s is {timeout_s}; it must be above 0')
    start = {
      'functions': [function, *others.values()],
      'kwargs': kwargs or {},
      'alarm_s': timeout_s + _ALARM_MARGIN_S,
      'start_alarm_s': START_TIMEOUT_S + _ALARM_MARGIN_S,
    }
    try:
      self._start = json.dumps(start)
    except TypeError as error:
      raise ValueError(
        f'kwargs is {kwargs!r}; JSON must hold it: {error}'
      ) from error
    self._functions = ', '.join(start['functions'])
    self._others = tuple(others)
    self._timeout_s = timeout_s
    self._has_warned = False
    self._num_lost = 0  # Of workers that were starting, since the last reply.
    self._is_closed = False
    self._turn = threading.Lock()
    self._workers = []
    try:
      for _ in range(num_workers):
        self._workers.append(self._start_worker())
      while any(not worker.is_loaded for worker in self._workers):
        self._wait()
        self._check_starts()
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, *unused_args) -> None:
    self.close()

  def close(self) -> None:
    """Kills the workers and all that they started. A thread that scores ends with
    a RuntimeError."""
    self._is_closed = True
    for worker in self._workers.copy():
      worker.stop()
    # What such a thread still reads is closed behind it.
    with self._turn:
      while self._workers:
        self._workers.pop().kill()

  def score(
    self,
    completions: list[str],
    answers: list[str],
    truncated: list[bool],
    on_done: Callable[[], None] = lambda: None,
  ) -> Scores:
    """Scores a batch.

    Args:
      completions: B texts.
      answers: the B right answers.
      truncated: whether each completion ran out of room before it stopped.
      on_done: is called whenever rows are done, those that came too late too.

    Returns:
      The rewards, in order, with the counts of what went wrong.

    Raises:
      ValueError: the lengths differ, or a worker that was killed can't be
        started again. The pool is closed then.
      RuntimeError: the pool is closed, or is closed meanwhile.
    """
    if not len(completions) == len(answers) == len(truncated):
      raise ValueError(
        f'got {len(completions)} completions, {len(answers)} answers and'
        f' {len(truncated)} truncated; there must be as many of each'
      )
    rows = [
      [completion, answer, bool(cut)]
      for completion, answer, cut in zip(
        completions, answers, truncated, strict=True
      )
    ]
    try:
      with self._turn:
        return self._score(rows, on_done)
    except BaseException:
      self.close()  # Workers hold rows of a batch that nobody waits for.
      raise

  def _score(self, rows, on_done) -> Scores:
    rewards = np.zeros((1 + len(self._others), len(rows)), np.float32)
    faults, num_done = {}, 0
    waiting = collections.deque(range(len(rows)))
    now = self._wait(0.0)  # A worker may have ended while nobody looked.
    while True:
      if self._is_closed:
        raise RuntimeError('the pool is closed')
      num_before = num_done
      for i, worker in enumerate(self._workers):
        for row, found, error in worker.take_replies(self._timeout_s):
          num_done += 1
          self._num_lost = 0
          rewards[:, row] = found
          if error is not None:
            faults[row] = ERROR
            self._warn(error)
        is_late = bool(worker.rows) and now > worker.deadline_s
        if not (is_late or worker.has_ended or worker.is_spent):
          continue
        if worker.rows and not worker.is_spent:
          row = worker.rows.popleft()
          num_done += 1
          faults[row] = ERROR if worker.has_ended else TIMEOUT
          if worker.has_ended:
            self._warn(f'its process ended with {worker.end()}')
        waiting.extendleft(reversed(worker.rows))
        worker.kill()
        self._workers[i] = self._start_worker()
      if num_done > num_before:
        on_done()
      if num_done == len(rows):
        others = dict(zip(self._others, rewards[1:], strict=True))
        found = list(faults.values())
        return Scores(
          rewards[0], found.count(TIMEOUT), found.count(ERROR), others, faults
        )
      for worker in self._workers:
        if worker.is_ready and not worker.rows and waiting:
          share = -(-len(waiting) // len(self._workers))
          turn = [waiting.popleft() for _ in range(min(_ROWS_PER_TURN, share))]
          worker.give(turn, rows, self._timeout_s)
      now = self._wait()
      self._check_starts()

  def _wait(self, max_wait_s: float = START_TIMEOUT_S) -> float:
    """Waits until a worker says something or is late, and moves bytes.

    Returns:
      The time when the wait began. What workers said before it has been read,
      so that who is silent now and was due by then is late.
    """
    now = time.monotonic()
    deadlines = [w.deadline_s for w in self._workers if w.is_awaited]
    wait_s = min(max_wait_s, max(0.0, min(deadlines, default=now) - now))
    with selectors.PollSelector() as selector:
      for worker in self._workers:
        selector.register(worker.reply_fd, selectors.EVENT_READ, worker.read)
        if worker.has_unsent:
          selector.register(worker.row_fd, selectors.EVENT_WRITE, worker.write)
      for key, _ in selector.select(wait_s):
        key.data()
    return now

  def _start_worker(self) -> '_Worker':
    """Starts a worker; waits a while if the machine has no room for it now."""
    deadline_s = time.monotonic() + _MAX_ROOM_WAIT_S
    while True:
      try:
        return _Worker(self._start, 1 + len(self._others))
      except OSError as error:
        is_full = error.errno in (errno.EAGAIN, errno.ENOMEM)
        if not is_full or time.monotonic() > deadline_s:
          raise
      time.sleep(0.1)

  def _check_starts(self) -> None:
    for i, worker in enumerate(self._workers):
      if worker.is_lost() and self._num_lost < _MAX_LOST_STARTS:
        self._num_lost += 1
        worker.kill()
        self._workers[i] = self._start_worker()
      elif failure := worker.start_failure():
        raise ValueError(
          f'reward function {self._functions!r} does not start: {failure}'
        )

  def _warn(self, error: str) -> None:
    if not self._has_warned:
      self._has_warned = True
      logging.getLogger(__name__).warning(
        'reward function %s failed, and the row scores 0: %s. Further errors'
        ' are only counted.',
        self._functions,
        error,
      )


class _Worker:
  """One process: its pipes, the rows that it has, and when it is late.

  Attributes:
    is_loaded: whether it has imported the function.
    is_ready: whether it takes rows.
    has_ended: whether its replies have come to an end.
    is_spent: whether it has said that it can take no more.
    rows: indices of the rows that it has, in order.
    deadline_s: time.monotonic() by which it has to say something.
  """

  def __init__(self, start: str, num_functions: int):
    self._num_functions = num_functions
    env = dict(os.environ)
    # What this process can import, a worker can.
    env['PYTHONPATH'] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    # One core each, and less address space for threads under the limit.
    env |= {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`kill` closes it)
    self._mark = secrets.token_hex(8)
    env[leftovers.MARK] = self._mark
    # A launcher's signal waits until the worker has its handlers.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
      self._process = subprocess.Popen(
        [sys.executable, '-P', '-m', 'dash_jax.rewards.worker'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._errors,
        bufsize=0,
        env=env,
        start_new_session=True,  # Its own group to kill; no Ctrl-C from ours.
      )
    finally:
      signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    self.row_fd = self._process.stdin.fileno()
    self.reply_fd = self._process.stdout.fileno()
    os.set_blocking(self.row_fd, False)
    self.is_loaded = self.is_ready = self.has_ended = self.is_spent = False
    self.rows = collections.deque()
    self.deadline_s = time.monotonic() + START_TIMEOUT_S
    self._failure = self._fault = ''
    self._unsent = start.encode() + b'\n'
    self._unread = b''
    self._replies = []

  @property
  def has_unsent(self) -> bool:
    return bool(self._unsent)

  @property
  def is_awaited(self) -> bool:
    """Whether it owes us something."""
    return bool(self.rows) or not self.is_ready

  def give(self, turn: list[int], rows: list, timeout_s: float) -> None:
    self.rows.extend(turn)
    self.deadline_s = time.monotonic() + timeout_s
    self._unsent += b''.join(json.dumps(rows[i]).encode() + b'\n' for i in turn)

  def take_replies(self, timeout_s: float) -> list:
    """Returns (row, rewards, error) of the rows that it has answered."""
    if self._replies:
      self.deadline_s = time.monotonic() + timeout_s
    replies, self._replies = self._replies, []
    return [(self.rows.popleft(), *reply) for reply in replies]

  def write(self) -> None:
    try:
      sent = os.write(self.row_fd, self._unsent[:_READ_BYTES])
      self._unsent = self._unsent[sent:]
    except BlockingIOError:
      pass
    except BrokenPipeError:
      self._unsent = b''  # It has ended, as `read` will find.

  def read(self) -> None:
    data = os.read(self.reply_fd, _READ_BYTES)
    *lines, self._unread = (self._unread + data).split(b'\n')
    try:
      for line in lines:
        self._take(json.loads(line))
      is_sound = len(self._unread) < _MAX_REPLY_BYTES
    except (ValueError, RecursionError):
      is_sound = False
    if not is_sound:
      # A function has written there, and may have said anything else.
      self._fault = 'what no worker writes, in its pipe'
      self.stop()
    self.has_ended |= not data or not is_sound

  def _take(self, reply) -> None:
    """Takes one line.

    Raises:
      ValueError: it is none that a worker writes.
    """
    match reply:
      case 'loaded':
        self.is_loaded = True
      case 'ready':
        self.is_ready = True
      case {'failed': str(failure)}:
        self._failure = failure
      case [[*rewards], str() | None as error, bool(is_usable)] if (
        len(self._replies) < len(self.rows)
        and len(rewards) == self._num_functions
        and all(isinstance(reward, float) for reward in rewards)
      ):
        self.is_spent = not is_usable
        self._replies.append((rewards, error))
      case _:
        raise ValueError('not a line of a worker')

  def start_failure(self) -> str:
    """Says why it will not become ready, or ''."""
    if self._failure or self.is_ready:
      return self._failure
    if self.has_ended:
      self._errors.seek(0)
      said = self._errors.read()[-2000:].decode(errors='replace').strip()
      return f'its process ended with {self.end()}. {said}'
    if time.monotonic() > self.deadline_s:
      return f'it is not ready after {START_TIMEOUT_S:.0f} s'
    return ''

  def end(self) -> str:
    """Waits for a process that has closed its pipe; says how it ended."""
    if self._fault:
      return self._fault
    code = self._find_code()
    if code is None:
      return 'its pipe closed'
    return f'exit code {code}' if code >= 0 else f'signal {-code}'

  def is_lost(self) -> bool:
    """Says whether it has been ended by a signal before it was ready."""
    code = self._find_code() if self.has_ended and not self.is_ready else None
    return code is not None and code < 0

  def _find_code(self) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
      return self._process.wait(timeout=1.0)
    return None

  def stop(self) -> None:
    """Ends its process, which whoever waits for it sees."""
    # Where the group has ended, Linux says the one and macOS the other.
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)

  def kill(self) -> None:
    self.stop()
    leftovers.kill(self._mark)
    self._process.wait()
    self._process.stdin.close()
    self._process.stdout.close()
    self._errors.close()
