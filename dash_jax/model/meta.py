"""Weights and architecture from a folder as Meta publishes Llama.

  1. The folder holds params.json and consolidated.00.pth, 01 and so on: one
     file for each part that the model was cut into, with the same names in all.
  2. `read_config` reads params.json, and from the tensors what it leaves open.
  3. `open_tensors` joins the parts of each tensor along the axis whose sizes
     add up to the shape that the architecture asks for. Nothing is read yet:
     `Tensor.read` reads from the files that hold what it is asked for.
  4. `read_weights` hands them to `tensors.load`.

Meta rotates neighbouring pairs (2i, 2i + 1) of q and k rows; `Tensor.read`
gives them as Hugging Face has them, (i, i + H/2).
"""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from dash_jax.model import fields, llama, pth, tensors

_FIELDS = (
  'dim',
  'n_layers',
  'n_heads',
  'n_kv_heads',
  'vocab_size',
  'multiple_of',
  'ffn_dim_multiplier',
  'norm_eps',
  'rope_theta',
  'use_scaled_rope',
  'max_batch_size',  # Of Meta's own sampler, as the next.
  'max_seq_len',
)

_HOLDS = 'a folder of Meta holds params.json and consolidated.*.pth files'

# Hugging Face's name of a tensor, by parts -> Meta's.
_TOP_NAMES = {
  'model.embed_tokens.weight': 'tok_embeddings.weight',
  'model.norm.weight': 'norm.weight',
  'lm_head.weight': 'output.weight',
}
_LAYER_NAMES = {
  'input_layernorm': 'attention_norm',
  'self_attn.q_proj': 'attention.wq',
  'self_attn.k_proj': 'attention.wk',
  'self_attn.v_proj': 'attention.wv',
  'self_attn.o_proj': 'attention.wo',
  'post_attention_layernorm': 'ffn_norm',
  'mlp.gate_proj': 'feed_forward.w1',
  'mlp.up_proj': 'feed_forward.w3',
  'mlp.down_proj': 'feed_forward.w2',
}
# Llama 1 and 2 carry the rotary frequencies, which params.json gives anyway.
_IGNORED = 'rope.freqs'

# What Llama 1 and 2 have, and do not say.
_ROPE_THETA = 1e4

# What is read of a tensor at a time when it is compared with another.
_BLOCK_BYTES = 1 << 24


