"""The sides of a comparison, a process each, that take turns.

All are warmed up first; then one works at a time, so that what disturbs the
machine disturbs all. sides/protocol.py is the other end.
"""

import contextlib
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator

SIDES = pathlib.Path(__file__).parent / 'sides'

# JAX's float32 products are TensorFloat-32 on GPUs, torch's are not; and each side
# takes of a device's memory what it needs.
_ENVIRONMENT = {
  'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
}

# Turns of each side before the timed ones.
WARMUP = 2

# A turn is clean if other processes had less than this part of one core.
_OTHERS = 1 / 8


class Side:
  """One side's process.

  Attributes:
    name: of the side.
    about: what it says it is, once it has been waited for.
    answers: a dict for each turn taken.
  """

  def __init__(self, name: str, command: list[str], path: str, options: dict):
    self.name = name
    self.answers = []
    self._process = subprocess.Popen(
      [*command, path, json.dumps(options | {'warmup': WARMUP})],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      bufsize=1,
      env=_ENVIRONMENT | os.environ,
    )

  def wait(self) -> None:
    """Waits for the end of the warm-up."""
    self.about = self._read()

  def take_turn(self, number: int) -> None:
    print(number, file=self._process.stdin, flush=True)
    self.answers.append(self._read())

  def clean_answers(self) -> list[dict]:
    """Returns the answers of turns that nothing else on the machine disturbed,
    and in which nothing was compiled."""
    return [
      a
      for a in self.answers
      if a['others_cpu_seconds'] < _OTHERS * a['seconds']
      and not a.get('compiles')
    ]

  def _read(self):
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f'{self.name} ended with {self._process.wait()}; it says why above'
      )
    return json.loads(line)

  def close(self) -> None:
    self._process.kill()
    self._process.wait()


@contextlib.contextmanager
def start(commands: dict, path: str, options: dict) -> Iterator[list[Side]]:
  """Yields sides that are warmed up; they end with the context.

  Args:
    commands: for each side's name its command and its own options.
    path: the workload file.
    options: of all sides.
  """
  with contextlib.ExitStack() as closing:
    sides = []
    for name, (command, more) in commands.items():
      side = Side(name, command, path, options | more)
      closing.callback(side.close)
      side.wait()
      sides.append(side)
    yield sides


def take(sides: list[Side], turns: int, most: int = 0) -> None:
  """Lets each side take turns until all have had as many clean ones.

  Args:
    sides: that are warmed up.
    turns: clean turns that are wanted.
    most: turns of a side, clean or not; 0 for `turns`.
  """
  for turn in range(most or turns):
    if all(len(side.clean_answers()) >= turns for side in sides):
      return
    for side in sides:
      side.take_turn(turn)
