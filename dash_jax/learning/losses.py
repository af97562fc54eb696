"""Losses on the log-probabilities of completion tokens.

Every loss is a sum over tokens of `weight * token_loss`. The weights hold the
normaliser and the denominator (`row_weights`), so that any cut into
minibatches adds up to the same gradient.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

NORMALIZERS = ('token', 'sequence', 'constant')
DENOMINATORS = ('sampled', 'kept')


@dataclasses.dataclass(frozen=True)
class Objective:
  """What the learner minimises.

  Attributes:
    clip_low, clip_high: the ratio is clipped to [1 - low, 1 + high].
    kl_coef: weight of the KL penalty to the reference policy; 0 leaves the
      reference out of the program.
    supervised: maximise likelihood instead, whatever the advantage.
  """

  clip_low: float = 0.2
  clip_high: float = 0.2
  kl_coef: float = 0.0
  supervised: bool = False


def clipped_policy_loss(logprobs, old_logprobs, advantages, low, high):
  """Returns f32[..], the clipped surrogate of tokens, and bool[..], where clipped.

      ratio = exp(logprob - old_logprob)
      loss = -min(ratio * A, clip(ratio, 1 - low, 1 + high) * A)

  On policy the ratio is 1 and the gradient is REINFORCE's with a group
  baseline, which is DASH. `old_logprobs` are the sampler's own, so a sampler
  that computes in lower precision is corrected for rather than ignored.

  Source: PPO, arXiv 1707.06347, equation 7; GRPO, arXiv 2402.03300.
  """
  ratio = jnp.exp(logprobs - old_logprobs)
  free = ratio * advantages
  bound = jnp.clip(ratio, 1 - low, 1 + high) * advantages
  return -jnp.minimum(free, bound), bound < free


def k3_kl(logprobs, ref_logprobs):
  """Returns f32[..], an unbiased, non-negative estimate of KL(policy||ref).

      d = ref_logprob - logprob;  kl = exp(d) - d - 1

  Source: joschu.net/blog/kl-approx.html (k3); GRPO, arXiv 2402.03300, eq. 4.
  """
  d = ref_logprobs - logprobs
  return jnp.exp(d) - d - 1


def row_weights(
  normalizer: str, lengths: np.ndarray, max_completion_len: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what each row's tokens count, f32[Q, G], and what the row adds to
  the denominator that all rows' weights are divided by, f32[Q, G].

      token     each token 1,        denominator: tokens
      sequence  each token 1 / len,  denominator: rows    (GRPO)
      constant  each token 1 / C,    denominator: rows    (Dr. GRPO)

  With a denominator over all sampled rows, filtering rows of zero advantage
  changes nothing: they add 0 to the sum and the denominator stays. Over kept
  rows, as in the authors' code, filtering makes the step larger.

  Source: GRPO, arXiv 2402.03300; DAPO (token), arXiv 2503.14476; Dr. GRPO,
    arXiv 2503.20783.
  """
  ones = np.ones(lengths.shape, np.float32)
  if normalizer == 'token':
    return ones, lengths.astype(np.float32)
  if normalizer == 'sequence':
    return ones / np.maximum(lengths, 1), ones
  return ones / max_completion_len, ones
