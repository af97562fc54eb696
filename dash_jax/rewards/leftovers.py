"""Ends what a reward function has left behind.

A worker is killed with its process group. What left that group, by setsid, is
found by a mark in the environment that it began with, which all that a worker
starts inherits unless it is given another environment.
"""

import os
import signal

MARK = 'DASH_JAX_REWARD_WORKER'

# Processes that start others meanwhile are looked for again, so many times.
_MAX_ROUNDS = 20


def kill(mark: str, besides: int = 0) -> None:
  """Kills all processes that have a mark.

  Where there is no /proc, as on macOS, it does nothing.

  Args:
    mark: the value of `MARK` in their environments.
    besides: a process that is spared.
  """
  entry = f'{MARK}={mark}'.encode()
  for _ in range(_MAX_ROUNDS):
    pids = [pid for pid in _list_pids() if pid != besides and _has(pid, entry)]
    if not pids:
      return
    for pid in pids:
      try:
        os.kill(pid, signal.SIGKILL)
      except OSError:
        continue  # It has ended.


def _list_pids() -> list[int]:
  try:
    return [int(name) for name in os.listdir('/proc') if name.isdecimal()]
  except FileNotFoundError:
    return []


def _has(pid: int, entry: bytes) -> bool:
  """Says whether a process that still runs has an entry; one that has been
  killed has no environment any more."""
  try:
    with open(f'/proc/{pid}/environ', 'rb') as file:
      return entry in file.read().split(b'\0')
  except OSError:
    return False
