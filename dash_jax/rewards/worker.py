"""One reward process, which `workers.Pool` starts and may kill.

The life of a row here:

  1. The pool sends one JSON line: the functions' paths, their keyword arguments
     and limits. We import the functions and answer 'loaded', then run the
     `prepare` of those that have one, and answer 'ready'.
  2. Each further line is a row [completion, answer, truncated].
  3. The answer is a line [rewards, error, is_usable]: a reward for each function,
     0 for one that failed; error is null or says how the first of these did, and
     is_usable is false if this process ran out of memory and so ends.
  4. When the pipe closes, the pool's process has ended, and so do we.

Lines go over copies of the first file descriptors. The descriptors themselves
point to nowhere, so nothing that a reward function prints or reads can get
between the lines. Not meant to be imported.
"""

import contextlib
import importlib
import json
import math
import numbers
import os
import resource
import signal
import sys
import traceback

_MAX_MEMORY_BYTES = 2 * 1024**3  # On top of what importing the function took.
_MAX_FLOAT32 = 3.4e38


def main() -> None:
  """Scores rows until the pipe closes."""
  rows = os.fdopen(os.dup(0), encoding='utf-8')
  replies = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  nowhere = os.open(os.devnull, os.O_RDWR)
  os.dup2(nowhere, 0)
  os.dup2(nowhere, 1)

  def reply(value):
    replies.write(json.dumps(value) + '\n')
    replies.flush()

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
  reply('ready')
  signal.alarm(0)
  for line in rows:
    _set_alarm(start['alarm_s'])
    answer = _score_all(functions, json.loads(line), start['kwargs'])
    signal.alarm(0)
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
    return None, f'{type(error).__name__}: {error}'[:1000], True
  return reward, None, True


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
  with contextlib.suppress(BrokenPipeError):
    main()
  sys.stderr.flush()
  # With whatever the function started: this process leads its own group.
  os.killpg(0, signal.SIGKILL)
