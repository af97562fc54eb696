"""Meta's own Llama folders, which the tests write as torch.save would."""

import dataclasses
import io
import json
import os
import pickle
import struct
import sys
import types
import zipfile

import hf_test
import jax
import ml_dtypes
import numpy as np
import pytest

from dash_jax import sharding
from dash_jax.model import hf, llama, meta

pytestmark = pytest.mark.usefixtures('mesh')

CONFIG = llama.LlamaConfig(
  vocab_size=12, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2,
  head_dim=4, ffw_dim=48,
)  # fmt: skip
PARAMS = {
  'dim': 16, 'n_layers': 2, 'n_heads': 4, 'n_kv_heads': 2, 'vocab_size': 12,
  'multiple_of': 16, 'norm_eps': 1e-5,
}  # fmt: skip
NAMES = {
  'model.embed_tokens': 'tok_embeddings',
  'model.norm': 'norm',
  'lm_head': 'output',
  'model.layers': 'layers',
  'input_layernorm': 'attention_norm',
  'post_attention_layernorm': 'ffn_norm',
  'self_attn.q_proj': 'attention.wq',
  'self_attn.k_proj': 'attention.wk',
  'self_attn.v_proj': 'attention.wv',
  'self_attn.o_proj': 'attention.wo',
  'mlp.gate_proj': 'feed_forward.w1',
  'mlp.up_proj': 'feed_forward.w3',
  'mlp.down_proj': 'feed_forward.w2',
}


def interleave(x, num_heads):
  """Row i of a head's first half beside row i of its second, as Meta has q and
  k: one by one."""
  heads = x.reshape(num_heads, -1, x.shape[1])
  half = heads.shape[1] // 2
  rows = [
    head[at] for head in heads for i in range(half) for at in (i, i + half)
  ]
  return np.stack(rows)


def to_meta(found, config=CONFIG):
  """Returns tensors with Hugging Face's names as Meta would have them."""
  renamed = {}
  for name, x in found.items():
    for theirs, other in NAMES.items():
      name = name.replace(theirs, other)
    if name.endswith('wq.weight'):
      x = interleave(x, config.num_heads)
    if name.endswith('wk.weight'):
      x = interleave(x, config.num_kv_heads)
    renamed[name] = x
  return renamed


def split(found, num, *, llama2=False):
  """Returns the tensors of `num` files: each has its share of the heads, of the
  feed-forward and of the vocabulary (Llama 2: of the embedding's columns)."""
  shards = []
  for i in range(num):
    shard = {}
    for name, x in found.items():
      axis = 0
      if name.endswith(('wo.weight', 'w2.weight')):
        axis = 1
      if name.startswith('tok_embeddings') and llama2:
        axis = 1
      whole = name.endswith('norm.weight')
      shard[name] = x if whole else np.split(x, num, axis)[i]
    shards.append(shard)
  return shards


class Torch:
  """Stands for torch's functions while a test pickles, by their names."""

  def __enter__(self):
    utils, torch = types.ModuleType('torch._utils'), types.ModuleType('torch')

    def define(module, name):
      made = type(name, (), {'__module__': module.__name__})
      made.__qualname__ = name
      setattr(module, name, made)

    define(utils, '_rebuild_tensor_v2')
    for name in (
      'FloatStorage',
      'HalfStorage',
      'BFloat16Storage',
      'IntStorage',
    ):
      define(torch, name)
    self.torch, self.utils = torch, utils
    sys.modules |= {'torch': torch, 'torch._utils': utils}
    return self

  def __exit__(self, *exc_info):
    del sys.modules['torch'], sys.modules['torch._utils']


KINDS = {
  'float32': 'FloatStorage',
  'float16': 'HalfStorage',
  'bfloat16': 'BFloat16Storage',
  'int32': 'IntStorage',
}


class Call:
  """Pickles as the call of a function."""

  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


def save(path, found, *, data=None, compress=zipfile.ZIP_STORED, edit=None):
  """Writes a .pth file as torch.save does: without torch.

  Args:
    path: a file.
    found: arrays by name.
    data: data.pkl, if it is not to describe `found`.
    compress: of the entries.
    edit: changes the arguments of _rebuild_tensor_v2.
  """
  storages = {}

  class Storage:
    def __init__(self, kind, key, num):
      self.id = 'storage', kind, key, 'cpu', num

  class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
      return obj.id if isinstance(obj, Storage) else None

  with Torch() as stand_in:
    described = {}
    for name, x in found.items():
      key = str(len(storages))
      # Two elements before it: a tensor may begin inside its storage.
      storages[key] = np.concatenate([np.zeros(2, x.dtype), x.ravel()])
      kind = getattr(stand_in.torch, KINDS[x.dtype.name])
      storage = Storage(kind, key, x.size + 2)
      strides = tuple(
        s // x.itemsize for s in np.empty(x.shape, x.dtype).strides
      )
      args = storage, 2, x.shape, strides, False, {}
      args = edit(name, args) if edit else args
      described[name] = Call(stand_in.utils._rebuild_tensor_v2, *args)
    if data is None:
      buffer = io.BytesIO()
      Pickler(buffer, 2).dump(described)
      data = buffer.getvalue()
  with zipfile.ZipFile(path, 'w', compress) as archive:
    archive.writestr('consolidated/data.pkl', data)
    archive.writestr('consolidated/byteorder', 'little')
    for key, x in storages.items():
      archive.writestr(f'consolidated/data/{key}', x.tobytes())


