"""Weights and architecture from a Hugging Face folder.

  1. `read_config` reads config.json.
  2. `list_tensors` says, for every tensor on disk, which weight of ours it is:
     shapes derive from `llama.weights`, names from the two tables below.
  3. `read_weights` opens model.safetensors, or the files its index names.
  4. `fill_params` checks names and shapes, and writes each tensor into its
     layer of the stacked tree. Only one tensor at a time is held twice.

A linear weight is [out, in] on disk and [in.., out..] with us, heads apart from
head size. Their rotary convention, pairs (i, i + H/2), is ours.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Collection, Mapping

import numpy as np
import safetensors

from dash_jax.model import llama

_ARCHITECTURES = ('llama', 'mistral', 'qwen2', 'qwen3')
_FLOAT_TYPES = ('F64', 'F32', 'F16', 'BF16')

# Our name -> the name on disk, and how many of our leading axes are inputs;
# None is a tensor that is stored as we hold it.
_TOP_TENSORS = {
  'embed': ('model.embed_tokens.weight', None),
  'final_norm': ('model.norm.weight', None),
  'unembed': ('lm_head.weight', 1),
}
_LAYER_TENSORS = {
  'attn_norm': ('input_layernorm.weight', None),
  'wq': ('self_attn.q_proj.weight', 1),
  'wk': ('self_attn.k_proj.weight', 1),
  'wv': ('self_attn.v_proj.weight', 1),
  'bq': ('self_attn.q_proj.bias', 0),
  'bk': ('self_attn.k_proj.bias', 0),
  'bv': ('self_attn.v_proj.bias', 0),
  'q_norm': ('self_attn.q_norm.weight', None),
  'k_norm': ('self_attn.k_norm.weight', None),
  'wo': ('self_attn.o_proj.weight', 2),
  'mlp_norm': ('post_attention_layernorm.weight', None),
  'w_gate': ('mlp.gate_proj.weight', 1),
  'w_up': ('mlp.up_proj.weight', 1),
  'w_down': ('mlp.down_proj.weight', 1),
}


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a tensor on disk belongs.

  Attributes:
    name: the weight's name in `params`, or in `params['layers']`.
    layer: its index there, None for a weight outside the layers.
    shape: its shape with us, without the layer axis.
    disk_shape: the tensor's shape on disk.
    linear: whether its axes are [out, in] on disk.
  """

  name: str
  layer: int | None
  shape: tuple[int, ...]
  disk_shape: tuple[int, ...]
  linear: bool


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


def read_weights(
  folder: str, config: llama.LlamaConfig, dtype=np.float32
) -> dict:
  """Returns the weights as NumPy arrays in the tree of `llama.weights`.

  Raises:
    FileNotFoundError: the folder, or a file of its index, is not there.
    ValueError: tensors are missing, unknown, not floats, or not of the shapes
      that `config` asks for.
  """
  places = list_tensors(config)
  with contextlib.ExitStack() as stack:
    sources = {}
    for file in _list_files(pathlib.Path(folder)):
      opened = stack.enter_context(safetensors.safe_open(file, framework='np'))
      sources.update((name, opened) for name in opened.keys())  # noqa: SIM118

    def read(name):
      kind = sources[name].get_slice(name).get_dtype()
      if kind not in _FLOAT_TYPES:
        raise ValueError(
          f'{folder}: tensor {name} is {kind}; '
          f'can be read: {", ".join(_FLOAT_TYPES)}'
        )
      return sources[name].get_tensor(name)

    # Old files carry the rotary frequencies, which the config gives anyway.
    names = [n for n in sources if not n.endswith('.rotary_emb.inv_freq')]
    if config.tied and 'lm_head.weight' in names:
      if not np.array_equal(
        read('lm_head.weight'), read('model.embed_tokens.weight')
      ):
        raise ValueError(
          f'{folder}: tie_word_embeddings is true, but lm_head.weight is not '
          'model.embed_tokens.weight; set it to false in config.json'
        )
      names.remove('lm_head.weight')
    return fill_params(folder, config, places, names, read, dtype)


def list_tensors(config: llama.LlamaConfig) -> dict[str, Place]:
  """Returns the place of every tensor that the architecture has on disk."""
  weights = llama.weights(config)
  places = {}
  for name, (disk_name, num_inputs) in _TOP_TENSORS.items():
    if name in weights:
      shape = weights[name].shape
      places[disk_name] = _place(name, None, shape, num_inputs)
  for name, (disk_name, num_inputs) in _LAYER_TENSORS.items():
    if name not in weights['layers']:
      continue
    shape = weights['layers'][name].shape[1:]
    for layer in range(config.num_layers):
      places[f'model.layers.{layer}.{disk_name}'] = _place(
        name, layer, shape, num_inputs
      )
  return places


def fill_params(
  source: str,
  config: llama.LlamaConfig,
  places: Mapping[str, Place],
  names: Collection[str],
  read: Callable[[str], np.ndarray],
  dtype,
) -> dict:
  """Returns the weights as NumPy arrays in the tree of `llama.weights`.

  Args:
    source: the file or folder, for errors.
    config: the architecture.
    places: the tensors wanted.
    names: the tensors there are.
    read: returns a tensor as it is on disk, [out, in].
    dtype: what the weights are converted to.

  Raises:
    ValueError: a tensor is missing, unknown, or has another shape.
  """
  missing = sorted(set(places) - set(names))
  extra = sorted(set(names) - set(places))
  if missing or extra:
    raise ValueError(
      f'{source}: its tensors are not those of {config}: '
      f'missing {_shorten(missing)}, unknown {_shorten(extra)}'
    )
  params: dict = {'layers': {}}
  for disk_name, place in places.items():
    tensor = read(disk_name)
    if tensor.shape != place.disk_shape:
      raise ValueError(
        f'{source}: tensor {disk_name} has shape {tensor.shape}, but the '
        f'architecture asks for {place.disk_shape}'
      )
    tensor = (tensor.T if place.linear else tensor).reshape(place.shape)
    if place.layer is None:
      params[place.name] = np.array(tensor, dtype, order='C')
      continue
    if place.name not in params['layers']:
      params['layers'][place.name] = np.empty(
        (config.num_layers, *place.shape), dtype
      )
    params['layers'][place.name][place.layer] = tensor
  return params


def _place(name, layer, shape, num_inputs) -> Place:
  if num_inputs is None:
    return Place(name, layer, shape, disk_shape=shape, linear=False)
  num_out = math.prod(shape[num_inputs:])
  if num_inputs == 0:
    return Place(name, layer, shape, disk_shape=(num_out,), linear=False)
  num_in = math.prod(shape[:num_inputs])
  return Place(name, layer, shape, disk_shape=(num_out, num_in), linear=True)


def _shorten(names: list[str]) -> str:
  if not names:
    return 'none'
  more = f' and {len(names) - 4} more' if len(names) > 4 else ''
  return ', '.join(names[:4]) + more


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
