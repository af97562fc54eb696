"""Configs that run pass, and those that do not fit devices, questions or models are
refused. What is refused of the fields alone is in bad_input/bad_config_test.py."""

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


def test_what_is_missing_is_named():
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


def test_what_an_offer_says_is_valid():
  """The sizes that messages offer pass."""
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
    (
      {
        'algorithm__name': 'sft',
        'algorithm__sft_steps': 21,
        'optim__minibatch_size': 12,
      },
      8,
      1,
      'optim.minibatch_size',
      'take 8 or 16',
    ),
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


def test_a_group_of_fewer_rows_than_learn_is_refused():
  """Where one device samples and the others learn."""
  config = change(algorithm__name='grpo', algorithm__group_size=4)
  checks.check_mesh(config, num_shards=4, num_sampling=1, num_hosts=1)
  with pytest.raises(ValueError, match=r'group_size=4: .* 7 shards that learn'):
    checks.check_mesh(config, num_shards=7, num_sampling=1, num_hosts=1)


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
