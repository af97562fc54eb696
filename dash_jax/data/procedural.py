"""Questions that the package reasoning_gym makes, of any of its tasks.

The life of a question:
  1. A process of its own makes items of the task (procedural_items.py): some tasks
     follow the order of Python's sets, which is fixed there, so that every process
     and every start of a run has the same questions.
  2. The hash of its text says whether an item belongs to train or to test, and
     each text is asked once.
  3. The whole item is the answer, as JSON: many tasks have several right answers,
     and only the task's own scorer (rewards/procedural.py) knows them.
"""

import importlib.util
import json
import os
import subprocess
import sys

from dash_jax import batches

SPLITS = ('train', 'test')


def parse(task: str) -> tuple[str, dict]:
  """Returns the name of a task and its options.

  Args:
    task: as 'chain_sum', or with fields of the task's own config as JSON behind
      it, as 'chain_sum {"max_terms": 3}'.

  Raises:
    ValueError: what stands behind the name is no JSON object.
  """
  name, _, text = task.strip().partition(' ')
  try:
    options = json.loads(text or '{}')
  except ValueError as error:
    raise ValueError(
      f'reasoning_gym: task {task!r}: what follows the name is not JSON: {error};'
      ' write it as chain_sum {"max_terms": 3}'
    ) from error
  fixed = (
    {'seed', 'size'} & set(options) if isinstance(options, dict) else set()
  )
  if not name or not isinstance(options, dict) or fixed:
    raise ValueError(
      f'reasoning_gym: task {task!r}: must be a name, and behind it nothing or a'
      ' JSON object of its options, without seed and size'
    )
  return name, options


def generate(
  num: int, split: str, seed: int, task: str
) -> list[batches.Question]:
  """Returns `num` distinct questions of a task; a longer list begins with the
  shorter one.

  Args:
    num: how many, at least 1.
    split: 'train' or 'test', which share no question.
    seed: which items, in which order.
    task: see `parse`.

  Returns:
    Questions whose answer is JSON, for rewards/procedural.py, and which have no
    solution. The uid is the item's number in its task.

  Raises:
    ModuleNotFoundError: the package is not installed.
    batches.WrongNumber: `num` is below 1, or there are not so many.
    ValueError: there is no such task, it fails, or JSON cannot hold its items.
  """
  if split not in SPLITS:
    raise ValueError(f'reasoning_gym: split {split!r} must be one of {SPLITS}')
  if num < 1:
    raise batches.WrongNumber(f'reasoning_gym: num={num} must be at least 1')
  name, options = parse(task)
  if importlib.util.find_spec('reasoning_gym') is None:
    raise ModuleNotFoundError(
      "data.source='reasoning_gym' needs the package reasoning_gym:"
      " pip install -e '.[reasoning_gym]'"
    )
  asked = {
    'name': name, 'options': options, 'num': num, 'split': split, 'seed': seed,
  }  # fmt: skip
  made = subprocess.run(
    [sys.executable, '-P', '-m', 'dash_jax.data.procedural_items'],
    input=json.dumps(asked),
    capture_output=True,
    text=True,
    encoding='utf-8',
    env=os.environ
    | {
      'PYTHONHASHSEED': '0',
      'PYTHONPATH': os.pathsep.join(path or '.' for path in sys.path),
    },
  )
  lines = [json.loads(line) for line in made.stdout.splitlines()]
  end = lines.pop() if lines else {'failed': made.stderr.strip()[-500:]}
  if 'failed' in end:
    raise ValueError(f'reasoning_gym: task {task!r}: {end["failed"]}')
  if len(lines) < num:
    raise batches.WrongNumber(
      f'reasoning_gym: num={num}, but among {end["tried"]:,} items of task {task!r}'
      f' there are {len(lines):,} different questions of split {split!r}: ask for'
      ' at most so many'
    )
  return [
    batches.Question(
      prompt=item['question'],
      answer=json.dumps({'task': task} | item, ensure_ascii=False),
      uid=index,
    )
    for index, item in lines
  ]
