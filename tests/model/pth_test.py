"""Files of torch.save that the tests write, whole, damaged and malicious."""

import io
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_save
from torch_save import Build, Call, Global, Items, Persistent, Raw

from dash_jax.model import pth

FLOATS = np.arange(24, dtype=np.float32)


def whole(tensor):
  return tensor.read(tuple(slice(0, size) for size in tensor.shape))


def list_or_refuse(path):
  """Returns the file's tensors and '', or none and the error's text."""
  try:
    return pth.list_tensors(path), ''
  except ValueError as error:
    return {}, str(error)


@pytest.mark.parametrize(
  'dtype', [ml_dtypes.bfloat16, np.float16, np.float32, np.float64]
)
def test_any_part_is_numpys_part(tmp_path, dtype, monkeypatch):
  """NumPy's own indexing of the array that was written is the oracle.

  Every start and stop of a 5 x 7 tensor is tried; blocks are two rows, so that
  columns are put together from several.
  """
  monkeypatch.setattr(pth, '_BLOCK_BYTES', 14 * np.dtype(dtype).itemsize)
  rng = np.random.default_rng(0)
  arrays = {
    'w': rng.normal(size=(5, 7)).astype(dtype),
    'norm': rng.normal(size=7).astype(dtype),
  }
  found = pth.list_tensors(torch_save.save(tmp_path / 'm.pth', arrays))
  assert {n: t.shape for n, t in found.items()} == {'w': (5, 7), 'norm': (7,)}
  np.testing.assert_array_equal(whole(found['norm']), arrays['norm'])
  for rows in [slice(i, j) for j in range(6) for i in range(j + 1)]:
    for columns in [slice(i, j) for j in range(8) for i in range(j + 1)]:
      part = found['w'].read((rows, columns))
      assert part.dtype == dtype
      np.testing.assert_array_equal(part, arrays['w'][rows, columns])


def test_only_the_rows_asked_for_are_read(tmp_path):
  """The file is cut after row 2, and rows before it can still be read: so no
  later ones are. Those that are gone are an error that names the tensor.
  """
  array = np.arange(40, dtype=np.float32).reshape(10, 4)
  path = torch_save.save(tmp_path / 'm.pth', {'w': array})
  tensor = pth.list_tensors(path)['w']
  os.truncate(path, tensor.start + array[:3].nbytes)
  index = slice(1, 3), slice(0, 4)
  np.testing.assert_array_equal(tensor.read(index), array[index])
  with pytest.raises(ValueError, match=r'm\.pth: ends within tensor w'):
    tensor.read((slice(1, 4), slice(0, 4)))


def test_tensors_of_one_storage(tmp_path):
  """Two tensors lie at their offsets in the bytes of a third."""
  state = {
    'a': torch_save.describe('0', 'FloatStorage', 24, (2, 3)),
    'b': torch_save.describe('0', 'FloatStorage', 24, (3, 4), offset=6),
    'all': torch_save.describe('0', 'FloatStorage', 24, (24,)),
  }
  path = torch_save.write(tmp_path / 'm.pth', state, {'0': FLOATS.tobytes()})
  found = pth.list_tensors(path)
  np.testing.assert_array_equal(whole(found['a']), FLOATS[:6].reshape(2, 3))
  np.testing.assert_array_equal(whole(found['b']), FLOATS[6:18].reshape(3, 4))
  np.testing.assert_array_equal(whole(found['all']), FLOATS)


def test_a_stride_that_is_never_taken_is_free(tmp_path):
  """A row cut out of a wider tensor lies together, whatever its stride."""
  state = {
    'row': torch_save.describe('0', 'FloatStorage', 24, (1, 2), 8, (6, 1))
  }
  path = torch_save.write(tmp_path / 'm.pth', state, {'0': FLOATS.tobytes()})
  found = pth.list_tensors(path)['row']
  np.testing.assert_array_equal(whole(found), [[8, 9]])


def _describe(**changes):
  given = {
    'key': '0',
    'kind': 'FloatStorage',
    'length': 24,
    'shape': (4, 6),
    'offset': 0,
    'strides': (6, 1),
  }
  return torch_save.describe(**given | changes)


def _tensor(*args):
  return Call(Global('torch._utils', '_rebuild_tensor_v2'), args)


