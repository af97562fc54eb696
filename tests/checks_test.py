"""Every config that cannot run is refused by an error that helps."""

import importlib
import pathlib
import pkgutil
import re

import pytest

import experiments
from dash_jax import checks
from dash_jax import config as config_lib
from dash_jax.model import presets


def change(**fields):
  """Returns the default config with 'section__field' changed, unchecked."""
  config = config_lib.default()
  for name, value in fields.items():
    section, _, field = name.partition('__')
    with config.ignore_type(), config.unlocked():
      config[section][field] = value
  return config


def test_the_default_is_valid():
  checks.check(config_lib.default())


def test_every_experiment_is_valid():
  names = [m.name for m in pkgutil.iter_modules(experiments.__path__)]
  found = []
  for name in names:
    text = pathlib.Path(experiments.__path__[0], f'{name}.py')
    if text.exists() and 'def get_config(' in text.read_text():
      module = importlib.import_module(f'experiments.{name}')
      checks.check(module.get_config())
      found.append(name)
  assert 'quickstart' in found


# What is changed, the field that the message must name, and what it must offer.
BAD = [
  # Types.
  ({'sampling__temperature': 'hot'}, 'sampling.temperature', 'float'),
  ({'algorithm__batch_size': 256.0}, 'algorithm.batch_size', 'int'),
  ({'algorithm__batch_size': True}, 'algorithm.batch_size', 'int'),
  ({'algorithm__mask_truncated': 1}, 'algorithm.mask_truncated', 'bool'),
  ({'data__path': None}, 'data.path', 'str'),
  # Fields that are not there.
  ({'sampling__temprature': 1.0}, 'config.sampling.temprature', 'temperature'),
  ({'optim__lr': 1.0}, 'config.optim.lr', 'learning_rate'),
  # Choices.
  ({'model__preset': 'llama9'}, 'model.preset', "'llama3_8b'"),
  ({'model__dtype': 'float8'}, 'model.dtype', "'bfloat16'"),
  ({'model__param_dtype': 'int8'}, 'model.param_dtype', "'float32'"),
  ({'data__source': 'gsm9k'}, 'data.source', "'gsm8k'"),
  ({'data__tokenizer': 'bpe'}, 'data.tokenizer', "'huggingface'"),
  ({'data__too_long': 'cut'}, 'data.too_long', "'drop'"),
  ({'reward__style': 'gsm9k'}, 'reward.style', "'boxed'"),
  ({'algorithm__name': 'ppo9'}, 'algorithm.name', "'dash'"),
  ({'algorithm__normalizer': 'mean'}, 'algorithm.normalizer', "'sequence'"),
  ({'algorithm__denominator': 'all'}, 'algorithm.denominator', "'sampled'"),
  ({'optim__schedule': 'step'}, 'optim.schedule', "'cosine'"),
  ({'model__preset': 'auto'}, 'model.preset', 'name one of quickstart'),
  ({'lora__targets': 'q_proj,wq'}, 'lora.targets', 'o_proj'),
  ({'lora__targets': 'q_proj,q_proj'}, 'lora.targets', 'each once'),
  ({'lora__targets': ''}, 'lora.targets', 'q_proj'),
  # Ranges.
  ({'lora__rank': -1}, 'lora.rank', 'at least 0'),
  ({'lora__alpha': 0.0}, 'lora.alpha', 'above 0'),
  ({'lora__dropout': 1.0}, 'lora.dropout', '[0, 1)'),
  ({'sampling__temperature': 0.0}, 'sampling.temperature', 'above 0'),
  ({'sampling__temperature': -1.0}, 'sampling.temperature', 'above 0'),
  ({'sampling__top_p': 0.0}, 'sampling.top_p', '(0, 1]'),
  ({'eval__top_p': 1.5}, 'eval.top_p', '(0, 1]'),
  ({'sampling__top_k': -1}, 'sampling.top_k', 'at least 0'),
  ({'sampling__max_completion_len': 0}, 'max_completion_len', 'at least 1'),
  ({'data__max_prompt_len': 0}, 'data.max_prompt_len', 'at least 1'),
  ({'data__num_train': -5}, 'data.num_train', 'at least 0'),
  ({'algorithm__group_size': 1}, 'algorithm.group_size', 'at least 2'),
  ({'algorithm__kl_coef': -0.1}, 'algorithm.kl_coef', 'at least 0'),
  ({'algorithm__filter_threshold': -1.0}, 'filter_threshold', 'at least 0'),
  ({'optim__minibatch_size': 0}, 'optim.minibatch_size', 'at least 1'),
  ({'optim__learning_rate': -1.0}, 'optim.learning_rate', 'at least 0'),
  ({'eval__num_questions': 0}, 'eval.num_questions', 'at least 1'),
  ({'checkpoint__keep': 0}, 'checkpoint.keep', 'at least 1'),
  ({'reward__timeout_s': 0.0}, 'reward.timeout_s', 'above 0'),
  ({'reward__num_workers': 0}, 'reward.num_workers', 'at least 1'),
  ({'reward__timeout_s': float('inf')}, 'reward.timeout_s', 'finite'),
  ({'mesh__silent_s': 1.0}, 'mesh.silent_s', '3 seconds or more'),
  ({'mesh__stall_s': 1.0}, 'mesh.stall_s', '3 seconds or more'),
  ({'optim__learning_rate': float('nan')}, 'optim.learning_rate', 'finite'),
  ({'reward__function': 'score'}, 'reward.function', 'my_module:score'),
  ({'algorithm__clip_low': 1.5}, 'algorithm.clip_low', 'at most 1'),
  ({'data__template': 'Q: '}, 'data.template', '{question}'),
  ({'data__template': '{prompt}'}, 'data.template', '{question}'),
  ({'data__template': '{question} {0}'}, 'data.template', '{question}'),
  ({'data__template': '{question} {'}, 'data.template', 'no format string'),
  ({'data__template': '{question.a}'}, 'data.template', '{question}'),
  ({'data__template': '{question}' * 2}, 'data.template', 'once'),
  (
    {'data__source': 'jsonl', 'data__path': 'all.jsonl'},
    'data.path',
    '{split}',
  ),
  # Fields that do not fit each other.
  ({'algorithm__batch_size': 100}, 'algorithm.batch_size', 'take 96 or 104'),
  ({'algorithm__batch_size': 4}, 'algorithm.batch_size', 'take 8 or 16'),
  ({'algorithm__group_size': 7}, 'algorithm.group_size', 'take 252 or 259'),
  ({'algorithm__num_samples': 255}, 'algorithm.num_samples', 'least 256'),
  ({'algorithm__num_samples': 1000}, 'algorithm.num_samples', '768 or 1024'),
  ({'optim__warmup_steps': 80}, 'optim.warmup_steps', 'below the 80 updates'),
  ({'algorithm__sft_steps': 20}, 'optim.sft_warmup_steps', 'sft_steps=20'),
  ({'algorithm__loss': 'ppo'}, 'algorithm.loss', "'gspo'"),
  ({'algorithm__baseline': 'mean'}, 'algorithm.baseline', "'group_mean'"),
  ({'algorithm__scale': 'max'}, 'algorithm.scale', "'batch'"),
  ({'algorithm__filter': 'all'}, 'algorithm.filter', "'largest'"),
  ({'algorithm__filter': 'largest'}, 'algorithm.filter_rows', 'need it'),
  ({'algorithm__filter_rows': 8}, 'algorithm.filter_rows', 'others take 0'),
  (
    {'algorithm__filter': 'max_variance', 'algorithm__filter_rows': 40},
    'algorithm.filter_rows',
    'take 32 or 64',
  ),
  (
    {'algorithm__filter': 'largest', 'algorithm__filter_rows': 300},
    'algorithm.filter_rows',
    'at most the 256 rows',
  ),
  ({'algorithm__num_updates': 3}, 'algorithm.num_updates', 'the 32 groups'),
  ({'algorithm__num_epochs': 0}, 'algorithm.num_epochs', 'at least 1'),
  ({'algorithm__clip_dual': 0.5}, 'algorithm.clip_dual', 'above 1'),
  (
    {'algorithm__loss': 'dpo', 'algorithm__mask_truncated': True},
    'algorithm.mask_truncated',
    'take False',
  ),
  ({'algorithm__dpo_beta': 0.0}, 'algorithm.dpo_beta', 'above 0'),
  ({'algorithm__dpo_beta': 0.5}, 'algorithm.dpo_beta', 'no use for it'),
  ({'algorithm__importance_cap': 0.1}, 'importance_cap', 'at least 1'),
  (
    {
      'algorithm__baseline': 'none',
      'algorithm__scale': 'batch',
      'algorithm__filter': 'max_variance',
      'algorithm__filter_rows': 64,
    },
    'algorithm.filter',
    'another filter',
  ),
  (
    {
      'algorithm__name': 'grpo',
      'algorithm__filter': 'largest',
      'algorithm__filter_rows': 4,
    },
    'algorithm.filter',
    "take 'advantage'",
  ),
  (
    {'algorithm__loss': 'supervised', 'algorithm__overlong_len': 8},
    'algorithm.overlong_len',
    'take 0',
  ),
  (
    {'algorithm__loss': 'gspo', 'algorithm__importance_cap': 2.0},
    'algorithm.importance_cap',
    'take 0.0',
  ),
  (
    {'algorithm__loss': 'supervised', 'algorithm__report_cosine': True},
    'algorithm.report_cosine',
    'take False',
  ),
  (
    {'algorithm__loss': 'reinforce', 'algorithm__clip_dual': 3.0},
    'algorithm.clip_dual',
    'no use for it',
  ),
  ({'algorithm__baseline': 'none'}, 'algorithm.scale', "'batch'"),
  ({'algorithm__gae_lambda': 0.9}, 'algorithm.gae_lambda', "only 'critic'"),
  ({'algorithm__kl_in': 'reward'}, 'algorithm.kl_in', "take 'loss'"),
  (
    {'algorithm__filter': 'max_variance', 'algorithm__filter_rows': 32},
    'algorithm.filter_rows',
    'take 64 or more',
  ),
  (
    {'algorithm__name': 'grpo', 'algorithm__filter_threshold': 0.5},
    'algorithm.filter_threshold',
    'take 0.0',
  ),
  (
    {'algorithm__scale': 'mean', 'algorithm__overlong_len': 3},
    'algorithm.overlong_len',
    "'std'",
  ),
  (
    {
      'algorithm__name': 'sft',
      'algorithm__sft_steps': 100,
      'optim__name': 'muon',
      'optim__moments': 'int8',
    },
    'optim.moments',
    "'float32'",
  ),
  ({'algorithm__kl_in': 'both'}, 'algorithm.kl_in', "'reward'"),
  ({'algorithm__kl_estimator': 'k4'}, 'algorithm.kl_estimator', "'k3'"),
  ({'algorithm__overlong_len': 65}, 'algorithm.overlong_len', 'at most'),
  ({'reward__format_weight': -1.0}, 'reward.format_weight', 'at least 0'),
  ({'reward__extra': 'a:f'}, 'reward.extra', 'a weight above 0, or neither'),
  ({'reward__extra_weight': 1.0}, 'reward.extra', "'my_module:score'"),
  ({'reward__model_weight': 1.0}, 'reward.model', "'hf:FOLDER'"),
  (
    {'reward__extra': 'score', 'reward__extra_weight': 1.0},
    'reward.extra',
    "'my_module:score'",
  ),
  (
    {'reward__model': 'FOLDER', 'reward__model_weight': 1.0},
    'reward.model',
    "'hf:FOLDER'",
  ),
  ({'reward__weight': 0.0}, 'reward.weight', 'reward.length_weight'),
  (
    {'reward__length_weight': 0.1, 'algorithm__scale': 'mean'},
    'reward.length_weight',
    "'std'",
  ),
  ({'optim__minibatch_size': 257}, 'optim.minibatch_size', 'at most 256'),
  (
    {'algorithm__name': 'sft', 'algorithm__sft_steps': 0},
    'algorithm.sft_steps',
    'at least 1',
  ),
  ({'model__weights': 'model.gguf'}, 'model.weights', "'gguf:PATH'"),
  ({'model__weights': 'gguf:'}, 'model.weights', "'gguf:PATH'"),
  ({'data__tokenizer': 'gguf'}, 'data.tokenizer', 'data.tokenizer_path'),
  ({'data__tokenizer_path': 'x.model'}, 'data.tokenizer', 'must be empty'),
]


