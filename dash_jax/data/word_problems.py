"""Multi-step word problems with worked reasoning, made by the project itself.

The life of a question:
  1. A scene is drawn (things, a bus, coins): a table of openings,
     events and closings, each a sentence and the equations it stands for.
  2. One opening, one or two events and one closing are drawn, with numbers.
     The equations are worked out in the order of the story.
  3. The draft is thrown away unless it has two or three steps, and every value
     is a whole number from 1 to 20.
  4. The hash of its skeleton, which is its equations without the order of
     summands and factors, says whether it belongs to train or to test. So no
     held-out question can be answered by recalling a train one.
  5. Names and things are drawn, and the sentences are told.
  6. The solution is the equations and then the answer; but as with what people
     write down, many solutions skip the work and state the answer alone.
     A model that imitates them learns to guess. Whether it pays to reason
     first is for reinforcement learning to find out.

Texts are short, words few and numbers small on purpose: a model of a few
million parameters learns to read them from nothing within minutes. Every number
and sign is set off by spaces, so that a number is the same token wherever it
stands.
"""

import hashlib
import random

from dash_jax import batches

SPLITS = ('train', 'test')
# One skeleton in TEST_SHARE is held out.
TEST_SHARE = 10
# So many solutions of a hundred state the answer alone, without its steps.
# Which ones, nothing in the question tells.
TERSE_PERCENT = 50
# Far below what the tables can make, so that a draft is rarely a repetition.
MAX_NUM = {'train': 200_000, 'test': 20_000}
MAX_VALUE = 20

_WOMEN = ('Ann', 'Eva', 'Mia', 'Sue', 'Zoe', 'Lily', 'Rosa', 'Kate')
_MEN = ('Ben', 'Tom', 'Sam', 'Max', 'Leo', 'Dan', 'Jack', 'Paul')
_THINGS = (
  'pens',
  'cards',
  'apples',
  'eggs',
  'books',
  'stamps',
  'shells',
  'balls',
  'cups',
  'nuts',
  'toys',
  'flowers',
)
_GOODS = ('hat', 'lamp', 'bike', 'coat', 'game', 'clock')
_HOLDERS = ('boxes', 'bags', 'jars')

