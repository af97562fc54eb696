"""Which rows are learned from.

Rows whose advantage carries no signal are dropped before any learner forward
(reference or policy), which is where it saves; packing.py then packs the rest.
The paper's own code filters after the forward passes.
"""

import numpy as np


def select(advantages: np.ndarray, threshold: float) -> np.ndarray:
  """Returns bool[Q, G], True where |advantage| > threshold.

  Source: arXiv 2505.17218, gradient filtering.
  """
  return np.abs(advantages) > threshold
