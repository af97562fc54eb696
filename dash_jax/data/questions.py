"""Where questions come from, and which of them each optimizer step gets.

The life of a question:
  1. `load` makes the questions of one split of a source, once a run, or finds
     where they stand; then each is read where it is asked.
  2. `draw` says which of them optimizer step t asks. It is a function of the
     seed and t alone, so a resumed run goes on from its step number.
"""

import os

import numpy as np

from dash_jax import batches
from dash_jax.data import addition, jsonl, procedural, word_problems

SOURCES = ('word_problems', 'addition', 'gsm8k', 'jsonl', 'reasoning_gym')


def _read_text(row, field, where, kinds):
  value = row[field]
  if isinstance(value, list) and all(isinstance(line, str) for line in value):
    value = '\n'.join(value)
  # bool is an int to Python; an answer true or false is a mistake here.
  if not isinstance(value, kinds) or isinstance(value, bool):
    wanted = ', '.join(kind.__name__ for kind in kinds)
    raise ValueError(
      f'{where}: field {field!r} is {value!r}, but it must be {wanted} or a '
      'list of str'
    )
  text = str(value)
  if not text.strip():
    raise ValueError(f'{where}: field {field!r} is empty')
  return text


def load_jsonl(
  path: str | os.PathLike,
  prompt_field: str,
  answer_field: str,
  solution_field: str = '',
) -> batches.Questions:
  """Returns the questions of a JSONL file, in order.

  Args:
    path: the file, one JSON object a line, in UTF-8. A field may be a list of
      lines.
    prompt_field: the field that holds the question; or several, as
      'text,test_list', which follow each other with a blank line between.
    answer_field: the field that holds the final answer, as text or a number.
      Where '####' stands in text, the answer is what follows the last one; a
      list of lines, as of tests for code, is the answer as it stands.
    solution_field: the field that holds the worked solution; '' for none.

  Returns:
    One Question a row; its uid is the number of its line, from 0. One that is
    bad raises ValueError where it is read, naming file:line, what is wrong there
    and what would be right.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file has no rows.
  """
  prompt_fields = prompt_field.split(',')
  fields = (*prompt_fields, answer_field)
  if solution_field:
    fields += (solution_field,)
  rows = jsonl.Rows(path, fields)

  def read(uid):
    where, row = f'{path}:{uid + 1}', rows.read(uid + 1)
    answer = _read_text(row, answer_field, where, (str, int, float))
    if not isinstance(row[answer_field], list):
      answer = answer.rpartition('####')[2].strip()
    if not answer:
      raise ValueError(f'{where}: nothing after #### in field {answer_field!r}')
    solution = ''
    if solution_field:
      solution = _read_text(row, solution_field, where, (str,))
    return batches.Question(
      prompt='\n\n'.join(
        _read_text(row, field, where, (str,)) for field in prompt_fields
      ),
      answer=answer,
      uid=uid,
      solution=solution,
    )

  return batches.Questions(rows.numbers - 1, read)


def load(
  source: str,
  split: str,
  *,
  num: int | None = None,
  seed: int = 0,
  path: str = '',
  data_dir: str = '',
  prompt_field: str = 'question',
  answer_field: str = 'answer',
  solution_field: str = '',
) -> batches.Questions:
  """Returns the questions of one split of a source.

  Args:
    source: one of `SOURCES`.
    split: 'train' or 'test'; for 'jsonl' whatever takes the place of '{split}'.
    num: how many; None for all. Of a file, these are its first ones.
      'word_problems' and 'reasoning_gym' must be told.
    seed: which questions in which order, for sources that make their own.
    path: for 'jsonl' the file, in which '{split}' is replaced by the split; for
      'gsm8k' the folder with train.jsonl and test.jsonl, '' to download them;
      for 'reasoning_gym' the task, see procedural.parse.
    data_dir: for 'gsm8k', where the prepared data is kept; '' for
      ~/tensorflow_datasets.
    prompt_field, answer_field, solution_field: for 'jsonl', see `load_jsonl`.

  Raises:
    FileNotFoundError: a file named by `path` is not there.
    batches.WrongNumber: `num` is not from 1 to the number of questions that
      there are.
    ValueError: no such source or split, or a file without rows; what is wrong
      with a row is raised where it is read.
  """
  if source not in SOURCES:
    raise ValueError(f'source {source!r} must be one of {SOURCES}')
  if source == 'word_problems':
    if num is None:
      raise batches.WrongNumber(
        'word_problems: num must be given, because there is no end of them; '
        f'at most {word_problems.MAX_NUM}'
      )
    return batches.hold(word_problems.generate(num, split, seed))
  if source == 'addition':
    if num is None:
      num = len(addition.pairs(split))
    return batches.hold(addition.generate(num, split, seed))
  if source == 'reasoning_gym':
    if num is None:
      raise batches.WrongNumber(
        'reasoning_gym: num must be given, because there is no end of them'
      )
    return batches.hold(procedural.generate(num, split, seed, path))
  if source == 'gsm8k':
    # tensorflow_datasets takes most of a second to import, and the sources that
    # the project makes itself do without it.
    from dash_jax.data import gsm8k

    data_dir = data_dir or '~/tensorflow_datasets'
    loaded = gsm8k.load(split, data_dir, path or None)
  else:
    if not path:
      raise ValueError("jsonl: path is '', but it must name a file")
    path = path.replace('{split}', split)
    loaded = load_jsonl(path, prompt_field, answer_field, solution_field)
  if num is None:
    return loaded
  if not 1 <= num <= len(loaded):
    raise batches.WrongNumber(
      f'{source}: num={num} must be from 1 to {len(loaded):,}, the number of '
      f'questions of split {split!r}'
    )
  return loaded[:num]


def _shuffle(size, num, seed, epoch):
  """Returns int[size], the order in which an epoch asks the questions."""
  if size < 2 * num:
    # Two neighbouring epochs share more than they differ, so a step across them
    # could not avoid a repetition. One order, gone round and round, has none.
    return np.random.default_rng([seed, 0]).permutation(size)
  order = np.random.default_rng([seed, epoch]).permutation(size)
  num_before = epoch * size % num
  if not num_before:
    return order
  # The first step also asks the last `num_before` of the epoch before: these
  # are moved back here, yet not into this epoch's own last ones, which the next
  # epoch relies on.
  before = np.random.default_rng([seed, epoch - 1]).permutation(size)
  num_last = (epoch + 1) * size % num
  body, last = np.split(order, [size - num_last])
  repeats = np.isin(body, before[size - num_before :])
  return np.concatenate([body[~repeats], body[repeats], last])


def draw(
  questions: batches.Questions, step: int, num: int, seed: int
) -> batches.Questions:
  """Returns the `num` questions of one optimizer step, all different.

  Questions are asked in epochs, each in a fresh order and each question once;
  a step may end one epoch and begin the next. (With fewer than 2 * num
  questions every epoch has the same order.)

  Args:
    questions: all of them, in an order that does not change between runs.
    step: optimizer step, from 0.
    num: questions a step.
    seed: not negative; orders the epochs.

  Raises:
    ValueError: `num` is not from 1 to the number of questions.
  """
  size = len(questions)
  if not 1 <= num <= size:
    raise ValueError(
      f'num={num} questions a step must be from 1 to {size:,}, the number of '
      'questions there are'
    )
  epoch, start = divmod(step * num, size)
  drawn = _shuffle(size, num, seed, epoch)[start : start + num]
  if len(drawn) < num:
    rest = _shuffle(size, num, seed, epoch + 1)[: num - len(drawn)]
    drawn = np.concatenate([drawn, rest])
  return questions[drawn]