def write(folder, shards, **fields):
  folder.mkdir(exist_ok=True)
  (folder / 'params.json').write_text(json.dumps(PARAMS | fields))
  for i, shard in enumerate(shards):
    save(folder / f'consolidated.{i:02}.pth', shard)
  return folder


def read(folder):
  return jax.device_get(meta.read_weights(folder, meta.read_config(folder)))


@pytest.fixture(scope='module')
def found():
  return hf_test.make_tensors(CONFIG)


@pytest.fixture
def want(found, tmp_path):
  return jax.device_get(
    hf.read_weights(hf_test.write(tmp_path / 'hf', found), CONFIG)
  )


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize(('num', 'llama2'), [(1, False), (2, False), (2, True)])
def test_the_weights_are_those_of_the_hugging_face_folder(
  tmp_path, found, want, num, llama2, shape
):
  """Bit for bit, from one file or two, split either way, on one device or on
  four; hf_test.py shows what they are in the Hugging Face folder."""
  shards = split(to_meta(found), num, llama2=llama2)
  fields = {'vocab_size': -1} if llama2 else {}
  folder = write(tmp_path / 'meta', shards, **fields)
  assert meta.read_config(folder) == CONFIG
  devices = jax.devices()[: int(np.prod(shape))]
  with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):
    params = read(folder)
  assert jax.tree.structure(params) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, params, want)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_read_exactly(tmp_path, found, dtype):
  rounded = {name: x.astype(dtype) for name, x in to_meta(found).items()}
  params = read(write(tmp_path / 'meta', [rounded]))
  want = rounded['tok_embeddings.weight'].astype(np.float32)
  np.testing.assert_array_equal(params['embed'], want)


def test_config(tmp_path, found):
  """The fields by which the generations differ; what is derived is skipped."""
  tensors = to_meta(found) | {'rope.freqs': np.ones(2, np.float32)}
  folder = write(tmp_path / 'a', [tensors], rope_theta=5e5)
  read(folder)
  assert meta.read_config(folder) == dataclasses.replace(CONFIG, rope_theta=5e5)
  folder = write(tmp_path / 'b', [tensors], use_scaled_rope=True)
  scaling = llama.RopeScaling(8.0, 1.0, 4.0, 8192)
  assert meta.read_config(folder).rope_scaling == scaling
  # Llama 3.2 repeats its embedding as its last layer.
  tensors['output.weight'] = tensors['tok_embeddings.weight']
  folder = write(tmp_path / 'c', [tensors], use_scaled_rope=True)
  config = meta.read_config(folder)
  assert config.tied
  assert config.rope_scaling.factor == 32
  assert 'unembed' not in read(folder)


@pytest.mark.parametrize(
  ('dim', 'multiple_of', 'multiplier', 'want'),
  [
    (4096, 256, None, 11008),  # Llama 2 7B
    (8192, 4096, 1.3, 28672),  # Llama 2 and 3 70B
    (4096, 1024, 1.3, 14336),  # Llama 3 8B
    (2048, 256, 1.5, 8192),  # Llama 3.2 1B
    (3072, 256, 1.0, 8192),  # Llama 3.2 3B
  ],
)
def test_the_published_widths(dim, multiple_of, multiplier, want):
  assert meta._find_ffw_dim(dim, multiple_of, multiplier or 1.0) == want