@pytest.mark.parametrize(('fields', 'named', 'offered'), BAD)
def test_a_bad_config_is_refused_by_name_and_with_a_way_out(
  fields, named, offered
):
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    checks.check(change(**fields))
  message = str(caught.value)
  assert offered in message
  assert '\n' not in message


def test_whole_sections_are_checked_too():
  config = config_lib.default()
  with config.unlocked():
    config.samplings = config.sampling
  with pytest.raises(ValueError, match=r'config\.samplings.*sampling'):
    checks.check(config)
  config = config_lib.default()
  with config.unlocked():
    del config.eval
  with pytest.raises(ValueError, match="no section 'eval'"):
    checks.check(config)
  config = config_lib.default()
  with config.unlocked():
    del config.optim.schedule
  with pytest.raises(ValueError, match=r'config\.optim\.schedule is missing'):
    checks.check(config)


@pytest.mark.parametrize('seed', ['one', -1, 1.5])
def test_a_bad_seed_is_refused(seed):
  config = config_lib.default()
  with config.ignore_type():
    config.seed = seed
  with pytest.raises(ValueError, match=r'seed=.*must be'):
    checks.check(config)


def test_what_an_offer_says_is_valid():
  """The sizes that the messages above offer pass."""
  for fields in (
    {'algorithm__batch_size': 96, 'algorithm__num_samples': 960},
    {'algorithm__batch_size': 104, 'algorithm__num_samples': 1040},
    {
      'algorithm__group_size': 7,
      'algorithm__batch_size': 252,
      'algorithm__num_samples': 2520,
    },
    {'algorithm__num_samples': 256},
    {'algorithm__num_samples': 1024},
    {'optim__minibatch_size': 256},
    {'optim__warmup_steps': 79},
    {'algorithm__name': 'sft', 'algorithm__sft_steps': 21},
  ):
    checks.check(change(**fields))


