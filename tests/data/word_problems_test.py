"""Properties of the generated word problems."""

import os
import re
import subprocess
import sys

import pytest

from dash_jax.data import word_problems

_NUM = {'train': 20_000, 'test': 1_000}


def _generate_shown(num, split, seed):
  """Returns the questions with all their work shown."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(word_problems, 'TERSE_PERCENT', 0)
    return word_problems.generate(num, split, seed)


@pytest.fixture(scope='module')
def lists():
  return {s: _generate_shown(n, s, 0) for s, n in _NUM.items()}


def test_about_half_of_the_solutions_skip_the_work(lists):
  """Only the solution's steps go: what is asked and answered stays."""
  asked = word_problems.generate(5_000, 'train', 0)
  shown = lists['train'][:5_000]
  assert [(q.prompt, q.answer, q.uid) for q in asked] == [
    (q.prompt, q.answer, q.uid) for q in shown
  ]
  terse = {q.uid for q in asked if q.solution == f' #### {q.answer}'}
  assert 0.45 < len(terse) / len(asked) < 0.55
  for question, whole in zip(asked, shown, strict=True):
    assert question.uid in terse or question == whole


def _equations(question):
  """Reads a solution back: (left, operator, right, result) of each step."""
  *steps, final = question.solution.strip().split(' ; ')
  read = []
  for step in steps:
    left, operator, right, result = re.fullmatch(
      r'(\d+) ([-+*/]) (\d+) = (\d+)', step
    ).groups()
    read.append((int(left), operator, int(right), int(result)))
  assert final == f'#### {question.answer}'
  return read


def test_solutions_are_true_equations_that_end_in_the_answer(lists):
  # Every equation is worked out again from its text, and every value is small.
  for question in lists['train'] + lists['test']:
    equations = _equations(question)
    assert len(equations) in (2, 3)
    for left, operator, right, result in equations:
      values = {
        '+': left + right,
        '-': left - right,
        '*': left * right,
        '/': left / right,
      }
      assert values[operator] == result
      assert all(0 <= x <= 20 for x in (left, right, result))
    assert question.answer == str(equations[-1][-1])


def test_every_number_comes_from_the_text_or_from_an_earlier_step(lists):
  # So the reasoning follows from the question and no step is out of the blue;
  # and every number in the text is used, so there are no distractors.
  for question in lists['train']:
    told = {int(x) for x in re.findall(r'\d+', question.prompt)}
    known = set(told)
    if re.search('twice|[Hh]alf', question.prompt):
      known.add(2)
    used = set()
    for left, _, right, result in _equations(question):
      assert {left, right} <= known, question
      used |= {left, right}
      known.add(result)
    assert told <= used, question


def test_splits_share_no_skeleton_and_no_prompt(lists):
  # The skeleton is taken from the solution's text, with summands and factors
  # sorted here, and the train list has another seed than the test list too: so
  # neither a renamed nor a reordered train question is ever held out.
  def skeletons(questions):
    return {
      tuple(
        (op, *(sorted((x, y)) if op in '+*' else (x, y)))
        for x, op, y, _ in _equations(question)
      )
      for question in questions
    }

  train = lists['train'] + _generate_shown(5_000, 'train', 1)
  test = lists['test'] + _generate_shown(500, 'test', 2)
  assert not skeletons(train) & skeletons(test)
  assert not {q.prompt for q in train} & {q.prompt for q in test}
  # Not by being tiny: the train list does cover very many skeletons.
  assert len(skeletons(train)) > 3_000


def test_questions_and_uids_are_distinct(lists):
  for split, questions in lists.items():
    assert len(questions) == _NUM[split]
    assert len({q.prompt for q in questions}) == _NUM[split]
    assert len({q.uid for q in questions}) == _NUM[split]
    assert all(0 <= q.uid < 2**31 for q in questions)


def test_texts_are_short_and_use_few_words(lists):
  # What a small model with a small vocabulary needs: 320 word pieces hold it.
  prompts = [q.prompt for q in lists['train'] + lists['test']]
  words = {w for p in prompts for w in re.findall('[A-Za-z]+', p)}
  assert len(words) <= 150
  assert max(len(p) for p in prompts) <= 160
  assert max(len(q.solution) for q in lists['train']) <= 52
  # No template hole or space is left over.
  assert not [p for p in prompts if not re.fullmatch(r'[\w ,.?]+\?', p)]
  assert not [p for p in prompts if '  ' in p or '_' in p]


def test_a_longer_list_begins_with_the_shorter_and_seeds_differ():
  longer = word_problems.generate(100, 'train', 0)
  assert word_problems.generate(50, 'train', 0) == longer[:50]
  assert word_problems.generate(50, 'train', 1) != longer[:50]


def test_a_second_process_with_another_hash_seed_makes_the_same_list():
  # Python's own hash() differs between processes: had it been used anywhere,
  # the split would differ from run to run and held-out questions would leak.
  code = (
    'from dash_jax.data import word_problems as w;'
    "print([(q.prompt, q.solution, q.uid) for q in w.generate(40, 'test', 0)])"
  )
  env = {
    **os.environ,
    'PYTHONHASHSEED': '1234',
    'PYTHONPATH': os.pathsep.join(sys.path),
  }
  printed = subprocess.run(
    [sys.executable, '-c', code], env=env, check=True, capture_output=True
  ).stdout.decode()
  here = [
    (q.prompt, q.solution, q.uid) for q in word_problems.generate(40, 'test', 0)
  ]
  assert printed.strip() == repr(here)


def test_bad_arguments_say_what_is_valid():
  with pytest.raises(
    ValueError, match=r"split 'dev' must be .*'train', 'test'"
  ):
    word_problems.generate(1, 'dev', 0)
  with pytest.raises(ValueError, match='num=200001 must be from 1 to 200,000'):
    word_problems.generate(200_001, 'train', 0)
  with pytest.raises(ValueError, match='num=0 must be from 1'):
    word_problems.generate(0, 'test', 0)
