"""The checks of a run's numbers: for each alarm what it sees, and what to change.

Each function of CHECKS takes what was `Seen`, and returns None, or what is wrong
and advice that names a field. Thresholds stand above with their reasons.
"""

import dataclasses
import math
import statistics

import ml_collections

from dash_jax import config as config_lib

# Steps that a check looks at, at least; an odd number, so that a median is one of
# them.
STEPS = 9

# Of the rows with an advantage, the least share that is worth sampling for.
_KEPT_SHARE = 0.1
# Below, less than a third of the squared gradient is left.
_COSINE = 0.5
# Nats a token at which all replies to a question begin to be one; runs that have
# learned their task get there too, so it counts where rewards are poor.
_ENTROPY = 0.05
_ENTROPY_SHARE = 0.25
_LEN_SHARE = 1 / 3
_EMPTY_LEN = 1.5  # tokens; the stop token is one
# What rewards and accuracy must have risen by to excuse either.
_RISE = 0.05
_HALF = 0.5
# Of rows that are truncated.
_SOME_TRUNCATED = 0.25
_ALL_TRUNCATED = 0.95
# Of rows that have an advantage: one group in a hundred.
_SIGNAL_SHARE = 0.01
# Nats: bfloat16 is off by 0.01 to 0.02, four steps of staleness by 0.04. At the
# second, every other token would be clipped.
_GAP, _GAP_GROWTH = 0.1, 3.0
_WRONG_GAP = 0.5
# A row whose score failed counts as a wrong one.
_FAILED_SHARE = 0.02
# 'auto' fills a device to 0.92.
_DEVICE_SHARE, _HOST_SHARE = 0.97, 0.9
_COMPILING_STEPS = 3
_NONFINITE_STEPS = 3
# Nats a token. Runs that reach their best have 0.01 to 0.15 to a reference, and
# are up to 0.5 from their start.
_KL = 1.0


def is_finite(row: dict) -> bool:
  """Returns whether a step's loss and gradient are finite."""
  return math.isfinite(row['loss']) and math.isfinite(row['grad_norm'])


@dataclasses.dataclass(frozen=True)
class Seen:
  """What checks look at.

  Attributes:
    config: of the run.
    all: the newest rows, of any phase.
    first, last: the first and the newest rows of RL.
    is_full: whether there are enough of them.
    evals: the newest two in RL.
    best_eval: that with the highest accuracy, SFT's included.
    has_stopped: whether a reply has ever ended by itself.
  """

  config: ml_collections.ConfigDict
  all: list[dict]
  first: list[dict]
  last: list[dict]
  is_full: bool
  evals: list[dict]
  best_eval: dict | None
  has_stopped: bool

  def compare(self, key: str, *, learned: bool = False) -> tuple[float, float]:
    """Returns the medians of a metric over the first and the newest steps; nan
    where most of them have none.

    Args:
      key: of the metric.
      learned: look at steps alone that learned from a row: in others the
        learner's metrics are 0.
    """

    def find(rows):
      return _median(
        row.get(key, math.nan)
        if row['trained_tokens'] or not learned
        else math.nan
        for row in rows
      )

    return find(self.first), find(self.last)

  def has_risen(self, key: str) -> bool:
    first, last = self.compare(key)
    return last > first + _RISE

  @property
  def is_poor(self) -> bool:
    """Whether rewards have not risen, or less than half of the replies are
    right: who has learned the task may be sure of it, and far from the start.
    """
    _, right = self.compare('accuracy')
    if right >= 1 - _RISE:  # maybe before the first steps had passed
      return False
    return not self.has_risen('reward_mean') or 0 < right < _HALF


def _median(values):
  """Returns the median of those that are finite; nan if most are not."""
  values = list(values)
  finite = [value for value in values if math.isfinite(value)]
  return (
    statistics.median(finite) if 2 * len(finite) > len(values) else math.nan
  )


def _check_filter(seen):
  algorithm = seen.config.algorithm
  num_rows = config_lib.sizes(seen.config).batch_size
  kept = _median(
    (row['kept_rows'] + row['masked_rows'])
    / (num_rows * (1 - row['zero_signal_fraction']))
    if row['zero_signal_fraction'] < 1
    else math.nan
    for row in seen.last
  )
  if seen.is_full and kept < _KEPT_SHARE:
    field = 'filter_threshold'
    if algorithm.filter in ('largest', 'max_variance') and not (
      algorithm.filter_threshold > 0
    ):
      field = 'filter_rows'
    change = 'Lower' if field == 'filter_threshold' else 'Raise'
    return (
      f'the filter keeps {kept:.1%} of the rows that carry signal, in the'
      f' median of {len(seen.last)} steps',
      f'{change} algorithm.{field}, which is {algorithm[field]}',
    )
  _, cosine = seen.compare('gradient_cosine', learned=True)
  if seen.is_full and cosine < _COSINE:
    return (
      f'the gradient of the rows that are kept points elsewhere than that of'
      f' all: their cosine is {cosine:.2f}',
      f'Lower algorithm.filter_threshold, which is'
      f' {algorithm.filter_threshold}, or keep more rows by'
      f' algorithm.filter_rows',
    )
  return None


