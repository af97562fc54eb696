"""Weights and architecture from one of Meta's own Llama folders.

  1. `read_config` reads params.json; what it leaves open, the tensors say.
  2. `open_tensors` lists the tensors of consolidated.00.pth, 01.pth, .., one
     file for each of the devices that the model was made for. A part of one is
     read from those files alone that hold some of it.
  3. `read_weights` hands them to `tensors.load`.

A .pth file is a zip: data.pkl, a pickle that describes the tensors, beside their
plain bytes. Unpickling may run any code, so this pickle may name nothing but
what a description needs, and gets stand-ins of ours for that.

Meta rotates neighbouring pairs (2i, 2i + 1) and we halves, so the rows of q and
k are put in order as they are read.
"""

import dataclasses
import functools
import json
import math
import pathlib
import pickle
import zipfile
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from dash_jax.model import llama, tensors

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
_INTERLEAVED = ('attention.wq.weight', 'attention.wk.weight')
# Derived from the config, so not read.
_IGNORED = 'rope.freqs'

_STORAGES = {
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'HalfStorage': np.dtype(np.float16),
  'FloatStorage': np.dtype(np.float32),
  'DoubleStorage': np.dtype(np.float64),
}


@dataclasses.dataclass(frozen=True)
class _Part:
  """A tensor of one file.

  Attributes:
    file, name: as they are on disk.
    shape: elements.
    dtype: of the elements.
    offset: bytes of the file before the first.
  """

  file: pathlib.Path
  name: str
  shape: tuple[int, ...]
  dtype: np.dtype
  offset: int

  def read(self, index: Sequence[slice]) -> np.ndarray:
    rows, *columns = index
    row_items = math.prod(self.shape[1:])
    x = np.fromfile(
      self.file,
      self.dtype,
      count=(rows.stop - rows.start) * row_items,
      offset=self.offset + rows.start * row_items * self.dtype.itemsize,
    )
    return x.reshape(-1, *self.shape[1:])[:, *columns]


def read_config(folder: str) -> llama.LlamaConfig:
  """Returns the architecture of a folder.

  Raises:
    FileNotFoundError: params.json or the weights are not there.
    ValueError: a field is missing or another than `llama.Llama` has.
  """
  path = pathlib.Path(folder) / 'params.json'
  if not path.exists():
    raise FileNotFoundError(
      f"{path} is not there; one of Meta's folders holds params.json and"
      ' consolidated.00.pth'
    )
  try:
    fields = json.loads(path.read_text(encoding='utf-8'))
  except json.JSONDecodeError as error:
    raise ValueError(f'{path}: not JSON: {error}') from error

  def get(name):
    if name not in fields:
      raise ValueError(f'{path}: field {name} is missing')
    return fields[name]

  if fields.get('moe') or fields.get('vision_chunk_size', -1) > 0:
    raise ValueError(
      f'{path}: a mixture of experts or a model that sees; only text models of'
      ' Llama 2 and 3 can be read'
    )
  dim, num_heads = get('dim'), get('n_heads')
  shards = _list_shards(folder)
  embed = [shard['tok_embeddings.weight'] for shard in shards]
  vocab_size = fields.get('vocab_size', -1)
  if vocab_size < 0:  # Llama 2 leaves it to its tokenizer, and splits columns.
    vocab_size = embed[0].shape[0]
  config = llama.LlamaConfig(
    vocab_size=vocab_size,
    embed_dim=dim,
    num_layers=get('n_layers'),
    num_heads=num_heads,
    num_kv_heads=fields.get('n_kv_heads') or num_heads,
    head_dim=dim // num_heads,
    ffw_dim=_find_ffw_dim(
      dim, get('multiple_of'), fields.get('ffn_dim_multiplier') or 1.0
    ),
    rope_theta=float(fields.get('rope_theta', 1e4)),
    norm_eps=float(get('norm_eps')),
  )
  config = dataclasses.replace(config, tied=_is_tied(shards, config))
  if not fields.get('use_scaled_rope', False):
    return config
  # params.json does not say by how much. As published, Llama 3.2's text models,
  # which alone are tied, stretch by 32, and 3.1 and 3.3 by 8.
  scaling = llama.RopeScaling(32.0 if config.tied else 8.0, 1.0, 4.0, 8192)
  return dataclasses.replace(config, rope_scaling=scaling)


def read_max_len(folder: str) -> int:
  """Returns the longest row, in tokens, that the model was made for: what was
  published of its generation, since no file of the folder says it."""
  config = read_config(folder)
  if config.rope_scaling is not None:
    return 131_072
  return 8192 if config.rope_theta == 5e5 else 4096


def read_weights(
  folder: str, config: llama.LlamaConfig, dtype=np.float32
) -> dict:
  """Returns the weights, as `tensors.load` does.

  Raises:
    FileNotFoundError: the folder or its weights are not there.
    ValueError: a file is damaged or asks for code to be run, or its tensors are
      not those of `config`.
  """
  found = open_tensors(folder, config)
  return tensors.load(str(folder), config, found, dtype, rename=_rename)


