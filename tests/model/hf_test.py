"""Weights and architecture from a Hugging Face folder."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from dash_jax.model import hf, llama

pytestmark = pytest.mark.usefixtures('mesh')

# Square wherever an architecture may be (D = F = N * H): a transposition that
# is left out then changes no shape, and only values can show it.
SQUARE = llama.LlamaConfig(
  vocab_size=11,
  embed_dim=12,
  num_layers=2,
  num_heads=3,
  num_kv_heads=3,
  head_dim=4,
  ffw_dim=12,
)
LLAMA = dataclasses.replace(
  SQUARE, num_heads=4, num_kv_heads=2, head_dim=2, ffw_dim=20
)
QWEN2 = dataclasses.replace(LLAMA, tied=True, qkv_bias=True)
QWEN3 = dataclasses.replace(LLAMA, tied=True, qk_norm=True)
ARCHITECTURES = pytest.mark.parametrize(
  'config',
  [SQUARE, LLAMA, QWEN2, QWEN3],
  ids=['square', 'llama', 'qwen2', 'qwen3'],
)


def make_tensors(config, seed=0):
  """Returns random tensors by their names on disk, linear ones [out, in]."""
  c = config
  q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
  shapes = {
    'model.embed_tokens.weight': (c.vocab_size, c.embed_dim),
    'model.norm.weight': (c.embed_dim,),
  }
  if not c.tied:
    shapes['lm_head.weight'] = (c.vocab_size, c.embed_dim)
  for layer in range(c.num_layers):
    prefix = f'model.layers.{layer}.'
    shapes |= {
      f'{prefix}input_layernorm.weight': (c.embed_dim,),
      f'{prefix}self_attn.q_proj.weight': (q, c.embed_dim),
      f'{prefix}self_attn.k_proj.weight': (kv, c.embed_dim),
      f'{prefix}self_attn.v_proj.weight': (kv, c.embed_dim),
      f'{prefix}self_attn.o_proj.weight': (c.embed_dim, q),
      f'{prefix}post_attention_layernorm.weight': (c.embed_dim,),
      f'{prefix}mlp.gate_proj.weight': (c.ffw_dim, c.embed_dim),
      f'{prefix}mlp.up_proj.weight': (c.ffw_dim, c.embed_dim),
      f'{prefix}mlp.down_proj.weight': (c.embed_dim, c.ffw_dim),
    }
    if c.qkv_bias:
      shapes[f'{prefix}self_attn.q_proj.bias'] = (q,)
      shapes[f'{prefix}self_attn.k_proj.bias'] = (kv,)
      shapes[f'{prefix}self_attn.v_proj.bias'] = (kv,)
    if c.qk_norm:
      shapes[f'{prefix}self_attn.q_norm.weight'] = (c.head_dim,)
      shapes[f'{prefix}self_attn.k_norm.weight'] = (c.head_dim,)
  rng = np.random.default_rng(seed)
  return {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def write(folder, tensors, **fields):
  folder.mkdir(exist_ok=True)
  safetensors.save_file(tensors, folder / 'model.safetensors')
  if fields:
    (folder / 'config.json').write_text(json.dumps(fields))
  return folder


FIELDS = {
  'model_type': 'llama',
  'vocab_size': 11,
  'hidden_size': 12,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 2,
  'intermediate_size': 20,
  'rms_norm_eps': 1e-5,
}


def read_config(folder, **changes):
  fields = {k: v for k, v in (FIELDS | changes).items() if v is not None}
  folder.mkdir(exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(fields))
  return hf.read_config(folder)


@ARCHITECTURES
def test_weights_compute_what_the_tensors_compute(tmp_path, config):
  """Each linear weight maps any input as x @ tensor.T does, on its layer."""
  tensors = make_tensors(config)
  params = hf.read_weights(write(tmp_path / 'm', tensors), config)
  params = jax.device_get(params)
  rng = np.random.default_rng(1)
  D, F = config.embed_dim, config.ffw_dim
  N, H = config.num_heads, config.head_dim
  x, h = rng.normal(size=(5, D)), rng.normal(size=(5, F))
  a = rng.normal(size=(5, N, H))
  layers = params['layers']
  for layer in range(config.num_layers):

    def disk(name, layer=layer):
      return tensors[f'model.layers.{layer}.{name}']

    for ours, theirs in (
      ('wq', 'self_attn.q_proj'),
      ('wk', 'self_attn.k_proj'),
      ('wv', 'self_attn.v_proj'),
    ):
      got = np.einsum('BD,DNH->BNH', x, layers[ours][layer])
      want = x @ disk(f'{theirs}.weight').T
      if config.qkv_bias:
        got = got + layers[ours.replace('w', 'b')][layer]
        want = want + disk(f'{theirs}.bias')
      np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-6)
    np.testing.assert_allclose(
      np.einsum('BNH,NHD->BD', a, layers['wo'][layer]),
      a.reshape(5, -1) @ disk('self_attn.o_proj.weight').T,
      rtol=1e-5,
    )
    for ours, theirs, value in (
      ('w_gate', 'gate_proj', x),
      ('w_up', 'up_proj', x),
      ('w_down', 'down_proj', h),
    ):
      np.testing.assert_allclose(
        value @ layers[ours][layer],
        value @ disk(f'mlp.{theirs}.weight').T,
        rtol=1e-6,
      )
    for ours, theirs in (
      ('attn_norm', 'input_layernorm'),
      ('mlp_norm', 'post_attention_layernorm'),
      ('q_norm', 'self_attn.q_norm'),
      ('k_norm', 'self_attn.k_norm'),
    ):
      if ours not in layers:
        continue
      np.testing.assert_array_equal(
        layers[ours][layer], disk(f'{theirs}.weight')
      )
  np.testing.assert_array_equal(
    params['embed'], tensors['model.embed_tokens.weight']
  )
  np.testing.assert_array_equal(
    params['final_norm'], tensors['model.norm.weight']
  )
  if config.tied:
    assert 'unembed' not in params
  else:
    np.testing.assert_array_equal(
      params['unembed'], tensors['lm_head.weight'].T
    )


@ARCHITECTURES
def test_the_tree_is_the_models(tmp_path, config):
  """Same names and shapes as the model declares, so it can be restored into."""
  params = hf.read_weights(write(tmp_path / 'm', make_tensors(config)), config)
  declared = llama.weights(config)

  def shapes(tree):
    return {
      k: shapes(v) if isinstance(v, dict) else v.shape for k, v in tree.items()
    }

  assert shapes(params) == shapes(declared)


def test_bfloat16_is_read_exactly_and_dtype_is_kept(tmp_path):
  """NumPy has no bfloat16 of its own; the values must still survive."""
  rounded = {
    n: t.astype(ml_dtypes.bfloat16) for n, t in make_tensors(LLAMA).items()
  }
  folder = write(tmp_path / 'bf16', rounded)
  params = hf.read_weights(folder, LLAMA)
  assert params['embed'].dtype == np.float32
  np.testing.assert_array_equal(
    params['embed'], rounded['model.embed_tokens.weight'].astype(np.float32)
  )
  half = hf.read_weights(folder, LLAMA, dtype=ml_dtypes.bfloat16)
  assert half['layers']['wq'].dtype == half['embed'].dtype == ml_dtypes.bfloat16
  np.testing.assert_array_equal(
    half['layers']['wq'].astype(np.float32), params['layers']['wq']
  )


def test_an_index_names_several_files(tmp_path):
  tensors = make_tensors(LLAMA)
  single = hf.read_weights(write(tmp_path / 'one', tensors), LLAMA)
  folder = tmp_path / 'many'
  folder.mkdir()
  weight_map = {}
  for i, name in enumerate(tensors):
    weight_map[name] = f'part-{i % 2}.safetensors'
  for file in set(weight_map.values()):
    part = {n: t for n, t in tensors.items() if weight_map[n] == file}
    safetensors.save_file(part, folder / file)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  many = hf.read_weights(folder, LLAMA)
  for name, weight in single['layers'].items():
    np.testing.assert_array_equal(many['layers'][name], weight)
  (folder / 'part-1.safetensors').unlink()
  with pytest.raises(FileNotFoundError, match=r'part-1\.safetensors'):
    hf.read_weights(folder, LLAMA)


def test_wrong_tensors_are_named(tmp_path):
  """A missing tensor would leave random memory, an unknown one lost weights."""
  tensors = make_tensors(LLAMA)
  lost = dict(tensors)
  del lost['model.layers.1.mlp.up_proj.weight']
  with pytest.raises(ValueError, match=r'missing model\.layers\.1\.mlp\.up_pr'):
    hf.read_weights(write(tmp_path / 'lost', lost), LLAMA)
  more = tensors | {'model.layers.0.self_attn.q_norm.weight': np.ones(2)}
  with pytest.raises(ValueError, match=r'unknown model\.layers\.0\.self_attn'):
    hf.read_weights(write(tmp_path / 'more', more), LLAMA)
  other = tensors | {'model.norm.weight': np.ones(13, np.float32)}
  with pytest.raises(ValueError, match=r'norm\.weight has shape \(13,\).*12'):
    hf.read_weights(write(tmp_path / 'other', other), LLAMA)
  whole = tensors | {'model.norm.weight': np.ones(12, np.int8)}
  with pytest.raises(ValueError, match=r'norm\.weight is I8; can be read: F64'):
    hf.read_weights(write(tmp_path / 'whole', whole), LLAMA)


def test_damaged_files_are_named(tmp_path):
  """Where a file ends too early, so is the tensor that it ends in."""
  whole = write(tmp_path / 'm', make_tensors(LLAMA)) / 'model.safetensors'
  data = whole.read_bytes()
  header_len = 8 + int.from_bytes(data[:8], 'little')
  last = list(json.loads(data[8:header_len]))[-1]
  for size, message in (
    (
      len(data) - 1,
      rf'not a whole safetensors file, cut short inside .*{last}',
    ),
    (header_len + 3, r'cut short inside tensor (model|lm_head)\.'),
    (header_len - 1, 'cut short inside its list of tensors'),
    (4, 'cut short inside its list of tensors'),
  ):
    whole.write_bytes(data[:size])
    with pytest.raises(ValueError, match=rf'model\.safetensors: .*{message}'):
      hf.read_weights(whole.parent, LLAMA)
  whole.write_bytes(data[:8] + b'x' * (len(data) - 8))
  with pytest.raises(ValueError, match='not a whole safetensors file: '):
    hf.read_weights(whole.parent, LLAMA)


def test_a_tensor_in_two_files_is_refused(tmp_path):
  tensors = make_tensors(LLAMA)
  for file in 'ab':
    safetensors.save_file(tensors, tmp_path / f'{file}.safetensors')
  weight_map = dict.fromkeys(tensors, 'a.safetensors')
  weight_map['model.norm.weight'] = 'b.safetensors'
  index = tmp_path / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': weight_map}))
  with pytest.raises(ValueError, match=r'b\.safetensors: .*a\.safetensors alr'):
    hf.read_weights(tmp_path, LLAMA)


def test_known_duplicates_are_no_error_unless_they_differ(tmp_path):
  """Tied models may be saved with both names of one tensor."""
  config = dataclasses.replace(LLAMA, tied=True)
  tensors = make_tensors(config)
  embed = tensors['model.embed_tokens.weight']
  both = tensors | {
    'lm_head.weight': embed,
    'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(1, np.float32),
  }
  params = hf.read_weights(write(tmp_path / 'both', both), config)
  assert 'unembed' not in params
  both['lm_head.weight'] = embed + 1
  with pytest.raises(
    ValueError, match=r'lm_head\.weight is not model\.embed_tok'
  ):
    hf.read_weights(write(tmp_path / 'untied', both), config)


def test_folders_without_weights_say_what_they_hold(tmp_path):
  (tmp_path / 'pytorch_model.bin').write_text('')
  with pytest.raises(FileNotFoundError, match=r'it has: .*pytorch_model\.bin'):
    hf.read_weights(tmp_path, LLAMA)
  with pytest.raises(FileNotFoundError, match=r'config\.json is not there'):
    hf.read_config(tmp_path)


def test_config_of_llama(tmp_path):
  assert read_config(tmp_path) == LLAMA
  assert read_config(tmp_path, hidden_size=16, head_dim=None).head_dim == 4
  assert read_config(tmp_path, num_key_value_heads=None).num_kv_heads == 4
  assert read_config(tmp_path, tie_word_embeddings=True).tied
  assert read_config(tmp_path, rms_norm_eps=1e-6).norm_eps == 1e-6


def test_config_of_qwen2(tmp_path):
  found = read_config(tmp_path, model_type='qwen2', tie_word_embeddings=True)
  assert found == QWEN2


def test_config_of_qwen3_and_mistral(tmp_path):
  found = read_config(tmp_path, model_type='qwen3', tie_word_embeddings=True)
  assert found == QWEN3
  fields = json.dumps(
    FIELDS | {'model_type': 'mistral', 'sliding_window': None}
  )
  (tmp_path / 'config.json').write_text(fields)
  assert hf.read_config(tmp_path) == LLAMA


def test_rotary_fields_old_and_new(tmp_path):
  """transformers 5 moved theta into the dict that held the scaling."""
  scaling = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }
  want = dataclasses.replace(
    LLAMA,
    rope_theta=5e5,
    rope_scaling=llama.RopeScaling(8.0, 1.0, 4.0, 8192),
  )
  old = read_config(tmp_path, rope_theta=5e5, rope_scaling=scaling)
  new = read_config(tmp_path, rope_parameters=scaling | {'rope_theta': 5e5})
  assert old == new == want
  plain = {'rope_type': 'default', 'rope_theta': 5e5}
  plain = read_config(tmp_path, rope_parameters=plain)
  assert plain == dataclasses.replace(LLAMA, rope_theta=5e5)
  del scaling['factor']
  with pytest.raises(ValueError, match='field factor is missing'):
    read_config(tmp_path, rope_scaling=scaling)


@pytest.mark.parametrize(
  ('field', 'value', 'problem'),
  [
    ('model_type', 'gemma2', "'gemma2'; can be read: llama, mistral, qwen2"),
    ('hidden_act', 'gelu', "only 'silu'"),
    ('attention_bias', True, 'only False'),
    ('mlp_bias', True, 'only False'),
    ('use_sliding_window', True, 'only False'),
    ('rope_scaling', {'type': 'yarn'}, "'yarn'; can be read: default, llama3"),
    ('hidden_size', None, 'field hidden_size is missing'),
    ('hidden_size', '12', "hidden_size is '12'; wanted: int"),
    ('num_hidden_layers', 0, 'num_hidden_layers is 0; wanted: over 0'),
    ('num_attention_heads', 4.0, 'num_attention_heads is 4.0; wanted: int'),
    ('num_key_value_heads', 3, '4 heads cannot share 3 key and value heads'),
    ('head_dim', 3, 'a head has 3 dimensions'),
    ('rms_norm_eps', 'x', "rms_norm_eps is 'x'; wanted: float"),
    ('rms_norm_eps', -1, 'rms_norm_eps is -1; wanted: over 0'),
    ('partial_rotary_factor', 0.5, 'only whole heads can be rotated'),
    ('layer_types', ['sliding_attention'], 'only full_attention can be read'),
    ('rope_theta', 0, 'rope_theta is 0; wanted: over 0'),
    ('rope_parameters', 'x', "rope_parameters is 'x'; wanted: an object"),
    ('rope_scaling', ['x'], 'rope_scaling is .* wanted: an object'),
    ('tie_word_embeddings', 'no', "tie_word_embeddings is 'no'; wanted: bool"),
  ],
)
def test_what_the_model_lacks_is_refused(tmp_path, field, value, problem):
  """Read all the same, such weights would give other logits, silently."""
  with pytest.raises(ValueError, match=problem):
    read_config(tmp_path, **{field: value})


def test_two_accounts_of_the_rotary_embedding_must_agree(tmp_path):
  """Where both fields are there, transformers takes the older; taking the other
  would drop the scaling without a word."""
  scaling = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
  }
  new = scaling | {'rope_theta': 5e5}
  both = read_config(tmp_path, rope_scaling=scaling, rope_parameters=new)
  assert both.rope_scaling.factor == 8
  plain = {'rope_theta': 5e5}
  with pytest.raises(ValueError, match='say two things'):
    read_config(tmp_path, rope_scaling=scaling, rope_parameters=plain)
  scaling['high_freq_factor'] = 1.0
  with pytest.raises(ValueError, match=r'low_freq_factor 1\.0 is not below'):
    read_config(tmp_path, rope_scaling=scaling)
  scaling['factor'] = None
  with pytest.raises(ValueError, match='field factor is missing'):
    read_config(tmp_path, rope_scaling=scaling)


@pytest.mark.parametrize('data', [b'[1]', b'null', b'{', b'\xff{}'])
def test_files_that_are_no_json_objects_are_named(tmp_path, data):
  (tmp_path / 'config.json').write_bytes(data)
  with pytest.raises(ValueError, match=r'config\.json: not (a )?JSON'):
    hf.read_config(tmp_path)
  index = tmp_path / 'model.safetensors.index.json'
  index.write_bytes(data)
  with pytest.raises(ValueError, match=r'index\.json: not (a )?JSON'):
    hf.open_tensors(tmp_path)


def test_an_index_that_is_wrong_is_named(tmp_path):
  folder = write(tmp_path, make_tensors(LLAMA))
  index = folder / 'model.safetensors.index.json'
  name = 'model.norm.weight'
  for weight_map, message in (
    (None, 'weight_map is no object of file names'),
    ({name: 3}, 'weight_map is no object of file names'),
    ({'ghost': 'model.safetensors'}, r'tensor ghost is not in model\.safet'),
  ):
    index.write_text(json.dumps({'weight_map': weight_map}))
    with pytest.raises(ValueError, match=rf'index\.json: {message}'):
      hf.open_tensors(folder)
  safetensors.save_file({'x': np.ones(2, 'f')}, folder / 'other.safetensors')
  weight_map = dict.fromkeys(make_tensors(LLAMA), 'model.safetensors')
  index.write_text(
    json.dumps({'weight_map': weight_map | {name: 'other.safetensors'}})
  )
  with pytest.raises(ValueError, match=f'{name} is said to be in other'):
    hf.open_tensors(folder)


def test_a_sliding_window_is_refused_where_it_is_used(tmp_path):
  """Mistral's first version attends over 4,096 tokens alone; Qwen2's config
  names a window too, but does not use it."""
  for said in ({'sliding_window': 4096}, {}):  # unsaid, it is that too
    with pytest.raises(ValueError, match='sliding_window is 4096; only null'):
      read_config(tmp_path, model_type='mistral', **said)
  read_config(tmp_path, model_type='qwen2', sliding_window=4096)
