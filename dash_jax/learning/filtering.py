"""Which rows are learned from, and how they are cut into minibatches.

  1. `select` drops rows whose advantage carries no signal. It runs before any
     learner forward (reference or policy), which is where it saves.
  2. `cut` packs the kept rows into the first minibatches and says how many
     there are. The learner loops over those alone, in one compiled program, so
     its cost follows the rows that survive.
  3. Rows of a question stay together as far as a minibatch has room, so that
     the learner runs their prompt once for all of them. Of a group that is kept
     in part, places left beside a prompt are filled up, and cost as rows do.

The paper's own code filters after the forward passes; here it comes before.
"""

import dataclasses
import math

import jax
import numpy as np

from dash_jax import batches


def select(advantages: np.ndarray, threshold: float) -> np.ndarray:
  """Returns bool[Q, G], True where |advantage| > threshold.

  Source: arXiv 2505.17218, gradient filtering.
  """
  return np.abs(advantages) > threshold


def cut(
  rollouts: batches.Rollouts,
  advantages: np.ndarray,
  keep: np.ndarray,
  weight: np.ndarray,
  minibatch_size: int,
  num_shards: int = 1,
) -> tuple[batches.Minibatches, int]:
  """Packs the kept rows into minibatches, in their order.

  Each shard's part of a minibatch holds whole groups, or a whole part of one:
  s = gcd(b / num_shards, G) rows stand behind each prompt. A question of which
  some rows are kept fills its last s with filler.

  Args:
    rollouts: Q questions with G rows each, NumPy.
    advantages: f32[Q, G].
    keep: bool[Q, G].
    weight: f32[Q, G], what each token of a row counts in the loss.
    minibatch_size: b, a multiple of `num_shards`.
    num_shards: ways that the mesh splits these rows.

  Returns:
    Minibatches with M = ceil(Q * G / b), whatever is kept, so that one program
    serves every step; and n <= M, the number that hold kept rows. Filler rows
    copy others and have weight 0.
  """
  Q, G = keep.shape
  s = math.gcd(minibatch_size // num_shards, G)
  q = minibatch_size // s
  # The kept rows of each question first, cut into units of s rows.
  order = np.argsort(~keep, axis=1, kind='stable').reshape(-1, s)
  question = np.arange(Q).repeat(G // s)
  used = np.flatnonzero(keep[question, order[:, 0]])
  M = -(-len(order) // q)
  places = np.zeros(M * q, np.int64)
  places[: len(used)] = used
  question, order = question[places], order[places]
  filler = (np.arange(len(places)) >= len(used))[:, None] | ~keep[
    question[:, None], order
  ]

  def split(x):
    return x.reshape(M, q, *x.shape[1:])

  def split_rows(x):
    return split(x[question[:, None], order])

  minibatches = batches.Minibatches(
    rollouts=dataclasses.replace(
      jax.tree.map(split_rows, dataclasses.replace(rollouts, prompts=None)),
      prompts=jax.tree.map(lambda x: split(x[question]), rollouts.prompts),
    ),
    advantages=split_rows(advantages),
    weight=split_rows(weight) * ~split(filler),
  )
  return minibatches, -(-len(used) // q)