def test_sizes_of_dash():
  found = config_lib.sizes(
    change(
      algorithm__num_samples=960,
      algorithm__batch_size=96,
      algorithm__filter_threshold=0.25,
      algorithm__num_epochs=2,
      algorithm__num_updates=3,
    )
  )
  assert found == config_lib.Sizes(
    batch_size=96,
    num_questions=12,
    minibatch_size=32,
    rl_steps=10,
    updates=6,
    learning_rate=1e-4,
    filter_threshold=0.25,
  )


def test_grpo_spends_the_same_samples_a_group_a_step():
  """The baseline ignores the large batch, its minibatches and its filter."""
  found = config_lib.sizes(
    change(
      algorithm__name='grpo',
      algorithm__num_samples=1000,
      algorithm__filter_threshold=0.25,
    )
  )
  assert found == config_lib.Sizes(
    batch_size=8,
    num_questions=1,
    minibatch_size=8,
    rl_steps=125,
    updates=1,
    learning_rate=3e-5,
    filter_threshold=-1.0,
  )


def test_sft_has_no_rl_steps():
  found = config_lib.sizes(
    change(algorithm__name='sft', algorithm__sft_steps=5)
  )
  assert found.rl_steps == 0


@pytest.mark.parametrize(
  ('fields', 'num_shards', 'num_hosts', 'named', 'offered'),
  [
    ({'sampling__batch_size': 96}, 8, 1, 'sampling.batch_size', '64 or 128'),
    ({'optim__sft_batch_size': 4}, 8, 1, 'sft_batch_size', 'take 8 or 16'),
    ({'optim__minibatch_size': 12}, 8, 1, 'minibatch_size', 'take 8 or 16'),
    # 20 questions on 8 shards: 16 or 24 questions of 8 samples.
    ({'algorithm__batch_size': 160}, 8, 1, 'batch_size', '=128 or 192'),
    (
      {'algorithm__name': 'grpo'},
      2,
      1,
      "'grpo'",
      'set both to 1, with mesh.tensor=-1',
    ),
    # Each process scores rows of its own.
    ({}, 1, 4, 'mesh.data * mesh.fsdp', 'a multiple of 4'),
    # 32 questions, of which each process has 8.
    ({'algorithm__num_updates': 16}, 8, 4, 'num_updates', 'the 8 groups'),
  ],
)
def test_rows_that_the_mesh_cannot_split_are_refused(
  fields, num_shards, num_hosts, named, offered
):
  config = change(**fields)
  checks.check(config)
  with pytest.raises(ValueError, match=re.escape(named)) as caught:
    checks.check_mesh(config, num_shards, num_shards, num_hosts)
  assert offered in str(caught.value)


