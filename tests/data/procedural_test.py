"""Tasks of reasoning_gym, of which a small stand-in has the interface."""

import json

import pytest

from dash_jax import batches
from dash_jax.data import procedural, questions
from dash_jax.rewards import procedural as reward

STAND_IN = '''
"""Sums, names and what JSON loses, as reasoning_gym makes items."""
from reasoning_gym.factory import DATASETS

class Dataset:
  def __init__(self, name, seed=0, size=500, most=1_000):
    self.name, self.seed, self.size, self.most = name, seed, size, most

  def __getitem__(self, index):
    number = (self.seed + index) * 7 % self.most
    names = {'ann', 'bob', 'cy', 'dee', 'eve', 'flo'}  # in an order of its own
    answer = {'sum': str(number + 1), 'name': next(iter(names)), 'tuple': '1'}
    print('noise')
    return {
      'question': f'{self.name} {number}?',
      'answer': answer[self.name],
      'metadata': {'kept': (number,), 'ignored': 1},
    }

  def score_answer(self, answer, entry):
    if self.name == 'tuple' and not isinstance(entry['metadata']['kept'], tuple):
      return 0.5
    return 1.0 if answer == entry['answer'] else 0.01

def create_dataset(name, **options):
  return Dataset(name, **options)
'''


@pytest.fixture(autouse=True)
def stand_in(monkeypatch, tmp_path):
  folder = tmp_path / 'reasoning_gym'
  folder.mkdir()
  (folder / '__init__.py').write_text(STAND_IN)
  (folder / 'factory.py').write_text(
    "DATASETS = {'sum': 0, 'name': 0, 'tuple': 0}\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  reward._make_task.cache_clear()


def test_questions_are_distinct_and_splits_share_none():
  """Of 1,000 questions a quarter is held out, whatever the seeds."""
  load = questions.load
  test = load('reasoning_gym', 'test', num=40, path='sum')
  train = [
    q
    for seed in range(2)
    for q in load('reasoning_gym', 'train', num=90, seed=seed, path='sum')
  ]
  assert len({q.prompt for q in test}) == len({q.uid for q in test}) == 40
  assert not {q.prompt for q in test} & {q.prompt for q in train}
  assert {q.prompt for q in train[:90]} != {q.prompt for q in train[90:]}
  longer = load('reasoning_gym', 'test', num=50, path='sum')
  assert list(longer[:40]) == list(test)
  assert not test[0].solution


def test_what_follows_the_order_of_sets_is_the_same_each_time(monkeypatch):
  found = []
  for seed in ('1', '2', '3'):
    monkeypatch.setenv('PYTHONHASHSEED', seed)
    found.append(procedural.generate(5, 'test', 0, 'name {"most": 50}'))
  assert found[0] == found[1] == found[2]


def test_the_tasks_own_scorer_says_what_a_reply_is_worth():
  (question,) = procedural.generate(1, 'train', 0, 'sum')
  gold = json.loads(question.answer)['answer']
  score = reward.score_one
  assert score(f'so {gold}', question.answer, False, 'last_number') == 1
  assert score(f'\\boxed{{{gold}}}', question.answer, False, 'boxed') == 1
  # A part of the reward, as the task gives it.
  assert score('so 0', question.answer, False, 'last_number') == 0.01
  assert score(f'so {gold}', question.answer, True, 'last_number') == 0
  assert score('I pass', question.answer, False, 'last_number') == 0
  with pytest.raises(ValueError, match='no item'):
    score('so 3', '3', False, 'last_number')


@pytest.mark.parametrize(
  ('task', 'num', 'named'),
  [
    ('sums', 3, r"'sums': there is no such task; near it are \['sum'\]"),
    ('sum {"digits": 2}', 3, "TypeError: .* unexpected keyword .* 'digits'"),
    ('sum {"most"', 3, 'what follows the name is not JSON'),
    ('sum [3]', 3, 'must be a name, and behind it nothing or a JSON object'),
    ('sum {"seed": 3}', 3, 'options, without seed and size'),
    ('', 3, 'must be a name'),
    ('tuple', 3, r'JSON does not hold its items: .* answer 1\.0, and 0\.5'),
  ],
)
def test_a_task_that_cannot_be_is_refused(task, num, named):
  with pytest.raises(ValueError, match=named):
    procedural.generate(num, 'test', 0, task)


def test_more_questions_than_there_are():
  with pytest.raises(
    batches.WrongNumber,
    match=r"num=30, but among 700 .* task 'sum .* there are",
  ):
    procedural.generate(30, 'test', 0, 'sum {"most": 40}')


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setattr(procedural.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[reas"):
    procedural.generate(3, 'test', 0, 'sum')
