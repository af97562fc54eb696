"""A checkpoint's tensors, streamed into sharded arrays."""

import dataclasses
import json
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


# Writes a checkpoint and reads it, in a process of its own: prints what is read
# and by how much the most memory it ever had exceeds the memory it keeps.
_MEASURE = """
import json, pathlib, resource, sys
import jax, numpy as np
from safetensors.numpy import save_file
from dash_jax import sharding
from dash_jax.model import hf, hf_write, llama, tensors

config = llama.LlamaConfig(
  vocab_size=4096, embed_dim=1024, num_layers=12, num_heads=8, num_kv_heads=8,
  head_dim=128, ffw_dim=4096,
)
folder = pathlib.Path(sys.argv[1])
names, index = {}, {}
for name, place in tensors.list_places(config).items():
  names.setdefault(place.layer, []).append((name, place.disk_shape))
for layer, entries in names.items():
  file = f'{layer}.safetensors'
  save_file({n: np.ones(s, np.float32) for n, s in entries}, folder / file)
  index |= {n: file for n, _ in entries}
text = json.dumps({'weight_map': index})
(folder / 'model.safetensors.index.json').write_text(text)

def now():
  return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096

jax.set_mesh(jax.make_mesh((1, 1, 1), sharding.AXES))
pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
before = now()
params = hf.read_weights(folder, config)
jax.block_until_ready(params)
status = pathlib.Path('/proc/self/status').read_text()
peak = int(status.split('VmHWM:')[1].split()[0]) * 1024
held = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({'held': held, 'over': peak - before - held}))
"""


@pytest.mark.skipif(
  not sys.platform.startswith('linux'), reason='reads /proc for its memory'
)
def test_one_tensor_at_a_time_is_held_twice(tmp_path):
  """Loading 840 MB takes no more than them and a few of the largest tensor
  (17 MB): read whole, or a file (67 MB) at a time, it would take far more."""
  out = subprocess.run(
    [sys.executable, '-c', _MEASURE, tmp_path],
    capture_output=True,
    text=True,
    check=True,
  )
  measured = json.loads(out.stdout)
  assert measured['held'] > 800e6
  assert measured['over'] < 300e6, measured
