"""From scores to what each row counts in the loss.

  1. `shape_rewards` adds to the scores what the config asks for: a penalty on
     long rows, and on rows that are far from the reference policy.
  2. `assign` compares rows with others, and chooses those to learn from.

Its arrays are of this process's rows; sums go over all processes.
"""

import dataclasses

import ml_collections
import numpy as np

from dash_jax import batches, sharding
from dash_jax import config as config_lib
from dash_jax.learning import advantages, filtering, losses


@dataclasses.dataclass(frozen=True)
class Credit:
  """What each row counts.

  Attributes:
    gain: f32[Q, G], advantages; for DPO what `losses.find_pairs` finds.
    keep: bool[Q, G], the rows to learn from.
    weight: f32[Q, G], what each token of a row counts in the loss, its
      denominator included.
    masked: rows that are left out since they were truncated.
  """

  gain: np.ndarray
  keep: np.ndarray
  weight: np.ndarray
  masked: int


def shape_rewards(
  config: ml_collections.ConfigDict,
  rewards: np.ndarray,
  rows: batches.Rollouts,
  ref_logprobs: np.ndarray | None,
  kl_scale: float,
) -> tuple[np.ndarray, float]:
  """Returns f32[Q, G], the rewards that advantages are made of, and the sum of
  the KL estimates that were taken away.

      r + overlong penalty - kl_coef * sum over tokens of the KL estimate

  The KL is between the distribution that sampled and the reference.

  Args:
    config: of the run.
    rewards: f32[Q, G], the scores.
    rows: what was scored.
    ref_logprobs: f32[Q, G, C], of the reference policy, 0 behind rows; None
      where algorithm.kl_in is 'loss' or there is no KL.
    kl_scale: what algorithm.kl_coef is multiplied by.
  """
  algorithm = config.algorithm
  shaped = rewards + advantages.overlong_penalty(
    rows.lengths, config.sampling.max_completion_len, algorithm.overlong_len
  )
  total = np.zeros(rewards.shape)
  if ref_logprobs is not None:
    kl = losses.estimate_kl(algorithm.kl_estimator, rows.logprobs, ref_logprobs)
    total = np.where(rows.mask, kl, 0.0).sum(-1)
    shaped = shaped - kl_scale * algorithm.kl_coef * total
  return shaped.astype(np.float32), float(total.sum())


def assign(
  config: ml_collections.ConfigDict, rewards: np.ndarray, rows: batches.Rollouts
) -> Credit:
  """Returns what each row counts.

  Args:
    config: of the run.
    rewards: f32[Q, G], shaped.
    rows: what they are of.
  """
  algorithm, sizes = config.algorithm, config_lib.sizes(config)
  if algorithm.loss == 'supervised':
    # Rejection sampling: learn the right answers by heart.
    gain = (rewards >= 1).astype(np.float32)
    keep = gain > 0
  elif algorithm.loss == 'dpo':
    gain = losses.find_pairs(rewards).astype(np.float32)
    keep = gain != 0
  else:
    among = None
    if algorithm.filter == 'max_variance':
      num = algorithm.filter_rows // sizes.num_questions
      among = filtering.most_varied(rewards, num)
    gain = advantages.find_advantages(
      rewards,
      baseline=algorithm.baseline,
      scale=algorithm.scale,
      among=among,
      sum_over_hosts=sharding.sum_over_hosts,
    )
    keep = filtering.select(
      gain,
      sizes.filter_threshold,
      rule=algorithm.filter,
      most=algorithm.filter_rows * len(rewards) // sizes.num_questions,
    )
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
  total = sharding.sum_over_hosts({'all': counted.sum()})['all']
  return Credit(gain, keep, weight / max(total, 1.0), masked)
