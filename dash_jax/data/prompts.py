"""Questions to arrays of prompt ids, and solutions to rows for SFT.

  1. Each question goes through `chat.encode_prompt`.
  2. A prompt that is longer than its slots is an error that says how many would
     do: a prompt that lost its beginning asks another question. A caller that
     would rather lose questions asks `measure` first, which of them fit.
  3. `encode` pads prompts on the left; `encode_solutions` also puts each
     solution and EOS beside its prompt, as if the policy had sampled it.

Padding is id 0 and means nothing: masks come from lengths.
"""

import dataclasses
from collections.abc import Iterable, Sequence

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
  if not questions:
    raise ValueError('there are no questions to encode')
  prompts = [_encode_prompt(q, tokenizer, template, system) for q in questions]
  uids = np.array([q.uid for q in questions], np.int32)
  lengths = np.array([len(p) for p in prompts], np.int32)
  Lengths(uids, lengths, 0 * lengths).check(max_prompt_len, 0)
  tokens = np.zeros((len(prompts), max_prompt_len), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[max_prompt_len - len(prompt) :] = prompt
  return batches.PromptBatch(tokens=tokens, lengths=lengths, uids=uids)


@dataclasses.dataclass(frozen=True)
class Lengths:
  """How many tokens N questions have.

  Attributes:
    uids: i64[N], `Question.uid`.
    prompts: i64[N].
    completions: i64[N], of solutions with EOS; 0 where they were not measured.
  """

  uids: np.ndarray
  prompts: np.ndarray
  completions: np.ndarray

  def fit(self, max_prompt_len: int, max_completion_len: int) -> np.ndarray:
    """Returns bool[N], whether each fits in P and C slots."""
    return (self.prompts <= max_prompt_len) & (
      self.completions <= max_completion_len
    )

  def check(self, max_prompt_len: int, max_completion_len: int) -> None:
    """Refuses questions that do not fit.

    Raises:
      ValueError: names the longest, the field, and a value that would do.
    """
    for lengths, most, what, tokens, field in (
      (self.prompts, max_prompt_len, 'prompt', 'tokens', 'data.max_prompt_len'),
      (
        self.completions,
        max_completion_len,
        'solution',
        'tokens with EOS',
        'sampling.max_completion_len',
      ),
    ):
      num_over = int((lengths > most).sum())
      if num_over:
        longest = int(lengths.argmax())
        raise ValueError(
          f'the {what} of question {self.uids[longest]} has {lengths[longest]}'
          f' {tokens}, over {field} {most} ({num_over} of {len(lengths)} are'
          f' over); {field}={lengths[longest]} would fit all'
        )


def measure(
  questions: Iterable[batches.Question],
  tokenizer: tokenizer.Tokenizer,
  *,
  template: str,
  system: str = '',
  with_solutions: bool = False,
) -> Lengths:
  """Returns the lengths of questions, of which it holds one at a time.

  Args:
    questions: N of them.
    tokenizer: turns text into ids.
    template, system: see `chat.encode_prompt`.
    with_solutions: whether to measure their solutions too.

  Raises:
    ValueError: a prompt is empty, or a solution is missing.
  """
  found = [
    (
      question.uid,
      len(_encode_prompt(question, tokenizer, template, system)),
      len(_encode_solution(question, tokenizer)) if with_solutions else 0,
    )
    for question in questions
  ]
  return Lengths(*np.array(found, np.int64).reshape(-1, 3).T)


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
  completions = [_encode_solution(q, tokenizer) for q in questions]
  lengths = np.array([len(c) for c in completions], np.int32)
  Lengths(prompts.uids, prompts.lengths, lengths).check(
    max_prompt_len, max_completion_len
  )
  tokens = np.zeros((len(questions), 1, max_completion_len), np.int32)
  for row, completion in zip(tokens, completions, strict=True):
    row[0, : len(completion)] = completion
  by_row = lengths[:, None]
  return batches.Rollouts(
    prompts=prompts,
    tokens=tokens,
    lengths=by_row,
    logprobs=np.zeros(tokens.shape, np.float32),
    truncated=np.zeros(by_row.shape, bool),
    policy_step=np.zeros_like(by_row),
  )


def _encode_prompt(question, tokenizer, template, system) -> list[int]:
  prompt = chat.encode_prompt(
    question.prompt, tokenizer, template, system=system
  )
  if not prompt:
    raise ValueError(f'the prompt of question {question.uid} is empty')
  return prompt


def _encode_solution(question, tokenizer) -> list[int]:
  if not question.solution:
    raise ValueError(f'question {question.uid} has no solution to train on')
  return [*tokenizer.encode(question.solution), tokenizer.stop_ids[0]]
