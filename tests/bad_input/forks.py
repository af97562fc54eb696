"""The commands as a shell starts them, without the seconds of their imports.

1. `Commands` starts this file as one process, which imports what the commands
   import, and looks for no devices.
2. For each call a fork of it becomes the command: its own arguments, environment
   and folder, and standard input from a file.
3. What it printed, on either stream, and its exit code come back.
"""

import importlib
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import time

import jax

TESTS = pathlib.Path(__file__).parents[1]
_TIMEOUT_S = 20
_MODULES = (
  'evaluate', 'export', 'generate', 'main', 'plan', 'report', 'reward_model',
  'traces',
)  # fmt: skip


class Commands:
  """A context in which `run` runs commands."""

  def __enter__(self):
    self._process = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ
      | {'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': f'{TESTS.parent}:{TESTS}'},
    )
    return self

  def __exit__(self, *exc_info):
    self._process.stdin.close()
    self._process.wait()
    self._process.stdout.close()

  def run(
    self,
    module: str,
    *argv: str,
    folder: pathlib.Path,
    stdin: bytes = b'',
    env: dict[str, str] | None = None,
  ) -> tuple[int, str]:
    """Returns the exit code and what was printed.

    Args:
      module: after `python -m`.
      *argv: the arguments.
      folder: where it runs, and finds modules.
      stdin: what it reads.
      env: more of its environment.
    """
    read, printed = folder / 'stdin', folder / 'printed'
    read.write_bytes(stdin)
    asked = [module, argv, str(folder), str(read), str(printed), env or {}]
    self._process.stdin.write(json.dumps(asked) + '\n')
    self._process.stdin.flush()
    code = int(self._process.stdout.readline())
    return code, printed.read_text(encoding='utf-8', errors='replace')


def _serve():
  for name in _MODULES:
    importlib.import_module(f'dash_jax.{name}')
  for line in sys.stdin:
    child = os.fork()
    if not child:
      _become(*json.loads(line))
    print(_wait(child), flush=True)


def _become(module, argv, folder, read, printed, env):
  for number, path, how in (
    (0, read, os.O_RDONLY),
    (1, printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
  ):
    os.dup2(os.open(path, how), number)
  os.dup2(1, 2)
  sys.stdin = open(0, encoding='utf-8')  # noqa: SIM115
  os.chdir(folder)
  os.environ |= env
  if 'JAX_PLATFORMS' in env:  # read once, as jax was imported
    jax.config.update('jax_platforms', env['JAX_PLATFORMS'])
  sys.path.insert(0, folder)
  sys.argv = [module, *argv]
  sys.modules.pop(module, None)
  code = 1
  try:
    runpy.run_module(module, run_name='__main__', alter_sys=True)
    code = 0
  except SystemExit as end:
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    sys.excepthook(*sys.exc_info())
  finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child) -> int:
  deadline_s = time.monotonic() + _TIMEOUT_S
  while True:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      return os.waitstatus_to_exitcode(status)
    if time.monotonic() > deadline_s:
      os.kill(child, signal.SIGKILL)
    time.sleep(0.005)


if __name__ == '__main__':
  _serve()
