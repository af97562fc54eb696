"""The two processes that run a reply's code and its tests. See code.py.

The life of a reply here:

  1. Both sides lock themselves down (lockdown.py).
  2. The side of the tests sends the code to the side of the reply, which runs it.
  3. The tests run. What they name and neither they nor Python define is the
     reply's: a `_Remote`, which sends each call there. Arguments and results go as
     JSON. Plain values (numbers, text, bytes, None, lists, tuples, sets, dicts,
     ranges) are copied; anything else stays where it is, and has a number.
  4. The side of the tests compares with its own `==`, and says 'right', 'wrong' or
     'bad' (the tests can't be run), with the cause.

So the side of the reply never holds a test, an expected value or the verdict: it
is asked, and what it answers is data. What is no plain value is equal to no plain
value, because only its own `__eq__` could say so. Not meant to be imported.
"""

import ast
import builtins
import importlib
import json
import operator
import os
import sys
import types

from dash_jax.rewards import lockdown

MAX_MESSAGE_BYTES = 1 << 24
_MAX_SAFE_INT = 1 << 53
_MODULE = 'reply'  # What the reply's code is called.

# What the tests may ask the side of the reply to do.
_OPERATIONS = {
  'call': lambda function, *args, **kwargs: function(*args, **kwargs),
  'isinstance': isinstance,
  'getattr': getattr,
  'setattr': setattr,
  'iter': iter,
  'next': next,
  'len': len,
  'bool': bool,
  'str': str,
  'repr': repr,
  'getitem': operator.getitem,
  'setitem': operator.setitem,
  'delitem': operator.delitem,
  'eq': operator.eq,
  'lt': operator.lt,
  'le': operator.le,
  'gt': operator.gt,
  'ge': operator.ge,
  'add': operator.add,
  'sub': operator.sub,
  'mul': operator.mul,
}


class _BadTestsError(BaseException):
  """The tests can't be run, whatever the reply is."""


class _GoneError(BaseException):
  """The side of the reply has ended, or answers nonsense."""


def main() -> None:
  """Takes the side, the parent's id, seconds of CPU time and, for the tests, the
  descriptors to and from the side of the reply."""
  side, parent, max_cpu_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
  incoming, outgoing = os.dup(0), os.dup(1)
  nowhere = os.open(os.devnull, os.O_RDWR)
  for fd in (0, 1, 2):
    os.dup2(nowhere, fd)
  os.environ.clear()
  sys.path.pop(0)  # Where this package is; it has been imported.
  channel = _Channel(incoming, outgoing)
  if side == 'reply':
    _answer(channel, parent, max_cpu_s)
  else:
    reply = _Channel(int(sys.argv[4]), int(sys.argv[5]))
    channel.send(_judge(channel.receive(), reply, parent, max_cpu_s))


class _UnlockedError(BaseException):
  """The side of the reply could not be locked down."""


class _Channel:
  """Lines of JSON to and from another process."""

  def __init__(self, incoming: int, outgoing: int):
    self._incoming = os.fdopen(incoming, 'rb')
    self._outgoing = os.fdopen(outgoing, 'wb', 0)

  def send(self, message) -> None:
    data = memoryview(json.dumps(message).encode() + b'\n')
    while data:
      data = data[self._outgoing.write(data) :]

  def receive(self):
    """Returns a message.

    Raises:
      ValueError: there is none, or it is too long.
      RecursionError: it is too deep.
    """
    return json.loads(self._incoming.readline(MAX_MESSAGE_BYTES))


def _pack(value, keep):
  """Writes a value as JSON; `keep(value)` writes what is no plain value.

  A value of one of Python's subclasses, or a named tuple, is written as one of the
  plain class; one of the reply's own classes is no plain value.
  """
  if value is None or isinstance(value, bool):
    return value
  if type(value).__module__ == _MODULE and not hasattr(value, '_fields'):
    return keep(value)
  if isinstance(value, int):
    value = int.__index__(value)
    return value if abs(value) < _MAX_SAFE_INT else {'int': hex(value)}
  if isinstance(value, float):
    return float.__float__(value)
  if isinstance(value, str):
    return str.__str__(value)
  if isinstance(value, complex):
    return {'complex': [value.real, value.imag]}
  if isinstance(value, bytes | bytearray):
    kind = 'bytes' if isinstance(value, bytes) else 'bytearray'
    return {kind: bytes(value).hex()}
  if isinstance(value, range):
    return {'range': [value.start, value.stop, value.step]}
  if isinstance(value, dict):
    pairs = dict.items(value)
    return {'dict': [[_pack(k, keep), _pack(v, keep)] for k, v in pairs]}
  for kind, plain in _CONTAINERS.items():
    if isinstance(value, plain):
      return {kind: [_pack(item, keep) for item in plain.__iter__(value)]}
  if isinstance(value, type({}.keys())):
    return {'set': [_pack(item, keep) for item in value]}
  return keep(value)


_CONTAINERS = {
  'list': list,
  'tuple': tuple,
  'set': set,
  'frozenset': frozenset,
}