@pytest.mark.parametrize(
  ('tensor', 'why'),
  [
    (_describe(shape=(6, 4), strides=(1, 6)), 'contiguous'),
    (_describe(shape=(4, 2)), 'contiguous'),
    (_describe(shape=(), strides=()), 'scalar'),
    (_describe(shape=(4, -6)), 'damaged shape'),
    (_describe(shape=(4, '6')), 'damaged shape'),
    (_describe(shape=(4, 6), strides=(1,)), 'damaged shape'),
    (_describe(offset=-4), 'damaged shape'),
    (_describe(offset=None), 'damaged shape'),
    (_describe(offset=1), 'larger than its storage'),
    (_describe(shape=(5, 6)), 'larger than its storage'),
    (_describe(length=20), 'larger than its storage'),
    (_describe(length=25), 'of 96 bytes instead of 100'),
    (_describe(kind='HalfStorage'), 'of 96 bytes instead of 48'),
    (_describe(key='1'), 'data/1, which is not there'),
    (_describe(key=0), 'no tensor of floats'),
    (_tensor(), 'no tensor of floats'),
    # Flags, such as of a view that is to be negated.
    (_tensor(*_describe().args, {'neg': True}), 'no tensor of floats'),
    (_tensor(Persistent('0'), 0, (1,), (1,), False, None), 'no tensor of'),
    (
      _tensor(
        Persistent(('storage', 'torch.FloatStorage', '0', 'cpu', 24)),
        *(0, (1,), (1,), False, None),
      ),
      'no tensor of floats',
    ),
    (Call(Global('torch', 'FloatStorage'), (24,)), 'no tensor as torch'),
    (torch_save.ORDERED, 'no tensor as torch'),
    (Global('torch', 'FloatStorage'), 'no tensor as torch'),
    (7, 'no tensor as torch'),
  ],
)
def test_a_tensor_that_is_none_is_named(tmp_path, tensor, why):
  """Each is refused before anything of it is read."""
  path = torch_save.write(
    tmp_path / 'm.pth', {'odd': tensor}, {'0': FLOATS.tobytes()}
  )
  with pytest.raises(ValueError, match=rf'm\.pth: tensor odd .*{why}'):
    pth.list_tensors(path)


@pytest.mark.parametrize('state', [3, (1, 2), {3: _describe()}])
def test_a_pickle_of_other_things_is_named(tmp_path, state):
  path = torch_save.write(tmp_path / 'm.pth', state, {'0': FLOATS.tobytes()})
  with pytest.raises(ValueError, match=r'm\.pth: not a dict of tensors'):
    pth.list_tensors(path)


MKDIR = Global('os', 'mkdir')


def _encode(*values) -> bytes:
  return b''.join(map(torch_save.encode, values))


# Each makes the folder `mark` when it is unpickled plainly.
ATTACKS = {
  'system': lambda mark: Call(Global('os', 'system'), (f'mkdir {mark}',)),
  'eval': lambda mark: Call(
    Global('builtins', 'eval'), (f'__import__("os").mkdir({mark!r})',)
  ),
  'getattr': lambda mark: Call(
    Call(
      Global('builtins', 'getattr'),
      (Call(Global('builtins', '__import__'), ('os',)), 'mkdir'),
    ),
    (mark,),
  ),
  'as a tensor': lambda mark: {'w': Call(MKDIR, (mark,))},
  'as an offset': lambda mark: {'w': _describe(offset=Call(MKDIR, (mark,)))},
  'as a key': lambda mark: Items(torch_save.ORDERED, {Call(MKDIR, (mark,)): 1}),
  'as an attribute': lambda mark: Build(
    torch_save.ORDERED, {'x': Call(MKDIR, (mark,))}
  ),
  'as a storage': lambda mark: Persistent(Call(MKDIR, (mark,))),
  # The other opcodes that call.
  'inst': lambda mark: Raw(
    pickle.MARK + _encode(mark) + pickle.INST + b'os\nmkdir\n'
  ),
  'obj': lambda mark: Raw(pickle.MARK + _encode(MKDIR, mark) + pickle.OBJ),
  # The other opcode that finds a global, and a name with dots in it.
  'stack global': lambda mark: Raw(
    _encode('os', 'mkdir')
    + pickle.STACK_GLOBAL
    + _encode((mark,))
    + pickle.REDUCE
  ),
  'dots': lambda mark: Raw(
    pickle.PROTO
    + b'\x04'
    + _encode('shutil', 'os.mkdir')
    + pickle.STACK_GLOBAL
    + _encode((mark,))
    + pickle.REDUCE
  ),
}


