"""Which rows are learned from, and how they are cut into minibatches.

  1. `select` drops rows whose advantage carries no signal. It runs before any
     learner forward (reference or policy), which is where it saves.
  2. `cut` packs the kept rows into the first minibatches and says how many
     there are. The learner loops over those alone, in one compiled program, so
     its cost follows the rows that survive.

The paper's own code filters after the forward passes; here it comes before.
"""

import jax
import numpy as np

from dash_jax import batches


def select(advantages: np.ndarray, threshold: float) -> np.ndarray:
  """Returns bool[B], True where |advantage| > threshold.

  Source: arXiv 2505.17218, gradient filtering.
  """
  return np.abs(advantages) > threshold


def cut(
  rollouts: batches.Rollouts,
  advantages: np.ndarray,
  keep: np.ndarray,
  weight: np.ndarray,
  minibatch_size: int,
) -> tuple[batches.Minibatches, int]:
  """Packs the kept rows into minibatches, in their order.

  Args:
    rollouts: B rows, NumPy.
    advantages: f32[B].
    keep: bool[B].
    weight: f32[B], what each token of a row counts in the loss.
    minibatch_size: b.

  Returns:
    Minibatches with M = ceil(B / b), whatever is kept, so that one program
    serves every step; and n <= M, the number that hold kept rows. Places left
    over hold row 0 with weight 0.
  """
  kept = np.flatnonzero(keep)
  num_minibatches = -(-len(keep) // minibatch_size)
  places = np.zeros(num_minibatches * minibatch_size, np.int64)
  places[: len(kept)] = kept
  filler = np.arange(len(places)) >= len(kept)

  def split(x):
    return x[places].reshape(num_minibatches, minibatch_size, *x.shape[1:])

  minibatches = batches.Minibatches(
    rollouts=jax.tree.map(split, rollouts),
    advantages=split(advantages),
    weight=split(weight) * ~filler.reshape(num_minibatches, minibatch_size),
  )
  return minibatches, -(-len(kept) // minibatch_size)
