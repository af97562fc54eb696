"""Scores code by tests, as MBPP's: `reward.function=dash_jax.rewards.code:score_one`.

The completion holds Python code, the answer Python statements with asserts that
call it. The life of a row here:

  1. `extract` takes the last fenced block, or the whole text if there is no fence.
  2. Two processes start, each locked down (lockdown.py): no network, no other
     process, no file but Python's library, an empty environment, limits on memory,
     CPU and wall time. Nothing is left of them afterwards.
  3. One runs the reply's code, the other the tests; calls and results between them
     are data (code_sides.py). The second says whether all asserts held.

The reply can't fake a pass by exiting, by printing, by changing `__eq__`, `assert`
or any builtin, or by reading the tests from memory, frames or files: none of that
is in its process. What it does see are the arguments of each call. So what can't be
prevented lies in the tests: replies to `assert f(2)` or `assert f(2) != 3` may be
anything but false or 3; answers to arguments that are known by heart can be
listed; and an expected value that the tests themselves hand over, to the reply's
function or to a method of what it returned (`f(2).startswith('a')`, if f does not
return text but an object with such a method), is known. Tests that compare plain
values have none of this. Functions can't be handed over, only plain values
and the reply's own objects; only Python's own library can be imported.

A reply that fails, crashes, or takes too long is wrong. Tests that can't be run
whatever the reply is, and a machine that lacks a part of the lock, are errors.
"""

import json
import os
import pathlib
import re
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator

from dash_jax.rewards import code_sides

# Of CPU time, for each of the two processes, and of wall time, for a reply that
# sleeps: below the default of `reward.timeout_s`, so that it doesn't cost a worker.
MAX_CPU_S = 3
MAX_S = 4.0
_MAX_PREPARE_S = 60.0
MAX_CODE_LEN = 100_000  # Characters.

_ROOT = str(pathlib.Path(__file__).parents[2])
# They give nothing back, so that they take time in proportion to a text.
_OPENING = re.compile(r'```[ \t]*+(\w*+)[^\n`]*+\n')
_CLOSING = re.compile(r'^[ \t]*+```', re.M)
_LANGUAGES = ('', 'python', 'python3', 'py')


def extract(text: str) -> str | None:
  """Finds the code in a completion.

  Args:
    text: the completion.

  Returns:
    The inside of the last fenced block of Python, or of no language; the whole
    text if it has no fence. None if there is neither, or it is longer than
    `MAX_CODE_LEN`.
  """
  if len(text) > MAX_CODE_LEN:
    return None
  if '```' not in text:
    return text
  blocks = [code for name, code in _find_blocks(text) if _is_python(name)]
  return blocks[-1] if blocks else None


def score_one(
  completion: str, answer: str, truncated: bool, **unused_kwargs
) -> float:
  """Scores one completion.

  Args:
    completion: the sampled text.
    answer: the tests: Python statements, of which at least one is an assert and
      calls what the code has to define.
    truncated: whether the completion ran out of room before it stopped.

  Returns:
    1.0 if it stopped and its code passes the tests, else 0.0.

  Raises:
    ValueError: the tests can't be run.
    OSError: this machine can't lock the code down.
  """
  code = None if truncated else extract(completion)
  if code is None:
    return 0.0
  verdict, cause = run(code, answer)
  if verdict == 'bad':
    raise ValueError(
      f'the answer is {answer[:200]!r}; as tests of code: {cause}'
    )
  return float(verdict == 'right')


def run(code: str, tests: str, max_s: float | None = None) -> tuple[str, str]:
  """Runs code and tests.

  Args:
    code: the reply's.
    tests: Python statements that call it.
    max_s: seconds of wall time; `MAX_S` by default.

  Returns:
    'right', 'wrong', or 'bad' where the tests can't be run; and the cause.

  Raises:
    OSError: this machine can't lock the code down.
  """
  job = json.dumps([code, tests]).encode() + b'\n'
  if len(job) > code_sides.MAX_MESSAGE_BYTES:
    return 'bad', f'they take more than {code_sides.MAX_MESSAGE_BYTES} bytes'
  max_s = max_s or MAX_S
  deadline_s = time.monotonic() + max_s
  reply = _start('reply')
  fds = reply.stdout.fileno(), reply.stdin.fileno()
  try:
    judge = _start('tests', *fds)
  except BaseException:
    _end(reply)
    raise
  try:
    reply.stdin.close()
    reply.stdout.close()
    said = _exchange(judge, job, deadline_s)
  finally:
    _end(judge)
    _end(reply)
  if said is None:
    return 'wrong', f'it took more than {max_s} s'
  try:
    verdict, cause = json.loads(said)
  except ValueError:  # As where the tests take all memory.
    return 'wrong', f'the process of the tests ended with {judge.returncode}'
  if verdict == 'unlocked':
    raise OSError(cause)
  return verdict, cause


def prepare(**unused_kwargs) -> None:
  """Tries the lock and both verdicts, before any row.

  Raises:
    OSError: this machine can't lock code down, or names what it lacks.
  """
  code = 'def double(x):\n  return 2 * x'
  found = [
    run(code, f'assert double(2) == {n}', _MAX_PREPARE_S) for n in (4, 5)
  ]
  if [verdict for verdict, _ in found] != ['right', 'wrong']:
    raise OSError(f'code cannot be run here: {found}')


score_one.prepare = prepare  # Called once by a worker: see workers.Pool.


def _find_blocks(text: str) -> Iterator[tuple[str, str]]:
  """Yields the language and the inside of each fenced block that is closed."""
  at = 0
  while opening := _OPENING.search(text, at):
    closing = _CLOSING.search(text, opening.end())
    if closing is None:  # Nor does any other end that opens later.
      return
    yield opening[1], text[opening.end() : closing.start()]
    at = closing.end()


def _is_python(language: str) -> bool:
  return language.lower() in _LANGUAGES


def _start(side: str, *fds: int) -> subprocess.Popen:
  # -S: no site-packages, and none of their start-up code. -s -P: nothing of the
  # user's or of this folder's.
  command = [sys.executable, '-sSPB', '-m', 'dash_jax.rewards.code_sides']
  return subprocess.Popen(
    [*command, side, *map(str, (os.getpid(), MAX_CPU_S, *fds))],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    bufsize=0,
    env={'PYTHONPATH': _ROOT},
    cwd='/',
    pass_fds=fds,
  )


def _end(process: subprocess.Popen) -> None:
  process.kill()
  process.wait()
  process.stdin.close()
  process.stdout.close()


def _exchange(
  process: subprocess.Popen, job: bytes, deadline_s: float
) -> bytes | None:
  """Sends a job, and returns all that comes back; None if it comes too late."""
  unsent, said = memoryview(job), b''
  os.set_blocking(process.stdin.fileno(), False)
  with selectors.PollSelector() as selector:
    selector.register(process.stdout, selectors.EVENT_READ)
    selector.register(process.stdin, selectors.EVENT_WRITE)
    while len(said) < code_sides.MAX_MESSAGE_BYTES:
      ready = selector.select(max(0.0, deadline_s - time.monotonic()))
      if not ready:
        return None
      for key, _ in ready:
        if key.fileobj is process.stdin:
          try:
            unsent = unsent[os.write(key.fd, unsent[: 1 << 16]) :]
          except BrokenPipeError:
            unsent = unsent[:0]  # It has ended, as reading will show.
          if not unsent:
            selector.unregister(process.stdin)
        elif data := os.read(key.fd, 1 << 16):
          said += data
        else:
          return said
  return said