def open_tensors(
  folder: str, config: llama.LlamaConfig
) -> dict[str, tensors.Tensor]:
  """Returns a folder's tensors, those of `config` by Hugging Face's names."""
  shards = _list_shards(folder)
  places = tensors.list_places(dataclasses.replace(config, tied=False))
  ours = {_rename(name): name for name in places}
  found = {}
  for name in shards[0]:
    if name == _IGNORED:
      continue
    parts = [shard[name] for shard in shards]
    known = ours.get(name)
    # An unknown tensor is listed as it is, to be named by the one who wants it.
    shape = places[known].disk_shape if known else parts[0].shape
    axis = _find_axis(parts, shape)
    head_dim = config.head_dim if name.endswith(_INTERLEAVED) else 0
    found[known or name] = tensors.Tensor(
      name=name,
      file=str(parts[0].file),
      shape=shape,
      read=functools.partial(_read, parts, axis, head_dim),
    )
  return found


def _rename(name: str) -> str:
  """Returns Meta's name of a tensor that Hugging Face calls `name`."""
  if name in _TOP_NAMES:
    return _TOP_NAMES[name]
  layer, _, rest = name.removeprefix('model.layers.').partition('.')
  part, _, kind = rest.rpartition('.')
  # Other families' tensors keep their names, which no file of Meta's has.
  return f'layers.{layer}.{_LAYER_NAMES.get(part, part)}.{kind}'


