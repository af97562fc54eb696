"""What the model said: one file per optimizer step, one line per sampled row.

rollouts/step_000012.jsonl holds the question, the reply, its reward and whether
it was trained on, in the order in which the rows were sampled, and of each
token its log-probability and how many characters it added to the reply.
`jsonl.read` reads it.
"""

import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from dash_jax import batches
from dash_jax.runs import jsonl

# Tokens that may make one character together; behind them it is taken as it is.
_MOST_PARTS = 8
_PARTIAL = '\ufffd'


def path(workdir: str | os.PathLike, step: int) -> pathlib.Path:
  """Returns where the rollouts of `step` are."""
  return pathlib.Path(workdir) / 'rollouts' / f'step_{step:06d}.jsonl'


def sync(workdir: str | os.PathLike) -> None:
  """Returns when the names of what was written are on the disk, as the files
  are."""
  folder = path(workdir, 0).parent
  if folder.exists():
    jsonl.sync(folder)


def write(
  workdir: str | os.PathLike,
  step: int,
  questions: Sequence[batches.Question],
  completions: Sequence[str],
  rollouts: batches.Rollouts,
  decode: Callable[[np.ndarray], str],
  *,
  rewards: np.ndarray,
  advantages: np.ndarray,
  kept: np.ndarray,
  terms: dict[str, np.ndarray] | None = None,
) -> pathlib.Path:
  """Writes the B = Q * G rows of one step, whole or not at all.

  Args:
    workdir: the run's folder.
    step: optimizer steps taken, this one included.
    questions: Q questions.
    completions: B texts, the G of each question one after another.
    rollouts: the rows as they were sampled, NumPy.
    decode: returns the text of i32[C] tokens, as it made `completions`.
    rewards: f32[Q, G].
    advantages: f32[Q, G].
    kept: bool[Q, G], True where the row was trained on.
    terms: f32[B] by name, what the rewards are made of.

  Returns:
    The file's path.

  Raises:
    ValueError: sizes disagree; the message names the argument.
  """
  num_rows = len(completions)
  if not questions or num_rows % len(questions):
    raise ValueError(
      f'{num_rows} completions do not divide into groups of equal size for '
      f'{len(questions)} questions'
    )
  shape = (len(questions), num_rows // len(questions))
  columns = {
    'reward': rewards,
    'advantage': advantages,
    'kept': kept,
    'completion_len': rollouts.lengths,
    'truncated': rollouts.truncated,
    'logprob_sum': rollouts.logprobs.sum(axis=-1),
  } | {
    f'reward_{name}': values.reshape(shape)
    for name, values in (terms or {}).items()
  }
  for name, value in columns.items():
    if value.shape != shape:
      raise ValueError(
        f'{name} has shape {value.shape}; valid: {shape}, one per completion'
      )
  group_size = shape[1]
  widths = _Widths(decode)
  rows = []
  for i, completion in enumerate(completions):
    question = questions[i // group_size]
    rows.append(
      {
        'step': step,
        'uid': question.uid,
        'sample': i % group_size,
        'prompt': question.prompt,
        'answer': question.answer,
        'completion': completion,
      }
      | {name: value.flat[i] for name, value in columns.items()}
      | _describe_tokens(completion, rollouts, divmod(i, group_size), widths)
    )
  target = path(workdir, step)
  jsonl.write(target, rows)
  return target


def _describe_tokens(completion, rollouts, at, widths):
  """Returns what a row says of its tokens."""
  length = rollouts.lengths[at]
  return {
    'token_widths': widths.measure(completion, rollouts.tokens[at][:length]),
    # To a thousandth of a nat: of float32's nine digits nobody reads more.
    'logprobs': [round(x, 3) for x in rollouts.logprobs[at][:length].tolist()],
  }


class _Widths:
  """Finds which characters of a text are of which token.

  A token is decoded behind the one before it, since some tokenizers leave out a
  text's first space, together with those that are part of the same character.
  """

  def __init__(self, decode):
    self._decode = decode
    self._known = {}

  def measure(self, text: str, tokens: np.ndarray) -> list[int] | None:
    """Returns the characters that each token adds, or None where those that are
    found do not add up to `text`."""
    tokens = tokens.tolist()
    widths, added, begin = [], [], 0
    for i in range(len(tokens)):
      piece = self._find_piece(
        tokens[max(begin - 1, 0) : begin], tokens[begin : i + 1]
      )
      if piece.endswith(_PARTIAL) and i + 1 < min(
        len(tokens), begin + _MOST_PARTS
      ):
        widths.append(0)
        continue
      widths.append(len(piece))
      added.append(piece)
      begin = i + 1
    return widths if ''.join(added) == text else None

  def _find_piece(self, before, tokens):
    key = (*before, None, *tokens)
    if key not in self._known:
      context = self._decode(np.array(before, np.int32)) if before else ''
      whole = self._decode(np.array([*before, *tokens], np.int32))
      self._known[key] = whole[len(context) :]
    return self._known[key]
