"""Which rows are learned from.

Rows that carry no signal are dropped before any learner forward (reference or
policy) but those that say what the signal is, of a critic or of the KL in the
reward. That is where it saves; packing.py then packs the rest. The paper's own
code filters after the forward passes.
"""

import numpy as np

RULES = ('advantage', 'group', 'largest', 'max_variance', 'none')


def select(
  advantages: np.ndarray,
  threshold: float,
  *,
  rule: str = 'advantage',
  most: int = 0,
) -> np.ndarray:
  """Returns bool[Q, G], the rows to keep.

      advantage     |A| > threshold                                     DASH
      group         all rows of a group of which one has |A| > threshold
      largest       of rows with |A| > threshold, the `most` with the largest
                    |A|; of equal ones those that come first
      max_variance  |A| > threshold, of what `most_varied` chose       PODS
      none          every row                                          GRPO

  Source: arXiv 2505.17218, gradient filtering.

  Args:
    advantages: f32[Q, G].
    threshold: -1 keeps every row.
    rule: of RULES.
    most: rows, for 'largest'.
  """
  size = np.abs(advantages)
  keep = size > threshold
  if rule == 'group':
    keep = np.broadcast_to(keep.any(axis=1, keepdims=True), keep.shape)
  elif rule == 'none':
    keep = np.ones_like(keep)
  elif rule == 'largest':
    order = np.argsort(np.where(keep, -size, np.inf), axis=None, kind='stable')
    chosen = np.zeros(keep.size, bool)
    chosen[order[:most]] = True
    keep = keep & chosen.reshape(keep.shape)
  return keep


def most_varied(rewards: np.ndarray, num: int) -> np.ndarray:
  """Returns bool[Q, G], the `num` rows of each group whose rewards vary most.

  They are some with the lowest and some with the highest rewards; how many of
  each is tried out. Advantages are then those among the rows chosen.

  Source: PODS, arXiv 2504.13818, max-variance down-sampling.

  Args:
    rewards: f32[Q, G].
    num: rows to keep of a group, 1 to G.
  """
  G = rewards.shape[1]
  order = np.argsort(rewards, axis=1, kind='stable')
  ordered = np.take_along_axis(rewards, order, axis=1).astype(np.float64)
  chosen = [
    np.r_[np.arange(low), np.arange(G - num + low, G)] for low in range(num + 1)
  ]
  variance = np.stack([ordered[:, at].var(axis=1) for at in chosen], axis=1)
  keep = np.zeros(rewards.shape, bool)
  for row, best in enumerate(variance.argmax(axis=1)):
    keep[row, order[row, chosen[best]]] = True
  return keep