def test_rows_that_the_mesh_can_split_pass():
  for fields, num_shards in (
    ({}, 8),
    ({'algorithm__name': 'grpo'}, 1),
    ({'algorithm__batch_size': 192}, 8),
    # SFT samples nothing, so the sampler's sizes cannot be wrong.
    (
      {
        'algorithm__name': 'sft',
        'algorithm__sft_steps': 21,
        'algorithm__batch_size': 8,
      },
      8,
    ),
  ):
    checks.check_mesh(change(**fields), num_shards, num_shards, 1)


@pytest.mark.parametrize(
  ('preset', 'tensor', 'named'),
  [
    ('llama3_8b', 16, 'num_kv_heads=8'),
    ('smollm2_135m', 2, 'num_heads=9'),
    ('quickstart', 4, 'num_kv_heads=2'),
  ],
)
def test_a_model_that_tensor_cannot_split_is_refused(preset, tensor, named):
  architecture = presets.PRESETS[preset]
  with pytest.raises(ValueError, match=f'mesh.tensor={tensor}.*{named}.*1, '):
    checks.check_model_on_mesh(architecture, tensor)
  checks.check_model_on_mesh(architecture, 1)


def test_a_missing_file_is_named(tmp_path):
  checks.check_file('data.path', str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r'data\.path=.*gone\.jsonl'):
    checks.check_file('data.path', str(tmp_path / 'gone.jsonl'))