def _check_entropy(seen):
  first, last = seen.compare('entropy', learned=True)
  _, right = seen.compare('accuracy')
  if not (last < _ENTROPY and last < _ENTROPY_SHARE * first and seen.is_poor):
    return None
  return (
    f'the entropy has collapsed from {first:.3f} to {last:.3f} nats a token, and'
    f' {right:.0%} of the replies are right',
    'Set algorithm.entropy_coef or algorithm.kl_coef, or lower'
    ' optim.learning_rate',
  )


def _check_length(seen):
  first, last = seen.compare('completion_len_mean')
  before, truncated = seen.compare('truncated_fraction')
  if not seen.is_full:
    return None
  if last <= _EMPTY_LEN:
    return (
      f'replies are {last:.1f} tokens long: hardly more than the one that ends'
      ' them',
      'Set sampling.min_completion_len, and see that the reward asks for an'
      ' answer',
    )
  if last < _LEN_SHARE * first and not seen.has_risen('reward_mean'):
    return (
      f'replies have shrunk from {first:.1f} to {last:.1f} tokens, and rewards'
      ' have not risen',
      'Lower optim.learning_rate or reward.length_weight, or set'
      ' algorithm.kl_coef; algorithm.normalizer=sequence prefers short replies'
      ' that are right',
    )
  if before <= _SOME_TRUNCATED and _HALF <= truncated < _ALL_TRUNCATED:
    return (
      f'replies have grown from {first:.1f} to {last:.1f} tokens, and'
      f' {truncated:.0%} are truncated, where {before:.0%} were',
      'Set algorithm.overlong_len or reward.length_weight, or raise'
      ' sampling.max_completion_len',
    )
  return None


def _check_truncated(seen):
  _, truncated = seen.compare('truncated_fraction')
  if not (seen.is_full and seen.has_stopped and truncated >= _ALL_TRUNCATED):
    return None
  return (
    f'{truncated:.0%} of the replies are truncated at'
    f' {seen.config.sampling.max_completion_len} tokens, so that they have no'
    ' answer',
    'Raise sampling.max_completion_len, or teach replies to be shorter by'
    ' algorithm.overlong_len or reward.length_weight',
  )


def _check_stop(seen):
  if not seen.is_full or seen.has_stopped:
    return None
  sampling = seen.config.sampling
  cause = f'no reply has ended by itself in {seen.last[-1]["step"]} steps'
  if sampling.min_completion_len >= sampling.max_completion_len:
    return (
      f'{cause}: no stop token may come before token'
      f' {sampling.min_completion_len + 1}, and there are'
      f' {sampling.max_completion_len}',
      'Lower sampling.min_completion_len',
    )
  return (
    cause,
    "See that data.template is the model's own ('chat' for an instructed"
    ' model), teach the end by algorithm.sft_steps, end replies by'
    ' data.stop_text, or raise sampling.max_completion_len, which is'
    f' {sampling.max_completion_len}',
  )


def _check_signal(seen):
  if not seen.is_full:
    return None
  signal = 1 - statistics.fmean(
    row['zero_signal_fraction'] for row in seen.last
  )
  if signal > _SIGNAL_SHARE:
    return None
  _, reward = seen.compare('reward_mean')
  _, right = seen.compare('accuracy')
  cause = (
    f'in {len(seen.last)} steps {signal:.1%} of the rows had an advantage: all'
    f' replies to a question earn the same, {reward:.3g} in the mean'
  )
  if right >= 1 - _RISE:
    return cause, 'The questions are learned: stop, or take harder ones by data'
  return (
    cause,
    'See in rollouts/ whether reward.function and reward.style find the answers'
    ' there; else begin with algorithm.sft_steps, take easier questions, or raise'
    ' algorithm.group_size or sampling.temperature',
  )


def _check_gap(seen):
  first, last = seen.compare('logprob_gap', learned=True)
  if seen.is_full and last > _WRONG_GAP:
    return (
      f'sampler and learner differ by {last:.2g} nats a token',
      'Turn off sampling.quantize_weights and sampling.quantize_cache, lower'
      ' algorithm.max_staleness, or set model.dtype=float32, one after the'
      ' other, to see which it is',
    )
  if not (last > _GAP and last > _GAP_GROWTH * first):
    return None
  return (
    f'what sampler and learner differ by has grown from {first:.2g} to'
    f' {last:.2g} nats a token',
    'Set algorithm.importance_cap=2, lower optim.learning_rate or'
    ' algorithm.max_staleness, or take model.dtype=float32',
  )


