"""How the sides of a comparison take turns: one process each, a line a turn.

A side warms up, says that it is ready, then answers each line with what its
turn took. It runs in an environment of its own, so this file needs nothing but
Python: a side imports it by its path.

  1. `serve` is for a side that can be called once a turn.
  2. A program with a loop of its own calls `Turns.begin` and `Turns.end` from
     within it.
"""

import contextlib
import json
import os
import sys
import time


class Turns:
  """The turns of this process, whose arguments say what to do.

  Attributes:
    workload: the file's dict.
    options: the side's, of which `warmup` turns are not timed.
    about: {name: version} of what runs, to be filled before the first turn.
  """

  def __init__(self):
    with open(sys.argv[1]) as file:
      self.workload = json.load(file)
    self.options = json.loads(sys.argv[2])
    self.about = {}
    self._num_left = self.options['warmup']
    # What libraries print must not mix with the answers.
    self._answers = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)

  def begin(self) -> int:
    """Waits for a turn and returns its number, which is negative in warm-up.
    The process ends when there are no more."""
    number = -self._num_left
    if not number:
      line = sys.stdin.readline()
      if not line:
        os._exit(0)  # a library may wait for the thread that runs this
      number = int(line)
    self._sampling = [0.0, 0.0]
    self._start = _read_clocks()
    return number

  @contextlib.contextmanager
  def sampling(self):
    """Counts what runs inside as the turn's sampling."""
    wall, cpu, _ = _read_clocks()
    yield
    wall_end, cpu_end, _ = _read_clocks()
    self._sampling[0] += wall_end - wall
    self._sampling[1] += cpu_end - cpu

  def end(self, figures: dict) -> None:
    """Answers a turn with its seconds and the figures."""
    seconds, cpu, busy = (
      now - then for now, then in zip(_read_clocks(), self._start, strict=True)
    )
    if not self._num_left:
      times = {
        'seconds': seconds,
        'cpu_seconds': cpu,
        'others_cpu_seconds': max(busy - cpu, 0.0),
        'sample_s': self._sampling[0],
        'sample_cpu_s': self._sampling[1],
      }
      print(json.dumps(times | figures), file=self._answers)
      return
    self._num_left -= 1
    if not self._num_left:
      print(json.dumps(self.about), file=self._answers)


def serve(make) -> None:
  """Serves turns until standard input ends.

  Args:
    make: takes the workload (a dict) and the options, and returns a function of
      a turn's number that does the work and returns its figures, and `about`.
  """
  turns = Turns()
  work, turns.about = make(turns.workload, **turns.options)
  while True:
    turns.end(work(turns.begin()))


def _read_clocks():
  """Returns wall seconds, CPU seconds of this process and its children, and CPU
  seconds of the whole machine, which only Linux tells (0 elsewhere)."""
  times = os.times()
  cpu = time.process_time() + times.children_user + times.children_system
  busy = 0.0
  if os.path.exists('/proc/stat'):
    with open('/proc/stat') as file:
      ticks = [int(x) for x in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    busy = (sum(ticks) - idle) / os.sysconf('SC_CLK_TCK')
  return time.perf_counter(), cpu, busy


def draw_prompts(workload: dict, num_prompts: int):
  """Returns i32[num_prompts, P], the same numbers in every side; those of a
  step follow those of the step before."""
  import numpy as np

  rng = np.random.default_rng(workload['seed'])
  shape = (num_prompts, workload['prompt_len'])
  first, last = workload['prompt_ids_from'], workload['model']['vocab_size']
  return rng.integers(first, last, shape, dtype=np.int64).astype(np.int32)


def fraction_even(ids) -> float:
  """Returns the reward of a completion."""
  return sum(i % 2 == 0 for i in ids) / max(len(ids), 1)
