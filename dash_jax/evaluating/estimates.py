"""Figures of an evaluation, each with its 95% interval over questions.

  1. Of each question G replies are known: how many are right, whether the
     majority's answer is, how long they are. `Table` has them.
  2. `pass_at` estimates the chance that one of k replies is right.
  3. Shares get Wilson's interval, made wider or narrower by what questions
     really vary; lengths get Student's.
  4. `compare` pairs two tables of the same questions: the difference with its
     interval, and McNemar's exact test.

All intervals are closed forms: nothing is drawn, so the same file always gives
the same figures.
"""

import dataclasses
import math

import numpy as np
from scipy import special

_Z95 = 1.959964


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A figure with the ends of its 95% interval."""

  value: float
  low: float
  high: float


@dataclasses.dataclass(frozen=True)
class Table:
  """What is known of the G replies to each of Q questions.

  Attributes:
    num_samples: G.
    right: int[Q], replies that are right.
    majority: bool[Q], whether the answer that most replies state is right; None
      where no reply states any. Of one reply, whether it is right.
    tokens: int[Q], of all replies together.
    truncated: int[Q], replies that ran out of room.
    timeouts, errors: replies whose scoring took too long, or failed.
  """

  num_samples: int
  right: np.ndarray
  majority: np.ndarray | None
  tokens: np.ndarray
  truncated: np.ndarray
  timeouts: int = 0
  errors: int = 0


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Two tables of the same questions.

  Attributes:
    difference: of pass@1, this less the other.
    gained: questions that this has right and the other wrong, by the majority.
    lost: the other way round.
    p_value: of McNemar's exact test, two-sided; None where a table has no
      majority, and gained and lost are 0 then.
  """

  difference: Estimate
  gained: int
  lost: int
  p_value: float | None


def wilson_interval(right: float, total: float) -> tuple[float, float]:
  """Returns the 95% interval of a share.

  Source: Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927).
  """
  share, spread = right / total, _Z95**2 / total
  centre = share + spread / 2
  half = _Z95 * math.sqrt(share * (1 - share) / total + spread / (4 * total))
  low, high = ((centre + s * half) / (1 + spread) for s in (-1, 1))
  return max(low, 0.0), min(high, 1.0)


def find_share(values: np.ndarray, num_samples: int) -> Estimate:
  """Returns the mean of shares of questions, with an interval over questions.

  It is Wilson's, for as many questions as would vary so much if each share were
  0 or 1: Q * m(1 - m) / var, with the variance of the shares that are there. For
  shares of 0 and 1 that is Q itself; it is Q * num_samples at most, since no
  replies say more than independent ones.

  Args:
    values: f64[Q] in [0, 1].
    num_samples: independent draws that the share of a question is the mean of.

  Source: the interval of a share under a design effect, as in Franco, Little,
    Louis and Slud, "Comparative study of confidence intervals for proportions in
    complex sample surveys", JSSAM 7 (2019).
  """
  Q, mean = len(values), float(np.mean(values))
  most = mean * (1 - mean)
  share = float(np.var(values)) / most if most > 1e-12 else 1.0
  total = Q / min(max(share, 1 / num_samples), 1.0)
  return Estimate(mean, *wilson_interval(mean * total, total))


def find_mean(values: np.ndarray) -> Estimate:
  """Returns a mean over questions with Student's interval; its ends are the mean
  itself where there is one question alone."""
  Q, mean = len(values), float(np.mean(values))
  half = 0.0
  if Q > 1:
    error = float(np.std(values, ddof=1)) / math.sqrt(Q)
    half = float(special.stdtrit(Q - 1, 0.975)) * error
  return Estimate(mean, mean - half, mean + half)


def pass_at(k: int, right: np.ndarray, num_samples: int) -> np.ndarray:
  """Returns f64[Q], the chance that one of k replies to a question is right.

  It is 1 - C(n - c, k) / C(n, k) for c right ones of n, the share of sets of k
  replies that hold a right one; its mean over draws of the n is the chance itself.

  Args:
    k: from 1 to n.
    right: int[Q], c.
    num_samples: n.

  Raises:
    ValueError: k is not from 1 to n.

  Source: Chen et al., "Evaluating large language models trained on code",
    arXiv 2107.03374 (2021), equation 1.
  """
  n = num_samples
  if not 1 <= k <= n:
    raise ValueError(f'k={k}: must be from 1 to the {n} replies of a question')
  total = math.comb(n, k)
  return np.array([1 - math.comb(n - int(c), k) / total for c in right])


def list_ks(num_samples: int) -> list[int]:
  """Returns the k that are reported: powers of two, and all replies."""
  powers = [1 << i for i in range(num_samples.bit_length())]
  return [k for k in powers if k < num_samples] + [num_samples]


def mcnemar(gained: int, lost: int) -> float:
  """Returns the p-value of McNemar's exact test, two-sided: that of a coin which
  fell so unevenly. Questions on which both agree say nothing.

  Source: McNemar, "Note on the sampling error of the difference between correlated
    proportions or percentages", Psychometrika 12 (1947).
  """
  tail = special.bdtr(min(gained, lost), gained + lost, 0.5)
  return min(1.0, 2 * float(tail))


def find_difference(values: np.ndarray) -> Estimate:
  """Returns the mean of paired differences with its interval.

  It is Wald's, with two more questions of which one gains 1 and one loses 1, so
  that it has a width where no question differs. Of values -1, 0 and 1 it is the
  one of the source.

  Args:
    values: f64[Q] in [-1, 1], a question's share in one less that in the other.

  Source: Bonett and Price, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data", JEBS 37 (2012).
  """
  total = len(values) + 2
  centre = float(np.sum(values)) / total
  variance = (float(np.sum(values**2)) + 2) / total - centre**2
  half = _Z95 * math.sqrt(variance / total)
  low, high = max(centre - half, -1.0), min(centre + half, 1.0)
  return Estimate(float(np.mean(values)), low, high)


def compare(this: Table, other: Table) -> Comparison:
  """Returns two tables compared; their questions are the same, in one order."""
  shares = [table.right / table.num_samples for table in (this, other)]
  gained = lost = 0
  p_value = None
  if this.majority is not None and other.majority is not None:
    gained = int((this.majority & ~other.majority).sum())
    lost = int((other.majority & ~this.majority).sum())
    p_value = mcnemar(gained, lost)
  return Comparison(
    difference=find_difference(shares[0] - shares[1]),
    gained=gained,
    lost=lost,
    p_value=p_value,
  )
