"""Refuses configs that cannot run, with errors that say what would.

  1. `check` sees the fields alone, before anything is loaded or compiled.
  2. `check_mesh`, `check_num_questions` and `check_model_on_mesh` follow as devices,
     questions and model become known.

Every error names the field, what is wrong, and a value that would do.
"""

import math
import re

import ml_collections

from dash_jax import algorithm_checks, refusals, terms
from dash_jax import config as config_lib
from dash_jax.data import chat, questions
from dash_jax.learning import (
  advantages,
  filtering,
  losses,
  optim,
  reference,
)
from dash_jax.model import kernels, llama, lora, presets
from dash_jax.rewards import answers
from dash_jax.sampling import decoding

ALGORITHMS = ('dash', 'grpo', 'sft')
TOKENIZERS = ('trained', 'sentencepiece', 'gguf', 'huggingface', 'tiktoken')
DTYPES = ('float32', 'bfloat16')
AUTO = config_lib.AUTO
_DEFAULT = config_lib.default()


def _check_fields(config):
  """Every section and field is a known one, and no known one is missing."""
  known = _DEFAULT
  for section in known:
    refusals.require(section in config, f'config has no section {section!r}')
  for section, fields in config.items():
    refusals.require(
      section in known,
      f'config.{section} is unknown: sections are {", ".join(known)}',
    )
    if section == 'seed':
      continue
    refusals.require(
      isinstance(fields, ml_collections.ConfigDict),
      f'config.{section}={fields!r}: must be a section, with the fields'
      f' {", ".join(known[section])}',
    )
    for name in fields:
      refusals.require(
        name in known[section],
        f'config.{section}.{name} is unknown: fields of {section} are'
        f' {", ".join(known[section])}',
      )
    for name, value in known[section].items():
      refusals.require(name in fields, f'config.{section}.{name} is missing')
      given = fields[name]
      if (section, name) in _INT_OR_AUTO:
        refusals.require(
          given == AUTO or type(given) is int,
          f'{section}.{name}={_show(given)}: must be an int or {AUTO!r}',
        )
        value = given
      _check_kind(f'{section}.{name}', given, value)


def _check_kind(field: str, given, default):
  """Refuses a value of another type than the default's, or one that a run could
  not hold or hand on."""
  shown = _show(given)
  if isinstance(default, float):
    fits = isinstance(given, int | float) and not isinstance(given, bool)
    fits = fits and math.isfinite(given)
    refusals.require(fits, f'{field}={shown}: must be of type finite float')
    size = abs(given)
    refusals.require(
      size == 0 or _LEAST_FLOAT <= size <= _MOST_FLOAT,
      f'{field}={shown}: must be 0, or {_LEAST_FLOAT} to {_MOST_FLOAT} in size,'
      ' which 32 bits hold',
    )
    return
  kind = type(default)
  refusals.require(
    type(given) is kind, f'{field}={shown}: must be of type {kind.__name__}'
  )
  if kind is int:
    refusals.require(
      abs(given) <= _MOST_INT,
      f'{field}={shown}: must be at most {_MOST_INT} in size, which 32 bits hold',
    )
  if kind is str:
    refusals.require(
      '\0' not in given and not _SURROGATE.search(given),
      f'{field}={shown}: must be text, without NUL and half surrogate pairs',
    )


def _show(value) -> str:
  """Returns a value on one line; a section's own form has many."""
  return ' '.join(repr(value).split())


_MOST_INT = 2**31 - 1
_MOST_WORKERS = 1_024
_MOST_SECONDS = 1_000_000  # clocks of the system know an end too
_FAILURE_S = 5  # beyond mesh.silent_s, until all have heard of a failure
_LEAST_FLOAT, _MOST_FLOAT = 1.2e-38, 3.4e38
_SURROGATE = re.compile('[\ud800-\udfff]')
_INT_OR_AUTO = {('sampling', 'batch_size'), ('optim', 'minibatch_size')}

