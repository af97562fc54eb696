"""Every field of a run, its default, and the check that it can run.

An experiment's `get_config()` starts from `default()` and changes fields;
`--config.section.field=value` changes more. `check` then refuses what cannot
run, before anything is loaded or compiled, with an error that names the field
and a value that would do.
"""

import dataclasses
import math
import os
import re

import ml_collections

from dash_jax.data import chat, questions
from dash_jax.learning import losses, optim
from dash_jax.model import presets
from dash_jax.rewards import answers

ALGORITHMS = ('dash', 'grpo', 'sft')
TOKENIZERS = ('trained', 'sentencepiece', 'gguf', 'huggingface', 'tiktoken')
DTYPES = ('float32', 'bfloat16')


def default() -> ml_collections.ConfigDict:
  """Returns every field with its default; unknown fields cannot be added."""
  section = ml_collections.ConfigDict
  return ml_collections.ConfigDict(
    {
      'seed': 0,
      'model': section(
        {
          'preset': 'quickstart',
          # '' starts from random weights; 'gguf:PATH' reads a GGUF file,
          # 'hf:FOLDER' a Hugging Face folder. PATH may be 'package:NAME'.
          'weights': '',
          'dtype': 'float32',  # activations, and the sampler's weights
          'param_dtype': 'float32',  # the weights that are trained
          'remat': False,
        }
      ),
      'mesh': section(
        {
          'data': 1,
          'fsdp': -1,  # -1: the devices that the others leave
          'tensor': 1,
          'multi_host': False,  # call jax.distributed.initialize
        }
      ),
      'data': section(
        {
          'source': 'word_problems',
          'path': '',
          'data_dir': '',
          'prompt_field': 'question',
          'answer_field': 'answer',
          'solution_field': '',
          'num_train': 20_000,  # 0 takes all there are
          'tokenizer': 'trained',  # 'trained': sentencepiece, on the spot
          'tokenizer_path': '',
          'template': '{question}\n',  # 'chat': the model's own template
          'system': '',
          'stop_text': '',  # also end a completion at this one-token text
          'max_prompt_len': 64,
          'too_long': 'error',  # or 'drop': leave such questions out, counted
        }
      ),
      'sampling': section(
        {
          'batch_size': 256,  # rows of one sampling call, all groups together
          'max_completion_len': 64,
          'temperature': 1.0,
          'top_p': 1.0,
          'top_k': 0,
        }
      ),
      'reward': section(
        {
          'style': 'gsm8k',
          'function': 'dash_jax.rewards.answers:score_one',
          'timeout_s': 5.0,
          'num_workers': 1,
        }
      ),
      'algorithm': section(
        {
          'name': 'dash',
          'group_size': 8,
          'num_samples': 20_480,  # completions sampled by the whole run
          'normalize_std': True,
          'normalizer': 'constant',
          'denominator': 'sampled',
          'filter_threshold': 0.0,
          'kl_coef': 0.0,
          'clip_low': 0.2,
          'clip_high': 0.2,
          'sft_steps': 0,  # a supervised warm start before sampling begins
        }
      ),
      'optim': section(
        {
          'minibatch_size': 32,
          'learning_rate': 1e-4,
          'grpo_learning_rate': 3e-5,  # the baseline takes many small steps
          'schedule': 'linear',
          'warmup_steps': 0,
          'weight_decay': 0.0,
          'max_grad_norm': 1.0,
          'sft_learning_rate': 1e-3,
          'sft_batch_size': 32,
          'sft_warmup_steps': 20,
        }
      ),
      'eval': section(
        {
          'num_questions': 256,
          'batch_size': 256,
          'every_samples': 5_120,
          'temperature': 0.0,
          'top_p': 1.0,
        }
      ),
      'checkpoint': section({'every_samples': 5_120, 'keep': 2}),
      'log': section({'rollouts_every_samples': 2_560}),
    }
  )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Row counts that follow from a config.

  Attributes:
    batch_size: rows sampled per optimizer step, B.
    num_questions: questions per optimizer step, Q.
    minibatch_size: rows per gradient accumulation step, b.
    rl_steps: optimizer steps of the RL phase.
    learning_rate: of the RL phase.
    filter_threshold: -1 keeps every row.
  """

  batch_size: int
  num_questions: int
  minibatch_size: int
  rl_steps: int
  learning_rate: float
  filter_threshold: float


def sizes(config: ml_collections.ConfigDict) -> Sizes:
  """Returns the sizes of the algorithm that `config` names.

  'dash' samples `sampling.batch_size` rows at once, filters them, and learns
  from minibatches. 'grpo' is the paper's baseline: every optimizer step
  samples one question's group, and learns from all of it. Both sample
  `algorithm.num_samples` completions.
  """
  algorithm = config.algorithm
  if algorithm.name == 'grpo':
    batch_size = minibatch_size = algorithm.group_size
    learning_rate, threshold = config.optim.grpo_learning_rate, -1.0
  else:
    batch_size = config.sampling.batch_size
    minibatch_size = config.optim.minibatch_size
    learning_rate = config.optim.learning_rate
    threshold = algorithm.filter_threshold
  steps = 0 if algorithm.name == 'sft' else algorithm.num_samples // batch_size
  return Sizes(
    batch_size=batch_size,
    num_questions=batch_size // algorithm.group_size,
    minibatch_size=minibatch_size,
    rl_steps=steps,
    learning_rate=learning_rate,
    filter_threshold=threshold,
  )


def _require(ok: bool, message: str):
  if not ok:
    raise ValueError(message)


def _check_choice(config, field: str, choices):
  section, name = field.split('.')
  value = config[section][name]
  _require(
    value in choices,
    f'{field}={value!r}: must be one of {", ".join(map(repr, choices))}',
  )


def _check_fields(config):
  """Every section and field is a known one, and no known one is missing."""
  known = default()
  for section in known:
    _require(section in config, f'config has no section {section!r}')
  for section, fields in config.items():
    _require(
      section in known,
      f'config.{section} is unknown: sections are {", ".join(known)}',
    )
    if section == 'seed':
      continue
    for name in fields:
      _require(
        name in known[section],
        f'config.{section}.{name} is unknown: fields of {section} are'
        f' {", ".join(known[section])}',
      )
    for name, value in known[section].items():
      _require(name in fields, f'config.{section}.{name} is missing')
      given = fields[name]
      fits = isinstance(given, type(value)) and (
        isinstance(value, bool) or not isinstance(given, bool)
      )
      if isinstance(value, float):
        fits = isinstance(given, int | float) and not isinstance(given, bool)
        fits = fits and math.isfinite(given)
      kind = (
        'finite float' if isinstance(value, float) else type(value).__name__
      )
      _require(fits, f'{section}.{name}={given!r}: must be of type {kind}')


_AT_LEAST = {
  'algorithm.group_size': 2,
  'algorithm.num_samples': 0,
  'algorithm.sft_steps': 0,
  'algorithm.kl_coef': 0,
  'algorithm.clip_low': 0,
  'algorithm.clip_high': 0,
  'sampling.batch_size': 1,
  'sampling.max_completion_len': 1,
  'sampling.top_k': 0,
  'optim.minibatch_size': 1,
  'optim.sft_batch_size': 1,
  'optim.warmup_steps': 0,
  'optim.sft_warmup_steps': 0,
  'optim.max_grad_norm': 0,
  'optim.weight_decay': 0,
  'optim.learning_rate': 0,
  'optim.grpo_learning_rate': 0,
  'optim.sft_learning_rate': 0,
  'data.max_prompt_len': 1,
  'data.num_train': 0,
  'reward.num_workers': 1,
  'eval.num_questions': 1,
  'eval.batch_size': 1,
  'eval.every_samples': 1,
  'eval.temperature': 0,
  'checkpoint.every_samples': 1,
  'checkpoint.keep': 1,
  'log.rollouts_every_samples': 1,
}


def _multiples(unit: int, near: int) -> str:
  below = max(near // unit, 1) * unit
  return f'{below} or {below + unit}'


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that cannot run; needs no devices and loads nothing.

  Raises:
    ValueError: names the field, what is wrong, and what would be valid.
  """
  _check_fields(config)
  _check_seed(config.seed)
  for field, least in _AT_LEAST.items():
    section, name = field.split('.')
    value = config[section][name]
    _require(value >= least, f'{field}={value}: must be at least {least}')
  for field, choices in {
    'model.preset': presets.PRESETS,
    'model.dtype': DTYPES,
    'model.param_dtype': DTYPES,
    'data.source': questions.SOURCES,
    'data.tokenizer': TOKENIZERS,
    'data.too_long': ('error', 'drop'),
    'reward.style': answers.STYLES,
    'algorithm.name': ALGORITHMS,
    'algorithm.normalizer': losses.NORMALIZERS,
    'algorithm.denominator': losses.DENOMINATORS,
    'optim.schedule': optim.SCHEDULES,
  }.items():
    _check_choice(config, field, choices)
  _require(
    config.sampling.temperature > 0,
    f'sampling.temperature={config.sampling.temperature}: must be above 0:'
    ' the rows of a group must differ (eval.temperature may be 0)',
  )
  for section in (config.sampling, config.eval):
    name = 'sampling' if section is config.sampling else 'eval'
    _require(
      0 < section.top_p <= 1,
      f'{name}.top_p={section.top_p}: must be in (0, 1]',
    )
  _require(
    config.algorithm.clip_low <= 1,
    f'algorithm.clip_low={config.algorithm.clip_low}: must be at most 1, since'
    ' a ratio of probabilities is never below 0',
  )
  _require(
    config.reward.timeout_s > 0,
    f'reward.timeout_s={config.reward.timeout_s}: must be above 0 seconds',
  )
  _require(
    re.fullmatch(r'[\w.]+:\w+', config.reward.function),
    f'reward.function={config.reward.function!r}: must name a module and a'
    " function in it, as in 'my_module:score'",
  )
  _require(
    config.algorithm.filter_threshold >= 0,
    f'algorithm.filter_threshold={config.algorithm.filter_threshold}: must be'
    ' at least 0 (0 drops the rows whose group agrees)',
  )
  kind, _, path = config.model.weights.partition(':')
  _require(
    kind in ('', 'gguf', 'hf') and bool(path) == bool(kind),
    f"model.weights={config.model.weights!r}: must be '' (random), 'gguf:PATH',"
    " 'gguf:package:NAME' or 'hf:FOLDER'",
  )
  needs_path = config.data.tokenizer != 'trained'
  _require(
    bool(config.data.tokenizer_path) == needs_path,
    f'data.tokenizer={config.data.tokenizer!r} '
    + (
      'needs data.tokenizer_path, the file to read'
      if needs_path
      else 'is trained on the spot: data.tokenizer_path must be empty'
    ),
  )
  _check_data(config.data)
  _check_sizes(config)


