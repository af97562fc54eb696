"""How much better a row is than expected: rewards to advantages.

`find_advantages` compares rows with each other, `estimate_gae` each token with
what a critic expected.
"""

from collections.abc import Callable

import numpy as np

BASELINES = ('group_mean', 'leave_one_out', 'none', 'critic')
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
             groups; mean(x) is 0 after a baseline    REINFORCE++-baseline

  REINFORCE++ itself, without a baseline, is by token: see credit.py.

  With a baseline the result is exactly 0 where a group agrees, so such rows can
  be filtered without changing the gradient.

  Source: GRPO, arXiv 2402.03300, section 4.1.2; leave-one-out (RLOO), arXiv
    2402.14740; Dr. GRPO, arXiv 2503.20783; MaxRL, arXiv 2602.02710;
    REINFORCE++, arXiv 2501.03262.

  Args:
    rewards: f32[Q, G], this process's.
    baseline: of BASELINES, but for 'critic'.
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
    x = standardize(x, among, sum_over_hosts, centred=baseline != 'none')
  return np.where(among, x, 0.0).astype(np.float32)


def standardize(
  x: np.ndarray,
  among: np.ndarray,
  sum_over_hosts: Callable[[dict], dict] = lambda sums: sums,
  *,
  centred: bool = False,
) -> np.ndarray:
  """Returns f32[..], (x - mean) / (std + 1e-4), over all that count in all
  processes; 0 elsewhere.

  Args:
    x: f[..].
    among: bool[..], what counts.
    sum_over_hosts: adds up each value over the processes.
    centred: whether the mean is 0 as it is.
  """
  kept = x[among].astype(np.float64)
  sums = sum_over_hosts(
    {'n': kept.size, 'x': kept.sum(), 'xx': (kept**2).sum()}
  )
  num = max(sums['n'], 1)
  centre = 0.0 if centred else sums['x'] / num
  variance = max(sums['xx'] / num - centre**2, 0.0)
  x = (x - centre) / (np.sqrt(variance) + _EPSILON)
  return np.where(among, x, 0.0).astype(np.float32)


def estimate_gae(
  rewards: np.ndarray,
  values: np.ndarray,
  lengths: np.ndarray,
  *,
  discount: float,
  decay: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns f32[Q, G, C] twice: the advantages of tokens, and the returns that a
  critic learns to expect before them; 0 behind a row's end.

      delta_t  = r_t + discount V_{t+1} - V_t,  with V = 0 behind the end
      A_t      = delta_t + discount decay A_{t+1}
      return_t = A_t + V_t

  With discount = decay = 1 a token's return is the sum of the rewards from it
  on, whatever the critic says. A truncated row ends as others do.

  Source: GAE, arXiv 1506.02438, equation 16; PPO, arXiv 1707.06347.

  Args:
    rewards: f32[Q, G, C], of each token.
    values: f32[Q, G, C], V_t, before each token.
    lengths: i32[Q, G].
    discount: gamma.
    decay: lambda.
  """
  mask = np.arange(rewards.shape[-1]) < lengths[..., None]
  r, v = (np.where(mask, x, 0.0).astype(np.float64) for x in (rewards, values))
  gains, after, next_value = np.zeros_like(r), 0.0, 0.0
  for t in range(r.shape[-1] - 1, -1, -1):
    delta = r[..., t] + discount * next_value - v[..., t]
    after = np.where(mask[..., t], delta + discount * decay * after, 0.0)
    gains[..., t], next_value = after, v[..., t]
  returns = np.where(mask, gains + v, 0.0)
  return gains.astype(np.float32), returns.astype(np.float32)


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
