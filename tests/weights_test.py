"""Weights by their field: what `model.weights` and `model.preset` make."""

import json
import sys

import jax
import numpy as np
import pytest

from dash_jax import checks, tokenizing, weights
from dash_jax import config as config_lib
from dash_jax.model import hf_write, hub, llama

SMALL = llama.LlamaConfig(
  vocab_size=12, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1,
  head_dim=4, ffw_dim=16,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures('mesh')


@pytest.fixture
def folder(tmp_path):
  params = jax.device_get(
    llama.init_params(SMALL, jax.random.key(3), np.dtype(np.float32))
  )
  fields = hf_write.make_config(
    SMALL, dtype='float32', max_len=77, bos_id=None, stop_ids=(0,)
  )
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  hf_write.write_weights(tmp_path, SMALL, params)
  return tmp_path, params


def make_config(named, preset='auto'):
  config = config_lib.default()
  config.model.weights = named
  config.model.preset = preset
  checks.check(config)
  return config


def test_auto_is_the_architecture_of_the_folder(folder, monkeypatch):
  """From a folder and from the hub, which is one."""
  path, params = folder
  monkeypatch.setattr(
    hub, 'find', lambda at: str(path) if at == 'hub:org/name@v2' else at
  )
  for named in (f'hf:{path}', 'hub:org/name@v2'):
    config = make_config(named)
    assert weights.model_config(config) == SMALL
    found = weights.load_params(config, weights.make_model(config))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    reader, place = weights.find_weights(config)
    assert reader.read_max_len(place) == 77
  config.data.tokenizer = 'huggingface'
  config.data.tokenizer_path = 'hub:org/name@v2'
  assert tokenizing.find_tokenizer(config) == str(path)


def test_another_architecture_than_the_presets_is_named(folder):
  config = make_config(f'hf:{folder[0]}', preset='quickstart')
  with pytest.raises(
    ValueError, match=r'is not a quickstart: .*embed_dim is 8'
  ):
    weights.model_config(config)


def test_frozen_weights_come_in_the_type_they_are_used_in(folder):
  """And adapters in the type they are trained in: half the memory of a model
  that is all trained."""
  config = make_config(f'hf:{folder[0]}')
  config.lora.rank = 2
  config.model.dtype = 'bfloat16'
  params = weights.load_params(config, weights.make_model(config))
  kinds = {
    name: x.dtype.name
    for tree in (params, params['layers'])
    for name, x in tree.items()
    if name != 'layers'
  }
  assert {k for n, k in kinds.items() if n.endswith(('_a', '_b'))} == {
    'float32'
  }
  assert {k for n, k in kinds.items() if n[-2] != '_'} == {'bfloat16'}
  assert len(kinds) == 12 + 2 * 7


def test_each_kind_of_weights_has_its_reader(tmp_path):
  for kind, module in (('hf', 'hf'), ('meta', 'meta'), ('gguf', 'gguf')):
    found, _ = weights.find_weights(make_config(f'{kind}:{tmp_path}'))
    assert found is sys.modules[f'dash_jax.model.{module}']
  assert weights.find_weights(make_config('', 'quickstart')) == (None, '')
  with pytest.raises(FileNotFoundError, match=r"model\.weights='.*nowhere'"):
    weights.find_weights(make_config('hf:nowhere'))
