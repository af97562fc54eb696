"""Weights and architecture from a Hugging Face folder.

1. `read_config` reads config.json. A model that classifies sequences has a
   scalar head in place of an lm_head.
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

from dash_jax.model import fields, llama, tensors

_ARCHITECTURES = ('llama', 'mistral', 'qwen2', 'qwen3')
_CLASSIFIER = 'ForSequenceClassification'
_HOLDS = 'a Hugging Face folder holds config.json and safetensors files'
_FLOAT_TYPES = ('F64', 'F32', 'F16', 'BF16')


def read_config(folder: str) -> llama.LlamaConfig:
  """Returns the architecture in a folder's config.json.

  Raises:
    ValueError: an architecture or a feature of it that `llama.Llama` lacks.
  """
  path = pathlib.Path(folder) / 'config.json'
  found = fields.read_json(path, _HOLDS)
  get = functools.partial(fields.get, str(path), found)

  def want(key, value):
    said = found.get(key)
    if said is not None and said != value:
      raise ValueError(f'{path}: {key} is {said!r}; only {value!r} can be read')

  architecture = found.get('model_type')
  if architecture not in _ARCHITECTURES:
    raise ValueError(
      f'{path}: model_type is {architecture!r}; '
      f'can be read: {", ".join(_ARCHITECTURES)}'
    )
  want('hidden_act', 'silu')
  want('attention_bias', False)
  want('mlp_bias', False)
  want('use_sliding_window', False)
  # Others say a window and do not use it; where Mistral says none, it is 4096.
  if architecture == 'mistral' and found.get('sliding_window', 4096):
    raise ValueError(
      f'{path}: sliding_window is {found.get("sliding_window", 4096)!r}; only'
      ' null can be read'
    )
  num_heads, embed_dim = (
    get('num_attention_heads', int),
    get('hidden_size', int),
  )
  rope = _read_rope(path, found)
  for said in (found, rope):
    if said.get('partial_rotary_factor') not in (None, 1, 1.0):
      raise ValueError(
        f'{path}: partial_rotary_factor is {said["partial_rotary_factor"]!r};'
        ' only whole heads can be rotated'
      )
  others = set(_read_names(path, found, 'layer_types')) - {'full_attention'}
  if others:
    raise ValueError(
      f'{path}: layer_types has {sorted(others)}; only full_attention can be read'
    )
  theta = fields.get(str(path), rope, 'rope_theta', float, None)
  classifies = any(
    name.endswith(_CLASSIFIER)
    for name in _read_names(path, found, 'architectures')
  )
  labels = found.get('id2label')
  if classifies and (not isinstance(labels, dict) or len(labels) != 1):
    raise ValueError(
      f'{path}: id2label is {labels!r}; of models that classify, those with one'
      ' label, a score, can be read'
    )
  config = llama.LlamaConfig(
    vocab_size=get('vocab_size', int),
    embed_dim=embed_dim,
    num_layers=get('num_hidden_layers', int),
    num_heads=num_heads,
    num_kv_heads=get('num_key_value_heads', int, num_heads),
    head_dim=get('head_dim', int, embed_dim // num_heads),
    ffw_dim=get('intermediate_size', int),
    rope_theta=theta or get('rope_theta', float, 1e4),
    norm_eps=get('rms_norm_eps', float),
    # Without an lm_head there is none to tell from the embedding.
    tied=classifies or get('tie_word_embeddings', bool, False),
    qkv_bias=architecture == 'qwen2',
    qk_norm=architecture == 'qwen3',
    rope_scaling=_read_scaling(path, rope),
    scalar_head=classifies,
  )
  return fields.check_heads(str(path), config)


def _read_names(path, found: dict, key: str) -> list[str]:
  names = found.get(key) or []
  if not isinstance(names, list) or not all(isinstance(x, str) for x in names):
    raise ValueError(f'{path}: {key} is {names!r}; wanted: a list of names')
  return names


def read_max_len(folder: str) -> int | None:
  """Returns the longest row, in tokens, that the model was made for; None if it
  is not said."""
  path = pathlib.Path(folder) / 'config.json'
  found = fields.read_json(path, _HOLDS)
  return fields.get(str(path), found, 'max_position_embeddings', int, None)


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
  index = pathlib.Path(folder) / 'model.safetensors.index.json'
  for name, file in _read_weight_map(index).items() if index.exists() else ():
    if name in found and pathlib.Path(found[name].file).name != file:
      raise ValueError(
        f'{index}: tensor {name} is said to be in {file}, but is in'
        f' {found[name].file}'
      )
    if name not in found and not name.endswith('.rotary_emb.inv_freq'):
      raise ValueError(f'{index}: tensor {name} is not in {file}')
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
      for name, end in sorted(ends.items(), key=lambda item: item[1]):
        if 8 + header_len + end > size:
          return f', cut short inside tensor {name}'
    except Exception:  # damaged bytes may raise anything
      return ''
  return ''


def _read_rope(path, found: dict) -> dict:
  """Returns what a config says of its rotary embedding."""
  # transformers 5 writes one dict; before, theta stood apart from the scaling.
  new, old = found.get('rope_parameters'), found.get('rope_scaling')
  for name, value in (('rope_parameters', new), ('rope_scaling', old)):
    if not isinstance(value, dict | None):
      raise ValueError(f'{path}: {name} is {value!r}; wanted: an object')
  if not new or not old:
    return new or old or {}
  if any(new.get(name) != value for name, value in old.items()):
    raise ValueError(
      f'{path}: rope_scaling {old} and rope_parameters {new} say two things;'
      ' one of them must go'
    )
  return new


def _read_scaling(path, rope: dict) -> llama.RopeScaling | None:
  kind = rope.get('rope_type') or rope.get('type') or 'default'
  if kind == 'default':
    return None
  if kind != 'llama3':
    raise ValueError(
      f'{path}: rope_type is {kind!r}; can be read: default, llama3'
    )

  def get(name, kind):
    return fields.get(f'{path}, its rotary scaling', rope, name, kind)

  scaling = llama.RopeScaling(
    factor=get('factor', float),
    low_freq_factor=get('low_freq_factor', float),
    high_freq_factor=get('high_freq_factor', float),
    original_max_len=get('original_max_position_embeddings', int),
  )
  if scaling.low_freq_factor >= scaling.high_freq_factor:
    raise ValueError(
      f'{path}: low_freq_factor {scaling.low_freq_factor} is not below'
      f' high_freq_factor {scaling.high_freq_factor}'
    )
  return scaling


def _list_files(folder: pathlib.Path) -> list[pathlib.Path]:
  index = folder / 'model.safetensors.index.json'
  single = folder / 'model.safetensors'
  if index.exists():
    files = sorted({folder / name for name in _read_weight_map(index).values()})
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


def _read_weight_map(index: pathlib.Path) -> dict[str, str]:
  """Returns, by tensor, the file that the index says it is in."""
  found = fields.read_json(index, _HOLDS).get('weight_map')
  if not isinstance(found, dict) or not all(
    isinstance(name, str) for name in found.values()
  ):
    raise ValueError(f'{index}: weight_map is no object of file names')
  for name in found.values():
    # A checkpoint of another's must not choose what else is read here.
    if name in ('', '.', '..') or '/' in name or '\0' in name:
      raise ValueError(
        f'{index}: weight_map names {name!r}; wanted: a file of this folder'
      )
  return found