_AT_LEAST = {
  'algorithm.batch_size': 1,
  'algorithm.group_size': 2,
  'algorithm.num_samples': 0,
  'algorithm.sft_steps': 0,
  'algorithm.kl_coef': 0,
  'algorithm.clip_low': 0,
  'algorithm.clip_high': 0,
  'algorithm.clip_dual': 0,
  'algorithm.importance_cap': 0,
  'algorithm.entropy_coef': 0,
  'algorithm.filter_rows': 0,
  'algorithm.refill_rounds': 0,
  'algorithm.overlong_len': 0,
  'algorithm.kl_target': 0,
  'algorithm.reference_every': 0,
  'algorithm.reference_decay': 0,
  'algorithm.discount': 0,
  'algorithm.gae_lambda': 0,
  'algorithm.num_epochs': 1,
  'algorithm.num_updates': 1,
  'algorithm.max_staleness': 0,
  'mesh.sampler_devices': 0,
  'sampling.batch_size': 1,
  'sampling.max_completion_len': 1,
  'sampling.min_completion_len': 0,
  'sampling.top_k': 0,
  'sampling.min_p': 0,
  'optim.minibatch_size': 1,
  'optim.sft_batch_size': 1,
  'optim.warmup_steps': 0,
  'optim.sft_warmup_steps': 0,
  'optim.max_grad_norm': 0,
  'optim.weight_decay': 0,
  'optim.learning_rate': 0,
  'optim.grpo_learning_rate': 0,
  'optim.sft_learning_rate': 0,
  'lora.rank': 0,
  'data.max_prompt_len': 1,
  'data.num_train': 0,
  'reward.num_workers': 1,
  'eval.num_questions': 1,
  'eval.every_samples': 1,
  'eval.temperature': 0,
  'checkpoint.every_samples': 1,
  'checkpoint.keep': 1,
  'checkpoint.keep_every_samples': 0,
  'checkpoint.keep_best': 0,
  'log.rollouts_every_samples': 1,
}


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot run; needs no devices and loads nothing.

  Raises:
    ValueError: names the field, what is wrong, and what would be valid.
  """
  _check_fields(config)
  _check_seed(config.seed)
  _check_bounds(config)
  _check_choices(config)
  _check_sampling(config)
  _check_seconds(config)
  _check_weights(config.model)
  _check_lora(config.lora)
  _check_optim(config.optim)
  terms.check(config)
  _check_data(config.data, config.reward.function)
  algorithm_checks.check(config)


def _check_bounds(config):
  for field, least in _AT_LEAST.items():
    section, name = field.split('.')
    value = config[section][name]
    if value == AUTO:
      continue
    refusals.require(
      value >= least, f'{field}={value}: must be at least {least}'
    )
  refusals.require(
    config.reward.num_workers <= _MOST_WORKERS,
    f'reward.num_workers={config.reward.num_workers}: must be at most'
    f' {_MOST_WORKERS} processes',
  )


def _check_choices(config):
  for field, choices in {
    'model.preset': (AUTO, *presets.PRESETS),
    'model.dtype': DTYPES,
    'model.param_dtype': DTYPES,
    'data.source': questions.SOURCES,
    'data.tokenizer': TOKENIZERS,
    'data.too_long': ('error', 'drop'),
    'sampling.attention': kernels.ATTENTION,
    'reward.style': answers.STYLES,
    'algorithm.name': ALGORITHMS,
    'algorithm.baseline': advantages.BASELINES,
    'algorithm.scale': advantages.SCALES,
    'algorithm.loss': losses.LOSSES,
    'algorithm.normalizer': losses.NORMALIZERS,
    'algorithm.filter': filtering.RULES,
    'algorithm.kl_estimator': losses.KL_ESTIMATORS,
    'algorithm.kl_in': ('loss', 'reward'),
    'algorithm.kl_schedule': reference.SCHEDULES,
    'algorithm.reference': reference.MOVES,
    'algorithm.denominator': losses.DENOMINATORS,
    'optim.name': optim.NAMES,
    'optim.moments': optim.MOMENTS,
    'optim.nonfinite': ('stop', 'skip'),
    'optim.schedule': optim.SCHEDULES,
    'model.remat': llama.REMAT,
  }.items():
    section, name = field.split('.')
    refusals.check_choice(field, config[section][name], choices)


def _check_sampling(config):
  refusals.require(
    config.sampling.temperature >= decoding.LEAST_TEMPERATURE,
    f'sampling.temperature={config.sampling.temperature}: must be above 0, at'
    f' least {decoding.LEAST_TEMPERATURE}: the rows of a group must differ'
    ' (eval.temperature may be 0)',
  )
  refusals.require(
    config.eval.temperature == 0
    or config.eval.temperature >= decoding.LEAST_TEMPERATURE,
    f'eval.temperature={config.eval.temperature}: must be 0 (the likeliest'
    f' token), or at least {decoding.LEAST_TEMPERATURE}',
  )
  for section in (config.sampling, config.eval):
    name = 'sampling' if section is config.sampling else 'eval'
    refusals.require(
      0 < section.top_p <= 1,
      f'{name}.top_p={section.top_p}: must be in (0, 1]',
    )
  sampling = config.sampling
  refusals.require(
    not (sampling.quantize_cache and sampling.attention == kernels.PALLAS),
    "sampling.attention='pallas' reads no quantised cache: take 'plain', or"
    ' sampling.quantize_cache=False',
  )
  refusals.require(
    sampling.min_p <= 1,
    f'sampling.min_p={sampling.min_p}: must be in [0, 1]',
  )
  refusals.require(
    sampling.min_completion_len <= sampling.max_completion_len,
    f'sampling.min_completion_len={sampling.min_completion_len}: must be at most'
    f' sampling.max_completion_len={sampling.max_completion_len}',
  )
  refusals.require(
    config.algorithm.overlong_len <= sampling.max_completion_len,
    f'algorithm.overlong_len={config.algorithm.overlong_len}: must be at most'
    f' sampling.max_completion_len={sampling.max_completion_len}',
  )


def _check_seconds(config):
  for section, field, least in (
    # Processes hear of each other once a second.
    ('mesh', 'silent_s', 3),
    ('mesh', 'stall_s', 3),
    ('reward', 'timeout_s', 0.001),
  ):
    value = config[section][field]
    refusals.require(
      least <= value <= _MOST_SECONDS,
      f'{section}.{field}={value}: must be from {least} to {_MOST_SECONDS}'
      ' seconds',
    )
  refusals.require(
    config.mesh.stall_s > config.mesh.silent_s + _FAILURE_S,
    f'mesh.stall_s={config.mesh.stall_s}: must be more than mesh.silent_s='
    f'{config.mesh.silent_s} and {_FAILURE_S} s, so that a process that fails is'
    ' not taken for a run that has stopped',
  )


def _check_weights(model):
  kind, _, path = model.weights.partition(':')
  refusals.require(
    kind in ('', 'gguf', 'hf', 'hub', 'meta') and bool(path) == bool(kind),
    f"model.weights={model.weights!r}: must be '' (random), 'hf:FOLDER',"
    " 'hub:ORG/NAME', 'meta:FOLDER', 'gguf:PATH' or 'gguf:package:NAME'",
  )
  refusals.require(
    model.preset != AUTO or kind,
    "model.preset='auto' takes the architecture of model.weights, which is"
    f" ''; name one of {', '.join(presets.PRESETS)}",
  )


def _check_lora(section):
  refusals.require(
    section.alpha > 0, f'lora.alpha={section.alpha}: must be above 0'
  )
  refusals.require(
    0 <= section.dropout < 1,
    f'lora.dropout={section.dropout}: must be in [0, 1)',
  )
  targets = section.targets.split(',')
  refusals.require(
    set(targets) <= lora.TARGETS.keys() and len(set(targets)) == len(targets),
    f'lora.targets={section.targets!r}: must be some of'
    f' {",".join(lora.TARGETS)}, each once, with commas between them',
  )


def _check_optim(optim_section):
  name, moments = optim_section.name, optim_section.moments
  refusals.require(
    moments == 'float32' or name in ('adamw', 'lion'),
    f'optim.moments={moments!r} with optim.name={name!r}: only adamw and lion'
    " keep moments in fewer bits; take 'float32'",
  )


def _check_data(data, function):
  needs_path = data.tokenizer != 'trained'
  refusals.require(
    bool(data.tokenizer_path) == needs_path,
    f'data.tokenizer={data.tokenizer!r} '
    + (
      'needs data.tokenizer_path, the file to read'
      if needs_path
      else 'is trained on the spot: data.tokenizer_path must be empty'
    ),
  )
  try:
    chat.check_template(data.template)
  except ValueError as error:
    raise ValueError(f'data.template: {error}') from error
  refusals.require(
    not data.system or data.template == chat.CHAT,
    f'data.system={data.system!r} with data.template={data.template!r}, which'
    f' has no place for it: take {chat.CHAT!r}, or leave it empty',
  )
  refusals.require(
    data.source != 'jsonl' or '{split}' in data.path,
    f'data.path={data.path!r}: must hold {{split}}, which becomes train and'
    ' test: one file for both would test on what was trained',
  )
  refusals.require(
    data.source != 'reasoning_gym' or data.path.strip(),
    "data.path='': must name a task of data.source='reasoning_gym', as chain_sum",
  )
  refusals.require(
    data.source != 'reasoning_gym' or function != _DEFAULT.reward.function,
    f"reward.function={function!r} with data.source='reasoning_gym': its tasks"
    " have scorers of their own; take 'dash_jax.rewards.procedural:score_one'",
  )


def _check_seed(seed):
  refusals.require(
    type(seed) is int and 0 <= seed <= _MOST_INT,
    f'seed={_show(seed)}: must be an integer from 0 to {_MOST_INT}',
  )


def check_mesh(
  config, num_shards: int, num_sampling: int, num_hosts: int
) -> None:
  """Refuses row counts that the mesh cannot split.

  Args:
    config: a checked config.
    num_shards: ways that rows to learn from are split, mesh.data * mesh.fsdp.
    num_sampling: ways that rows that are sampled are.
    num_hosts: processes.

  Raises:
    ValueError: as `check`.
  """
  run = config_lib.sizes(config)
  refusals.require(
    num_shards % num_hosts == 0,
    f'mesh.data * mesh.fsdp = {num_shards} shards of rows cannot be shared out'
    f' over {num_hosts} processes: take a multiple of {num_hosts}',
  )
  rows = {
    'optim.sft_batch_size': config.optim.sft_batch_size,
  }
  minibatch_size = config.optim.minibatch_size
  if minibatch_size != AUTO and (
    config.algorithm.name == 'dash'
    or minibatch_size < config.optim.sft_batch_size
  ):
    rows['optim.minibatch_size'] = minibatch_size
  if config.algorithm.name == 'grpo':
    refusals.require(
      run.minibatch_size >= num_shards,
      f'algorithm.group_size={run.minibatch_size}: fewer rows than the'
      f' {num_shards} shards that learn (mesh.data * mesh.fsdp): take at least'
      f' {num_shards}, or give devices to mesh.tensor',
    )
  for field, value in rows.items():
    refusals.require(
      value % num_shards == 0,
      f'{field}={value} does not divide over {num_shards} shards of rows'
      f' (mesh.data * mesh.fsdp): take {refusals.name_multiples(num_shards, value)}',
    )
  if config.algorithm.name == 'sft':
    return
  G = config.algorithm.group_size
  fields = 'mesh.data * mesh.fsdp'
  if config.mesh.sampler_devices:
    fields = 'mesh.sampler_devices of all processes / mesh.tensor'
  refusals.require(
    run.num_questions % num_sampling == 0,
    f'{run.num_questions} questions per step'
    f' (algorithm.name={config.algorithm.name!r}) do not divide over'
    f' {num_sampling} shards of rows ({fields}): '
    + (
      "'grpo' samples one question at a time, so set both to 1, with"
      ' mesh.tensor=-1 for several devices or one device shown to jax'
      if config.algorithm.name == 'grpo'
      else 'take algorithm.batch_size='
      f'{refusals.name_multiples(num_sampling * G, run.batch_size)}'
    ),
  )
  own, updates = run.num_questions // num_hosts, config.algorithm.num_updates
  refusals.require(
    own % updates == 0,
    f'algorithm.num_updates={updates}: must divide the {own} groups that each of'
    f' {num_hosts} processes has in a step',
  )
  at_once = config.sampling.batch_size
  if at_once != AUTO:
    refusals.require(
      at_once % (num_sampling * G) == 0,
      f'sampling.batch_size={at_once} does not divide over {num_sampling} shards of'
      f' rows ({fields}) in groups of {G}: take'
      f' {refusals.name_multiples(num_sampling * G, at_once)},'
      f' or {AUTO!r}',
    )


def check_num_questions(config, num_train: int) -> None:
  """Refuses steps that ask more questions than there are.

  Raises:
    ValueError: as `check`.
  """
  asked = {}
  if config.algorithm.sft_steps:
    asked['optim.sft_batch_size'] = config.optim.sft_batch_size
  if config.algorithm.name != 'sft':
    run = config_lib.sizes(config)
    field = f'algorithm.batch_size={run.batch_size} in groups of'
    field += f' {config.algorithm.group_size}'
    asked[field] = run.num_questions
  for field, num in asked.items():
    refusals.require(
      num <= num_train,
      f'{field} asks {num} questions a step, but only {num_train} fit'
      ' data.num_train and the token limits: raise these or lower it',
    )


def check_model_on_mesh(architecture, tensor: int) -> None:
  """Refuses a mesh.tensor that does not divide the model's dimensions.

  Raises:
    ValueError: as `check`.
  """
  for name in ('num_heads', 'num_kv_heads', 'ffw_dim', 'vocab_size'):
    size = getattr(architecture, name)
    divisors = [n for n in range(1, 65) if size % n == 0]
    refusals.require(
      size % tensor == 0,
      f"mesh.tensor={tensor} does not divide the model's {name}={size}: take"
      f' one of {", ".join(map(str, divisors))}',
    )
