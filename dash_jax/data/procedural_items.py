"""The process that makes items of a task of reasoning_gym, for procedural.py.

  1. It reads one JSON object: the task's name and options, how many, the split and
     the seed.
  2. It writes a line [number, item] for each, and at the end {"tried": items that
     were made} or {"failed": why}.

Its Python has a fixed order of sets (PYTHONHASHSEED). Not meant to be imported.
"""

import difflib
import hashlib
import json
import os
import sys

# One question in TEST_SHARE is held out.
_TEST_SHARE = 4
# Items that are made for one that is wanted, at most, before there seem to be no
# more different ones.
_MOST_TRIES = 20
_MOST_NUMBERS = 2**31


def _is_test(question):
  digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little') % _TEST_SHARE == 0


def _hash(text):
  return int.from_bytes(hashlib.blake2b(text.encode()).digest()[:3], 'little')


def main(asked: dict, write) -> None:
  """Makes items.

  Args:
    asked: see above.
    write: takes each line's value.
  """
  import reasoning_gym
  from reasoning_gym import factory

  name, num = asked['name'], asked['num']
  if name not in factory.DATASETS:
    near = difflib.get_close_matches(name, factory.DATASETS, 3, 0.4)
    write({'failed': f'there is no such task; near it are {near}'})
    return
  most = _MOST_TRIES * num + 100
  # Item i of seed s is item i - 1 of seed s + 1: seeds lie apart.
  seed = _hash(f'{asked["split"]} {asked["seed"]}') * 100
  dataset = reasoning_gym.create_dataset(
    name, seed=seed, size=most, **asked['options']
  )
  seen = set()
  for index in range(most):
    item = dataset[index]
    question = item['question']
    if question in seen or _is_test(question) != (asked['split'] == 'test'):
      continue
    seen.add(question)
    kept = {k: item[k] for k in ('answer', 'question', 'metadata')}
    copied = json.loads(json.dumps(kept))
    scores = [dataset.score_answer(item['answer'], x) for x in (item, copied)]
    if scores[0] != scores[1]:
      write(
        {
          'failed': 'JSON does not hold its items: the scorer gives the right'
          f' answer {scores[0]}, and {scores[1]} with what JSON makes of the item'
        }
      )
      return
    write([index, kept])
    if len(seen) == num:
      break
  write({'tried': index + 1})


if __name__ == '__main__':
  # What the package prints must not get between the lines.
  out = os.fdopen(os.dup(1), 'w', encoding='utf-8')
  os.dup2(2, 1)

  def print_line(value):
    print(json.dumps(value), file=out)

  try:
    main(json.loads(sys.stdin.read()), print_line)
  except Exception as error:
    print_line({'failed': f'{type(error).__name__}: {error}'})
  out.close()