class Marker:
  """A pickle that makes a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_does_not_run(tmp_path, found):
  """The same bytes make the folder when pickle loads them."""
  marker = tmp_path / 'ran'
  data = pickle.dumps({'norm.weight': Marker(marker)})
  folder = write(tmp_path / 'meta', [to_meta(found)])
  path = folder / 'consolidated.00.pth'
  save(path, {}, data=data)
  with pytest.raises(ValueError, match=r'00\.pth: its pickle asks for .*mkdir'):
    meta.read_config(folder)
  assert not marker.exists()
  pickle.loads(data)
  assert marker.exists()


@pytest.mark.parametrize(
  'program',
  [
    b"cbuiltins\neval\n(S'1'\ntR.",
    b'cos\nsystem\n(S"touch x"\ntR.',
    # A name inside an allowed module, and attributes of an allowed name.
    b"ctorch\nload\n(S'x'\ntR.",
    b"\x80\x04\x8c\x0btorch._utils\x8c'_rebuild_tensor_v2.__globals__.__getitem__\x93.",
    # An allowed function, called with what is no tensor; state forced on it.
    b'(S"a"\nctorch._utils\n_rebuild_tensor_v2\n(I1\nI2\nI3\nI4\ntRd.',
    b"ctorch._utils\n_rebuild_tensor_v2\n(S'__code__'\nI1\ndb.",
    b'ctorch\nFloatStorage\n(S"a"\nI1\ndb.',
    # Not a dict, not whole, no pickle.
    b'I1\n.',
    b'(I1\n',
    b'nonsense',
  ],
)
def test_no_odd_pickle_is_more_than_an_error(
  tmp_path, found, program, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  folder = write(tmp_path / 'meta', [to_meta(found)])
  save(folder / 'consolidated.00.pth', {}, data=program)
  with pytest.raises(ValueError, match=r'consolidated\.00\.pth: '):
    meta.read_config(folder)
  assert not (tmp_path / 'x').exists()


def test_wrong_folders_are_named(tmp_path, found):
  with pytest.raises(FileNotFoundError, match=r'params\.json is not there'):
    meta.read_config(tmp_path)
  whole = split(to_meta(found), 2)
  folder = write(tmp_path / 'm', whole)
  (folder / 'consolidated.01.pth').unlink()
  with pytest.raises(
    ValueError, match=r'00\.pth: tensor .* a file may be miss'
  ):
    meta.read_weights(folder, CONFIG)
  folder = write(tmp_path / 'n', whole)
  (folder / 'consolidated.00.pth').unlink()
  message = r'1 files consolidated\.\*\.pth, but not consolidated\.00\.pth'
  with pytest.raises(FileNotFoundError, match=message):
    meta.read_config(folder)
  (folder / 'consolidated.01.pth').unlink()
  with pytest.raises(FileNotFoundError, match=r'no consolidated\.00\.pth'):
    meta.read_config(folder)
  folder = write(tmp_path / 'o', whole)
  (folder / 'params.json').write_text(json.dumps({'dim': 16}))
  with pytest.raises(ValueError, match=r'params\.json: field n_heads is missi'):
    meta.read_config(folder)
  (folder / 'params.json').write_text(json.dumps(PARAMS | {'moe': True}))
  with pytest.raises(ValueError, match='mixture of experts'):
    meta.read_config(folder)


def test_wrong_tensors_are_named(tmp_path, found):
  tensors = to_meta(found)
  lost = {n: x for n, x in tensors.items() if 'layers.1.attention.wo' not in n}
  folder = write(tmp_path / 'lost', [lost])
  with pytest.raises(
    ValueError, match=r'missing layers\.1\.attention\.wo\.wei'
  ):
    read(folder)
  more = tensors | {'layers.7.extra.weight': np.ones(2, np.float32)}
  folder = write(tmp_path / 'more', [more])
  with pytest.raises(ValueError, match=r'unknown layers\.7\.extra\.weight'):
    read(folder)
  halves = split(tensors, 2)
  del halves[1]['norm.weight']
  folder = write(tmp_path / 'halves', halves)
  with pytest.raises(
    ValueError, match=r'01\.pth: tensor norm\.weight is in so'
  ):
    read(folder)
  whole = tensors | {'norm.weight': np.ones(16, np.int32)}
  with pytest.raises(ValueError, match=r'pickle asks for torch\.IntStorage'):
    read(write(tmp_path / 'whole', [whole]))


def test_damaged_files_are_named(tmp_path, found):
  """Cut short, compressed, out of order, or saying more than is there."""
  tensors = to_meta(found)
  folder = write(tmp_path / 'm', [tensors])
  path = folder / 'consolidated.00.pth'
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  with pytest.raises(ValueError, match=r'00\.pth: not a whole zip file'):
    meta.read_config(folder)
  save(path, tensors, compress=zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match=r'00\.pth: tensor .* plain bytes of'):
    meta.read_config(folder)

  def transpose(name, args):
    storage, first, shape, strides, *rest = args
    if name == 'output.weight':
      strides = strides[::-1]
    return storage, first, shape, strides, *rest

  save(path, tensors, edit=transpose)
  with pytest.raises(ValueError, match=r'output\.weight is not stored row by'):
    meta.read_config(folder)

  def shift(name, args):
    storage, first, *rest = args
    return storage, first + (name == 'norm.weight'), *rest

  save(path, tensors, edit=shift)
  with pytest.raises(
    ValueError, match=r'norm\.weight asks for \d+ plain bytes'
  ):
    meta.read_config(folder)


def test_bytes_are_looked_for_behind_the_local_header(tmp_path, found):
  """torch pads entries in their own headers, so that bytes are aligned; the
  directory at the end knows nothing of that."""
  folder = write(tmp_path / 'm', [to_meta(found)])
  path = folder / 'consolidated.00.pth'
  want = read(folder)
  with zipfile.ZipFile(path) as archive:
    entries = {i.filename: archive.read(i) for i in archive.infolist()}
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in entries.items():
      info = zipfile.ZipInfo(name)
      padding = 40
      info.extra = struct.pack('<HH', 0x4246, padding) + b'Z' * padding
      archive.writestr(info, data)
      info.extra = b''
  jax.tree.map(np.testing.assert_array_equal, read(folder), want)
