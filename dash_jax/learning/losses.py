"""Losses on the log-probabilities of completion tokens.

Every loss is a sum over tokens of `weight * token_loss`. The weights hold the
normaliser and the denominator (`row_weights`), so that any cut into
minibatches adds up to the same gradient.

Losses of whole rows (GSPO, DPO) are sums over tokens too, once what a row counts
is known: `gspo_old_logprobs` and `dpo_advantages` find that from a forward pass
of the weights as they are.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

LOSSES = ('clip', 'reinforce', 'gspo', 'cispo', 'dpo', 'supervised')
NORMALIZERS = ('token', 'sequence', 'constant')
DENOMINATORS = ('sampled', 'kept')
KL_ESTIMATORS = ('k1', 'k2', 'k3')


@dataclasses.dataclass(frozen=True)
class Objective:
  """What the learner minimises.

  Attributes:
    loss: of LOSSES; see `policy_loss`.
    is_sampled: whether the rows were; solutions are by nobody, and no gap to a
      sampler's probabilities is measured.
    clip_low, clip_high: the ratio is clipped to [1 - low, 1 + high].
    clip_dual: where A < 0, the loss is at most this times -A; 0 bounds nothing.
    importance_cap: the loss is multiplied by min(pi_old / pi_sampler, cap), with
      pi_old the learner's own before its first change; 0 takes the ratio to the
      sampler's probabilities instead. Truncated importance sampling: Yao et al.,
      "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training",
      2025.
    kl_coef: weight of the KL penalty in the loss; 0 leaves the reference out of
      the program.
    kl_estimator: of KL_ESTIMATORS.
    entropy_coef: weight of the entropy that is added.
    value_coef: weight of the critic's loss, (value - return)^2 / 2 at each
      token; 0 leaves the critic out of the program.
  """

  loss: str = 'clip'
  is_sampled: bool = True
  clip_low: float = 0.2
  clip_high: float = 0.2
  clip_dual: float = 0.0
  importance_cap: float = 0.0
  kl_coef: float = 0.0
  kl_estimator: str = 'k3'
  entropy_coef: float = 0.0
  value_coef: float = 0.0


def policy_loss(objective: Objective, logprobs, old_logprobs, advantages):
  """Returns f32[..], the loss of tokens, and bool[..], where it is clipped.

  With ratio = exp(logprob - old_logprob), sg = no gradient, A = advantage:

      clip        -min(ratio A, clip(ratio, 1 - low, 1 + high) A); with
                  clip_dual, no more than -clip_dual A where A < 0
      gspo        as clip, with old_logprobs of `gspo_old_logprobs`
      reinforce   -A logprob
      dpo         as reinforce, with A of `dpo_advantages`
      cispo       -sg(clip(ratio, 1 - low, 1 + high)) A logprob
      supervised  -logprob

  On policy the ratio is 1, and the gradients of all but the last are
  REINFORCE's with whatever baseline A has, which is DASH. `old_logprobs` are the
  sampler's own, so that a sampler that computes in lower precision is corrected
  for rather than ignored; with an `importance_cap` they are the learner's.

  Source: PPO, arXiv 1707.06347, equation 7; GRPO, arXiv 2402.03300; dual clip,
    arXiv 1912.09729, equation 5; clip-higher (high > low), DAPO, arXiv
    2503.14476; GSPO, arXiv 2507.18071, equation 14; CISPO, arXiv 2506.13585,
    equation 4; REINFORCE, Williams 1992.

  Args:
    objective: what to compute.
    logprobs: f32[..], to differentiate.
    old_logprobs: f32[..].
    advantages: f32[..], of each token.
  """
  o = objective
  never = jnp.zeros(logprobs.shape, bool)
  if o.loss == 'supervised':
    return -logprobs, never
  if o.loss in ('reinforce', 'dpo'):
    return -advantages * logprobs, never
  ratio = jnp.exp(logprobs - old_logprobs)
  bounded = jnp.clip(ratio, 1 - o.clip_low, 1 + o.clip_high)
  if o.loss == 'cispo':
    loss = -jax.lax.stop_gradient(bounded) * advantages * logprobs
    return loss, bounded != ratio
  free, bound = ratio * advantages, bounded * advantages
  gained, clipped = jnp.minimum(free, bound), bound < free
  if o.clip_dual:
    least = o.clip_dual * advantages
    too_low = (advantages < 0) & (gained < least)
    gained = jnp.where(too_low, least, gained)
    clipped |= too_low
  return -gained, clipped


def estimate_kl(estimator: str, logprobs, ref_logprobs):
  """Returns f32[..], an estimate of KL(policy || reference) at sampled tokens.

  With d = ref_logprob - logprob:

      k1  -d                 unbiased, of either sign; its gradient is 0 in
                             expectation, so it belongs into the reward
      k2  d^2 / 2            biased; its gradient is the KL's
      k3  exp(d) - d - 1     unbiased, not negative

  Source: joschu.net/blog/kl-approx.html; GRPO, arXiv 2402.03300, equation 4.
  """
  d = ref_logprobs - logprobs
  if estimator == 'k1':
    return -d
  if estimator == 'k2':
    return d**2 / 2
  return jnp.exp(d) - d - 1


def gspo_old_logprobs(
  logprobs: np.ndarray, old_logprobs: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
  """Returns f32[Q, G, C], against which a token's ratio is its row's.

      s = exp(mean over the row of (logprob - old_logprob))
      returned = logprob - log s

  With ratio = exp(x - returned) and x at the weights of `logprobs`, each token
  has ratio s and gradient s grad x: GSPO's, whose s is a geometric mean.

  Source: GSPO, arXiv 2507.18071, equations 7 and 14.

  Args:
    logprobs: f32[Q, G, C], of the weights as they are.
    old_logprobs: f32[Q, G, C], of those that sampled; both 0 behind rows.
    lengths: i32[Q, G].
  """
  log_s = (logprobs - old_logprobs).sum(-1) / np.maximum(lengths, 1)
  return (logprobs - log_s[..., None]).astype(np.float32)


def find_pairs(rewards: np.ndarray) -> np.ndarray:
  """Returns i8[Q, G]: 1 on a group's best row, -1 on its worst (the first of
  several), 0 on others and where a group agrees."""
  pairs = np.zeros(rewards.shape, np.int8)
  groups = np.flatnonzero((rewards != rewards[:, :1]).any(axis=1))
  pairs[groups, rewards[groups].argmax(axis=1)] = 1
  pairs[groups, rewards[groups].argmin(axis=1)] = -1
  return pairs


def dpo_advantages(
  pairs: np.ndarray,
  logprobs: np.ndarray,
  ref_logprobs: np.ndarray,
  beta: float,
) -> np.ndarray:
  """Returns f32[Q, G], what DPO's loss makes each row's log-probability count.

  With m = beta (log pi(best) - log ref(best) - log pi(worst) +
  log ref(worst)), sums over tokens:

      loss = -log sigmoid(m);   A = +-beta sigmoid(-m)

  so that -A logprob has the gradient of the loss.

  Source: DPO, arXiv 2305.18290, equation 7.

  Args:
    pairs: i8[Q, G], of `find_pairs`.
    logprobs: f32[Q, G, C], of the weights as they are; 0 behind rows.
    ref_logprobs: f32[Q, G, C], of the reference.
    beta: strength of the pull to the reference.
  """
  margins = (logprobs - ref_logprobs).sum(-1, dtype=np.float64)
  m = beta * (pairs * margins).sum(axis=1)
  return (pairs * (beta / (1 + np.exp(m)))[:, None]).astype(np.float32)


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