# A row is (sentences, equations). In an equation `t` is the running total, `_`
# the result of the equation before, and every other letter a drawn number:
#   s a start, 4 to 16          k a count of groups, 2 to 4
#   n, p an amount, 2 to 9      m the size of a group, 2 to 6
#   g a goal, 8 to 20           b what the second person has, 3 to 12
# The last result becomes the total; an opening without equations starts at `s`.
# Events and closings take things from or give them to {other}, never to
# {second}, so that `b` holds until the end.
_SCENES = {
  'things': (
    (
      ('{name} has {s} {things}.', ''),
      ('{name} has {k} {holders} with {m} {things} each.', 'k * m'),
      ('{name} has {n} red {things} and {p} blue {things}.', 'n + p'),
      ('{name} has {n} {things} at home and {p} in a bag.', 'n + p'),
      ('{second} has {b} {things}. {name} has {n} more.', 'b + n'),
      ('{second} has {b} {things}. {name} has twice as many.', '2 * b'),
      ('{second} has {b} {things}. {name} has half as many.', 'b / 2'),
    ),
    (
      ('{he} buys {n} more.', 't + n'),
      ('{he} finds {n} {things}.', 't + n'),
      ('{other} gives {him} {n} {things}.', 't + n'),
      ('{he} loses {n} {things}.', 't - n'),
      ('{he} gives {n} {things} to {other}.', 't - n'),
      ('{he} sells {n} of them.', 't - n'),
      ('{he} gives half of them to {other}.', 't / 2'),
      ('{he} buys {k} {holders} with {m} {things} each.', 'k * m; t + _'),
      ('{he} gives {m} {things} to each of {k} friends.', 'm * k; t - _'),
    ),
    (
      ('How many {things} does {name} have now?', ''),
      ('How many {things} does {name} have?', ''),
      (
        '{he} wants to have {g} {things}. How many more does {he} need?',
        'g - t',
      ),
      (
        '{he} sells them all for {k} coins each. How many coins is that?',
        't * k',
      ),
      ('{he} puts them all in {k} {holders}. How many are in each?', 't / k'),
      ('How many {things} do {name} and {second} have together?', 't + b'),
    ),
  ),
  'bus': (
    (
      ('{s} people are on a bus.', ''),
      ('{n} men and {p} women are on a bus.', 'n + p'),
      ('A bus has {k} rows with {m} people each.', 'k * m'),
    ),
    (
      ('{n} people get on.', 't + n'),
      ('{n} people get off.', 't - n'),
      ('half of them get off.', 't / 2'),
      ('{m} people get on at each of {k} stops.', 'm * k; t + _'),
    ),
    (
      ('How many people are on the bus now?', ''),
      ('How many people are on the bus?', ''),
      ('The bus has {g} seats. How many seats are free?', 'g - t'),
      ('They pay {k} coins each. How many coins is that?', 't * k'),
    ),
  ),
  'coins': (
    (
      ('{name} has {s} coins.', ''),
      ('{name} saves {m} coins a day for {k} days.', 'm * k'),
      ('{name} has {n} coins at home and {p} in a bag.', 'n + p'),
      ('{name} has {k} {holders} with {m} coins each.', 'k * m'),
    ),
    (
      ('{he} buys a {good} for {n} coins.', 't - n'),
      ('{he} finds {n} coins.', 't + n'),
      ('{he} gets {n} coins from {other}.', 't + n'),
      ('{he} gives {n} coins to {other}.', 't - n'),
      ('{he} pays half of them for a {good}.', 't / 2'),
      ('{he} buys {k} {things} for {m} coins each.', 'k * m; t - _'),
    ),
    (
      ('How many coins does {name} have now?', ''),
      ('How many coins does {he} have?', ''),
      ('A {good2} is {g} coins. How many more does {he} need?', 'g - t'),
      ('{things2} are {k} coins each. How many can {he} buy?', 't / k'),
    ),
  ),
}
# Things come more often: their table has the most rows.
_SCENE_NAMES = ('things', 'things', 'bus', 'coins')


def _draw_numbers(rng):
  return {
    's': rng.randint(4, 16),
    'n': rng.randint(2, 9),
    'p': rng.randint(2, 9),
    'k': rng.randint(2, 4),
    'm': rng.randint(2, 6),
  }


