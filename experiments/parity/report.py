"""Prints checks as they end, and remembers whether all passed."""

import numpy as np


class Report:
  """The checks of one run.

  Attributes:
    num_failed: how many did not pass.
  """

  def __init__(self):
    self.num_failed = 0

  def add(self, name: str, passed: bool, detail: str) -> None:
    """Takes the outcome of one check."""
    self.num_failed += not passed
    print(f'{"ok  " if passed else "FAIL"}  {name}: {detail}', flush=True)

  def add_gap(self, name: str, what: str, gap: float, allowed: float) -> None:
    """Takes a difference; one that is not a number fails."""
    self.add(
      name, bool(gap <= allowed), f'{what} {gap:.2g} (allowed {allowed:g})'
    )


def find_gap(ours, theirs) -> float:
  """Returns the largest difference between two lists of arrays."""
  return max(
    float(np.abs(np.asarray(x, np.float64) - y).max())
    for x, y in zip(ours, theirs, strict=True)
  )


def find_relative_gap(
  ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> float:
  """Returns the largest difference in any tensor, as a share of the tensor's
  largest element: gradients of different tensors differ by orders.

  Raises:
    ValueError: the two have not the same tensors.
  """
  if ours.keys() != theirs.keys():
    raise ValueError(f'tensors differ: {sorted(ours.keys() ^ theirs.keys())}')
  return max(
    float(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max())
    for name in theirs
  )
