"""Folders as Meta publishes Llama, which the tests write without torch."""

import dataclasses
import itertools
import json
import math
import os

import jax
import ml_dtypes
import numpy as np
import pytest
import torch_save

from dash_jax import sharding
from dash_jax.model import llama, meta, presets, pth, tensors

CONFIG = llama.LlamaConfig(
  vocab_size=40,
  embed_dim=24,
  num_layers=2,
  num_heads=6,
  num_kv_heads=2,
  head_dim=4,
  ffw_dim=80,
  rope_theta=5e5,
  norm_eps=1e-5,
)
# 8/3 of 24 is 64; 1.2 times that is 76, and 80 is the next multiple of 16.
PARAMS = {
  'dim': 24,
  'n_layers': 2,
  'n_heads': 6,
  'n_kv_heads': 2,
  'vocab_size': 40,
  'multiple_of': 16,
  'ffn_dim_multiplier': 1.2,
  'norm_eps': 1e-5,
  'rope_theta': 5e5,
}
# The axis that each tensor is cut on; norms are whole in every file.
AXES = {
  'tok_embeddings': 0,
  'output': 0,
  'attention.wq': 0,
  'attention.wk': 0,
  'attention.wv': 0,
  'attention.wo': 1,
  'feed_forward.w1': 0,
  'feed_forward.w2': 1,
  'feed_forward.w3': 0,
}


def make_tensors(dtype=np.float32, seed=0):
  """Returns random tensors by Meta's names, linear ones [out, in]."""
  shapes = {
    'tok_embeddings.weight': (40, 24),
    'norm.weight': (24,),
    'output.weight': (40, 24),
  }
  for layer in range(2):
    prefix = f'layers.{layer}.'
    shapes |= {
      f'{prefix}attention.wq.weight': (24, 24),
      f'{prefix}attention.wk.weight': (8, 24),
      f'{prefix}attention.wv.weight': (8, 24),
      f'{prefix}attention.wo.weight': (24, 24),
      f'{prefix}feed_forward.w1.weight': (80, 24),
      f'{prefix}feed_forward.w2.weight': (24, 80),
      f'{prefix}feed_forward.w3.weight': (80, 24),
      f'{prefix}attention_norm.weight': (24,),
      f'{prefix}ffn_norm.weight': (24,),
    }
  rng = np.random.default_rng(seed)
  return {n: rng.normal(size=s).astype(dtype) for n, s in shapes.items()}


def write(folder, tensors, num_files=2, embed_axis=0, params=PARAMS):
  """Cuts tensors as Meta does, into files of a folder; returns its path."""
  axes = AXES | {'tok_embeddings': embed_axis}
  for i in range(num_files):
    cut = {}
    for name, tensor in tensors.items():
      part = name.removesuffix('.weight')
      if part.startswith('layers.'):
        part = part.split('.', 2)[2]
      if part in axes:
        tensor = np.split(tensor, num_files, axes[part])[i]
      cut[name] = tensor
    torch_save.save(folder / f'consolidated.{i:02}.pth', cut)
  (folder / 'params.json').write_text(json.dumps(params))
  return str(folder)


def whole(tensor):
  return tensor.read(tuple(slice(0, size) for size in tensor.shape))


def expect(tensors):
  """Returns what is to be read, by Hugging Face's names, row by row."""
  names = {
    'attention_norm': 'input_layernorm',
    'attention.wq': 'self_attn.q_proj',
    'attention.wk': 'self_attn.k_proj',
    'attention.wv': 'self_attn.v_proj',
    'attention.wo': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'feed_forward.w1': 'mlp.gate_proj',
    'feed_forward.w2': 'mlp.down_proj',
    'feed_forward.w3': 'mlp.up_proj',
  }
  expected = {
    'model.embed_tokens.weight': tensors['tok_embeddings.weight'],
    'model.norm.weight': tensors['norm.weight'],
    'lm_head.weight': tensors['output.weight'],
  }
  for layer, (meta_name, name) in itertools.product(range(2), names.items()):
    tensor = tensors[f'layers.{layer}.{meta_name}.weight']
    if meta_name in ('attention.wq', 'attention.wk'):
      # Of a head's 4 rows, 0 rotates with 1 and 2 with 3; here 0 with 2.
      rows = [
        head + row for head in range(0, len(tensor), 4) for row in (0, 2, 1, 3)
      ]
      tensor = np.stack([tensor[row] for row in rows])
    expected[f'model.layers.{layer}.{name}.weight'] = tensor
  return expected


