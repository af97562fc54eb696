"""Writes files laid out as torch.save writes them, without torch.

A pickle is put together opcode by opcode, so that a test can also write one
that no pickler would: `Raw` is bytes as they are.
"""

import dataclasses
import pickle
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
  np.dtype(ml_dtypes.bfloat16): 'BFloat16Storage',
  np.dtype(np.float16): 'HalfStorage',
  np.dtype(np.float32): 'FloatStorage',
  np.dtype(np.float64): 'DoubleStorage',
}


@dataclasses.dataclass(frozen=True)
class Global:
  module: str
  name: str


@dataclasses.dataclass(frozen=True)
class Call:
  function: object
  args: object


@dataclasses.dataclass(frozen=True)
class Build:
  """An object whose attributes are set to `state`."""

  object: object
  state: object


@dataclasses.dataclass(frozen=True)
class Persistent:
  pid: object


@dataclasses.dataclass(frozen=True)
class Items:
  """A mapping, such as an OrderedDict, and what it is filled with."""

  mapping: object
  items: dict


@dataclasses.dataclass(frozen=True)
class Raw:
  opcodes: bytes


def encode(x) -> bytes:
  """Returns the opcodes that push `x`."""
  match x:
    case Raw():
      return x.opcodes
    case Global():
      return b'c' + f'{x.module}\n{x.name}\n'.encode()
    case Call():
      return encode(x.function) + encode(x.args) + pickle.REDUCE
    case Build():
      return encode(x.object) + encode(x.state) + pickle.BUILD
    case Persistent():
      return encode(x.pid) + pickle.BINPERSID
    case Items():
      pairs = b''.join(encode(k) + encode(v) for k, v in x.items.items())
      return encode(x.mapping) + pickle.MARK + pairs + pickle.SETITEMS
    case dict():
      return encode(Items(Raw(pickle.EMPTY_DICT), x))
    case None:
      return pickle.NONE
    case bool():
      return pickle.NEWTRUE if x else pickle.NEWFALSE
    case int():
      number = pickle.encode_long(x)
      return pickle.LONG1 + bytes([len(number)]) + number
    case str():
      text = x.encode()
      return pickle.BINUNICODE + len(text).to_bytes(4, 'little') + text
    case tuple():
      return pickle.MARK + b''.join(map(encode, x)) + pickle.TUPLE
  raise TypeError(x)


ORDERED = Call(Global('collections', 'OrderedDict'), ())


def describe(key, kind, length, shape, offset=0, strides=None) -> Call:
  """Returns what stands in a pickle for a tensor of a storage."""
  if strides is None:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
  storage = Persistent(('storage', Global('torch', kind), key, 'cpu', length))
  return Call(
    Global('torch._utils', '_rebuild_tensor_v2'),
    (storage, offset, tuple(shape), strides, False, ORDERED),
  )


def write(path, state, storages, compression=zipfile.ZIP_STORED) -> str:
  """Writes a pickle of `state`, and bytes by their keys; returns the path."""
  pickled = pickle.PROTO + b'\x02' + encode(state) + pickle.STOP
  entries = {'data.pkl': pickled, 'byteorder': b'little'}
  entries |= {f'data/{key}': data for key, data in storages.items()}
  with zipfile.ZipFile(path, 'w') as archive:
    for i, (name, data) in enumerate(entries.items()):
      info = zipfile.ZipInfo(f'{path.stem}/{name}')
      info.compress_type = compression
      # Padding that the directory does not repeat; torch aligns bytes with it.
      info.extra = b'FB' + bytes([i, 0]) + b'Z' * i
      archive.writestr(info, data)
      info.extra = b''
  return str(path)


def save(path, arrays: dict[str, np.ndarray]) -> str:
  """Writes arrays as torch.save(module.state_dict()) does; returns the path."""
  items, storages = {}, {}
  for i, (name, array) in enumerate(arrays.items()):
    kind = STORAGES[array.dtype]
    items[name] = describe(str(i), kind, array.size, array.shape)
    storages[str(i)] = array.tobytes()
  state = Build(Items(ORDERED, items), {'_metadata': {'': {'version': 1}}})
  return write(path, state, storages)