def _check_rewards(seen):
  def share(key):
    return _median(row[key] / row['sampled_rows'] for row in seen.last)

  late, failed = share('reward_timeouts'), share('reward_errors')
  if not seen.is_full or max(late, failed) < _FAILED_SHARE:
    return None
  if late >= failed:
    return (
      f'the scores of {late:.0%} of the rows come too late and count 0',
      'Raise reward.timeout_s, which is'
      f' {seen.config.reward.timeout_s}, or reward.num_workers',
    )
  return (
    f'{failed:.0%} of the rows have no score: the reward function raises, ends'
    ' its worker or returns no finite number, which counts 0',
    f'Call {seen.config.reward.function} on the replies in rollouts/, and mend'
    ' it: the same command goes on',
  )


def _check_memory(seen):
  if len(seen.all) < STEPS:
    return None
  device, host = (
    _median(row.get(key, math.nan) for row in seen.all)
    for key in ('memory_fraction', 'host_memory_fraction')
  )
  if device >= _DEVICE_SHARE:
    return (
      f'{device:.0%} of the memory of a device has been in use at once',
      'Lower optim.minibatch_size or sampling.batch_size, or set'
      ' model.remat=layer',
    )
  if host >= _HOST_SHARE:
    return (
      f'the process holds {host:.0%} of the memory of its machine',
      'If it grows from step to step, call again: the same command goes on.'
      ' Else lower optim.minibatch_size and sampling.batch_size if it learns on'
      ' the CPU, or data.num_train',
    )
  return None


def _check_compiles(seen):
  rising = [
    now['step']
    for before, now in zip(seen.all, seen.all[1:], strict=False)
    # A process that goes on counts anew, and a phase compiles its own.
    if before['phase'] == now['phase'] and now['compiles'] > before['compiles']
  ]
  # The first of a phase or a process has every reason to.
  if len(rising) < _COMPILING_STEPS:
    return None
  return (
    f'{len(rising)} of the last {len(seen.all) - 1} steps compiled a program,'
    f' the last of them step {rising[-1]}: time is lost, and memory',
    'This is a defect of dash_jax, or of a change to it: some shape differs from'
    ' step to step; JAX_LOG_COMPILES=1 names the program',
  )


def _check_nonfinite(seen):
  steps = [row['step'] for row in seen.all if not is_finite(row)]
  if len(steps) < _NONFINITE_STEPS:
    return None
  return (
    f'{len(steps)} of the last {len(seen.all)} steps had a loss or a gradient'
    f' that is not finite, the last of them step {steps[-1]}',
    'Lower optim.learning_rate or optim.max_grad_norm, or take'
    ' model.dtype=float32',
  )


def _check_drift(seen):
  """With a KL term, how far the policy is from its reference, by every step.
  Without one, how far from its start, by the evaluations' `drift_kl`, where rewards
  do not speak for it; and rewards that held-out answers do not bear out."""
  algorithm = seen.config.algorithm
  if algorithm.kl_coef:
    _, kl = seen.compare('kl', learned=True)
    if not (seen.is_full and abs(kl) > _KL):
      return None
    return (
      f'the policy is {kl:.2g} nats a token from its reference',
      f'Raise algorithm.kl_coef, which is {algorithm.kl_coef}, or lower'
      ' optim.learning_rate',
    )
  if not seen.evals:
    return None
  now, best = seen.evals[-1], seen.best_eval
  # Runs of before have none.
  gone = now.get('drift_kl', math.nan)
  advice = 'Set algorithm.kl_coef, or lower optim.learning_rate'
  first, last = seen.compare('reward_mean')
  if gone > _KL and seen.is_poor:
    return (
      f'the policy is {gone:.2g} nats a token from where RL began, without a KL'
      f' term, and rewards went from {first:.3g} to {last:.3g}',
      advice,
    )
  # Two in a row, so that it is more than chance.
  if len(seen.evals) == 2 and all(
    # Where all are right the interval ends at 1, but for rounding.
    max(row['accuracy'], row['accuracy_high']) < best['accuracy']
    for row in seen.evals
  ):
    if last < first:
      return None
    if seen.config.reward.model_weight:
      advice = f'Lower reward.model_weight, which is exploited. {advice}'
    return (
      f'held-out accuracy has fallen from {best["accuracy"]:.1%} at step'
      f' {best["step"]} to {now["accuracy"]:.1%}, while rewards went from'
      f' {first:.3g} to {last:.3g}: without a KL term the policy drifts',
      advice,
    )
  return None


# By the name of the alarm.
CHECKS = {
  'filter': _check_filter,
  'entropy': _check_entropy,
  'length': _check_length,
  'drift': _check_drift,
  'truncated': _check_truncated,
  'no_stop': _check_stop,
  'no_signal': _check_signal,
  'logprob_gap': _check_gap,
  'rewards': _check_rewards,
  'memory': _check_memory,
  'compiles': _check_compiles,
  'nonfinite': _check_nonfinite,
}
