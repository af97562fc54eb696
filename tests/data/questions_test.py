"""Properties of loading questions and of sharing them out over steps."""

import concurrent.futures
import gc
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dash_jax import batches
from dash_jax.data import addition, jsonl, questions, word_problems


def _make(num):
  return batches.hold(
    batches.Question(prompt=f'q{i}', answer='1', uid=i) for i in range(num)
  )


def _draw_uids(num_questions, num_steps, num, seed=0):
  made = _make(num_questions)
  return [
    [q.uid for q in questions.draw(made, step, num, seed)]
    for step in range(num_steps)
  ]


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


# Sizes where steps divide the epoch, straddle it, nearly fill it (both sides of
# size = 2 * num, where the order of epochs is made differently), and fill it.
_SIZES = [(12, 4), (13, 4), (7, 4), (8, 4), (9, 5), (9, 8), (5, 5), (5, 1)]


@pytest.mark.parametrize(('size', 'num'), _SIZES)
def test_every_epoch_asks_every_question_once(size, num):
  # `num` epochs are a whole number of steps, whatever the sizes.
  flat = [uid for step in _draw_uids(size, size, num) for uid in step]
  assert len(flat) == size * num
  for epoch in range(num):
    assert sorted(flat[epoch * size : (epoch + 1) * size]) == list(range(size))


@pytest.mark.parametrize(('size', 'num'), _SIZES)
def test_no_step_asks_a_question_twice(size, num):
  # Twice in a step would be the same samples twice: keys come from the uid.
  # Several seeds, since a repetition is a matter of chance.
  for seed in range(20):
    for step in _draw_uids(size, 2 * size, num, seed):
      assert len(set(step)) == num


def test_a_step_does_not_depend_on_the_steps_drawn_before():
  made = _make(13)
  in_order = [list(questions.draw(made, step, 4, 3)) for step in range(10)]
  backwards = [
    list(questions.draw(made, step, 4, 3)) for step in range(9, -1, -1)
  ]
  assert in_order == backwards[::-1]


def test_seeds_and_epochs_have_orders_of_their_own():
  (first,), (other,) = _draw_uids(30, 1, 30, 0), _draw_uids(30, 1, 30, 1)
  assert first != other
  flat = [uid for step in _draw_uids(30, 6, 10) for uid in step]
  assert flat[:30] != flat[30:]


def test_more_questions_a_step_than_there_are_is_an_error():
  for num in (0, 6):
    with pytest.raises(ValueError, match=f'num={num} .* must be from 1 to 5'):
      questions.draw(_make(5), 0, num, 0)
  with pytest.raises(ValueError, match='must be from 1 to 0'):
    questions.draw(_make(0), 0, 1, 0)


def test_jsonl_fields_become_question_answer_and_solution(tmp_path):
  # The three ways answers are written in public files: a number, text, and a
  # worked solution whose last #### the answer follows.
  rows = [
    {'problem': 'p0', 'solution': 's0', 'final': 160000},
    {'problem': 'p1', 'solution': 's1', 'final': ' \\frac{1}{2} '},
    {'problem': 'p2', 'solution': 's2', 'final': 'a #### 3 b\n#### 1,234'},
  ]
  path = _write(tmp_path / 'a.jsonl', rows)
  loaded = questions.load_jsonl(path, 'problem', 'final', 'solution')
  assert list(loaded) == [
    batches.Question('p0', '160000', 0, 's0'),
    batches.Question('p1', '\\frac{1}{2}', 1, 's1'),
    batches.Question('p2', '1,234', 2, 's2'),
  ]
  without = questions.load_jsonl(path, 'problem', 'final')
  assert [q.solution for q in without] == ['', '', '']


