"""Tensors of a file that torch.save wrote, without torch.

  1. The file is a zip of a pickle, data.pkl, and of the tensors' bytes, stored
     as they are. `list_tensors` takes the pickle apart and does not execute it:
     `_Unpickler` knows a few names, imports none of them, and records what is to
     be done with them.
  2. From that record, checked again, each tensor becomes a `Stored`: the place
     of its bytes in the file. Nothing of them is read yet.
  3. `Stored.read` opens the file, reads the rows it is asked for, and closes it.

The zip's checksums are compared for the pickle alone: they cover whole tensors,
and parts of them are read.
"""

import dataclasses
import io
import math
import pickle  # nosec B403 (taken apart, nothing in it is run)
import pickletools  # nosec B403 (reads opcodes, runs none)
import re
import struct
import zipfile

import ml_dtypes
import numpy as np

# The globals that a .pth file may name. None of them is ever imported.
_DTYPES = {
  'torch.BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'torch.HalfStorage': np.dtype(np.float16),
  'torch.FloatStorage': np.dtype(np.float32),
  'torch.DoubleStorage': np.dtype(np.float64),
}
_REBUILD = 'torch._utils._rebuild_tensor_v2'
_REBUILD_PARAMETER = 'torch._utils._rebuild_parameter'
_DICT = 'collections.OrderedDict'
_GLOBALS = (*_DTYPES, _REBUILD, _REBUILD_PARAMETER, _DICT)
# Of other types, named so that the tensor can be.
_OTHER_STORAGE = re.compile(r'torch\.[A-Z]\w*Storage')

_MEMO_OPCODES = ('PUT', 'BINPUT', 'LONG_BINPUT')

# What zipfile raises where a zip is damaged.
_ZIP_ERRORS = (
  zipfile.BadZipFile,
  NotImplementedError,
  EOFError,
  OSError,
  UnicodeDecodeError,
)

# What is read at a time, of a pickle or where only some columns of the rows are
# wanted.
_BLOCK_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file, not read yet.

  Attributes:
    name: its name in the file, for errors.
    file: the file's path.
    dtype: bfloat16, float16, float32 or float64.
    shape: its shape, of one axis or more.
    start: where its bytes begin in the file.
  """

  name: str
  file: str
  dtype: np.dtype
  shape: tuple[int, ...]
  start: int

  def read(self, index: tuple[slice, ...]) -> np.ndarray:
    """Returns the values at `index`, slices with start and stop, one an axis.

    Of the file, only their rows are read.

    Raises:
      ValueError: the file has become shorter.
    """
    rows, *rest = index
    out = np.empty([at.stop - at.start for at in index], self.dtype)
    row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
    with open(self.file, 'rb') as file:
      file.seek(self.start + rows.start * row_bytes)
      if out.shape[1:] == self.shape[1:]:
        self._fill(file, out)
        return out
      step = max(1, _BLOCK_BYTES // max(1, row_bytes))
      for first in range(0, len(out), step):
        chunk = out[first : first + step]
        block = np.empty((len(chunk), *self.shape[1:]), self.dtype)
        self._fill(file, block)
        chunk[...] = block[(slice(None), *rest)]
    return out

  def _fill(self, file, array: np.ndarray) -> None:
    # Bytes, because bfloat16 is no type of Python's buffers.
    buffer = memoryview(array.reshape(-1).view(np.uint8))
    while buffer:
      num_read = file.readinto(buffer)
      if not num_read:
        raise ValueError(f'{self.file}: ends within tensor {self.name}')
      buffer = buffer[num_read:]


def list_tensors(path: str) -> dict[str, Stored]:
  """Returns the tensors of a file that holds a dict of them, by their names.

  Raises:
    ValueError: the file is not what torch.save writes, is damaged, asks for a
      global that tensors do not need, or holds what is no tensor of floats.
  """
  with open(path, 'rb') as file:
    entries, pickled = _open_zip(path, file)
    found = _unpickle(path, pickled)
    if not isinstance(found, dict) or not all(type(k) is str for k in found):
      raise ValueError(f'{path}: not a dict of tensors by name')
    return {
      name: _locate(path, file, entries, name, value)
      for name, value in found.items()
    }


def _open_zip(path: str, file) -> tuple[dict[str, zipfile.ZipInfo], bytes]:
  """Returns the zip's entries by their names in its folder, and the pickle."""
  head = file.read(4)
  if head != b'PK\x03\x04':
    # Before its version 1.6, torch wrote bare pickles.
    why = (
      "torch's format of before 2020; load it with torch and save it again"
      if head[:1] == b'\x80'
      else 'not a file that torch.save wrote'
    )
    raise ValueError(f'{path}: {why}')
  try:
    with zipfile.ZipFile(file) as archive:
      entries = {e.filename.partition('/')[2]: e for e in archive.infolist()}
      for entry in entries.values():
        # Bit 0: encrypted.
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
          raise ValueError(
            f'{path}: {entry.filename} is compressed or encrypted; '
            'torch.save stores it as it is'
          )
      if 'data.pkl' not in entries:
        raise ValueError(f'{path}: holds no data.pkl; torch.save writes one')
      if (
        'byteorder' in entries
        and archive.read(entries['byteorder']) != b'little'
      ):
        raise ValueError(f'{path}: its byteorder is not little')
      return entries, archive.read(entries['data.pkl'])
  except _ZIP_ERRORS as error:
    raise ValueError(
      f'{path}: truncated or damaged{_find_cut(path, file)}: {error}'
    ) from error


