"""One reward process, which `workers.Pool` starts and may kill.

The life of a row here:

  1. The pool sends one JSON line: the functions' paths, their keyword arguments
     and limits. We import the functions and answer 'loaded', then run the
     `prepare` of those that have one, and answer 'ready'.
  2. Each further line is a row [completion, answer, truncated].
  3. The answer is a line [rewards, error, is_usable]: a reward for each function,
     0 for one that failed; error is null or says how the first of these did, and
     is_usable is false if this process ran out of memory, of files or of
     processes, or can't be brought back to how it began, and so ends.
  4. When the pipe closes, the pool's process has ended, and so do we.

Lines go over copies of the first file descriptors. The descriptors themselves
point to nowhere, so nothing that a reward function prints or reads can get
between the lines. A copy of this process that a function forks has no lines, and
ends if it comes back from the function.

Signals that a launcher sends to all processes of a job do nothing here: the pool
decides when we end, by SIGKILL or by closing the pipe. They have a handler, and
aren't ignored, because what a function starts would inherit that. Not meant to be
imported.
"""

import contextlib
import errno
import importlib
import json
import math
import numbers
import os
import resource
import signal
import sys
import traceback

from dash_jax.rewards import leftovers

_MAX_MEMORY_BYTES = 2 * 1024**3  # On top of what importing the function took.
_MAX_FLOAT32 = 3.4e38

# What a launcher may send to all processes of a job, to stop or to warn it.
_LAUNCHER_SIGNALS = (
  signal.SIGTERM,
  signal.SIGINT,
  signal.SIGHUP,
  signal.SIGUSR1,
  signal.SIGUSR2,
)

# Until this process ends, what has run out stays so.
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)

_LIMITS = [
  getattr(resource, name) for name in dir(resource) if name.startswith('RLIMIT')
]


def main() -> None:
  """Scores rows until the pipe closes."""
  _take_signals()
  rows = os.fdopen(os.dup(0), encoding='utf-8')
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  nowhere = os.open(os.devnull, os.O_RDWR)
  os.dup2(nowhere, 0)
  os.dup2(nowhere, 1)

  def reply(value):
    replies.write(json.dumps(value) + '\n')
    replies.flush()

  # Else a crash of this process would not close the pipe.
  files = rows.fileno(), replies.fileno()
  os.register_at_fork(after_in_child=lambda: [os.close(fd) for fd in files])
  pid = os.getpid()
  start = json.loads(rows.readline())
  _set_alarm(start['start_alarm_s'])
  try:
    functions = [_import(path) for path in start['functions']]
    reply('loaded')
    for function in functions:
      if prepare := getattr(function, 'prepare', None):
        prepare(**start['kwargs'])
  except BaseException:
    reply({'failed': traceback.format_exc(limit=-1).strip()})
    return
  os.dup2(nowhere, 2)
  _limit_memory()
  state = _State()
  reply('ready')
  signal.alarm(0)
  for line in rows:
    _set_alarm(start['alarm_s'])
    answer = _score_all(functions, json.loads(line), start['kwargs'])
    if os.getpid() != pid:
      os._exit(0)  # A function forked, and this is the copy.
    signal.alarm(0)
    answer[-1] = state.restore() and answer[-1]
    reply(answer)
    if not answer[-1]:
      return


def _import(path: str):
  module, _, name = path.partition(':')
  function = getattr(importlib.import_module(module), name)
  if not callable(function):
    raise TypeError(f'{name} in {module} is {function!r}, not a function')
  return function


def _score_all(functions, row, kwargs) -> list:
  """Returns [rewards, error or None, is_usable]."""
  rewards, first_error = [0.0] * len(functions), None
  for i, function in enumerate(functions):
    reward, error, is_usable = _score(function, row, kwargs)
    first_error = first_error or error
    if error is None:
      rewards[i] = reward
    if not is_usable:
      return [rewards, first_error, False]
  return [rewards, first_error, True]


def _score(function, row, kwargs) -> tuple:
  """Returns (reward or None, error or None, is_usable)."""
  try:
    value = function(*row, **kwargs)
    if not isinstance(value, numbers.Real):
      raise TypeError(f'returned {type(value).__name__}, not a finite float')
    reward = float(value)
    if math.isnan(reward) or abs(reward) > _MAX_FLOAT32:
      raise ValueError(f'returned {reward}, not a finite float')
  except MemoryError:
    return None, f'MemoryError (limit {_MAX_MEMORY_BYTES} bytes)', False
  except BaseException as error:  # SystemExit too: one row is at fault, not we.
    is_usable = getattr(error, 'errno', None) not in _EXHAUSTED
    return None, _say(error), is_usable
  return reward, None, True


def _say(error: BaseException) -> str:
  name = type(error).__name__
  try:
    return f'{name}: {error}'[:1000]
  except BaseException as other:
    return f'{name}, of which the text fails with {type(other).__name__}'


def _take_signals() -> None:
  """Takes the signals that the pool had blocked until now."""
  for number in _LAUNCHER_SIGNALS:
    signal.signal(number, lambda *unused_args: None)
  signal.pthread_sigmask(signal.SIG_SETMASK, ())


class _State:
  """What one row could change for the rows after it."""

  def __init__(self):
    self._folder = os.open('.', os.O_RDONLY)
    self._streams = sys.stdin, sys.stdout, sys.stderr
    self._limits = [resource.getrlimit(limit) for limit in _LIMITS]

  def restore(self) -> bool:
    """Brings all of it back; returns whether that was possible."""
    sys.stdin, sys.stdout, sys.stderr = self._streams
    _take_signals()
    try:
      os.fchdir(self._folder)
      for limit, pair in zip(_LIMITS, self._limits, strict=True):
        if resource.getrlimit(limit) != pair:
          resource.setrlimit(limit, pair)
    except (OSError, ValueError):
      return False
    return True


def _set_alarm(alarm_s: float) -> None:
  """Ends this process after a time at which the pool should have killed it.

  If the pool's process is gone, then nobody else ends a row that hangs. The
  default action of the signal works even inside one long C call, where no
  Python handler and no thread would run.
  """
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  signal.setitimer(signal.ITIMER_REAL, alarm_s)


def _limit_memory() -> None:
  """Makes a row that allocates without end fail, and not the machine."""
  # macOS has no /proc and refuses the limit: there rows run without one.
  with contextlib.suppress(OSError, ValueError), open('/proc/self/statm') as f:
    used_bytes = int(f.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit_bytes = used_bytes + _MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, hard))


if __name__ == '__main__':
  mark = os.environ[leftovers.MARK]
  with contextlib.suppress(BrokenPipeError):
    main()
  with contextlib.suppress(Exception):
    sys.stderr.flush()
  leftovers.kill(mark, besides=os.getpid())
  # With whatever the function started: this process leads its own group.
  os.killpg(0, signal.SIGKILL)
