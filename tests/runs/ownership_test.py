"""A workdir belongs to one configuration."""

import pytest

from dash_jax import config as config_lib
from dash_jax.runs import ownership


def test_config_of_another_run_is_refused(tmp_path):
  """Every differing field is named with both values; the rest may differ."""
  config = {
    'seed': 0,
    'optim': {'learning_rate': 1e-5, 'betas': (0.9, 0.99)},
    'log': {'every': 1},
    'model': {'name': 'tiny'},
  }
  ownership.check_config(tmp_path, config)  # a new workdir suits any config
  ownership.save_config(tmp_path, config)
  ownership.check_config(tmp_path, config)
  config['log']['every'] = 5
  ownership.check_config(tmp_path, config)
  config['optim']['learning_rate'] = 1e-6
  config['algorithm'] = {'kl_coef': 0.0}
  del config['model']
  with pytest.raises(ValueError, match='another configuration') as error:
    ownership.check_config(tmp_path, config)
  assert str(error.value).splitlines()[1:] == [
    '  algorithm.kl_coef: absent there, 0.0 now',
    '  model.name: "tiny" there, absent now',
    '  optim.learning_rate: 1e-05 there, 1e-06 now',
  ]


def test_what_a_run_computes_from_may_not_change(tmp_path):
  """Of the sections that say what it computes, only these fields may."""
  config = config_lib.default().to_dict()
  ownership.save_config(tmp_path, config)
  kept = {'log', 'eval', 'checkpoint', 'mesh'}
  for section in config.keys() - kept - {'seed'}:
    config[section] = dict.fromkeys(config[section], 'another')
  lines = ownership.compare_config(tmp_path, config)
  refused = {line.split(':')[0].strip() for line in lines}
  assert {
    f'{section}.{name}'
    for section in config.keys() - kept - {'seed'}
    for name in config[section]
  } - refused == {
    'optim.nonfinite', 'optim.minibatch_size', 'sampling.batch_size',
    'model.remat', 'reward.num_workers', 'reward.timeout_s',
  }  # fmt: skip
