"""How much better a row is than others: rewards to advantages."""

from collections.abc import Callable

import numpy as np

BASELINES = ('group_mean', 'leave_one_out', 'none')
SCALES = ('std', 'none', 'mean', 'batch')

# Keeps the division finite; the paper's value.
_EPSILON = 1e-4


def find_advantages(
  rewards: np.ndarray,
  *,
  baseline: str = 'group_mean',
  scale: str = 'std',
  among: np.ndarray | None = None,
  sum_over_hosts: Callable[[dict], dict] = lambda sums: sums,
) -> np.ndarray:
  """Returns f32[Q, G], each row's reward relative to others.

  First a baseline is taken away, over the n rows of a group that count:

      group_mean     x = r - mean(r)                                    GRPO
      leave_one_out  x = r - mean(r of the others) = n / (n-1) (r - mean(r))
      none           x = r

  then x is scaled:

      std    A = x / (std(r) + 1e-4), of the group, unbiased            GRPO
      none   A = x                                                  Dr. GRPO
      mean   A = x / mean(r), of the group                             MaxRL
      batch  A = (x - mean(x)) / (std(x) + 1e-4), over all rows of all
             groups; mean(x) is 0 after a baseline             REINFORCE++

  With a baseline the result is exactly 0 where a group agrees, so such rows can
  be filtered without changing the gradient.

  Source: GRPO, arXiv 2402.03300, section 4.1.2; leave-one-out (RLOO), arXiv
    2402.14740; Dr. GRPO, arXiv 2503.20783; MaxRL, arXiv 2602.02710;
    REINFORCE++, arXiv 2501.03262.

  Args:
    rewards: f32[Q, G], this process's.
    baseline: of BASELINES.
    scale: of SCALES.
    among: bool[Q, G], rows that count; others get 0. None is all.
    sum_over_hosts: adds up each value over the processes.

  Raises:
    ValueError: a reward is negative, where `scale` is 'mean'.
  """
  if among is None:
    among = np.ones(rewards.shape, bool)
  if scale == 'mean' and (rewards < 0).any():
    raise ValueError(
      f"algorithm.scale='mean' divides by a group's mean reward, but a reward is"
      f' {rewards.min()}: rewards must not be negative'
    )
  r = rewards.astype(np.float64)
  n = np.maximum(among.sum(axis=1, keepdims=True), 1)

  def mean(x):
    return np.where(among, x, 0.0).sum(axis=1, keepdims=True) / n

  x = r - mean(r) if baseline != 'none' else r
  if baseline == 'leave_one_out':
    x = x * n / np.maximum(n - 1, 1)
  if baseline != 'none':
    # Rounding may leave a little where all are equal.
    least = np.where(among, r, np.inf).min(axis=1, keepdims=True)
    most = np.where(among, r, -np.inf).max(axis=1, keepdims=True)
    x = np.where(least < most, x, 0.0)
  if scale == 'std':
    squares = mean((r - mean(r)) ** 2) * n / np.maximum(n - 1, 1)
    x = x / (np.sqrt(squares) + _EPSILON)
  elif scale == 'mean':
    x = x / np.where(mean(r) > 0, mean(r), 1.0)
  elif scale == 'batch':
    kept = x[among]
    sums = sum_over_hosts(
      {'n': kept.size, 'x': kept.sum(), 'xx': (kept**2).sum()}
    )
    num = max(sums['n'], 1)
    centre = sums['x'] / num if baseline == 'none' else 0.0
    variance = max(sums['xx'] / num - centre**2, 0.0)
    x = (x - centre) / (np.sqrt(variance) + _EPSILON)
  return np.where(among, x, 0.0).astype(np.float32)


def overlong_penalty(
  lengths: np.ndarray, max_len: int, buffer_len: int
) -> np.ndarray:
  """Returns f32[Q, G] in [-1, 0], what a row's length adds to its reward.

      0                                     len <= max_len - buffer_len
      (max_len - buffer_len - len) / buffer_len                    else

  Source: DAPO, arXiv 2503.14476, equation 13.

  Args:
    lengths: i32[Q, G], tokens of completions, at most `max_len`.
    max_len: C.
    buffer_len: tokens before C over which the penalty grows to -1; 0 is none.
  """
  if not buffer_len:
    return np.zeros(lengths.shape, np.float32)
  over = np.maximum(lengths - (max_len - buffer_len), 0)
  return (-over / buffer_len).astype(np.float32)
