"""What is written for others is what hf.py reads from them."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from dash_jax.model import hf, hf_write, llama, presets

pytestmark = pytest.mark.usefixtures('mesh')

LLAMA = llama.LlamaConfig(
  vocab_size=11,
  embed_dim=12,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=2,
  ffw_dim=20,
)
SCALING = llama.RopeScaling(8.0, 1.0, 4.0, 8192)
CONFIGS = {
  'llama': LLAMA,
  'llama3_1': dataclasses.replace(LLAMA, rope_scaling=SCALING, tied=True),
  'qwen2': dataclasses.replace(LLAMA, qkv_bias=True, rope_theta=1e6),
  'qwen3': dataclasses.replace(LLAMA, qk_norm=True, norm_eps=1e-6),
  'reward': dataclasses.replace(LLAMA, scalar_head=True, tied=True),
}


def make_params(config, dtype=np.float32):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda w: rng.normal(size=w.shape).astype(dtype),
    llama.weights(config),
    is_leaf=llama.is_weight,
  )


def write_config(folder, config, **changes):
  fields = {'dtype': 'float32', 'max_len': 64, 'bos_id': 1, 'stop_ids': (2, 5)}
  found = hf_write.make_config(config, **fields | changes)
  (folder / 'config.json').write_text(json.dumps(found))
  return found


@pytest.mark.parametrize('name', CONFIGS)
@pytest.mark.parametrize('dtype', [np.float32, ml_dtypes.bfloat16])
def test_weights_come_back_bit_for_bit(tmp_path, name, dtype):
  """hf_test.py shows that the reader means what the tensors mean."""
  config = CONFIGS[name]
  params = make_params(config, dtype)
  write_config(tmp_path, config)
  hf_write.write_weights(tmp_path, config, params)
  assert hf.read_config(tmp_path) == config
  found = hf.read_weights(tmp_path, config, dtype=dtype)
  assert jax.tree.structure(found) == jax.tree.structure(params)
  jax.tree.map(np.testing.assert_array_equal, found, params)


def test_large_models_are_cut_into_files(tmp_path):
  """No file is larger than asked unless one tensor is, and the index names
  each tensor's file and all their bytes."""
  params = make_params(LLAMA)
  hf_write.write_weights(tmp_path, LLAMA, params, max_file_bytes=2_000)
  files = sorted(tmp_path.glob('model-*.safetensors'))
  assert len(files) > 3
  assert files[0].name == f'model-00001-of-{len(files):05}.safetensors'
  index = json.loads((tmp_path / 'model.safetensors.index.json').read_text())
  assert set(index['weight_map'].values()) == {f.name for f in files}
  sizes = [x.nbytes for x in jax.tree.leaves(params)]
  assert index['metadata']['total_size'] == sum(sizes)
  for file in files:
    tensors = safetensors.load_file(file)
    held = sum(x.nbytes for x in tensors.values())
    assert held <= 2_000 or len(tensors) == 1
  found = hf.read_weights(tmp_path, LLAMA)
  jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize('name', presets.PRESETS)
def test_every_preset_can_be_said(tmp_path, name):
  config = presets.PRESETS[name]
  fields = write_config(tmp_path, config)
  assert hf.read_config(tmp_path) == config
  assert fields['eos_token_id'] == [2, 5]
  assert fields['architectures'][0].lower().startswith(fields['model_type'])


def test_a_mix_that_no_model_type_has_is_refused():
  both = dataclasses.replace(LLAMA, qkv_bias=True, qk_norm=True)
  with pytest.raises(ValueError, match='both qkv_bias and qk_norm'):
    hf_write.make_config(
      both, dtype='float32', max_len=8, bos_id=None, stop_ids=(0,)
    )