def test_jsonl_of_tests_for_code_keeps_every_line(tmp_path):
  """As MBPP has them, whose tests may hold the mark of a final answer."""
  row = {
    'text': 'Write a function to hide a word.',
    'code': 'def hide(s):\r\n  return "#" * len(s)',
    'task_id': 7,
    'test_setup_code': '',
    'test_list': ['assert hide("aaaa") == "####"', 'assert hide("") == ""'],
    'challenge_test_list': [],
  }
  path = _write(tmp_path / 'mbpp.jsonl', [row])
  tests = 'assert hide("aaaa") == "####"\nassert hide("") == ""'
  (found,) = questions.load_jsonl(path, 'text,test_list', 'test_list', 'code')
  assert found == batches.Question(
    prompt=f'{row["text"]}\n\n{tests}',
    answer=tests,
    uid=0,
    solution=row['code'],
  )


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'question': 'q'}, "no field 'answer'; the fields there are"),
    ({'question': 7, 'answer': '1'}, "field 'question' is 7, .* must be str"),
    ({'question': ' ', 'answer': '1'}, "field 'question' is empty"),
    (
      {'question': 'q', 'answer': None},
      "'answer' is None, .* str, int, float or",
    ),
    (
      {'question': 'q', 'answer': True},
      "'answer' is True, .* str, int, float or",
    ),
    ({'question': 'q', 'answer': ''}, "field 'answer' is empty"),
    ({'question': 'q', 'answer': 'x ####'}, 'nothing after #### in .*answer'),
  ],
)
def test_a_bad_jsonl_row_is_named_by_file_and_line(tmp_path, row, message):
  good = {'question': 'q', 'answer': '1'}
  path = _write(tmp_path / 'a.jsonl', [good, row])
  with pytest.raises(ValueError, match=f'a.jsonl:2: .*{message}'):
    list(questions.load_jsonl(path, 'question', 'answer'))


def test_a_row_is_read_where_it_is_asked_and_no_other(tmp_path):
  """So a process pays for its share alone: the rows between are no JSON."""
  path = tmp_path / 'a.jsonl'
  row = '{"question": "q%d", "answer": %d}\n'
  path.write_text('[\n\n' + row % (2, 2) + '[\n' + row % (4, 4))
  loaded = questions.load_jsonl(path, 'question', 'answer')
  assert loaded.uids.tolist() == [0, 2, 3, 4]
  own = loaded[1::2]
  assert [(q.uid, q.answer) for q in own] == [(2, '2'), (4, '4')]
  assert [q.uid for q in loaded[np.array([3, 1])]] == [4, 2]
  with pytest.raises(ValueError, match=r'a\.jsonl:4: not JSON'):
    loaded[2]


def test_a_file_that_is_changed_is_an_error_and_one_that_is_replaced_is_not(
  tmp_path,
):
  path = tmp_path / 'a.jsonl'
  _write(path, [{'question': f'q{i}', 'answer': i} for i in range(3)])
  loaded = questions.load_jsonl(path, 'question', 'answer')
  _write(tmp_path / 'b.jsonl', [{'question': 'other', 'answer': 0}])
  (tmp_path / 'b.jsonl').rename(path)
  assert loaded[2].prompt == 'q2'
  loaded = questions.load_jsonl(path, 'question', 'answer')
  with open(path, 'a') as file:
    file.write('\n')
  with pytest.raises(ValueError, match=r'a\.jsonl: changed since'):
    loaded[0]


def test_a_file_that_is_changed_while_its_rows_are_found_is_an_error(
  tmp_path, monkeypatch
):
  path = tmp_path / 'a.jsonl'
  _write(path, [{'question': f'q{i}', 'answer': i} for i in range(3)])

  def is_blank(line):
    os.utime(path)
    return not line.strip()

  monkeypatch.setattr(jsonl, '_is_blank', is_blank)
  loaded = questions.load_jsonl(path, 'question', 'answer')
  with pytest.raises(ValueError, match=r'a\.jsonl: changed since'):
    loaded[0]


def test_a_row_that_the_file_has_no_more_is_an_error(tmp_path):
  """A checkpoint has rows ahead by their uids."""
  path = tmp_path / 'a.jsonl'
  path.write_text('{"question": "q", "answer": 1}\n\n' * 2)
  loaded = questions.load_jsonl(path, 'question', 'answer')
  for uid in (1, 4):
    with pytest.raises(ValueError, match=rf'a\.jsonl:{uid + 1}: no row there'):
      loaded.read(uid)


