"""Everything that a reward function did wrong once, or may: the table of
faulty_rewards_test.py, which runs it in workers.

Each entry of `FAULTS` has what `misbehave` does where the completion is its name,
and what the pool has to say of that row: 'timeout', 'error', or a reward.
"""

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time

_LIBC = ctypes.CDLL(None)


def misbehave(completion, answer, truncated, note=''):
  """Does what `FAULTS` has under the completion's name, or returns the number that
  the completion is. What it starts writes its process ids to the file `note`."""
  del answer, truncated
  if completion not in FAULTS:
    print('printed by a row that is sound')
    assert os.path.isdir('.')
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 50
    return float(completion)
  return FAULTS[completion][0](note)


def stop_child(completion, answer, truncated):
  """Returns the number of the signal that ended a child."""
  del completion, answer, truncated
  child = subprocess.Popen(['sleep', '100'])
  child.terminate()
  return float(-child.wait())


def _sleep(unused_note=''):
  while True:
    time.sleep(1)


def _note(note, pid):
  with open(note, 'a') as file:
    file.write(f'{pid}\n')


def _loop(unused_note):
  while True:
    pass


def _block_signals(unused_note):
  signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
    signal.signal(number, signal.SIG_IGN)
  _sleep()


def _block_and_return(unused_note):
  signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
  return 0.5


def _segfault(unused_note):
  ctypes.string_at(0)


def _overflow_stack(unused_note):
  sys.setrecursionlimit(10**9)

  class Nested:
    def __getattr__(self, name):
      return getattr(self, name + 'x'[:0])

  return Nested().a


def _fork_and_return(unused_note):
  os.fork()
  os.fork()
  return 0.5


def _fork_in_c_and_return(unused_note):
  _LIBC.fork()
  return 0.5


def _leave_child(note):
  child = os.fork()
  if child == 0:
    _sleep()
  _note(note, child)
  return 0.5


def _leave_child_and_crash(note):
  _leave_child(note)
  os._exit(1)


def _daemonise(note):
  """Starts a grandchild in a session of its own, with no parent left."""
  child = os.fork()
  if child == 0:
    os.setsid()
    grandchild = os.fork()
    if grandchild == 0:
      _sleep()
    _note(note, grandchild)
    os._exit(0)
  os.waitpid(child, 0)
  return 0.5


def _daemonise_and_loop(note):
  subprocess.Popen(
    [sys.executable, '-c', 'import time; time.sleep(1000)'],
    start_new_session=True,
  )
  _daemonise(note)
  _sleep()


def _bomb(note):
  """Forks with all its copies until there are about two hundred."""
  for _ in range(8):
    if child := os.fork():
      _note(note, child)
  _sleep()


def _print_and_return(unused_note):
  print('x' * 5_000_000)
  sys.stderr.write('y' * 5_000_000)
  for fd in (0, 1, 2):
    os.write(fd, b'[[1.0], null, true]\n' * 100_000)
  subprocess.run(['sh', '-c', 'head -c 3000000 /dev/zero; pwd >&2'], check=True)
  return 0.5


def _write_everywhere(data):
  for fd in range(3, 64):
    try:
      if os.readlink(f'/proc/self/fd/{fd}').startswith('pipe:'):
        os.write(fd, data)
    except OSError:
      continue
  _sleep()


def _eat_memory(unused_note):
  eaten = []
  while True:
    eaten.append(bytes(1 << 26))  # Whose pages nobody touches.


def _eat_files(unused_note):
  resource.setrlimit(
    resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
  )
  misbehave.eaten = []
  while True:
    misbehave.eaten.append(socket.socketpair())


def _limit_files(unused_note):
  resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))
  return 0.5


def _limit_cpu(unused_note):
  resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
  return 0.5


def _close_files(unused_note):
  os.closerange(0, 64)
  return 0.5


def _change_folder(note):
  """Goes to a folder that is gone."""
  os.mkdir(f'{note}.gone')
  os.chdir(f'{note}.gone')
  os.rmdir(f'{note}.gone')
  return 0.5


def _change_streams(unused_note):
  sys.stdout = sys.stderr = sys.stdin = None
  return 0.5


def _leave_threads(unused_note):
  for _ in range(20):
    threading.Thread(target=_sleep).start()
  return 0.5


