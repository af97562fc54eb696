"""Refuses algorithms whose fields do not go together, and sizes that make no whole
steps. `checks.check` has seen each field by itself."""

import ml_collections

from dash_jax import config as config_lib
from dash_jax import credit, refusals

_DEFAULT = config_lib.default().algorithm


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses an algorithm that cannot run, or fields that it would not use.

  Raises:
    ValueError: names the field, what is wrong, and what would be valid.
  """
  algorithm = config.algorithm
  G, B = algorithm.group_size, algorithm.batch_size
  refusals.require(
    algorithm.clip_low <= 1,
    f'algorithm.clip_low={algorithm.clip_low}: must be at most 1, since'
    ' a ratio of probabilities is never below 0',
  )
  refusals.require(
    algorithm.filter_threshold >= 0,
    f'algorithm.filter_threshold={algorithm.filter_threshold}: must be'
    ' at least 0 (0 drops the rows whose group agrees)',
  )
  refusals.require(
    not algorithm.sft_steps
    or config.optim.sft_warmup_steps < algorithm.sft_steps,
    f'optim.sft_warmup_steps={config.optim.sft_warmup_steps}: must be below'
    f' algorithm.sft_steps={algorithm.sft_steps}',
  )
  if algorithm.name == 'sft':
    refusals.require(
      algorithm.sft_steps > 0,
      "algorithm.sft_steps=0 with algorithm.name='sft': must be at least 1",
    )
    return
  refusals.require(
    algorithm.name == 'grpo' or B % G == 0,
    f'algorithm.batch_size={B} does not divide by algorithm.group_size={G}:'
    f' take {refusals.name_multiples(G, B)}',
  )
  at_once = config.sampling.batch_size
  if at_once != config_lib.AUTO:
    refusals.require(
      at_once % G == 0,
      f'sampling.batch_size={at_once} does not divide by'
      f' algorithm.group_size={G}: take'
      f' {refusals.name_multiples(G, at_once)}, or {config_lib.AUTO!r}',
    )
  run = config_lib.sizes(config)
  _check_filter(algorithm, run)
  _check_loss(algorithm)
  _check_reference(algorithm)
  _check_critic(algorithm)
  corrects = 'importance_cap' not in _UNUSED[algorithm.loss]
  refusals.require(
    not algorithm.max_staleness or not corrects or algorithm.importance_cap,
    f'algorithm.max_staleness={algorithm.max_staleness} with'
    ' algorithm.importance_cap=0: rows of older weights need a bound on their'
    ' importance weights, such as 2.0',
  )
  refusals.require(
    run.rl_steps >= 1,
    f'algorithm.num_samples={algorithm.num_samples} is less than one step of'
    f' {run.batch_size} rows: take at least {run.batch_size}',
  )
  refusals.require(
    algorithm.num_samples % run.batch_size == 0,
    f'algorithm.num_samples={algorithm.num_samples} is not a whole number of'
    f' steps of {run.batch_size} rows: take'
    f' {refusals.name_multiples(run.batch_size, algorithm.num_samples)}',
  )
  refusals.require(
    config.optim.warmup_steps < run.rl_steps * run.updates,
    f'optim.warmup_steps={config.optim.warmup_steps}: must be below the'
    f' {run.rl_steps * run.updates} updates of'
    f' algorithm.num_samples={algorithm.num_samples}',
  )
  refusals.require(
    run.minibatch_size == config_lib.AUTO
    or run.minibatch_size <= run.batch_size,
    f'optim.minibatch_size={run.minibatch_size} is more than the'
    f' {run.batch_size} rows of a step: take at most {run.batch_size}',
  )


def _check_filter(algorithm, run):
  rule, most = algorithm.filter, algorithm.filter_rows
  num_questions = run.num_questions
  refusals.require(
    bool(most) == (rule in ('largest', 'max_variance')),
    f'algorithm.filter_rows={most} with algorithm.filter={rule!r}:'
    " 'largest' and 'max_variance' need it, others take 0",
  )
  refusals.require(
    rule != 'none' or algorithm.filter_threshold == 0,
    f'algorithm.filter_threshold={algorithm.filter_threshold} with'
    " algorithm.filter='none', which keeps every row: take 0.0",
  )
  refusals.require(
    most <= run.batch_size,
    f'algorithm.filter_rows={most}: must be at most the {run.batch_size} rows of'
    ' a step',
  )
  refusals.require(
    rule != 'max_variance' or most % num_questions == 0,
    f'algorithm.filter_rows={most}: must be a multiple of the'
    f' {num_questions} groups of a step, the same number of rows for each: take'
    f' {refusals.name_multiples(num_questions, most)}',
  )
  refusals.require(
    num_questions % algorithm.num_updates == 0,
    f'algorithm.num_updates={algorithm.num_updates}: must divide the'
    f' {num_questions} groups of a step',
  )
  refusals.require(
    rule != 'max_variance' or most > num_questions,
    f"algorithm.filter_rows={most} with algorithm.filter='max_variance' leaves"
    f' one row of each of the {num_questions} groups, with nothing to compare it'
    f' with: take {2 * num_questions} or more',
  )
  refusals.require(
    rule != 'max_variance' or not credit.is_plus_plus(algorithm),
    "algorithm.filter='max_variance' with algorithm.baseline='none' and"
    " algorithm.scale='batch', which compare no rows of a group: take another"
    ' filter',
  )
  if algorithm.name == 'grpo':
    for field, value in (('filter', 'advantage'), ('filter_threshold', 0.0)):
      refusals.require(
        algorithm[field] == value,
        f'algorithm.{field}={algorithm[field]!r} with algorithm.name='
        f"'grpo', which learns from every row: take {value!r}, or name dash",
      )


# What a loss has no use for, and so must be left as it is by default.
_COMPARING = ('baseline', 'scale', 'filter', 'filter_threshold', 'filter_rows')
_CLIPPING = ('clip_low', 'clip_high', 'clip_dual', 'importance_cap')
_UNUSED = {
  'clip': ('dpo_beta',),
  'gspo': ('dpo_beta', 'importance_cap'),
  'cispo': ('dpo_beta', 'clip_dual'),
  'reinforce': ('dpo_beta', 'clip_low', 'clip_high', 'clip_dual'),
  'supervised': (
    *_COMPARING,
    *_CLIPPING,
    'dpo_beta',
    'report_cosine',
    'kl_in',
    'overlong_len',
  ),
  'dpo': (
    *_COMPARING,
    *_CLIPPING,
    'normalizer',
    'denominator',
    'mask_truncated',
    'report_cosine',
  ),
}


def _check_loss(algorithm):
  refusals.require(
    algorithm.dpo_beta > 0,
    f'algorithm.dpo_beta={algorithm.dpo_beta}: must be above 0',
  )
  for field in _UNUSED[algorithm.loss]:
    refusals.require(
      algorithm[field] == _DEFAULT[field],
      f'algorithm.{field}={algorithm[field]!r} with'
      f' algorithm.loss={algorithm.loss!r}, which has no use for it: take'
      f' {_DEFAULT[field]!r}',
    )
  refusals.require(
    algorithm.clip_dual == 0 or algorithm.clip_dual > 1,
    f'algorithm.clip_dual={algorithm.clip_dual}: must be above 1, or 0 for none',
  )
  refusals.require(
    algorithm.importance_cap == 0 or algorithm.importance_cap >= 1,
    f'algorithm.importance_cap={algorithm.importance_cap}: must be at least 1,'
    ' or 0 for none',
  )
  refusals.require(
    algorithm.baseline != 'none' or algorithm.scale != 'std',
    "algorithm.scale='std' with algorithm.baseline='none' divides a reward by"
    " next to nothing where a group agrees: take 'none', 'mean' or 'batch'",
  )


def _check_reference(algorithm):
  needs = {
    'kl_target': ('kl_schedule', 'adaptive'),
    'reference_every': ('reference', 'periodic'),
    'reference_decay': ('reference', 'ema'),
  }
  for field, (chooser, choice) in needs.items():
    value, chosen = algorithm[field], algorithm[chooser]
    refusals.require(
      (value > 0) == (chosen == choice),
      f'algorithm.{field}={value} with algorithm.{chooser}={chosen!r}:'
      f' {choice!r} needs it above 0, others take 0',
    )
  refusals.require(
    algorithm.reference_decay < 1,
    f'algorithm.reference_decay={algorithm.reference_decay}: must be below 1;'
    " algorithm.reference='frozen' never moves",
  )
  refusals.require(
    algorithm.kl_coef > 0 or algorithm.kl_in == 'loss',
    f'algorithm.kl_in={algorithm.kl_in!r} with algorithm.kl_coef=0: set it, or'
    " take 'loss'",
  )
  refusals.require(
    algorithm.kl_coef == 0
    or algorithm.kl_in == 'reward'
    or algorithm.kl_estimator != 'k1',
    "algorithm.kl_estimator='k1' with algorithm.kl_in='loss': its gradient is 0"
    " in the mean, whatever the reference; take 'k2', 'k3' or"
    " algorithm.kl_in='reward'",
  )
  refusals.require(
    algorithm.kl_coef > 0 or algorithm.kl_schedule == 'constant',
    f'algorithm.kl_schedule={algorithm.kl_schedule!r} changes'
    ' algorithm.kl_coef=0: set it, or take the schedule constant',
  )
  refusals.require(
    algorithm.kl_coef > 0
    or algorithm.loss == 'dpo'
    or algorithm.reference == 'frozen',
    f'algorithm.reference={algorithm.reference!r} moves a reference policy that'
    " nothing reads: set algorithm.kl_coef, or take algorithm.loss='dpo'",
  )


def _check_critic(algorithm):
  for field in ('discount', 'gae_lambda'):
    refusals.require(
      algorithm[field] <= 1,
      f'algorithm.{field}={algorithm[field]}: must be in [0, 1]',
    )
  if algorithm.baseline != 'critic':
    fields = ['gae_lambda', 'value_coef']
    if not credit.is_plus_plus(algorithm):
      fields.append('discount')
    for field in fields:
      refusals.require(
        algorithm[field] == _DEFAULT[field],
        f'algorithm.{field}={algorithm[field]} with'
        f' algorithm.baseline={algorithm.baseline!r}, which has no use for it:'
        f' take {_DEFAULT[field]}',
      )
    return
  for field, choices in {
    'scale': ('none', 'batch'),
    'loss': ('clip', 'reinforce', 'gspo', 'cispo'),
    'filter': ('advantage', 'group', 'largest', 'none'),
  }.items():
    refusals.require(
      algorithm[field] in choices,
      f"algorithm.{field}={algorithm[field]!r} with algorithm.baseline='critic':"
      f' must be one of {", ".join(map(repr, choices))}',
    )
  refusals.require(
    algorithm.value_coef > 0,
    f'algorithm.value_coef={algorithm.value_coef}: must be above 0, or the critic'
    ' learns nothing',
  )