def _unpack(data, find):
  """Reads what `_pack` wrote; `find(kind, key)` returns what is kept there.

  Raises:
    ValueError, TypeError, LookupError: it is something else.
  """
  if not isinstance(data, dict):
    if isinstance(data, list):
      raise TypeError('a list that is no value')
    return data
  ((kind, content),) = data.items()
  if kind in _CONTAINERS:
    return _CONTAINERS[kind]([_unpack(item, find) for item in content])
  match kind:
    case 'dict':
      return {_unpack(k, find): _unpack(v, find) for k, v in content}
    case 'int':
      return int(content, 16)
    case 'complex':
      return complex(*content)
    case 'bytes':
      return bytes.fromhex(content)
    case 'bytearray':
      return bytearray.fromhex(content)
    case 'range':
      return range(*content)
  return find(kind, content)


# The side of the reply.


def _answer(channel: _Channel, parent: int, max_cpu_s: int) -> None:
  """Runs the code, then does what is asked until nobody asks."""
  code = channel.receive()
  try:
    lockdown.lock(parent, max_cpu_s)
  except BaseException as error:
    channel.send(['unlocked', str(error)])
    return
  channel.send(['locked'])
  module = types.ModuleType(_MODULE)
  sys.modules[_MODULE] = module  # Where dataclasses look for it.
  kept, places = [], {}

  def keep(value):
    # An object that is kept has its `id` to itself.
    if id(value) not in places:
      places[id(value)] = len(kept)
      kept.append(value)
    return {'object': places[id(value)]}

  def find(kind, key):
    if kind == 'object':
      return kept[key]
    try:
      return vars(module)[key]
    except KeyError:
      raise NameError(f'name {key!r} is not defined') from None

  def run():
    program = compile(code, '<reply>', 'exec')
    exec(program, vars(module))  # nosec B102 (locked down, which is its purpose)

  def do(name, args, kwargs):
    args = [_unpack(arg, find) for arg in args]
    kwargs = {key: _unpack(value, find) for key, value in kwargs.items()}
    result = _OPERATIONS[name](*args, **kwargs)
    # With the arguments, which it may have changed.
    return [_pack(result, keep), [_pack(arg, keep) for arg in args[1:]]]

  channel.send(_try(run))
  while True:
    channel.send(_try(do, *channel.receive()))


def _try(function, *args):
  try:
    return ['done', function(*args)]
  except BaseException as error:
    names = [cls.__name__ for cls in type(error).__mro__]
    try:
      return ['raised', names, str(error)[:1000]]
    except BaseException:
      return ['raised', names, '']


# The side of the tests.


class _Reply:
  """The side of the reply, as the tests see it."""

  def __init__(self, channel: _Channel):
    self._channel = channel
    self._remotes = {}  # By place, so that one object is one object here too.
    self.num_asked = 0
    self.is_gone = False

  def start(self, code: str) -> None:
    """
    Raises:
      _UnlockedError: it could not be locked down.
      Exception: what the code raised.
    """
    self._send(code)
    match self._receive():
      case ['locked']:
        self._take(self._receive())
      case ['unlocked', str(cause)]:
        raise _UnlockedError(cause)
      case _:
        raise self._end()

  def ask(self, name: str, *args, **kwargs):
    """Has an operation done there; returns its result, or raises its exception."""
    self.num_asked += 1
    message = [
      name,
      [_pack(arg, self._keep) for arg in args],
      {key: _pack(value, self._keep) for key, value in kwargs.items()},
    ]
    self._send(message)
    result = self._take(self._receive())
    try:
      value, changed = result
      value = _unpack(value, self._find)
      for mine, theirs in zip(args[1:], changed, strict=True):
        self._update(mine, theirs)
    except (ValueError, TypeError, LookupError, RecursionError):
      raise self._end() from None
    return value

  def _update(self, mine, theirs) -> None:
    """Makes a list, set or dict what the reply's function has made of it."""
    if not isinstance(mine, list | set | dict | bytearray):
      return
    new = _unpack(theirs, self._find)
    if type(new) is not type(mine):
      raise TypeError('it is another value')
    if isinstance(mine, list | bytearray):
      mine[:] = new
    else:
      mine.clear()
      mine.update(new)

  def _keep(self, value):
    if isinstance(value, _Remote):
      return object.__getattribute__(value, '_place')
    raise _BadTestsError(
      f'they hand over a {type(value).__name__}; plain values and what the reply'
      ' returned can be'
    )

  def _find(self, kind, key):
    if kind != 'object' or not isinstance(key, int):
      raise LookupError(kind)
    return self._remotes.setdefault(key, _Remote(self, {'object': key}))

  def _send(self, message) -> None:
    try:
      self._channel.send(message)
    except (OSError, ValueError, RecursionError):
      raise self._end() from None

  def _receive(self):
    try:
      return self._channel.receive()
    except (OSError, ValueError, RecursionError):
      raise self._end() from None

  def _take(self, message):
    match message:
      case ['done', result]:
        return result
      case ['raised', [*names], str(text)]:
        raise _make_error(names, text)
    raise self._end()

  def _end(self) -> _GoneError:
    self.is_gone = True  # Whatever the tests make of the exception.
    return _GoneError('its process ended')