class Obeying(pickle.Unpickler):
  """Does all that a pickle says; what it says of torch, by stand-ins."""

  def find_class(self, module, name):
    if module.startswith('torch'):
      return lambda *args: args
    return super().find_class(module, name)

  def persistent_load(self, pid):
    return pid


@pytest.mark.parametrize('attack', ATTACKS.values(), ids=ATTACKS)
def test_a_malicious_pickle_does_not_run(tmp_path, attack):
  """A plain unpickler runs the same bytes: so there is something to refuse,
  and the folder is a sign that can appear.
  """
  mark = tmp_path / 'ran'
  path = torch_save.write(
    tmp_path / 'm.pth', attack(str(mark)), {'0': FLOATS.tobytes()}
  )
  with pytest.raises(ValueError, match=r'm\.pth: data\.pkl .* asks for \w+\.'):
    pth.list_tensors(path)
  assert not mark.exists()
  with zipfile.ZipFile(path) as archive:
    Obeying(io.BytesIO(archive.read('m/data.pkl'))).load()
  assert mark.exists()


FLOAT = Global('torch', 'FloatStorage')
TRICKS = {
  'state of a global': Build(FLOAT, {'__call__': 1}),
  'slots of a global': Build(FLOAT, (None, {'__class__': torch_save.ORDERED})),
  'state of a call': Build(torch_save.ORDERED, {'args': (1,), 'name': 'x'}),
  'slots of a call': Build(torch_save.ORDERED, (None, {'args': (1,)})),
  'setstate': Build(torch_save.ORDERED, {'__setstate__': FLOAT}),
  'odd arguments': Call(Global('collections', 'OrderedDict'), (1, FLOAT)),
  'a call of a call': Call(torch_save.ORDERED, ()),
  'a call of a text': Call('text', ()),
  'a new object': Raw(_encode(FLOAT, ()) + pickle.NEWOBJ),
  'an extension': Raw(pickle.EXT1 + b'\x01'),
  'an empty stack': Raw(pickle.REDUCE),
  'a memo that is not there': Raw(pickle.BINGET + b'\x07'),
}


@pytest.mark.parametrize('trick', TRICKS.values(), ids=TRICKS)
def test_a_trick_with_what_is_allowed_changes_nothing(tmp_path, trick):
  """It stands before a good tensor, by itself and as an attribute: the file is
  refused, or its tensor has its values. A good file is read right afterwards,
  so nothing of ours was changed.
  """
  state = {'odd': trick, 'w': _describe()}
  path = torch_save.write(tmp_path / 'm.pth', state, {'0': FLOATS.tobytes()})
  with pytest.raises(ValueError, match=r'm\.pth: '):
    pth.list_tensors(path)
  state = Items(Build(torch_save.ORDERED, {'x': trick}), {'w': _describe()})
  path = torch_save.write(tmp_path / 'n.pth', state, {'0': FLOATS.tobytes()})
  found, refusal = list_or_refuse(path)
  if found:
    np.testing.assert_array_equal(whole(found['w']), FLOATS.reshape(4, 6))
  else:
    assert 'n.pth: data.pkl' in refusal
  good = torch_save.save(tmp_path / 'good.pth', {'w': FLOATS})
  np.testing.assert_array_equal(whole(pth.list_tensors(good)['w']), FLOATS)


def test_a_file_cut_anywhere_is_named(tmp_path):
  """Whatever is left of it, the message says which file it is."""
  path = tmp_path / 'm.pth'
  torch_save.save(path, {'w': FLOATS})
  data = path.read_bytes()
  for length in range(0, len(data), 7):
    path.write_bytes(data[:length])
    with pytest.raises(ValueError, match=r'm\.pth: '):
      pth.list_tensors(str(path))


def test_a_file_cut_in_a_tensor_names_it(tmp_path):
  """Of twelve, so that data/1 stands beside data/10; the zip's directory is at
  its end and lost, whatever is cut. Where the pickle is lost too, none can be."""
  path = tmp_path / 'm.pth'
  arrays = {f'w{i}': FLOATS + i for i in range(12)}
  torch_save.save(path, arrays)
  data = path.read_bytes()
  ends = {n: data.index(x.tobytes()) + x.nbytes for n, x in arrays.items()}
  for name, end in ends.items():
    path.write_bytes(data[: end - 1])
    message = rf'm\.pth: .*, cut short inside tensor {name}: '
    with pytest.raises(ValueError, match=message):
      pth.list_tensors(str(path))
  path.write_bytes(data[: ends['w0'] + 3])
  with pytest.raises(ValueError, match=', cut short before tensor w1: '):
    pth.list_tensors(str(path))
  path.write_bytes(data[:50])
  with pytest.raises(ValueError, match='truncated or damaged: '):
    pth.list_tensors(str(path))