@pytest.mark.parametrize('dtype', [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
  ('num_files', 'embed_axis'), [(1, 0), (2, 0), (2, 1), (4, 1), (8, 0)]
)
def test_every_tensor_is_joined(tmp_path, num_files, embed_axis, dtype):
  """The tensors before they were cut are the oracle, bit by bit.

  Llama 2 cuts the embedding in columns, Llama 3 in rows. Eight files cut heads
  of 4 rows in the middle, so rows are put in order only after they are joined.
  """
  tensors = make_tensors(dtype)
  folder = write(tmp_path, tensors, num_files, embed_axis)
  opened = meta.open_tensors(folder, CONFIG)
  expected = expect(tensors)
  assert opened.keys() == expected.keys()
  for name, tensor in opened.items():
    assert tensor.shape == expected[name].shape
    found = whole(tensor)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected[name])


def test_any_part_is_numpys_part(tmp_path):
  """A device may hold any rows and columns: whole heads or not, of one file or
  across the cut of two. NumPy's indexing of whole tensors is the oracle.
  """
  tensors = make_tensors()
  folder = write(tmp_path, tensors, num_files=2)
  expected = expect(tensors)
  rng = np.random.default_rng(0)
  for name, tensor in meta.open_tensors(folder, CONFIG).items():
    for _ in range(20):
      ends = [np.sort(rng.choice(n + 1, 2, False)) for n in tensor.shape]
      index = tuple(slice(int(i), int(j)) for i, j in ends)
      np.testing.assert_array_equal(tensor.read(index), expected[name][index])


def test_a_part_is_read_from_its_own_files(tmp_path):
  """The second file is gone: what the first one holds can still be read, so no
  other is opened; what it does not hold cannot.
  """
  tensors = make_tensors()
  folder = write(tmp_path, tensors, num_files=2)
  opened = meta.open_tensors(folder, CONFIG)
  os.remove(tmp_path / 'consolidated.01.pth')
  expected = expect(tensors)
  rows, columns = slice(0, 12), slice(0, 24)
  for name, index in {
    'model.embed_tokens.weight': (slice(5, 20), columns),
    'model.layers.1.self_attn.q_proj.weight': (rows, columns),
    'model.layers.1.self_attn.o_proj.weight': (columns, rows),
    'model.layers.1.input_layernorm.weight': (columns,),
  }.items():
    np.testing.assert_array_equal(
      opened[name].read(index), expected[name][index]
    )
  with pytest.raises(FileNotFoundError, match=r'consolidated\.01\.pth'):
    whole(opened['model.embed_tokens.weight'])


def test_config_of_params(tmp_path):
  """Every field of the architecture that was written is read."""
  assert meta.read_config(write(tmp_path, make_tensors())) == CONFIG


@pytest.mark.parametrize('embed_axis', [0, 1])
def test_vocabulary_is_the_embeddings(tmp_path, embed_axis):
  """Llama 2's params.json has -1 for it, and no rotary base."""
  params = PARAMS | {'vocab_size': -1, 'n_kv_heads': None}
  del params['rope_theta']
  folder = write(tmp_path, make_tensors(), 2, embed_axis, params)
  assert meta.read_config(folder) == dataclasses.replace(
    CONFIG, num_kv_heads=6, rope_theta=1e4
  )