def _check_data(data):
  try:
    chat.check_template(data.template)
  except ValueError as error:
    raise ValueError(f'data.template: {error}') from error
  _require(
    data.source != 'jsonl' or '{split}' in data.path,
    f'data.path={data.path!r}: must hold {{split}}, which becomes train and'
    ' test: one file for both would test on what was trained',
  )


def _check_seed(seed):
  is_int = isinstance(seed, int) and not isinstance(seed, bool)
  _require(
    is_int and 0 <= seed < 2**31,
    f'seed={seed!r}: must be an integer from 0 to {2**31 - 1}',
  )


def _check_sizes(config):
  algorithm = config.algorithm
  G, B = algorithm.group_size, config.sampling.batch_size
  _require(
    not algorithm.sft_steps
    or config.optim.sft_warmup_steps < algorithm.sft_steps,
    f'optim.sft_warmup_steps={config.optim.sft_warmup_steps}: must be below'
    f' algorithm.sft_steps={algorithm.sft_steps}',
  )
  if algorithm.name == 'sft':
    _require(
      algorithm.sft_steps > 0,
      "algorithm.sft_steps=0 with algorithm.name='sft': must be at least 1",
    )
    return
  _require(
    algorithm.name == 'grpo' or B % G == 0,
    f'sampling.batch_size={B} does not divide by algorithm.group_size={G}:'
    f' take {_multiples(G, B)}',
  )
  run = sizes(config)
  _require(
    run.rl_steps >= 1,
    f'algorithm.num_samples={algorithm.num_samples} is less than one step of'
    f' {run.batch_size} rows: take at least {run.batch_size}',
  )
  _require(
    algorithm.num_samples % run.batch_size == 0,
    f'algorithm.num_samples={algorithm.num_samples} is not a whole number of'
    f' steps of {run.batch_size} rows: take'
    f' {_multiples(run.batch_size, algorithm.num_samples)}',
  )
  _require(
    config.optim.warmup_steps < run.rl_steps,
    f'optim.warmup_steps={config.optim.warmup_steps}: must be below the'
    f' {run.rl_steps} steps of algorithm.num_samples={algorithm.num_samples}',
  )
  _require(
    run.minibatch_size <= run.batch_size,
    f'optim.minibatch_size={run.minibatch_size} is more than the'
    f' {run.batch_size} rows of a step: take at most {run.batch_size}',
  )