def _find_cut(path: str, file) -> str:
  """Returns a note that names the tensor in which a file ends; '' if no pickle
  tells it. The directory is lost, so the entries are looked for in turn."""
  size = file.seek(0, io.SEEK_END)
  at = _find_start(file, 0)
  if at is None:
    return ''
  file.seek(at)
  try:
    found = _unpickle(path, file.read(_BLOCK_BYTES))
  except ValueError:
    return ''
  seen = set()
  for name, value in found.items() if isinstance(found, dict) else ():
    match getattr(value, 'args', None):
      case [['storage', _Global() as kind, str(key), _, int(length)], *_] if (
        kind in _DTYPES and key not in seen
      ):
        seen.add(key)
      case _:
        continue
    file.seek(at)
    entry = rb'PK\x03\x04.{22}(..)..([^/]+/data/%s)' % re.escape(key.encode())
    headers = re.finditer(entry, file.read(_BLOCK_BYTES), re.DOTALL)
    # The name's own length tells data/1 from data/10.
    offsets = [
      at + header.start()
      for header in headers
      if int.from_bytes(header[1], 'little') == len(header[2])
    ]
    if not offsets:
      return f', cut short before tensor {name}'
    at = _find_start(file, offsets[0]) + length * _DTYPES[kind].itemsize
    if at > size:
      return f', cut short inside tensor {name}'
  return ''


class _Global(str):
  """Stands for a global of this name; a call of it is only recorded."""

  __slots__ = ()

  def __call__(self, *args):
    return _Call(self, args)


class _Call(dict):
  """A recorded call. It takes items, because OrderedDict() is filled later."""

  __slots__ = ('args', 'name')

  def __init__(self, name, args):
    super().__init__()
    self.name = name
    self.args = args

  def __setstate__(self, state):
    """Lets go of attributes: a state_dict has versions of its modules."""


class _Unpickler(pickle.Unpickler):
  """Makes builtin values, `_Global`s and `_Call`s, and nothing else."""

  def find_class(self, module, name):
    asked = f'{module}.{name}'
    if asked not in _GLOBALS and not _OTHER_STORAGE.fullmatch(asked):
      raise pickle.UnpicklingError(
        f'it asks for {asked}; allowed: {", ".join(_GLOBALS)}'
      )
    return _Global(asked)

  def persistent_load(self, pid):
    return pid


def _unpickle(path: str, pickled: bytes):
  try:
    for opcode, number, _ in pickletools.genops(pickled):
      # The memo is as long as its largest index, whatever is in it.
      if opcode.name in _MEMO_OPCODES and number > len(pickled):
        raise pickle.UnpicklingError(f'{opcode.name} {number} in so few bytes')
    return _Unpickler(io.BytesIO(pickled)).load()
  # Damaged bytes may raise anything: TypeError, IndexError, MemoryError ..
  except Exception as error:
    raise ValueError(f'{path}: data.pkl is not read: {error}') from error


def _locate(path: str, file, entries, name: str, value) -> Stored:
  """Returns the part that a recorded call of _rebuild_tensor_v2 is.

  Nothing in `value` is to be trusted but its types: builtin or ours.
  """

  def refuse(why):
    return ValueError(f'{path}: tensor {name} {why}')

  if type(value) is _Call and value.name == _REBUILD_PARAMETER and value.args:
    value = value.args[0]
  if type(value) is not _Call or value.name != _REBUILD:
    raise refuse('is no tensor as torch.save writes it')
  match value.args:
    # After the strides: gradients and hooks, which are no part of the values;
    # a seventh would be flags, such as of a negated view.
    case [['storage', _Global() as kind, str(key), _, int(length)], *rest] if (
      kind in _DTYPES and len(rest) == 5
    ):
      offset, shape, strides = rest[:3]
    case [['storage', _Global() as kind, *_], *_] if kind not in _DTYPES:
      raise refuse(f'is of {kind}; can be read: {", ".join(_DTYPES)}')
    case _:
      raise refuse('is no tensor of floats as torch.save writes it')
  if not (
    _are_sizes([offset])
    and _are_sizes(shape)
    and _are_sizes(strides)
    and 0 < len(shape) == len(strides)
  ):
    raise refuse('is a scalar, or has a damaged shape, offset or stride')
  dtype = _DTYPES[kind]
  step = 1
  for size, stride in zip(reversed(shape), reversed(strides), strict=True):
    if size > 1 and stride != step:
      raise refuse(
        f'of shape {shape} has strides {strides}; save it contiguous'
      )
    step *= size
  if offset + math.prod(shape) > length:
    raise refuse(f'of shape {shape} is larger than its storage of {length}')
  entry = entries.get(f'data/{key}')
  if entry is None:
    raise refuse(f'has its values in data/{key}, which is not there')
  if entry.file_size != length * dtype.itemsize:
    raise refuse(
      f'has its values in {entry.filename}, of {entry.file_size} bytes instead '
      f'of {length * dtype.itemsize}: truncated or damaged'
    )
  start = _find_start(file, entry.header_offset)
  if start is None:
    raise refuse(f'has its values in {entry.filename}, which is damaged')
  return Stored(
    name, path, dtype, tuple(shape), start + offset * dtype.itemsize
  )


def _are_sizes(values) -> bool:
  return type(values) in (tuple, list) and all(
    type(x) is int and x >= 0 for x in values
  )


def _find_start(file, header_offset: int) -> int | None:
  """Returns where an entry's bytes begin; None without its local header.

  Source: PKWARE's APPNOTE, 4.3.7. The header repeats the name, and its extra
  field has another length than in the directory, where torch aligns the bytes.
  """
  file.seek(header_offset)
  header = file.read(30)
  if len(header) < 30 or header[:4] != b'PK\x03\x04':
    return None
  name_len, extra_len = struct.unpack('<HH', header[26:30])
  return header_offset + 30 + name_len + extra_len
