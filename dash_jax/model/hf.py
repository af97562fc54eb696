"""Weights and architecture from a Hugging Face folder.

1. `read_config` reads config.json.
2. `open_tensors` lists the tensors of model.safetensors, or of the files that
   its index names.
3. `read_weights` hands them to `tensors.load`.
"""

import contextlib
import functools
import json
import pathlib

import numpy as np
import safetensors

from dash_jax.model import llama, tensors

_ARCHITECTURES = ('llama', 'mistral', 'qwen2', 'qwen3')
_FLOAT_TYPES = ('F64', 'F32', 'F16', 'BF16')


def read_config(folder: str) -> llama.LlamaConfig:
  """Returns the architecture in a folder's config.json.

  Raises:
    ValueError: an architecture or a feature of it that `llama.Llama` lacks.
  """
  path = pathlib.Path(folder) / 'config.json'
  fields = _read_json(path)

  def get(key, *default):
    if fields.get(key) is not None:
      return fields[key]
    if default:
      return default[0]
    raise ValueError(f'{path}: field {key} is missing')

  def want(key, value, default):
    if get(key, default) != value:
      raise ValueError(
        f'{path}: {key} is {get(key, default)!r}; only {value!r} can be read'
      )

  architecture = get('model_type')
  if architecture not in _ARCHITECTURES:
    raise ValueError(
      f'{path}: model_type is {architecture!r}; '
      f'can be read: {", ".join(_ARCHITECTURES)}'
    )
  want('hidden_act', 'silu', 'silu')
  want('attention_bias', False, False)
  want('mlp_bias', False, False)
  want('use_sliding_window', False, False)
  # Others say a window and do not use it; where Mistral says none, it is 4096.
  if architecture == 'mistral' and fields.get('sliding_window', 4096):
    raise ValueError(
      f'{path}: sliding_window is {fields.get("sliding_window", 4096)!r}; only'
      ' null can be read'
    )
  num_heads = get('num_attention_heads')
  # transformers 5 writes one dict; before, theta stood apart from the scaling.
  rope = get('rope_parameters', None) or get('rope_scaling', {})
  return llama.LlamaConfig(
    vocab_size=get('vocab_size'),
    embed_dim=get('hidden_size'),
    num_layers=get('num_hidden_layers'),
    num_heads=num_heads,
    num_kv_heads=get('num_key_value_heads', num_heads),
    head_dim=get('head_dim', get('hidden_size') // num_heads),
    ffw_dim=get('intermediate_size'),
    rope_theta=float(rope.get('rope_theta') or get('rope_theta', 1e4)),
    norm_eps=float(get('rms_norm_eps')),
    tied=bool(get('tie_word_embeddings', False)),
    qkv_bias=architecture == 'qwen2',
    qk_norm=architecture == 'qwen3',
    rope_scaling=_read_scaling(path, rope),
  )


def read_max_len(folder: str) -> int:
  """Returns the longest row, in tokens, that the model was made for."""
  path = pathlib.Path(folder) / 'config.json'
  name = 'max_position_embeddings'
  fields = _read_json(path)
  if name not in fields:
    raise ValueError(f'{path}: {name} is missing, the longest row it takes')
  return fields[name]


def read_weights(
  folder: str, config: llama.LlamaConfig, dtype=np.float32
) -> dict:
  """Returns the weights, as `tensors.load` does.

  Raises:
    FileNotFoundError: the folder, or a file of its index, is not there.
    ValueError: a file is damaged, or its tensors are not those of `config`.
  """
  return tensors.load(str(folder), config, open_tensors(folder), dtype)


def open_tensors(folder: str) -> dict[str, tensors.Tensor]:
  """Returns the tensors of a folder's safetensors files, by their names."""
  found: dict[str, tensors.Tensor] = {}
  for file in _list_files(pathlib.Path(folder)):
    with _open(file) as opened:
      for name in opened.keys():  # noqa: SIM118
        # Old files carry the rotary frequencies, which the config gives anyway.
        if name.endswith('.rotary_emb.inv_freq'):
          continue
        if name in found:
          raise ValueError(
            f'{file}: tensor {name} is in {found[name].file} already'
          )
        part = opened.get_slice(name)
        if part.get_dtype() not in _FLOAT_TYPES:
          raise ValueError(
            f'{file}: tensor {name} is {part.get_dtype()}; can be read: '
            + ', '.join(_FLOAT_TYPES)
          )
        found[name] = tensors.Tensor(
          name=name,
          file=str(file),
          shape=tuple(part.get_shape()),
          read=functools.partial(_read, file, name),
        )
  return found


def _read(file, name, index) -> np.ndarray:
  # Opened for each: what is mapped of a file counts as memory until it closes.
  with _open(file) as opened:
    return opened.get_slice(name)[index]


@contextlib.contextmanager
def _open(file):
  try:
    with safetensors.safe_open(file, framework='np') as opened:
      yield opened
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{file}: not a whole safetensors file{_find_cut(file)}: {error}'
    ) from error


def _find_cut(file) -> str:
  """Returns a note that names the first tensor that a file is too short for."""
  size = file.stat().st_size
  with file.open('rb') as opened:
    header_len = int.from_bytes(opened.read(8), 'little')
    if header_len + 8 > size:
      return ', cut short inside its list of tensors'
    try:
      header = json.loads(opened.read(header_len))
      ends = {n: t['data_offsets'][1] for n, t in header.items() if n[0] != '_'}
    except (ValueError, KeyError, TypeError, IndexError):
      return ''
  for name, end in sorted(ends.items(), key=lambda item: item[1]):
    if 8 + header_len + end > size:
      return f', cut short inside tensor {name}'
  return ''


def _read_scaling(path, rope: dict) -> llama.RopeScaling | None:
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind == 'default':
    return None
  if kind != 'llama3':
    raise ValueError(
      f'{path}: rope_type is {kind!r}; can be read: default, llama3'
    )
  try:
    return llama.RopeScaling(
      factor=float(rope['factor']),
      low_freq_factor=float(rope['low_freq_factor']),
      high_freq_factor=float(rope['high_freq_factor']),
      original_max_len=int(rope['original_max_position_embeddings']),
    )
  except KeyError as error:
    raise ValueError(f'{path}: llama3 rope scaling lacks {error}') from error


def _list_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  single = folder / 'model.safetensors'
  if index.exists():
    files = sorted(
      {folder / f for f in _read_json(index)['weight_map'].values()}
    )
  elif single.exists():
    files = [single]
  else:
    there = sorted(f.name for f in folder.iterdir()) if folder.is_dir() else []
    raise FileNotFoundError(
      f'{folder} has neither {single.name} nor {index.name}; it has: {there}'
    )
  for file in files:
    if not file.exists():
      raise FileNotFoundError(f'{index} names {file.name}, which is not there')
  return files


def _read_json(path: pathlib.Path) -> dict:
  if not path.exists():
    raise FileNotFoundError(
      f'{path} is not there; a Hugging Face folder holds config.json and '
      'safetensors files'
    )
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: not JSON: {error}') from error
