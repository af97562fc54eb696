"""From scores to what each row counts in the loss.

  1. `shape_rewards` adds to the scores what the config asks for, and `find_kl`
     says how far tokens are from the reference policy.
  2. `assign` compares rows with others, or tokens with what a critic expected,
     and chooses the rows to learn from.

Its arrays are of this process's rows; sums go over all processes.
"""

import jax
import ml_collections
import numpy as np

from dash_jax import batches, sharding
from dash_jax import config as config_lib
from dash_jax.learning import advantages, filtering, losses


@batches.pytree
class Credit:
  """What each row counts.

  Attributes:
    gain: f32[Q, G], advantages; a row's mean, where its tokens differ; for DPO
      what `losses.find_pairs` finds.
    keep: bool[Q, G], the rows to learn from.
    weight: f32[Q, G], what each token of a row counts in the loss, its
      denominator included.
    masked: rows that are left out since they were truncated.
    by_token: f32[Q, G, C], advantages of tokens, where they differ in a row.
    returns: f32[Q, G, C], what a critic is to expect.
    of_all: f32[Q, G], advantages had no rows been chosen, where `gain` has 0 for
      others and the gradients are to be compared.
  """

  gain: np.ndarray
  keep: np.ndarray
  weight: np.ndarray
  masked: int
  by_token: np.ndarray | None = None
  returns: np.ndarray | None = None
  of_all: np.ndarray | None = None


def shape_rewards(
  config: ml_collections.ConfigDict,
  rewards: np.ndarray,
  rows: batches.Rollouts,
) -> np.ndarray:
  """Returns f32[Q, G], the scores with DAPO's penalty on long rows.

  Args:
    config: of the run.
    rewards: f32[Q, G], the scores.
    rows: what was scored.
  """
  penalty = advantages.overlong_penalty(
    rows.lengths,
    config.sampling.max_completion_len,
    config.algorithm.overlong_len,
  )
  return (rewards + penalty).astype(np.float32)


def find_kl(
  config: ml_collections.ConfigDict,
  rows: batches.Rollouts,
  ref_logprobs: np.ndarray,
) -> np.ndarray:
  """Returns f32[Q, G, C], estimates of the KL between the distribution that
  sampled and the reference, 0 behind rows.

  Args:
    config: of the run.
    rows: what was sampled.
    ref_logprobs: f32[Q, G, C], of the reference policy.
  """
  kl = losses.estimate_kl(
    config.algorithm.kl_estimator, rows.logprobs, ref_logprobs
  )
  return np.where(rows.mask, kl, 0.0)


def assign(
  config: ml_collections.ConfigDict,
  rewards: np.ndarray,
  verified: np.ndarray,
  rows: batches.Rollouts,
  penalty: np.ndarray | None = None,
  values: np.ndarray | None = None,
) -> Credit:
  """Returns what each row counts.

  Args:
    config: of the run.
    rewards: f32[Q, G], shaped.
    verified: f32[Q, G], the verifier's scores; 1 is right.
    rows: what they are of.
    penalty: f32[Q, G, C], what each token takes away from the reward.
    values: f32[Q, G, C], of the critic, if algorithm.baseline is one.
  """
  algorithm, sizes = config.algorithm, config_lib.sizes(config)
  by_token = returns = of_all = None
  if penalty is None:
    penalty = np.zeros(rows.tokens.shape)
  total = rewards - penalty.sum(-1)
  if algorithm.loss == 'supervised':
    # Rejection sampling: learn the right answers by heart.
    gain = (verified == 1).astype(np.float32)
    keep = gain > 0
  elif algorithm.loss == 'dpo':
    gain = losses.find_pairs(total).astype(np.float32)
    keep = gain != 0
  else:
    if algorithm.baseline == 'critic' or is_plus_plus(algorithm):
      by_token, returns = _look_ahead(config, rewards, penalty, rows, values)
      gain, size = by_token.sum(-1) / rows.lengths, np.abs(by_token).max(-1)
    elif algorithm.filter == 'max_variance':
      num = algorithm.filter_rows // sizes.num_questions
      gain = size = _compare(config, total, filtering.most_varied(total, num))
      if algorithm.report_cosine:
        of_all = _compare(config, total)
    else:
      gain = size = _compare(config, total)
    # Of all processes, so that a budget is the whole step's.
    keep = filtering.select(
      sharding.gather_hosts(size).reshape(-1, size.shape[1]),
      sizes.filter_threshold,
      rule=algorithm.filter,
      most=algorithm.filter_rows,
    ).reshape(-1, *size.shape)[jax.process_index()]
  masked = 0
  if algorithm.mask_truncated:
    masked = int((keep & rows.truncated).sum())
    keep = keep & ~rows.truncated
  weight, counted = losses.row_weights(
    algorithm.normalizer, rows.lengths, config.sampling.max_completion_len
  )
  if algorithm.loss == 'dpo':  # a sum over tokens, a mean over pairs
    weight, counted = np.ones_like(weight), keep / 2
  if algorithm.denominator == 'kept':
    counted = counted * keep
  num = sharding.sum_over_hosts({'all': counted.sum()})['all']
  weight = weight / max(num, 1.0)
  return Credit(gain, keep, weight, masked, by_token, returns, of_all)


def is_plus_plus(algorithm: ml_collections.ConfigDict) -> bool:
  """Returns whether tokens count what comes from them on, standardised over all
  tokens of a step: REINFORCE++, arXiv 2501.03262, equations 6 and 7."""
  return algorithm.baseline == 'none' and algorithm.scale == 'batch'


def _compare(config, rewards, among=None):
  """Returns f32[Q, G], advantages over the other rows of a group, or those
  `among` them."""
  algorithm = config.algorithm
  return advantages.find_advantages(
    rewards,
    baseline=algorithm.baseline,
    scale=algorithm.scale,
    among=among,
    sum_over_hosts=sharding.sum_over_hosts,
  )


def _look_ahead(config, rewards, penalty, rows, values):
  """Returns f32[Q, G, C], advantages of tokens, and with a critic's values its
  returns. A row's reward comes with its last token.

  Without values a token's advantage is what comes from it on: REINFORCE++'s.
  """
  algorithm = config.algorithm
  is_last = np.arange(rows.tokens.shape[-1]) == rows.lengths[..., None] - 1
  gains, returns = advantages.estimate_gae(
    np.where(is_last, rewards[..., None], 0.0) - penalty,
    np.zeros(penalty.shape) if values is None else values,
    rows.lengths,
    discount=algorithm.discount,
    decay=algorithm.gae_lambda,
  )
  if algorithm.scale == 'batch':
    gains = advantages.standardize(gains, rows.mask, sharding.sum_over_hosts)
  return gains, None if values is None else returns
