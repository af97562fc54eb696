"""Prompts and SFT rows as arrays."""

import re

import numpy as np
import pytest

from dash_jax import batches
from dash_jax.data import prompts


class Letters:
  """One id a letter, from 0: so padding, 0, is also a real token."""

  vocab_size = 27
  bos_id = None
  adds_bos = False
  stop_ids = (26,)
  chat_template = None
  specials = {'.': 26}  # noqa: RUF012

  def encode(self, text, special=False):
    return [ord(c) - ord('a') for c in text]

  def decode(self, ids):
    return ''.join(chr(ord('a') + i) for i in ids if i != 26)


QUESTIONS = [
  batches.Question('aab', 'a', uid=7, solution='ca'),
  batches.Question('a', 'a', uid=2**31 - 1, solution='aaa'),
  batches.Question('abcde', 'a', uid=0, solution='b'),
]


def encode(questions=QUESTIONS, max_prompt_len=6, template='{question}'):
  return prompts.encode(
    questions, Letters(), template=template, max_prompt_len=max_prompt_len
  )


def encode_solutions(
  questions=QUESTIONS, max_prompt_len=6, max_completion_len=4
):
  return prompts.encode_solutions(
    questions,
    Letters(),
    template='{question}',
    max_prompt_len=max_prompt_len,
    max_completion_len=max_completion_len,
  )


def test_prompts_end_at_the_last_slot():
  """Every completion begins at slot P, whatever its prompt's length."""
  batch = encode()
  assert batch.tokens.tolist() == [
    [0, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 1, 2, 3, 4],
  ]
  assert batch.lengths.tolist() == [3, 1, 5]
  assert batch.uids.tolist() == [7, 2**31 - 1, 0]
  for array in (batch.tokens, batch.lengths, batch.uids):
    assert array.dtype == np.int32


def test_the_rows_of_solutions_hold_prompt_solution_and_eos():
  """Cut by its masks, a row gives back what went in; EOS is trained."""
  rows = encode_solutions()
  tokenizer = Letters()
  for i, question in enumerate(QUESTIONS):
    completion = rows.tokens[i, 0][rows.mask[i, 0]]
    assert completion[-1] == tokenizer.stop_ids[0]
    assert tokenizer.decode(completion) == question.solution
    prompt = rows.prompts.tokens[i][rows.prompts.mask[i]]
    assert tokenizer.decode(prompt) == question.prompt
  # Masks are whole runs of slots, from the left and from the right: no hole,
  # although 0 is a real token.
  assert (np.diff(rows.mask.astype(int)) <= 0).all()
  assert (np.diff(rows.prompts.mask.astype(int)) >= 0).all()


def test_the_rows_of_solutions_have_a_sampled_rows_shapes():
  rows = encode_solutions()
  shape = (3, 1, 4)
  assert rows.tokens.shape == rows.mask.shape == shape
  assert (rows.logprobs.shape, rows.logprobs.dtype) == (shape, np.float32)
  assert (rows.tokens.dtype, rows.mask.dtype) == (np.int32, bool)
  assert rows.lengths.dtype == np.int32
  assert not rows.logprobs.any()
  assert rows.truncated.tolist() == [[False]] * 3
  assert rows.policy_step.tolist() == [[0]] * 3


def test_a_prompt_that_is_too_long_names_a_length_that_is_not():
  """The value in the error, followed, works: and one less does not."""
  with pytest.raises(
    ValueError, match=r'question 0 has 5 .*max_prompt_len 4'
  ) as error:
    encode(max_prompt_len=4)
  fits = int(re.search(r'data\.max_prompt_len=(\d+)', str(error.value))[1])
  assert encode(max_prompt_len=fits).lengths.max() == fits
  with pytest.raises(ValueError, match='over'):
    encode(max_prompt_len=fits - 1)


def test_a_solution_that_is_too_long_names_a_length_that_is_not():
  with pytest.raises(ValueError, match=f'question {2**31 - 1} has 4') as error:
    encode_solutions(max_completion_len=3)
  fits = int(re.search(r'completion_len=(\d+)', str(error.value))[1])
  rows = encode_solutions(max_completion_len=fits)
  assert rows.lengths.max() == fits


def test_lengths_are_those_of_the_encoded():
  """So that what fits by them is what `encode` and `encode_solutions` take."""
  found = prompts.measure(
    iter(QUESTIONS), Letters(), template='{question}', with_solutions=True
  )
  rows = encode_solutions()
  assert found.uids.tolist() == rows.prompts.uids.tolist()
  assert found.prompts.tolist() == rows.prompts.lengths.tolist()
  assert found.completions.tolist() == rows.lengths[:, 0].tolist()
  assert found.fit(3, 4).tolist() == [True, True, False]
  assert found.fit(5, 3).tolist() == [True, False, True]


def test_solutions_that_nobody_trains_on_fit():
  found = prompts.measure(QUESTIONS, Letters(), template='{question}')
  found.check(max_prompt_len=5, max_completion_len=1)
  assert found.fit(5, 1).all()


def test_no_questions_have_no_lengths():
  """A process's share may be none."""
  found = prompts.measure([], Letters(), template='{question}')
  found.check(max_prompt_len=1, max_completion_len=1)
  assert found.fit(1, 1).shape == (0,)


def test_nothing_to_read_is_an_error():
  """An empty prompt would leave the sampler no token to start from."""
  empty = [batches.Question('', 'a', uid=5)]
  with pytest.raises(ValueError, match='question 5 is empty'):
    encode(empty)
  with pytest.raises(ValueError, match='question 5 has no solution'):
    encode_solutions([batches.Question('a', 'a', uid=5)])
  with pytest.raises(ValueError, match='no questions'):
    encode([])
