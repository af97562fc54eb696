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


def write(
  workdir: str | os.PathLike,
  step: int,
  questions: Sequence[batches.Question],
  completions: Sequence[str],
  *,
  rewards: np.ndarray,
  advantages: np.ndarray,
  kept: np.ndarray,
  completion_lens: np.ndarray,
  truncated: np.ndarray,
  logprob_sums: np.ndarray,
) -> pathlib.Path:
  """Writes the B = Q * G rows of one step, whole or not at all.

  Args:
    workdir: the run's folder.
    step: optimizer steps taken, this one included.
    questions: Q questions; each has G rows, which are neighbours.
    completions: B texts.
    rewards: f32[B].
    advantages: f32[B].
    kept: bool[B], True where the row was trained on.
    completion_lens: i32[B], tokens, EOS included.
    truncated: bool[B], True where the row never stopped by itself.
    logprob_sums: f32[B], log-probability of the completion as it was sampled.

  Returns:
    The file's path.

  Raises:
    ValueError: lengths disagree; the message names the argument.
  """
  num_rows = len(completions)
  if not questions or num_rows % len(questions):
    raise ValueError(
      f'{num_rows} completions do not divide into groups of equal size for '
      f'{len(questions)} questions'
    )
  columns = {
    'reward': rewards,
    'advantage': advantages,
    'kept': kept,
    'completion_len': completion_lens,
    'truncated': truncated,
    'logprob_sum': logprob_sums,
  }
  columns = {name: np.asarray(value) for name, value in columns.items()}
  for name, value in columns.items():
    if value.shape != (num_rows,):
      raise ValueError(
        f'{name} has shape {value.shape}; valid: ({num_rows},), one per '
        'completion'
      )
  group_size = num_rows // len(questions)
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
      | {name: value[i] for name, value in columns.items()}
    )
  target = path(workdir, step)
  jsonl.write(target, rows)
  return target