def test_tied_is_what_the_tensors_say(tmp_path, monkeypatch):
  """Llama 3.2 repeats its embedding as output.weight. One value in the last row
  is enough to make it another tensor, though blocks of three rows are compared.
  """
  monkeypatch.setattr(meta, '_BLOCK_BYTES', 3 * 24 * 8)
  tensors = make_tensors()
  tensors['output.weight'] = tensors['tok_embeddings.weight'].copy()
  folder = write(tmp_path, tensors)
  config = meta.read_config(folder)
  assert config == dataclasses.replace(CONFIG, tied=True)
  assert 'lm_head.weight' in meta.open_tensors(folder, config)
  tensors['output.weight'][-1, -1] += 1
  assert not meta.read_config(write(tmp_path, tensors)).tied
  del tensors['output.weight']
  folder = write(tmp_path, tensors)
  assert meta.read_config(folder) == config
  assert 'lm_head.weight' not in meta.open_tensors(folder, config)


class Unwritten(pth.Stored):
  """A tensor of a file that is too large for a test: all ones or, for the
  embedding, zeros."""

  def read(self, index):
    fill = np.zeros if self.name == 'tok_embeddings.weight' else np.ones
    return fill([at.stop - at.start for at in index], self.dtype)


# params.json as Meta has published it; the number of files.
LLAMA3 = {'n_kv_heads': 8, 'vocab_size': 128256, 'rope_theta': 500000.0}
SCALED = LLAMA3 | {'use_scaled_rope': True}
LARGE = {'multiple_of': 4096, 'ffn_dim_multiplier': 1.3}
SMALL = {'multiple_of': 1024, 'ffn_dim_multiplier': 1.3}
PUBLISHED = {
  'llama2_7b': (4096, 32, 32, {'multiple_of': 256, 'vocab_size': -1}, 1),
  'llama2_13b': (5120, 40, 40, {'multiple_of': 256, 'vocab_size': -1}, 2),
  'llama2_70b': (8192, 80, 64, LARGE | {'n_kv_heads': 8}, 8),
  'llama3_8b': (4096, 32, 32, SMALL | LLAMA3, 1),
  'llama3_70b': (8192, 80, 64, LARGE | LLAMA3, 8),
  'llama3_1_8b': (4096, 32, 32, SMALL | SCALED, 1),
  'llama3_1_70b': (8192, 80, 64, LARGE | SCALED, 8),
  'llama3_2_1b': (
    *(2048, 16, 32, SCALED | {'multiple_of': 256, 'ffn_dim_multiplier': 1.5}),
    1,
  ),
  'llama3_2_3b': (
    *(3072, 28, 24, SCALED | {'multiple_of': 256, 'ffn_dim_multiplier': 1.0}),
    1,
  ),
  'llama3_3_70b': (8192, 80, 64, LARGE | SCALED, 8),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_models_are_their_presets(tmp_path, monkeypatch, name):
  """The presets are the configs published at Hugging Face, so the widths, the
  scaling's factor and the sizes that params.json leaves open are right for
  every model that there is.
  """
  D, L, N, rest, num_files = PUBLISHED[name]
  preset = presets.PRESETS[name]
  V, F = preset.vocab_size, preset.ffw_dim
  embed = (V, D // num_files) if 'llama2' in name else (V // num_files, D)
  shapes = {
    'tok_embeddings.weight': embed,
    'layers.0.feed_forward.w1.weight': (F // num_files, D),
  }
  if not preset.tied:
    shapes['output.weight'] = (V // num_files, D)
  monkeypatch.setattr(
    pth,
    'list_tensors',
    lambda file: {
      n: Unwritten(n, file, np.dtype(np.float16), s, 0)
      for n, s in shapes.items()
    },
  )
  for i in range(num_files):
    (tmp_path / f'consolidated.{i:02}.pth').touch()
  params = {'dim': D, 'n_layers': L, 'n_heads': N, 'norm_eps': 1e-5} | rest
  (tmp_path / 'params.json').write_text(json.dumps(params))
  assert meta.read_config(str(tmp_path)) == preset


def test_missing_files_are_named(tmp_path):
  """A gap by its file. After the last file nothing says how many there were,
  but what is left does not add up.
  """
  with pytest.raises(FileNotFoundError, match=r'params\.json is not there'):
    meta.read_config(str(tmp_path / 'nowhere'))
  folder = write(tmp_path, make_tensors(), num_files=4)
  os.remove(tmp_path / 'consolidated.03.pth')
  with pytest.raises(ValueError, match=r'00\.pth to .*02\.pth.* missing\?'):
    meta.read_config(folder)
  with pytest.raises(ValueError, match=r'00\.pth to .*02\.pth.* missing\?'):
    meta.open_tensors(folder, CONFIG)
  os.remove(tmp_path / 'consolidated.01.pth')
  with pytest.raises(FileNotFoundError, match=r'01\.pth is not there'):
    meta.open_tensors(folder, CONFIG)
  os.remove(tmp_path / 'consolidated.00.pth')
  os.remove(tmp_path / 'consolidated.02.pth')
  with pytest.raises(FileNotFoundError, match=r'no consolidated\.00\.pth'):
    meta.read_config(folder)


def test_files_of_other_names_are_named(tmp_path):
  """A tensor that one file has and another lacks; a tensor that is no Llama's;
  a tensor that no file has. rope.freqs is none of them.
  """
  tensors = make_tensors() | {'rope.freqs': np.ones(2, np.float32)}
  folder = write(tmp_path, tensors)
  assert len(meta.open_tensors(folder, CONFIG)) == 21
  lacking = {n: t for n, t in tensors.items() if n != 'norm.weight'}
  torch_save.save(tmp_path / 'consolidated.01.pth', lacking)
  match = r'01\.pth: tensor norm\.weight, which .*00\.pth has, is missing'
  with pytest.raises(ValueError, match=match):
    meta.open_tensors(folder, CONFIG)
  extra = tensors | {'layers.0.adapter.weight': np.ones(2, np.float32)}
  with pytest.raises(ValueError, match=r'unknown layers\.0\.adapter\.weight'):
    meta.open_tensors(write(tmp_path, extra), CONFIG)
  with pytest.raises(ValueError, match=r'missing norm\.weight, unknown none'):
    meta.open_tensors(write(tmp_path, lacking), CONFIG)


def test_tensors_of_another_architecture_are_named(tmp_path):
  folder = write(tmp_path, make_tensors())
  wider = dataclasses.replace(CONFIG, ffw_dim=96)
  match = (
    r'\(40, 24\).* tensor layers\.0\.feed_forward\.w1\.weight .*\(96, 24\)'
  )
  with pytest.raises(ValueError, match=match):
    meta.open_tensors(folder, wider)
  # The rows of the parts add up, but their columns are others.
  tensors = make_tensors() | {
    'layers.0.attention.wv.weight': np.ones((8, 20), np.float32)
  }
  with pytest.raises(ValueError, match=r'\(4, 20\).*attention\.wv\.weight'):
    meta.open_tensors(write(tmp_path, tensors), CONFIG)
  biased = dataclasses.replace(CONFIG, qkv_bias=True)
  with pytest.raises(ValueError, match=r'layers\.0\.attention\.wk\.bias'):
    meta.open_tensors(folder, biased)
  normed = dataclasses.replace(CONFIG, qk_norm=True)
  with pytest.raises(ValueError, match=r'layers\.0\.self_attn\.k_norm\.weight'):
    meta.open_tensors(folder, normed)


def test_parts_of_two_types_are_named(tmp_path):
  """Joining them would have to make them something else than they are."""
  folder = write(tmp_path, make_tensors(np.float16), num_files=2)
  os.rename(tmp_path / 'consolidated.00.pth', tmp_path / 'first')
  write(tmp_path, make_tensors(np.float32), num_files=2)
  os.rename(tmp_path / 'first', tmp_path / 'consolidated.00.pth')
  with pytest.raises(ValueError, match=r'01\.pth: tensor .* is float32, but'):
    meta.open_tensors(folder, CONFIG)


@pytest.mark.parametrize(
  ('changes', 'match'),
  [
    ({'dim': None}, 'field dim is missing'),
    ({'dim': '24'}, "dim is '24'; wanted: int"),
    ({'dim': 24.0}, 'dim is 24.0; wanted: int'),
    ({'dim': 25}, 'dim 25 is not n_heads 6 of one size'),
    ({'dim': 36}, r'tensor layers\.0.* do not add up to 36 columns'),
    ({'n_heads': 0}, 'n_heads is 0; wanted: over 0'),
    ({'ffn_dim_multiplier': float('inf')}, 'is inf; wanted: over 0, finite'),
    ({'norm_eps': float('nan')}, 'norm_eps is nan; wanted: over 0, finite'),
    ({'norm_eps': None}, 'field norm_eps is missing'),
    ({'use_scaled_rope': 1}, 'use_scaled_rope is 1; wanted: bool'),
    ({'multiple_of': 256}, 'have 80 rows together, .*give 256'),
    ({'vocab_size': 48}, r'tensor tok_embeddings.* up to \(48, 24\)'),
    ({'moe_args': {}}, 'field moe_args is not known; can be read: dim'),
  ],
)
def test_params_that_are_wrong_are_named(tmp_path, changes, match):
  params = {n: v for n, v in (PARAMS | changes).items() if v is not None}
  folder = write(tmp_path, make_tensors(), params=params)
  with pytest.raises(ValueError, match=match):
    meta.read_config(folder)


@pytest.mark.parametrize('text', ['{', '[]', '\udcff'])
def test_params_that_are_no_object_are_named(tmp_path, text):
  folder = write(tmp_path, make_tensors())
  (tmp_path / 'params.json').write_text(text, errors='surrogateescape')
  with pytest.raises(ValueError, match=r'params\.json: not '):
    meta.read_config(folder)


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 2, 2)])
def test_the_model_holds_what_the_files_hold(tmp_path, shape):
  """On one device, and in parts on four that each read their own: those parts
  are of two files, and of heads whose rows are put in order."""
  found = make_tensors()
  folder = write(tmp_path, found)
  config = meta.read_config(folder)
  devices = jax.devices()[: math.prod(shape)]
  with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):
    params = jax.device_get(meta.read_weights(folder, config))
  want = expect(found)
  places = tensors.list_places(config)
  assert places.keys() == want.keys()
  for name, place in places.items():
    weight = params if place.layer is None else params['layers']
    weight = weight[place.name]
    weight = weight if place.layer is None else weight[place.layer]
    np.testing.assert_array_equal(tensors.to_disk(weight, place), want[name])


@pytest.mark.parametrize(
  ('changes', 'want'),
  [
    ({'rope_theta': None}, 4096),
    ({'rope_theta': 5e5}, 8192),
    ({'rope_theta': 5e5, 'use_scaled_rope': True}, 131_072),
  ],
)
def test_the_longest_row_is_the_generations(tmp_path, changes, want):
  params = {k: v for k, v in (PARAMS | changes).items() if v is not None}
  assert (
    meta.read_max_len(write(tmp_path, make_tensors(), params=params)) == want
  )


def test_a_missing_embedding_is_named(tmp_path):
  found = make_tensors()
  del found['tok_embeddings.weight']
  folder = write(tmp_path, found)
  with pytest.raises(ValueError, match=r'00\.pth: tensor tok_embeddings\.w'):
    meta.read_config(folder)