def read_config(folder: str) -> llama.LlamaConfig:
  """Returns the architecture in a folder's params.json.

  Raises:
    FileNotFoundError: params.json or consolidated.*.pth is not there.
    ValueError: a field is missing or unknown, or the tensors say otherwise.
  """
  path = pathlib.Path(folder) / 'params.json'
  found = _read_fields(path)
  shards = _open_shards(folder)

  get = functools.partial(fields.get, str(path), found)
  embed_dim = get('dim', int)
  num_heads = get('n_heads', int)
  if embed_dim % num_heads:
    raise ValueError(
      f'{path}: dim {embed_dim} is not n_heads {num_heads} of one size'
    )
  # The files of Llama 1 and 2 say -1, and leave it to the tokenizer.
  if found.get('vocab_size', -1) == -1:
    vocab_size = _count_rows(shards, 'tok_embeddings.weight', embed_dim)
  else:
    vocab_size = get('vocab_size', int)
  multiple_of = get('multiple_of', int, 256)
  multiplier = get('ffn_dim_multiplier', float, 1.0)
  # Source: Llama's reference model, where a SwiGLU layer has the weights of a
  # plain one that is 4 times as wide as the residual stream.
  ffw_dim = int(multiplier * (8 * embed_dim // 3))
  ffw_dim = -(-ffw_dim // multiple_of) * multiple_of
  name = 'layers.0.feed_forward.w1.weight'
  there = _count_rows(shards, name, embed_dim)
  if there != ffw_dim:
    raise ValueError(
      f'{_name_files(shards)}: the parts of tensor {name} have {there} rows '
      f'together, but dim, multiple_of and ffn_dim_multiplier of {path} give '
      f'{ffw_dim}; is a consolidated.*.pth file missing?'
    )
  tied = _is_tied(shards, (vocab_size, embed_dim))
  config = llama.LlamaConfig(
    vocab_size=vocab_size,
    embed_dim=embed_dim,
    num_layers=get('n_layers', int),
    num_heads=num_heads,
    num_kv_heads=get('n_kv_heads', int, num_heads),
    head_dim=embed_dim // num_heads,
    ffw_dim=ffw_dim,
    rope_theta=get('rope_theta', float, _ROPE_THETA),
    norm_eps=get('norm_eps', float),
    tied=tied,
    rope_scaling=(
      _scaling(tied) if get('use_scaled_rope', bool, False) else None
    ),
  )
  return fields.check_heads(str(path), config)


def read_max_len(folder: str) -> int:
  """Returns the longest row, in tokens, that the model was made for: what was
  published of its generation, since no file of the folder says it."""
  path = pathlib.Path(folder) / 'params.json'
  get = functools.partial(fields.get, str(path), _read_fields(path))
  if get('use_scaled_rope', bool, False):
    return 131_072
  return 8192 if get('rope_theta', float, _ROPE_THETA) == 5e5 else 4096


def read_weights(
  folder: str, config: llama.LlamaConfig, dtype=np.float32
) -> dict:
  """Returns the weights, as `tensors.load` does.

  Raises:
    FileNotFoundError, ValueError: as `open_tensors` and `tensors.load`.
  """
  found = open_tensors(folder, config)
  return tensors.load(str(folder), config, found, dtype, rename=_rename)


def open_tensors(
  folder: str, config: llama.LlamaConfig
) -> dict[str, tensors.Tensor]:
  """Returns the folder's tensors, not read yet, by Hugging Face's names.

  Parts are joined, and linear weights are [out, in] with q and k rows in
  Hugging Face's order. output.weight is among them also where `config` is tied.

  Raises:
    FileNotFoundError: the folder or one of its files is not there.
    ValueError: a file is not what torch.save writes, or asks for more than
      tensors; tensors are missing or unknown, or their parts do not add up to
      the shapes that `config` asks for.
  """
  shards = _open_shards(folder)
  places = tensors.list_places(config)
  shapes = {name: place.disk_shape for name, place in places.items()}
  if config.tied and 'output.weight' in shards[0]:
    shapes['lm_head.weight'] = shapes['model.embed_tokens.weight']
  names = {_rename(name): name for name in shapes}
  tensors.check_names(_name_files(shards), config, names, shards[0])
  opened = {}
  for meta_name, name in names.items():
    tensor = _join([shard[meta_name] for shard in shards], shapes[name])
    if name.endswith(('q_proj.weight', 'k_proj.weight')):
      tensor = tensors.split_heads(tensor, config.head_dim)
    opened[name] = tensor
  return opened


def _read_fields(path: pathlib.Path) -> dict:
  found = fields.read_json(path, _HOLDS)
  unknown = sorted(set(found) - set(_FIELDS))
  if unknown:
    raise ValueError(
      f'{path}: field {unknown[0]} is not known; can be read: '
      f'{", ".join(_FIELDS)}'
    )
  return found


def _scaling(tied: bool) -> llama.RopeScaling:
  # params.json says that frequencies are scaled, not by how much: 8 for 3.1 and
  # 3.3, 32 for 3.2 by the configs published beside these files. 3.2's text
  # models are those that are tied.
  return llama.RopeScaling(factor=32.0 if tied else 8.0)


def _is_tied(shards, shape) -> bool:
  """Whether output.weight only repeats the embedding, block by block."""
  if 'output.weight' not in shards[0]:
    return True
  embed, output = (
    _join([shard[name] for shard in shards], shape)
    for name in ('tok_embeddings.weight', 'output.weight')
  )
  step = max(1, _BLOCK_BYTES // (shape[1] * np.dtype(np.float64).itemsize))
  for first in range(0, shape[0], step):
    index = slice(first, min(first + step, shape[0])), slice(0, shape[1])
    if not np.array_equal(embed.read(index), output.read(index)):
      return False
  return True


def _count_rows(shards, name: str, num_columns: int) -> int:
  """Returns the rows of a tensor whose parts are joined on either axis."""
  if name not in shards[0]:
    raise ValueError(f'{_name_files(shards)}: tensor {name} is missing')
  shapes = [shard[name].shape for shard in shards]
  if all(len(shape) == 2 for shape in shapes):
    rows, columns = zip(*shapes, strict=True)
    if set(columns) == {num_columns}:
      return sum(rows)
    if len(set(rows)) == 1 and sum(columns) == num_columns:
      return rows[0]
  raise ValueError(
    f'{_name_files(shards)}: parts {shapes} of tensor {name} do not add up to '
    f'{num_columns} columns, the dim of params.json; is a consolidated.*.pth '
    'file missing?'
  )


def _rename(name: str) -> str:
  """Returns Meta's name of a tensor that Hugging Face calls `name`."""
  return tensors.rename(name, _TOP_NAMES, _LAYER_NAMES, 'layers')


def _name_files(shards: Sequence[dict[str, pth.Stored]]) -> str:
  return _name_parts([next(iter(shard.values())) for shard in shards])


def _name_parts(parts: Sequence[pth.Stored]) -> str:
  first, last = parts[0].file, parts[-1].file
  return first if len(parts) == 1 else f'{first} to {os.path.basename(last)}'


def _join(parts: list[pth.Stored], shape: tuple[int, ...]) -> tensors.Tensor:
  """Returns the tensor of `shape` that the files' parts make together."""
  first = parts[0]
  for part in parts:
    if part.dtype != first.dtype:
      raise ValueError(
        f'{part.file}: tensor {part.name} is {part.dtype}, but in {first.file} '
        f'it is {first.dtype}'
      )
  files = _name_parts(parts)
  # A norm is whole in every file.
  if all(part.shape == shape for part in parts):
    return tensors.Tensor(first.name, files, shape, first.read)
  axis = _find_axis([part.shape for part in parts], shape)
  if axis is not None:
    read = functools.partial(_read, parts, axis)
    return tensors.Tensor(first.name, files, shape, read)
  raise ValueError(
    f'{files}: parts {[part.shape for part in parts]} of tensor {first.name} '
    f'do not add up to {shape}, which the architecture asks for; is a '
    'consolidated.*.pth file missing?'
  )


def _find_axis(parts: list[tuple[int, ...]], shape) -> int | None:
  """Returns the axis on which parts of these shapes add up to `shape`."""
  if any(len(part) != len(shape) for part in parts):
    return None
  for axis, size in enumerate(shape):
    joined = {(*part[:axis], size, *part[axis + 1 :]) for part in parts}
    if joined == {shape} and sum(part[axis] for part in parts) == size:
      return axis
  return None


def _read(parts: list[pth.Stored], axis: int, index) -> np.ndarray:
  """Returns the values at `index` of parts that follow each other on an axis."""
  wanted = index[axis]
  out = np.empty([at.stop - at.start for at in index], parts[0].dtype)
  offset = 0
  for part in parts:
    start = max(wanted.start, offset)
    stop = min(wanted.stop, offset + part.shape[axis])
    if start < stop:
      here, there = [slice(None)] * out.ndim, list(index)
      here[axis] = slice(start - wanted.start, stop - wanted.start)
      there[axis] = slice(start - offset, stop - offset)
      out[tuple(here)] = part.read(tuple(there))
    offset += part.shape[axis]
  return out


def _open_shards(folder: str) -> list[dict[str, pth.Stored]]:
  """Returns each file's parts by Meta's names, which are the same in all."""
  there = sorted(pathlib.Path(folder).glob('consolidated.*.pth'))
  if not there:
    raise FileNotFoundError(f'{folder} holds no consolidated.00.pth; {_HOLDS}')
  for i, file in enumerate(there):
    if file.name != f'consolidated.{i:02}.pth':
      raise FileNotFoundError(
        f'{folder} holds {file.name}, but consolidated.{i:02}.pth is not there'
      )
  shards = [pth.list_tensors(str(file)) for file in there]
  for file, shard in zip(there, shards, strict=True):
    shard.pop(_IGNORED, None)
    if not shard:
      raise ValueError(f'{file}: holds no tensors')
  if 'tok_embeddings.weight' not in shards[0]:
    raise ValueError(f'{there[0]}: tensor tok_embeddings.weight is missing')
  for file, shard in zip(there, shards, strict=True):
    for name in sorted(set(shard) ^ set(shards[0])):
      has, lacks = (file, there[0]) if name in shard else (there[0], file)
      raise ValueError(f'{lacks}: tensor {name}, which {has} has, is missing')
  return shards
