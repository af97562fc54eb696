"""Two-digit additions in the few-shot equation format.

The life of a question:
  1. A pair (a, b) of two-digit numbers is drawn; there are 8,100.
  2. The hash of the pair without its order says whether it belongs to train or
     to test: 30 + 12 is never trained on when 12 + 30 is held out.
  3. Three train pairs, drawn from the question's own numbers, become the worked
     sums above it. They are never the question itself, in either order.
  4. The prompt ends in `12 + 30 =`. A reply is ` 42` and a newline, where
     sampling stops.
"""

import functools
import hashlib
import random

from dash_jax import batches

SPLITS = ('train', 'test')
NUM_SHOTS = 3
# One unordered pair in TEST_SHARE is held out.
TEST_SHARE = 10


def _is_test(a, b):
  low, high = sorted((a, b))
  digest = hashlib.blake2b(f'{low} + {high}'.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little') % TEST_SHARE == 0


@functools.cache
def pairs(split: str) -> tuple[tuple[int, int], ...]:
  """Returns every (a, b) of a split, in order; 'train' and 'test' share none.

  Raises:
    ValueError: `split` is not 'train' or 'test'.
  """
  if split not in SPLITS:
    raise ValueError(f'addition: split {split!r} must be one of {SPLITS}')
  return tuple(
    (a, b)
    for a in range(10, 100)
    for b in range(10, 100)
    if _is_test(a, b) == (split == 'test')
  )


def _ask(a, b):
  # A str seeds Random through SHA-512, which no hash randomisation changes.
  rng = random.Random(f'addition shots {a} {b}')
  train = pairs('train')
  shots = []
  while len(shots) < NUM_SHOTS:
    shot = rng.choice(train)
    if shot not in shots and shot not in ((a, b), (b, a)):
      shots.append(shot)
  lines = [f'{x} + {y} = {x + y}' for x, y in shots]
  return batches.Question(
    prompt='\n'.join([*lines, f'{a} + {b} =']),
    answer=str(a + b),
    uid=100 * a + b,
    solution=f' {a + b}',
  )


def generate(num: int, split: str, seed: int) -> list[batches.Question]:
  """Returns `num` distinct additions of a split.

  Args:
    num: how many; at most `len(pairs(split))`.
    split: 'train' or 'test'.
    seed: orders the split: the same arguments give the same list, and a longer
      list begins with the shorter one. A question's text does not depend on it.

  Returns:
    Questions such as '10 + 55 = 65\\n33 + 44 = 77\\n62 + 19 = 81\\n12 + 30 ='
    with answer '42' and solution ' 42'. The uid of a + b is 100 * a + b.

  Raises:
    ValueError: `split` or `num` is none of the above.
  """
  ordered = list(pairs(split))
  if not 1 <= num <= len(ordered):
    raise batches.WrongNumber(
      f'addition: num={num} must be from 1 to {len(ordered):,} for split '
      f'{split!r}'
    )
  random.Random(f'addition {split} {seed}').shuffle(ordered)
  return [_ask(a, b) for a, b in ordered[:num]]