def _find_ffw_dim(dim: int, multiple_of: int, multiplier: float) -> int:
  """Source: llama-models, models/llama3/model.py, FeedForward."""
  hidden = int(multiplier * int(2 * 4 * dim / 3))
  return -(-hidden // multiple_of) * multiple_of


def _is_tied(shards, config) -> bool:
  """Returns whether the last layer is the embedding, which it repeats."""
  parts = [
    [shard[name] for shard in shards]
    for name in ('tok_embeddings.weight', 'output.weight')
  ]
  shape = config.vocab_size, config.embed_dim
  axes = [_find_axis(p, shape) for p in parts]
  step = 4096  # rows at a time; the first ones differ where it is not tied
  for start in range(0, config.vocab_size, step):
    rows = slice(start, min(start + step, config.vocab_size))
    index = rows, slice(0, config.embed_dim)
    first, second = (
      _read(p, axis, 0, index) for p, axis in zip(parts, axes, strict=True)
    )
    if not np.array_equal(first, second):
      return False
  return True


def _find_axis(parts: list[_Part], shape: tuple[int, ...]) -> int | None:
  """Returns the axis along which the files split a tensor, None if each holds
  it whole."""
  shapes = [part.shape for part in parts]
  if all(s == shape for s in shapes):
    return None
  for axis in range(len(shape)):
    rest = [s[:axis] + s[axis + 1 :] for s in shapes]
    if (
      all(len(s) == len(shape) for s in shapes)
      and set(rest) == {shape[:axis] + shape[axis + 1 :]}
      and sum(s[axis] for s in shapes) == shape[axis]
    ):
      return axis
  raise ValueError(
    f'{parts[0].file}: tensor {parts[0].name} has the shapes'
    f' {", ".join(map(str, shapes))} in {len(parts)} files, which do not make up'
    f' {shape}, what the architecture asks for: a file may be missing'
  )


def _read(parts, axis, head_dim, index) -> np.ndarray:
  """Returns a part of a tensor that several files may hold."""
  if axis is None:
    x = parts[0].read(index)
  else:
    pieces, first = [], 0
    for part in parts:
      size = part.shape[axis]
      start = max(index[axis].start - first, 0)
      stop = min(index[axis].stop - first, size)
      if start < stop:
        here = list(index)
        here[axis] = slice(start, stop)
        pieces.append(part.read(here))
      first += size
    x = np.concatenate(pieces, axis)
  return tensors.split_halves(x, head_dim) if head_dim else x


def _list_shards(folder: str) -> list[dict[str, _Part]]:
  """Returns the tensors of each file, in the files' order."""
  paths = sorted(pathlib.Path(folder).glob('consolidated.*.pth'))
  if not paths:
    raise FileNotFoundError(f'{folder} has no consolidated.00.pth')
  wanted = [f'consolidated.{i:02}.pth' for i in range(len(paths))]
  lost = sorted(set(wanted) - {path.name for path in paths})
  if lost:
    raise FileNotFoundError(
      f'{folder} has {len(paths)} files consolidated.*.pth, but not {lost[0]}'
    )
  shards = []
  for path in paths:
    stat = path.stat()
    shards.append(_list_parts(path, stat.st_mtime_ns, stat.st_size))
  for path, shard in zip(paths, shards, strict=True):
    differing = sorted(shard.keys() ^ shards[0].keys())
    if differing:
      raise ValueError(
        f"{path}: tensor {differing[0]} is in some of the folder's files and"
        ' not in others'
      )
  for name in ('tok_embeddings.weight', 'output.weight'):
    if name not in shards[0]:
      raise ValueError(f'{paths[0]}: tensor {name} is missing')
  return shards


# Config and weights are read one after the other.
@functools.lru_cache(maxsize=64)
def _list_parts(
  path: pathlib.Path, mtime_ns: int, size: int
) -> dict[str, _Part]:
  del mtime_ns, size  # A file that changed is another file.
  try:
    with zipfile.ZipFile(path) as archive:
      return _describe(path, archive)
  except zipfile.BadZipFile as error:
    raise ValueError(
      f'{path}: not a whole zip file, as torch.save writes them: {error}'
    ) from error


def _describe(path, archive) -> dict[str, _Part]:
  entries = {info.filename: info for info in archive.infolist()}
  pickles = [name for name in entries if name.endswith('/data.pkl')]
  if len(pickles) != 1:
    raise ValueError(f'{path}: a .pth file holds one data.pkl')
  root = pickles[0].removesuffix('data.pkl')
  if f'{root}byteorder' in entries:
    order = archive.read(f'{root}byteorder')
    if order != b'little':
      raise ValueError(f'{path}: its bytes are in {order!r} order, not little')
  with archive.open(pickles[0]) as file:
    found = _unpickle(path, file)
  if not isinstance(found, dict):
    raise ValueError(f'{path}: it holds no dict of tensors')
  return {
    name: _locate(path, archive, name, entries, root, x)
    for name, x in found.items()
  }


def _locate(path, archive, name, entries, root, described) -> _Part:
  """Returns where in a file a tensor's bytes are."""
  key, dtype, first, shape, strides = _check(path, name, described)
  entry = entries.get(f'{root}data/{key}')
  if entry is None:
    raise ValueError(f'{path}: the bytes of tensor {name} are not there')
  if strides != tuple(math.prod(shape[i + 1 :]) for i in range(len(shape))):
    raise ValueError(
      f'{path}: tensor {name} is not stored row by row (strides {strides} for'
      f' shape {shape})'
    )
  end = (first + math.prod(shape)) * dtype.itemsize
  if entry.compress_type != zipfile.ZIP_STORED or end > entry.file_size:
    raise ValueError(
      f'{path}: tensor {name} asks for {end} plain bytes of {entry.filename},'
      f' which has {entry.compress_size}'
    )
  # Behind the entry's own header, whose names may differ from the directory's.
  archive.fp.seek(entry.header_offset)
  header = archive.fp.read(30)
  if len(header) < 30 or header[:4] != b'PK\x03\x04':
    raise ValueError(f'{path}: no bytes of tensor {name} where they should be')
  lengths = header[26:28], header[28:30]
  start = entry.header_offset + 30
  start += sum(int.from_bytes(x, 'little') for x in lengths)
  if start + end > path.stat().st_size:
    raise ValueError(f'{path}: cut short inside tensor {name}')
  return _Part(path, name, shape, dtype, start + first * dtype.itemsize)


@dataclasses.dataclass(frozen=True)
class _Described:
  """What a pickle says of a tensor; nothing of it is to be trusted yet."""

  storage: object
  first: object
  shape: object
  strides: object


def _check(path, name, x) -> tuple[str, np.dtype, int, tuple, tuple]:
  """Returns key and type of the storage, first element, shape and strides."""
  if isinstance(x, _Described) and isinstance(x.storage, tuple):
    kind, storage, key, *_ = (*x.storage, None, None, None)
    numbers = (x.shape, x.strides, (x.first,))
    if (
      (kind, type(key)) == ('storage', str)
      and storage in _STORAGES
      and all(
        type(part) is tuple and all(type(n) is int and n >= 0 for n in part)
        for part in numbers
      )
    ):
      return key, _STORAGES[storage], x.first, x.shape, x.strides
  raise ValueError(
    f'{path}: {name} is not described as a tensor of {", ".join(_STORAGES)}'
  )


def _unpickle(path, file):
  """Returns what data.pkl holds, with `_Described` for tensors.

  Source: torch's serialization, whose pickles name no more than this.
  """

  # Made for each file: a pickle may hang attributes on what it is given.
  def rebuild_tensor(storage, first, shape, strides, *_):
    return _Described(storage, first, shape, strides)

  stand_ins = {
    ('collections', 'OrderedDict'): lambda *items: dict(*items),
    ('torch._utils', '_rebuild_tensor_v2'): rebuild_tensor,
    ('torch._utils', '_rebuild_parameter'): lambda x, *_: x,
  }
  stand_ins |= {('torch', name): name for name in _STORAGES}

  class Reader(pickle.Unpickler):
    def find_class(self, module, name):
      if (module, name) not in stand_ins:
        raise _Refused(
          f'{path}: its pickle asks for {module}.{name}, which no list of'
          ' tensors needs; nothing of it was run'
        )
      return stand_ins[module, name]

    def persistent_load(self, pid):
      return pid

  try:
    return Reader(file).load()
  except _Refused:
    raise
  except Exception as error:  # A damaged pickle may raise any.
    raise ValueError(f'{path}: data.pkl cannot be read: {error}') from error


class _Refused(ValueError):
  """A pickle that asks for more than a list of tensors."""