def test_bytes_without_their_header_are_named_by_tensor(tmp_path):
  """The zip's directory is whole, but what it leads to is overwritten."""
  path = tmp_path / 'm.pth'
  torch_save.save(path, {'a': FLOATS, 'w': FLOATS})
  data = path.read_bytes()
  header = data.rindex(b'PK\x03\x04')
  path.write_bytes(data[:header] + bytes(4) + data[header + 4 :])
  with pytest.raises(
    ValueError, match=r'm\.pth: tensor w .*data/1, which is d'
  ):
    pth.list_tensors(str(path))


def test_damage_never_escapes_as_another_error(tmp_path):
  """Each byte of the file is changed in turn: the file is read, or the error is
  a ValueError that names it.
  """
  path = tmp_path / 'm.pth'
  torch_save.save(path, {'w': FLOATS[:2]})
  data = path.read_bytes()
  for i in range(len(data)):
    path.write_bytes(data[:i] + bytes([data[i] ^ 0x55]) + data[i + 1 :])
    found, refusal = list_or_refuse(str(path))
    assert found or 'm.pth: ' in refusal


def test_an_entrys_name_that_is_no_text(tmp_path):
  """zipfile decodes names as UTF-8 where the entry says so."""
  path = tmp_path / 'm.pth'
  torch_save.write(path, {}, {'é': b''})
  path.write_bytes(path.read_bytes().replace('é'.encode(), b'\xff\xff'))
  with pytest.raises(ValueError, match=r'm\.pth: truncated or damaged'):
    pth.list_tensors(str(path))


@pytest.mark.parametrize(
  ('data', 'why'),
  [
    (b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.', 'save it again'),
    (b'', 'not a file that torch.save wrote'),
    (b'version https://git-lfs', 'not a file that torch.save wrote'),
  ],
)
def test_other_files_are_named(tmp_path, data, why):
  path = tmp_path / 'm.pth'
  path.write_bytes(data)
  with pytest.raises(ValueError, match=rf'm\.pth: .*{why}'):
    pth.list_tensors(str(path))


def test_a_compressed_file_is_refused(tmp_path):
  """Parts of it could not be found without reading what is before them."""
  path = torch_save.write(
    tmp_path / 'm.pth', {}, {'0': bytes(99)}, zipfile.ZIP_DEFLATED
  )
  with pytest.raises(ValueError, match=r'm\.pth: m/data\.pkl is compressed'):
    pth.list_tensors(path)


def test_other_types_are_named_with_their_tensor(tmp_path):
  x = torch_save.describe('0', 'CharStorage', 2, (2,))
  path = torch_save.write(tmp_path / 'm.pth', {'w': x}, {'0': b'ab'})
  message = r'm\.pth: tensor w is of torch\.CharStorage; can be read: torch\.B'
  with pytest.raises(ValueError, match=message):
    pth.list_tensors(path)


def test_a_parameter_is_the_tensor_in_it(tmp_path):
  """As a dict of a module's parameters holds them."""
  x = torch_save.Call(
    torch_save.Global('torch._utils', '_rebuild_parameter'),
    (
      torch_save.describe('0', 'FloatStorage', 2, (2,)),
      True,
      torch_save.ORDERED,
    ),
  )
  data = np.array([1.5, -2], np.float32)
  path = torch_save.write(tmp_path / 'm.pth', {'w': x}, {'0': data.tobytes()})
  found = pth.list_tensors(path)['w'].read((slice(0, 2),))
  np.testing.assert_array_equal(found, data)


def test_a_small_pickle_cannot_ask_for_much_memory(tmp_path):
  """Its memo would be filled up to the index that it names."""
  index = (1 << 31) - 1
  raw = torch_save.Raw(
    pickle.NONE + pickle.LONG_BINPUT + index.to_bytes(4, 'little')
  )
  path = torch_save.write(tmp_path / 'm.pth', raw, {})
  with pytest.raises(ValueError, match=r'm\.pth: .*LONG_BINPUT 2147483647'):
    pth.list_tensors(path)