def check_mesh(config, num_shards: int, num_hosts: int) -> None:
  """Refuses row counts and a model that the mesh cannot split.

  Args:
    config: a checked config.
    num_shards: ways that rows are split, mesh.data * mesh.fsdp.
    num_hosts: processes.

  Raises:
    ValueError: as `check`.
  """
  run = sizes(config)
  _require(
    num_shards % num_hosts == 0,
    f'mesh.data * mesh.fsdp = {num_shards} shards of rows cannot be shared out'
    f' over {num_hosts} processes: take a multiple of {num_hosts}',
  )
  rows = {
    'eval.batch_size': config.eval.batch_size,
    'optim.sft_batch_size': config.optim.sft_batch_size,
  }
  if config.algorithm.name == 'dash':
    rows['optim.minibatch_size'] = run.minibatch_size
  for field, value in rows.items():
    _require(
      value % num_shards == 0,
      f'{field}={value} does not divide over {num_shards} shards of rows'
      f' (mesh.data * mesh.fsdp): take {_multiples(num_shards, value)}',
    )
  if config.algorithm.name == 'sft':
    return
  G = config.algorithm.group_size
  _require(
    run.num_questions % num_shards == 0,
    f'{run.num_questions} questions per step'
    f' (algorithm.name={config.algorithm.name!r}) do not divide over {num_shards}'
    ' shards of rows (mesh.data * mesh.fsdp): '
    + (
      "'grpo' samples one question at a time, so set both to 1, with"
      ' mesh.tensor=-1 for several devices or one device shown to jax'
      if config.algorithm.name == 'grpo'
      else f'take sampling.batch_size={_multiples(num_shards * G, run.batch_size)}'
    ),
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
    run = sizes(config)
    field = f'sampling.batch_size={run.batch_size} in groups of'
    field += f' {config.algorithm.group_size}'
    asked[field] = run.num_questions
  for field, num in asked.items():
    _require(
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
    _require(
      size % tensor == 0,
      f"mesh.tensor={tensor} does not divide the model's {name}={size}: take"
      f' one of {", ".join(map(str, divisors))}',
    )


def check_file(field: str, path: str) -> None:
  """Refuses a path that does not exist.

  Raises:
    FileNotFoundError: names the field and the path.
  """
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'{field}={path!r}: no such file or folder (looked from {os.getcwd()})'
    )