def _work(plan, numbers, equations):
  """Appends the equations of one row; returns its total, None if unusable."""
  result = None
  for equation in plan.split('; '):
    left, operator, right = equation.split()
    names = {**numbers, '_': result, '2': 2}
    x, y = names[left], names[right]
    if operator == '/' and x % y:
      return None
    result = {'+': x + y, '-': x - y, '*': x * y, '/': x // y}[operator]
    if not 1 <= result <= MAX_VALUE:
      return None
    equations.append((x, operator, y, result))
  return result


def _draw(rng):
  """Returns (rows, numbers of each row, equations), None if unusable."""
  openings, events, closings = _SCENES[rng.choice(_SCENE_NAMES)]
  num_steps = rng.choice((2, 3))
  rows = [rng.choice(openings)]
  rows += [rng.choice(events) for _ in range(rng.choice((1, 2)))]
  # The two plain questions of every scene are asked about half of the time.
  rows.append(rng.choice(closings if rng.random() < 0.5 else closings[:2]))
  planned = sum(plan.count(';') + 1 for _, plan in rows if plan)
  lacks_second = '{second}' in rows[-1][0] and '{b}' not in rows[0][0]
  if planned != num_steps or lacks_second:
    return None
  shared = {'b': rng.randint(3, 12), 'g': rng.randint(8, MAX_VALUE)}
  total = None
  numbers, equations = [], []
  for text, plan in rows:
    drawn = {**_draw_numbers(rng), **shared, 't': total}
    if plan:
      total = _work(plan, drawn, equations)
    elif '{s}' in text:
      total = drawn['s']
    if total is None:
      return None
    numbers.append(drawn)
  return rows, numbers, equations


def _tell(rng, rows, numbers):
  """Returns the text of the rows, with their numbers and drawn words."""
  is_woman = rng.random() < 0.5
  name = rng.choice(_WOMEN if is_woman else _MEN)
  second, other = rng.sample([x for x in _WOMEN + _MEN if x != name], 2)
  things, things2 = rng.sample(_THINGS, 2)
  good, good2 = rng.sample(_GOODS, 2)
  words = {
    'name': name,
    'second': second,
    'other': other,
    'he': 'she' if is_woman else 'he',
    'him': 'her' if is_woman else 'him',
    'things': things,
    'things2': things2,
    'good': good,
    'good2': good2,
  }
  sentences = []
  for i, ((text, _), drawn) in enumerate(zip(rows, numbers, strict=True)):
    text = text.format(**words, **drawn, holders=rng.choice(_HOLDERS))
    if 0 < i < len(rows) - 1 and rng.random() < 0.3:
      text = 'Then ' + text
    sentences += [x[0].upper() + x[1:] for x in text.split('. ')]
  return ' '.join(x if x[-1] in '.?' else x + '.' for x in sentences)


def skeleton(equations):
  """Returns the text that decides the split: operations and numbers only.

  Args:
    equations: (left, operator, right, result) of each step, in order.

  Returns:
    str. Two questions have the same one exactly if they make the same steps
    with the same numbers; 3 + 5 and 5 + 3 are the same step.
  """
  steps = []
  for left, operator, right, _ in equations:
    if operator in '+*':
      left, right = sorted((left, right))
    steps.append(f'{left}{operator}{right}')
  return ';'.join(steps)


def _hash(text):
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return int.from_bytes(digest, 'little')


def generate(num: int, split: str, seed: int) -> list[batches.Question]:
  """Returns `num` distinct word problems of a split.

  Args:
    num: how many; at most `MAX_NUM[split]`.
    split: 'train' or 'test'. No skeleton (see `skeleton`) is in both, whatever
      the seeds.
    seed: names the list: the same arguments give the same list, and a longer
      list begins with the shorter one.

  Returns:
    Questions such as 'Ann has 14 pens. She buys 3 boxes with 5 pens each. How
    many pens does Ann have now?' with answer '29' and a solution
    ' 3 * 5 = 15 ; 14 + 15 = 29 ; #### 29', or ' #### 29' without its steps
    (see `TERSE_PERCENT`). A uid is a hash of the prompt in
    [0, 2**31), and is not repeated within the list.

  Raises:
    ValueError: `split` or `num` is none of the above.
  """
  if split not in SPLITS:
    raise ValueError(f'word_problems: split {split!r} must be one of {SPLITS}')
  if not 1 <= num <= MAX_NUM[split]:
    raise batches.WrongNumber(
      f'word_problems: num={num} must be from 1 to {MAX_NUM[split]:,} for '
      f'split {split!r}'
    )
  # A str seeds Random through SHA-512, which no hash randomisation changes.
  rng = random.Random(f'word_problems {split} {seed}')
  questions = {}
  while len(questions) < num:
    drawn = _draw(rng)
    if drawn is None:
      continue
    rows, numbers, equations = drawn
    is_test = _hash(skeleton(equations)) % TEST_SHARE == 0
    if is_test != (split == 'test'):
      continue
    prompt = _tell(rng, rows, numbers)
    uid = _hash(prompt) % 2**31
    if uid in questions:
      continue
    answer = str(equations[-1][-1])
    steps = [f'{x} {op} {y} = {z}' for x, op, y, z in equations]
    if uid % 100 < TERSE_PERCENT:
      steps = []
    questions[uid] = batches.Question(
      prompt=prompt,
      answer=answer,
      uid=uid,
      solution=' ' + ' ; '.join([*steps, f'#### {answer}']),
    )
  return list(questions.values())
