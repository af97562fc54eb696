"""The sampled replies that a page holds: some steps of each run.

1. A run's rollouts/step_*.jsonl are found, those of several processes together.
2. `choose_steps` takes as many of its steps as the run's share of the page has
   room for, spread evenly, the last always.
3. `pack` makes JSON of their groups, for page.js, and says what is left out.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from dash_jax.runs import jsonl


@dataclasses.dataclass(frozen=True)
class Packed:
  """What a page holds of the replies of a run.

  Attributes:
    text: a JSON object, {name, groups}, without '<'.
    num_steps, num_groups: that it holds.
    of_steps: steps whose replies the run has kept.
    of_groups: groups of the chosen steps.
  """

  text: str
  num_steps: int
  of_steps: int
  num_groups: int
  of_groups: int


def find(workdir: pathlib.Path) -> dict[int, list[pathlib.Path]]:
  """Returns the files of each step, in order."""
  found = {}
  for folder in (workdir, *sorted(workdir.glob('host_*'))):
    for path in sorted(folder.glob('rollouts/step_*.jsonl')):
      found.setdefault(int(path.stem.removeprefix('step_')), []).append(path)
  return dict(sorted(found.items()))


def choose_steps(sizes: Sequence[int], room: int) -> list[int]:
  """Returns which of some steps to hold: the last, and as many others, evenly
  spread, as there is room for.

  Args:
    sizes: bytes of each.
    room: bytes.
  """
  for num in range(len(sizes), 0, -1):
    # From the last on, so that of one it is the last.
    chosen = sorted(
      {round(i) for i in np.linspace(len(sizes) - 1, 0, num).tolist()}
    )
    if sum(sizes[i] for i in chosen) <= room:
      return chosen
  return [len(sizes) - 1] if sizes else []


def pack(name: str, workdir: pathlib.Path, room: int) -> Packed:
  """Returns replies of a run.

  Args:
    name: of the run.
    workdir: its folder.
    room: bytes that the JSON may have; groups that find none are left out.

  Raises:
    ValueError: a file is damaged; the message names it.
  """
  found = find(workdir)
  steps = list(found)
  sizes = [sum(p.stat().st_size for p in paths) for paths in found.values()]
  chosen = [steps[i] for i in choose_steps(sizes, room)]
  begin = f'{{"name":{_dump(name)},"groups":['
  room -= _count_bytes(begin) + len(']}')
  packed, held, of_groups = [], set(), 0
  # The newest first: of them nothing is left out before of others.
  for step in reversed(chosen):
    groups = [g for path in found[step] for g in _read_groups(path)]
    of_groups += len(groups)
    texts = []
    for group in groups:
      text = _dump(_pack_group(step, group))
      size = _count_bytes(text) + len(',')
      if size > room:
        break
      room -= size
      texts.append(text)
      held.add(step)
    packed = texts + packed
  return Packed(
    f'{begin}{",".join(packed)}]}}', len(held), len(steps), len(packed),
    of_groups,
  )  # fmt: skip


# What each row has, in the order that page.js reads; older runs have none of the
# last two.
_KEYS = (
  'completion', 'reward', 'advantage', 'kept', 'completion_len', 'truncated',
  'token_widths', 'logprobs',
)  # fmt: skip


def _read_groups(path):
  rows = jsonl.read(path)
  for number, row in enumerate(rows, start=1):
    for key in ('uid', 'sample', 'prompt', 'answer', *_KEYS[:-2]):
      if key not in row:
        raise ValueError(f'{path}:{number}: no {key}, which dash_jax writes')
  # A question may be drawn twice for a step: samples of each group count from 0.
  starts = itertools.accumulate(row['sample'] == 0 for row in rows)
  by_group = zip(starts, rows, strict=True)
  return [
    [row for _, row in group]
    for _, group in itertools.groupby(by_group, lambda pair: pair[0])
  ]


def _pack_group(step, rows):
  first = rows[0]
  return {
    'step': step,
    'uid': first['uid'],
    'question': first['prompt'],
    'answer': first['answer'],
    'rows': [[_shorten(row.get(key)) for key in _KEYS] for row in rows],
  }


def _shorten(value, digits=3):
  """Returns a value with as many digits as a reader sees."""
  if isinstance(value, list):
    return [_shorten(x, digits=2) for x in value]
  return round(value, digits) if isinstance(value, float) else value


def _dump(value):
  text = json.dumps(value, ensure_ascii=False, separators=(',', ':'))
  # It stands in a script element, which a reply must not be able to end.
  return text.replace('<', '\\u003c')


def _count_bytes(text):
  return len(text.encode('utf-8', 'replace'))
