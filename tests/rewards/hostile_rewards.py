"""Reward functions that misbehave, for workers_test.py to run in workers.

Each does what the completion says, or else returns the completion as a number.
"""

import os
import subprocess
import sys
import time


def obey(completion, answer, truncated, note=''):
  """Does one bad thing, or returns a float."""
  del answer, truncated
  order, _, rest = completion.partition(' ')
  match order:
    case 'loop':
      while True:
        pass
    case 'power':  # One C call that holds the interpreter lock for hours.
      return 9**9 ** int('9')
    case 'spawn':
      child = subprocess.Popen(['sleep', '1000'])
      with open(note, 'w') as file:
        file.write(f'{os.getpid()} {child.pid}')
      while True:
        time.sleep(1)
    case 'exit':
      os._exit(7)
    case 'raise':
      raise KeyError('no such thing')
    case 'print':
      print('x' * 5_000_000)
      os.write(1, b'[1.0, null, true]\n' * 100_000)
      print('y' * 5_000_000, file=sys.stderr)
      return float(rest)
    case 'read':
      return float(rest) + len(sys.stdin.read())
    case 'pid':
      return float(os.getpid())
  return float(completion)


def obey_answer(completion, answer, truncated):
  """Does what the answer says."""
  del completion
  return obey(answer, '', truncated)


def describe(completion, answer, truncated, scale):
  """Says by one number which arguments arrived."""
  return scale * (len(completion) + 10 * len(answer) + 1000 * truncated)


def slow_start(completion, answer, truncated):
  return 1.0


slow_start.prepare = lambda: time.sleep(1.2)