def test_threads_read_one_file_and_it_is_closed_with_its_questions(tmp_path):
  def count_open():
    return len(os.listdir('/proc/self/fd'))

  path = tmp_path / 'a.jsonl'
  _write(path, [{'question': f'q{i}', 'answer': i} for i in range(300)])
  before = count_open()
  loaded = questions.load_jsonl(path, 'question', 'answer')
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    read = list(pool.map(list, [loaded] * 8))
  assert all([q.uid for q in own] == list(range(300)) for own in read)
  assert all([int(q.answer) for q in own] == list(range(300)) for own in read)
  assert count_open() == before + 1
  del loaded
  gc.collect()
  assert count_open() == before


def test_a_pipe_is_refused(tmp_path):
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  with (
    open(os.open(path, os.O_RDWR), 'wb'),  # else it is waited for
    pytest.raises(ValueError, match=r'pipe: a pipe, but .* write a file'),
  ):
    questions.load_jsonl(path, 'question', 'answer')


def test_load_takes_the_first_of_the_file_that_the_split_names(tmp_path):
  for split in ('train', 'dev'):
    rows = [{'question': f'{split}{i}', 'answer': i} for i in range(4)]
    _write(tmp_path / f'{split}.jsonl', rows)
  path = str(tmp_path / '{split}.jsonl')
  loaded = questions.load('jsonl', 'dev', num=2, path=path)
  assert [q.prompt for q in loaded] == ['dev0', 'dev1']
  assert len(questions.load('jsonl', 'train', path=path)) == 4
  with pytest.raises(ValueError, match='num=5 must be from 1 to 4'):
    questions.load('jsonl', 'train', num=5, path=path)
  with pytest.raises(ValueError, match='num=0 must be from 1 to 4'):
    questions.load('jsonl', 'train', num=0, path=path)
  with pytest.raises(FileNotFoundError, match=r'test\.jsonl'):
    questions.load('jsonl', 'test', path=path)


def test_load_passes_arguments_on_to_the_made_sources():
  loaded = questions.load('word_problems', 'test', num=5, seed=3)
  assert list(loaded) == word_problems.generate(5, 'test', 3)
  loaded = questions.load('addition', 'test', num=5, seed=3)
  assert list(loaded) == addition.generate(5, 'test', 3)
  whole = questions.load('addition', 'test')
  assert len(whole) == len(addition.pairs('test'))


def test_load_reads_gsm8k_from_a_folder(tmp_path):
  rows = [{'question': f'q{i}', 'answer': f'#### {i}'} for i in range(3)]
  for split in ('train', 'test'):
    _write(tmp_path / f'{split}.jsonl', rows)
  loaded = questions.load(
    'gsm8k', 'test', num=2, path=str(tmp_path), data_dir=str(tmp_path / 'data')
  )
  assert [(q.prompt, q.answer) for q in loaded] == [('q0', '0'), ('q1', '1')]


def test_wrong_arguments_of_load_say_what_is_valid():
  with pytest.raises(ValueError, match=r"source 'gsm' must be .*'gsm8k'"):
    questions.load('gsm', 'train')
  with pytest.raises(ValueError, match="path is '', but it must name a file"):
    questions.load('jsonl', 'train')
  with pytest.raises(ValueError, match=r'num must be given.*200000'):
    questions.load('word_problems', 'train')


def test_made_questions_do_not_wait_for_tensorflow_datasets():
  # It is slow to import; in a fresh process, because other tests import it.
  code = (
    'import sys; from dash_jax.data import questions;'
    "questions.load('word_problems', 'test', num=1);"
    "sys.exit('tensorflow_datasets' in sys.modules)"
  )
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)}
  subprocess.run([sys.executable, '-c', code], env=env, check=True)