def _send(number):
  os.kill(os.getpid(), number)
  return 0.5


def _raise(error):
  raise error


class _NoTextError(Exception):
  def __str__(self):
    raise SystemExit('no text')

  __repr__ = __str__


class _NumberTextError(Exception):
  def __str__(self):
    return 3


class _NoFloat(float):
  def __float__(self):
    raise KeyboardInterrupt


# What misbehave does, and what the pool says of it.
FAULTS = {
  'loops': (_loop, 'timeout'),
  'computes in C for ever': (lambda _: 9**9 ** int('9'), 'timeout'),
  'sleeps': (_sleep, 'timeout'),
  'stops itself': (lambda _: _send(signal.SIGSTOP), 'timeout'),
  'blocks all signals, and sleeps': (_block_signals, 'timeout'),
  'blocks all signals': (_block_and_return, 0.5),
  'gets a SIGTERM': (lambda _: _send(signal.SIGTERM), 0.5),
  'gets a SIGINT': (lambda _: _send(signal.SIGINT), 0.5),
  'kills itself': (lambda _: _send(signal.SIGKILL), 'error'),
  'segfaults': (_segfault, 'error'),
  'overflows the stack': (_overflow_stack, 'error'),
  'exits at once': (lambda _: os._exit(0), 'error'),
  'aborts': (lambda _: os.abort(), 'error'),
  'exits': (lambda _: sys.exit(0), 'error'),
  'forks, and returns four times': (_fork_and_return, 0.5),
  'forks in C, and returns twice': (_fork_in_c_and_return, 0.5),
  'leaves a child': (_leave_child, 0.5),
  'leaves a child, and crashes': (_leave_child_and_crash, 'error'),
  'daemonises': (_daemonise, 0.5),
  'daemonises, and sleeps': (_daemonise_and_loop, 'timeout'),
  'is a fork bomb': (_bomb, 'timeout'),
  'prints megabytes, and to descriptors': (_print_and_return, 0.5),
  'writes text to the pipes': (
    lambda _: _write_everywhere(b'abc\n' * 100),
    'error',
  ),
  'writes JSON to the pipes': (
    lambda _: _write_everywhere(b'[1, 2]\n{"failed": 3}\n"x"\n'),
    'error',
  ),
  'writes bytes to the pipes': (
    lambda _: _write_everywhere(b'\xff\x00\n'),
    'error',
  ),
  'writes deep JSON to the pipes': (
    lambda _: _write_everywhere(b'[' * 60_000 + b'\n'),
    'error',
  ),
  'writes a line without end': (
    lambda _: _write_everywhere(b' ' * (1 << 21)),
    'error',
  ),
  'eats memory': (_eat_memory, 'error'),
  'leaves no descriptors': (_eat_files, 'error'),
  'leaves a limit on files': (_limit_files, 0.5),
  'leaves a limit on CPU time': (_limit_cpu, 0.5),
  'closes its descriptors': (_close_files, 'error'),
  'changes the folder': (_change_folder, 0.5),
  'changes the streams': (_change_streams, 0.5),
  'leaves threads': (_leave_threads, 0.5),
  'raises an interrupt': (lambda _: _raise(KeyboardInterrupt()), 'error'),
  'raises GeneratorExit': (lambda _: _raise(GeneratorExit()), 'error'),
  'raises BaseException': (lambda _: _raise(BaseException()), 'error'),
  'raises without text': (lambda _: _raise(_NoTextError()), 'error'),
  'raises with a number': (lambda _: _raise(_NumberTextError()), 'error'),
  'raises a megabyte': (lambda _: _raise(ValueError('x' * 10**6)), 'error'),
  'raises surrogates': (lambda _: _raise(ValueError('\udfff\0')), 'error'),
  'recurses': (lambda _: FAULTS['recurses'][0](_), 'error'),
  'returns nan': (lambda _: float('nan'), 'error'),
  'returns inf': (lambda _: float('inf'), 'error'),
  'returns None': (lambda _: None, 'error'),
  'returns a huge int': (lambda _: 10**400, 'error'),
  'returns text': (lambda _: '1', 'error'),
  'returns complex': (lambda _: 1 + 0j, 'error'),
  'returns a list': (lambda _: [1.0], 'error'),
  'returns a float that is none': (lambda _: _NoFloat(1.0), 'error'),
}
