"""How much better a row is than its group."""

import numpy as np

# Keeps the division finite; the paper's value.
_EPSILON = 1e-4


def group_advantages(rewards: np.ndarray, *, normalize_std: bool) -> np.ndarray:
  """Returns f32[Q, G], each row's reward relative to its group.

      A = r - mean(r)                              normalize_std=False
      A = (r - mean(r)) / (std(r) + 1e-4)          normalize_std=True

  std is the unbiased one (divided by G - 1). The result is exactly 0 where a
  group agrees, so such rows can be filtered without changing the gradient.

  Source: GRPO, arXiv 2402.03300, section 4.1.2; without std: Dr. GRPO,
    arXiv 2503.20783.

  Args:
    rewards: f32[Q, G], G at least 2.
    normalize_std: divide by the group's standard deviation.
  """
  rewards = rewards.astype(np.float64)
  centred = rewards - rewards.mean(axis=1, keepdims=True)
  agree = (rewards == rewards[:, :1]).all(axis=1, keepdims=True)
  if normalize_std:
    centred /= rewards.std(axis=1, ddof=1, keepdims=True) + _EPSILON
  return np.where(agree, 0.0, centred).astype(np.float32)
