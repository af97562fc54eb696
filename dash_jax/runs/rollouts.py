"""What the model said: one file per optimizer step, one line per sampled row.

rollouts/step_000012.jsonl holds the question, the reply, its reward and whether
it was trained on, in the order in which the rows were sampled. `jsonl.read`
reads it.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dash_jax import batches
from dash_jax.runs import jsonl


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
    )
  target = path(workdir, step)
  jsonl.write(target, rows)
  return target