def _make_error(names, text: str) -> Exception:
  """Returns an exception of the first class that Python has itself."""
  for name in names:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if isinstance(kind, type) and issubclass(kind, Exception):
      try:
        return kind(text)
      except TypeError:  # UnicodeDecodeError takes more.
        continue
  return Exception(text)


class _Remote:
  """A name, or an object, that is on the side of the reply."""

  def __init__(self, reply: _Reply, place: dict):
    object.__setattr__(self, '_reply', reply)
    object.__setattr__(self, '_place', place)

  def __getattr__(self, name):
    return _ask(self, 'getattr', name)

  def __setattr__(self, name, value):
    _ask(self, 'setattr', name, value)

  def __call__(self, *args, **kwargs):
    return _ask(self, 'call', *args, **kwargs)

  def __instancecheck__(self, value):
    if not isinstance(value, _Remote):
      return False
    return object.__getattribute__(self, '_reply').ask(
      'isinstance', value, self
    )

  def __eq__(self, other):
    # A plain value is what the tests expect: it isn't shown.
    return isinstance(other, _Remote) and bool(_ask(self, 'eq', other))

  def __hash__(self):
    return hash(str(object.__getattribute__(self, '_place')))


def _ask(remote: _Remote, name: str, *args, **kwargs):
  reply = object.__getattribute__(remote, '_reply')
  return reply.ask(name, remote, *args, **kwargs)


def _add_operations() -> None:
  def make_method(name):
    return lambda self, *args: _ask(self, name, *args)

  def make_operator(name):
    def operate(self, other):
      if isinstance(other, _Remote):
        return _ask(self, name, other)
      return NotImplemented

    return operate

  for name in [
    'iter',
    'next',
    'len',
    'bool',
    'str',
    'repr',
    'getitem',
    'setitem',
    'delitem',
  ]:
    setattr(_Remote, f'__{name}__', make_method(name))
  for name in ['lt', 'le', 'gt', 'ge', 'add', 'sub', 'mul']:
    setattr(_Remote, f'__{name}__', make_operator(name))


_add_operations()


def _judge(job, channel: _Channel, parent: int, max_cpu_s: int) -> list[str]:
  """Returns ['right', 'wrong', 'bad' or 'unlocked', the cause]."""
  code, tests = job
  reply = _Reply(channel)
  try:
    lockdown.lock(parent, max_cpu_s)
  except BaseException as error:
    return ['unlocked', str(error)]
  try:
    program, names, modules = _read_tests(tests)
    namespace = {name: _Remote(reply, {'name': name}) for name in names}
    namespace |= {name: importlib.import_module(name) for name in modules}
    namespace['__name__'] = 'tests'
  except BaseException as error:
    return ['bad', f'{type(error).__name__}: {error}']
  try:
    reply.start(code)
  except _UnlockedError as error:
    return ['unlocked', str(error)]
  except BaseException as error:
    return ['wrong', f'{type(error).__name__}: {error}']
  try:
    # A data set's tests are code.
    exec(program, namespace)  # nosec B102 (locked down as the reply is)
  except _BadTestsError as error:
    return ['bad', str(error)]
  except BaseException as error:
    return ['wrong', f'{type(error).__name__}: {error}']
  if reply.is_gone:
    return ['wrong', 'its process ended']
  if not reply.num_asked:
    return ['bad', 'they call nothing of the reply']
  return ['right', '']


def _read_tests(tests: str):
  """Compiles tests.

  Returns:
    The program; the names that the reply has to define; and the modules of
    Python's that they use without importing them.

  Raises:
    SyntaxError: they are no Python.
    ValueError: they hold no assert, or name nothing that a reply could define.
  """
  tree = ast.parse(tests)
  nodes = list(ast.walk(tree))
  if not any(isinstance(node, ast.Assert) for node in nodes):
    raise ValueError('they hold no assert')
  used, bound = set(), set()
  for node in nodes:
    match node:
      case ast.Name(id=name, ctx=ast.Load()):
        used.add(name)
      case ast.Name(id=name) | ast.arg(arg=name):
        bound.add(name)
      case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
        bound.add(name)
      case ast.alias(name=name, asname=alias):
        bound.add(alias or name.split('.')[0])
      case ast.ExceptHandler(name=str(name)):
        bound.add(name)
  modules = {
    node.value.id
    for node in nodes
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
  }
  modules &= sys.stdlib_module_names - bound
  names = used - bound - modules - set(dir(builtins))
  if not names:
    # As where the task is to write `sum`; of two, one could be the tests' own.
    names = used - bound - modules
    if len(names) != 1:
      raise ValueError('they name nothing that the reply could define')
  return compile(tree, '<tests>', 'exec'), names, modules


if __name__ == '__main__':
  main()
