"""Questions to arrays of prompt ids, and solutions to rows for SFT.

  1. Each question goes through `chat.encode_prompt`.
  2. A prompt that is longer than its slots is an error that says how many would
     do: a prompt that lost its beginning asks another question. A caller that
     would rather lose questions asks `drop_too_long` first, and gets a count.
  3. `encode` pads prompts on the left; `encode_solutions` also puts each
     solution and EOS beside its prompt, as if the policy had sampled it.

Padding is id 0 and means nothing: masks come from lengths.
"""

from collections.abc import Sequence

import numpy as np

from dash_jax import batches
from dash_jax.data import chat, tokenizer


def encode(
  questions: Sequence[batches.Question],
  tokenizer: tokenizer.Tokenizer,
  *,
  template: str,
  max_prompt_len: int,
  system: str = '',
) -> batches.PromptBatch:
  """Returns the questions' prompts, as NumPy arrays.

  Args:
    questions: Q of them, at least one.
    tokenizer: turns text into ids.
    template: 'chat' or a format string: see `chat.encode_prompt`.
    max_prompt_len: P, the prompt slots.
    system: see `chat.encode_prompt`.

  Raises:
    ValueError: a prompt is empty, or longer than P.
  """
  prompts = _encode_prompts(questions, tokenizer, template, system)
  _check_prompt_lengths(questions, prompts, max_prompt_len)
  tokens = np.zeros((len(prompts), max_prompt_len), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[max_prompt_len - len(prompt) :] = prompt
  return batches.PromptBatch(
    tokens=tokens,
    lengths=np.array([len(p) for p in prompts], np.int32),
    uids=np.array([q.uid for q in questions], np.int32),
  )


def drop_too_long(
  questions: Sequence[batches.Question],
  tokenizer: tokenizer.Tokenizer,
  *,
  template: str,
  max_prompt_len: int,
  max_completion_len: int | None = None,
  system: str = '',
) -> tuple[list[batches.Question], int]:
  """Returns the questions that fit in P slots, and how many did not.

  With `max_completion_len`, their solutions with EOS fit in C slots too.
  """
  prompts = _encode_prompts(questions, tokenizer, template, system)

  def fits(question, prompt):
    if len(prompt) > max_prompt_len:
      return False
    if max_completion_len is None:
      return True
    return len(tokenizer.encode(question.solution)) < max_completion_len

  kept = [q for q, p in zip(questions, prompts, strict=True) if fits(q, p)]
  return kept, len(questions) - len(kept)


def encode_solutions(
  questions: Sequence[batches.Question],
  tokenizer: tokenizer.Tokenizer,
  *,
  template: str,
  max_prompt_len: int,
  max_completion_len: int,
  system: str = '',
) -> batches.Rollouts:
  """Returns the questions' solutions with EOS as completions, for SFT.

  One row a question: G = 1. EOS is the first of the tokenizer's stop ids.
  `logprobs` and `policy_step` are 0: no policy sampled these.

  Raises:
    ValueError: a prompt is empty or longer than P, a question has no solution,
      or a solution with EOS is longer than C.
  """
  prompts = encode(
    questions,
    tokenizer,
    template=template,
    max_prompt_len=max_prompt_len,
    system=system,
  )
  for question in questions:
    if not question.solution:
      raise ValueError(f'question {question.uid} has no solution to train on')
  completions = [
    [*tokenizer.encode(q.solution), tokenizer.stop_ids[0]] for q in questions
  ]
  lengths = np.array([len(c) for c in completions])
  longest = int(lengths.argmax())
  if lengths[longest] > max_completion_len:
    num_over = int((lengths > max_completion_len).sum())
    raise ValueError(
      f'the solution of question {questions[longest].uid} has '
      f'{lengths[longest]} tokens with EOS, over sampling.max_completion_len '
      f'{max_completion_len} ({num_over} of {len(questions)} are over); '
      f'sampling.max_completion_len={lengths[longest]} would fit all'
    )
  tokens = np.zeros((len(questions), 1, max_completion_len), np.int32)
  for row, completion in zip(tokens, completions, strict=True):
    row[0, : len(completion)] = completion
  by_row = lengths[:, None].astype(np.int32)
  return batches.Rollouts(
    prompts=prompts,
    tokens=tokens,
    lengths=by_row,
    logprobs=np.zeros(tokens.shape, np.float32),
    truncated=np.zeros(by_row.shape, bool),
    policy_step=np.zeros_like(by_row),
  )


def _encode_prompts(questions, tokenizer, template, system) -> list[list[int]]:
  if not questions:
    raise ValueError('there are no questions to encode')
  prompts = [
    chat.encode_prompt(q.prompt, tokenizer, template, system=system)
    for q in questions
  ]
  for question, prompt in zip(questions, prompts, strict=True):
    if not prompt:
      raise ValueError(f'the prompt of question {question.uid} is empty')
  return prompts


def _check_prompt_lengths(questions, prompts, max_prompt_len: int) -> None:
  longest = max(range(len(prompts)), key=lambda i: len(prompts[i]))
  length = len(prompts[longest])
  if length > max_prompt_len:
    num_over = sum(len(p) > max_prompt_len for p in prompts)
    raise ValueError(
      f'the prompt of question {questions[longest].uid} has {length} tokens, '
      f'over data.max_prompt_len {max_prompt_len} ({num_over} of '
      f'{len(prompts)} are over); data.max_prompt_len={length} would fit all'
    )
