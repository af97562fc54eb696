"""What the numbers of a run say is going wrong, and which field to change.

1. `Health.add_all` gets the rows of metrics.jsonl and evals.jsonl as they come,
   or all of a run, and returns the alarms that begin with them.
2. Each check of symptoms.py looks at medians over the newest steps, so that an
   odd step is silent, and at those over the first steps of RL where it is about
   a change.
3. `ringing` are the alarms that hold after the row of `step`.

It sees what is in the files and no more: it is the same while a run goes on and
afterwards. Advice says whether the same workdir can follow it (`say_where`).
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

import ml_collections

from dash_jax import config as config_lib
from dash_jax.runs import ownership, symptoms

# What every step has to tell.
_ALWAYS = ('step_s', 'loss', 'grad_norm', 'compiles', 'trained_tokens')
STEP_KEYS = {
  'sft': _ALWAYS,
  'rl': (
    *_ALWAYS,
    'sampled_rows',
    'kept_rows',
    'masked_rows',
    'zero_signal_fraction',
    'truncated_fraction',
    'reward_timeouts',
    'reward_errors',
  ),
}

# That checks look at, at least: where a step has few, as the baseline's one, they
# look at more steps, since a few groups may agree by chance.
_GROUPS = 64


@dataclasses.dataclass(frozen=True)
class Alarm:
  """What is wrong.

  Attributes:
    name: a word.
    step: after which it was found.
    cause: in plain words, with the numbers seen.
    advice: what to do, with the field's name.
  """

  name: str
  step: int
  cause: str
  advice: str

  @property
  def text(self) -> str:
    return f'{self.name}, step {self.step}: {self.cause}. {self.advice}.'


class Health:
  """The alarms of one run, as its rows come in."""

  def __init__(self, config: ml_collections.ConfigDict):
    """
    Args:
      config: of the run.
    """
    self._config = config
    sizes = config_lib.sizes(config)
    self._num_steps = (
      max(symptoms.STEPS, -(-_GROUPS // sizes.num_questions)) | 1
    )
    self._all = collections.deque(maxlen=symptoms.STEPS + 1)
    self._first = []
    self._last = collections.deque(maxlen=self._num_steps)
    self._evals = collections.deque(maxlen=2)
    self._best_eval = None
    self._has_stopped = False
    self.step = 0
    self.ringing: dict[str, Alarm] = {}

  def add(self, row: dict) -> list[Alarm]:
    """Returns the alarms that begin with a step.

    Args:
      row: of metrics.jsonl, as `metrics.read` returns it.
    """
    self.step = row['step']
    self._all.append(row)
    if row['phase'] == 'rl':
      if len(self._first) < self._num_steps:
        self._first.append(row)
      self._last.append(row)
      self._has_stopped |= row['truncated_fraction'] < 1
    return self._look()

  def add_eval(self, row: dict) -> list[Alarm]:
    """Returns the alarms that begin with an evaluation.

    Args:
      row: of evals.jsonl.
    """
    best = self._best_eval
    if best is None or row['accuracy'] > best['accuracy']:
      self._best_eval = row
    if row['phase'] != 'rl':  # what SFT leaves, where RL begins
      return []
    self.step = row['step']
    self._evals.append(row)
    return self._look()

  def add_all(self, rows: Iterable[dict], evals: Iterable[dict]) -> list[Alarm]:
    """Returns the alarms that begin with any of these.

    Args:
      rows: of metrics.jsonl, in order.
      evals: of evals.jsonl, in order.
    """
    found, waiting = [], collections.deque(evals)
    for row in rows:
      while waiting and waiting[0]['step'] < row['step']:
        found += self.add_eval(waiting.popleft())
      found += self.add(row)
    for row in waiting:
      found += self.add_eval(row)
    return found

  def _look(self):
    found = {}
    seen = symptoms.Seen(
      config=self._config,
      all=list(self._all),
      first=self._first,
      last=list(self._last),
      is_full=len(self._last) == self._num_steps,
      evals=list(self._evals),
      best_eval=self._best_eval,
      has_stopped=self._has_stopped,
    )
    for name, check in symptoms.CHECKS.items():
      problem = check(seen)
      if problem:
        cause, advice = problem
        found[name] = self.ringing.get(name) or Alarm(
          name, self.step, cause, say_where(advice)
        )
    new = [alarm for name, alarm in found.items() if name not in self.ringing]
    self.ringing = found
    return new


def say_where(advice: str) -> str:
  """Returns advice with where it can be followed, if a workdir does not let go of
  a field that it names."""
  known = config_lib.default()
  fixed = dict.fromkeys(
    f'{section}.{name}'
    for section, name in re.findall(r'\b([a-z]+)\.([a-z_]+)', advice)
    if section in known
    and name in known[section]
    and not f'{section}.{name}'.startswith(ownership.MAY_CHANGE)
  )
  if not fixed:
    return advice
  return (
    f'{advice}. A workdir keeps its {", ".join(fixed)}: take a new one, and to'
    ' go on from here export a checkpoint of this one as its model.weights'
  )
