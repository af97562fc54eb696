"""A checkpoint's tensors, streamed into sharded arrays."""

import dataclasses
import json
import os
import subprocess
import sys

import hf_test
import jax
import ml_dtypes
import numpy as np
import pytest

from dash_jax import sharding
from dash_jax.model import hf, llama, tensors

MESHES = [(1, 1, 1), (2, 1, 2), (1, 4, 1), (1, 2, 2)]


def make_mesh(shape):
  devices = jax.devices()[: int(np.prod(shape))]
  return jax.make_mesh(shape, sharding.AXES, devices=devices)


def track(found, parts):
  """Returns tensors that note what is read of them in `parts`, by device."""

  def wrap(name, tensor):
    def read(index):
      parts.append((name, index))
      return tensor.read(index)

    return tensors.Tensor(tensor.name, tensor.file, tensor.shape, read)

  return {name: wrap(name, tensor) for name, tensor in found.items()}


@pytest.mark.parametrize('shape', MESHES)
def test_every_mesh_holds_the_same_weights(tmp_path, shape):
  """In the layout they rest in; and of a tensor that is split, no more is read
  for a device than it holds."""
  config = dataclasses.replace(hf_test.QWEN2, vocab_size=12)
  folder = hf_test.write(tmp_path / 'm', hf_test.make_tensors(config))
  with jax.set_mesh(make_mesh((1, 1, 1))):
    want = jax.device_get(hf.read_weights(folder, config))
  parts = []
  with jax.set_mesh(make_mesh(shape)):
    found = track(hf.open_tensors(folder), parts)
    params = tensors.load(str(folder), config, found, np.float32)
    likes = llama.abstract_params(config, np.float32)
  jax.tree.map(np.testing.assert_array_equal, params, want)

  def check(x, like):
    assert (x.shape, x.dtype) == (like.shape, like.dtype)
    assert x.sharding.is_equivalent_to(like.sharding, x.ndim)

  jax.tree.map(check, params, likes)
  _, fsdp, tensor = shape
  sizes = {
    name: {
      int(np.prod([at.stop - at.start for at in index]))
      for other, index in parts
      if other == name
    }
    for name in found
  }
  c = config
  wide = c.num_heads * c.head_dim * c.embed_dim
  shard = fsdp * tensor
  assert sizes['model.layers.1.self_attn.q_proj.weight'] == {wide // shard}
  assert sizes['model.layers.0.self_attn.o_proj.weight'] == {wide // shard}
  assert sizes['model.layers.0.mlp.down_proj.weight'] == {
    c.ffw_dim * c.embed_dim // shard
  }
  assert sizes['model.layers.0.self_attn.k_proj.bias'] == {
    c.num_kv_heads * c.head_dim // tensor
  }
  assert sizes['model.norm.weight'] == {c.embed_dim}


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('kind', [np.float32, np.float64, ml_dtypes.bfloat16])
def test_what_is_no_number_is_named(tmp_path, mesh, value, kind):
  """One value of one tensor; read all the same, every logit would be NaN."""
  name = 'model.layers.1.mlp.up_proj.weight'
  found = hf_test.make_tensors(hf_test.LLAMA)
  found[name] = found[name].astype(kind)
  found[name][3, 1] = value
  folder = hf_test.write(tmp_path / 'm', found)
  message = rf'model\.safetensors: tensor {name} holds NaN or infinite'
  with pytest.raises(ValueError, match=message):
    hf.read_weights(folder, hf_test.LLAMA)


def test_what_is_no_number_in_both_names_of_a_tied_tensor(tmp_path, mesh):
  """It is the numbers that are wrong, and not that the two differ."""
  found = hf_test.make_tensors(hf_test.QWEN2)
  found['model.embed_tokens.weight'][1, 1] = np.nan
  found['lm_head.weight'] = found['model.embed_tokens.weight']
  folder = hf_test.write(tmp_path / 'm', found)
  with pytest.raises(ValueError, match=r'embed_tokens\.weight holds NaN'):
    hf.read_weights(folder, hf_test.QWEN2)


@pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='reads /proc for its memory'
)
def test_one_tensor_at_a_time_is_held_twice():
  """Loading 1 GB takes little more than it: read whole, as two files or more at
  a time, or with what was mapped of the files kept, it would take far more. The
  largest tensor has 66 MB, and the runtime and its compiler need some too."""
  command = [sys.executable, '-m', 'experiments.benchmarks.load_memory']
  out = subprocess.run(
    [*command, '--gb=1', '--dtype=float32'],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
    env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
  )
  measured = json.loads(out.stdout)
  assert measured['weights_bytes'] > 900e6
  over = measured['beyond_weights_bytes'] - measured['largest_tensor_bytes']
  assert over < 400e6, measured
