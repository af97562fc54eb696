"""Code is scored by its tests, and does not get out of its process."""

import json
import os
import re
import socket
import subprocess
import sys
import time

import escapes
import pytest

from dash_jax.rewards import code, workers

try:
  code.prepare()
except OSError as error:
  # As it is refused to a run: there is no weaker mode that could be tried.
  pytest.skip(f'code is not run here: {error}', allow_module_level=True)

# Says the outcome of an attempt: an exception's name, or what it returned.
_ATTEMPT = """
def say(name):
  try:
    got = attempt(name)
    return 'done' if got is None else str(got)
  except Exception as error:
    return type(error).__name__
got = {name: say(name) for name in NAMES}
assert got is None, json.dumps(got)
"""
_REPLY = """
SOURCES = %r
def attempt(name):
  namespace = {}
  exec(SOURCES[name], namespace)
  return namespace['attempt']()
"""


@pytest.fixture(autouse=True)
def _time(monkeypatch):
  # The machine of a test may be busy; CPU time is what counts.
  monkeypatch.setattr(code, 'MAX_S', 60.0)


@pytest.fixture(scope='module')
def outside(tmp_path_factory):
  """What attempts aim at; checked once more at the end."""
  folder = tmp_path_factory.mktemp('home')
  secret = folder / 'secret'
  secret.write_text('a secret')
  free = folder / 'free'
  free.mkdir()
  (free / 'to_secret').symlink_to(secret)
  with (
    socket.create_server(('127.0.0.1', 0)) as listener,
    socket.socket(socket.AF_UNIX) as unix,
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
  ):
    port = listener.getsockname()[1]
    datagrams.bind(('127.0.0.1', port))
    unix.bind(str(folder / 'unix'))
    unix.listen()
    for opened in (listener, unix, datagrams):
      opened.setblocking(False)
    yield escapes.NUMBERS | {
      'PORT': port,
      'UNIX': folder / 'unix',
      'SECRET': secret,
      'FOLDER': free,
      'PARENT': os.getpid(),
    }
    for opened in (listener, unix):
      with pytest.raises(BlockingIOError):
        opened.accept()
    with pytest.raises(BlockingIOError):
      datagrams.recv(1)
  assert secret.read_text() == 'a secret'
  assert os.listdir(free) == ['to_secret']
  assert sorted(os.listdir(folder)) == ['free', 'secret', 'unix']


def _aim(text, outside):
  return re.sub('|'.join(outside), lambda m: str(outside[m[0]]), text)


def _attempt(names, outside):
  sources = {name: _aim(escapes.ESCAPES[name][0], outside) for name in names}
  tests = 'import json\n' + _ATTEMPT.replace('NAMES', repr(list(names)))
  verdict, cause = code.run(_REPLY % sources, tests)
  assert verdict == 'wrong'
  return cause


def test_what_is_not_allowed_is_refused(outside, monkeypatch):
  """In one process: each is refused by itself, and leaves it as it was."""
  monkeypatch.setenv('TOKEN', 'token-7')
  names = [
    n for n, (_, end) in escapes.ESCAPES.items() if end is escapes.DENIED
  ]
  cause = _attempt(names, outside)
  found = json.loads(cause.removeprefix('AssertionError: '))
  assert {n: end for n, end in found.items() if end != 'PermissionError'} == {}
  assert len(found) == len(names) > 70


@pytest.mark.parametrize(
  'name',
  [n for n, (_, end) in escapes.ESCAPES.items() if end is not escapes.DENIED],
)
def test_an_escape_fails(name, outside, monkeypatch):
  monkeypatch.setenv('TOKEN', 'token-7')
  cause = _attempt([name], outside)
  assert re.search(escapes.ESCAPES[name][1], cause), cause
  assert 'token-7' not in cause


@pytest.mark.parametrize('name', escapes.FAKES)
def test_a_fake_does_not_pass(name):
  text, tests = escapes.FAKES[name]
  assert code.run(text, tests)[0] == 'wrong'


@pytest.mark.parametrize('name', escapes.ENDLESS)
def test_what_never_ends_is_ended(name, monkeypatch):
  monkeypatch.setattr(code, 'MAX_S', 1.0)
  tests = 'assert list(attempt()) == [1]'
  verdict, cause = code.run(escapes.ENDLESS[name], tests)
  assert (verdict, cause) == ('wrong', 'it took more than 1.0 s')


def test_cpu_time_ends_without_a_clock(monkeypatch):
  monkeypatch.setattr(code, 'MAX_CPU_S', 1)
  verdict, cause = code.run(escapes.ENDLESS['loop'], 'assert attempt()')
  assert (verdict, cause) == ('wrong', '_GoneError: its process ended')


_PASSES = {
  'a number': ('def f(x): return x * x', 'assert f(3) == 9\nassert f(-1) == 1'),
  'prints and guards': (
    'def f(x):\n  print(x)\n  return 9\nif __name__ == "__main__": input()',
    'assert f(3) == 9',
  ),
  'containers': (
    'def f(x): return [(1, "a\\ud800"), {1: {2}, None: (b"3", 1j)}, x]',
    'assert f([True]) == [(1, "a\\ud800"), {1: {2}, None: (b"3", 1j)}, [True]]',
  ),
  'large and odd numbers': (
    'def f(x): return [x ** 9, -x, float("inf"), float("nan")]',
    'a = f(10 ** 5000)\nassert a[:3] == [10 ** 45000, -(10 ** 5000), math.inf]\n'
    'assert math.isnan(a[3])',
  ),
  "Python's own subclasses": (
    'import collections\ndef f(x): return collections.Counter(x), '
    'collections.namedtuple("P", "a b")(1, 2), collections.Counter(x).keys()',
    'assert f("aab") == ({"a": 2, "b": 1}, (1, 2), {"a", "b"})',
  ),
  'a generator': (
    'def f():\n  n = 0\n  while True:\n    yield n\n    n += 1',
    'g = f()\nassert [next(g), next(g)] == [0, 1]\n'
    'assert [n for _, n in zip("ab", g)] == [2, 3]',
  ),
  'a map': (
    'def f(x): return map(abs, x)',
    'assert list(f([-1, 2])) == [1, 2]',
  ),
  'objects': (
    'class P:\n  def __init__(self, a): self.a = a\n'
    'def f(ps): return max(ps, key=lambda p: p.a)',
    'p = P(9)\np.a += 1\nassert f([P(3), p]).a == 10\nassert isinstance(p, P)',
  ),
  'one object': (
    'class N:\n  def __init__(self): self.next = self\ndef f(n): return n.next',
    'n = N()\nassert f(n) is n and n.next is n and f(n) in {n}',
  ),
  'methods': (
    'class Stack(list):\n  def push(self, x): self.append(x)\n'
    '  def __str__(self): return "S"',
    's = Stack()\ns.push(3)\ns.push([4])\nassert s.pop() == [4]\n'
    'assert (len(s), s[0], str(s), list(s), bool(s)) == (1, 3, "S", [3], True)',
  ),
  'equality of its own objects': (
    'import dataclasses\n@dataclasses.dataclass(order=True)\nclass P:\n  a: int\n'
    '  def __add__(self, other): return P(self.a + other.a)',
    'assert P(1) + P(2) == P(3) != P(4)\nassert P(1) < P(2)\nassert P(1) != 1',
  ),
  'changes of arguments': (
    'def f(x, y, z):\n  x.sort()\n  y["a"] = [1]\n  z.clear()',
    'x, y, z = [3, 1], {}, {1}\nf(x, y, z)\nassert (x, y, z) == ([1, 3], '
    '{"a": [1]}, set())',
  ),
  'an exception': (
    'class E(ValueError): pass\ndef f(x): raise E("no")',
    'try:\n  f(3)\n  assert False\nexcept ValueError as error:\n'
    '  assert str(error) == "no"',
  ),
  'a name of a builtin': (
    'def sum(a, b): return a + b',
    'assert sum(1, 2) == 3',
  ),
  'a module that is not imported': (
    'import math\ndef f(x): return math.sqrt(x)',
    'assert math.isclose(f(2), 2 ** 0.5)',
  ),
  'tests in a function': (
    'def f(x): return -x',
    'def check(candidate):\n  assert candidate(1) == -1\ncheck(f)',
  ),
  'threads': (
    'import threading\ndef f():\n  out = []\n'
    '  t = threading.Thread(target=out.append, args=(1,))\n  t.start()\n'
    '  t.join()\n  return out',
    'assert f() == [1]',
  ),
  'modules written in C': (
    'import bisect, ctypes, datetime, decimal, hashlib, heapq, itertools, json\n'
    'import random, re, sqlite3, statistics, string, typing, zlib\n'
    'def f(x): return re.sub("a", "b", x)',
    'assert f("aa") == "bb"',
  ),
}


@pytest.mark.parametrize('name', _PASSES)
def test_what_is_right_passes(name):
  assert code.run(*_PASSES[name]) == ('right', '')


@pytest.mark.parametrize(
  ('tests', 'cause'),
  [
    ('assert f(', 'SyntaxError'),
    ('f(3)', 'no assert'),
    ('assert True', 'name nothing'),
    ('def check(g): assert g(1) == f(1)', 'call nothing of the reply'),
    ('assert f(lambda x: x) == 1', 'hand over a function'),
    ('assert f(object()) == 1', 'hand over a object'),
    pytest.param(
      'assert f(1) == 1\n#' + 'a' * 2**24, 'more than 16777216', id='long'
    ),
  ],
)
def test_tests_that_cannot_be_run_are_errors_whatever_the_reply(tests, cause):
  with pytest.raises(ValueError, match=cause):
    code.score_one('def f(x): return 1', tests, False)


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('x = 1', 'x = 1'),
    ('So:\n```python\nx = 1\n```\nDone.', 'x = 1\n'),
    ('```py\nx = 1\n```\n```\ny = 2\n```\n', 'y = 2\n'),
    ('```python\nx = 1\n```\nRun it:\n```bash\npython x.py\n```', 'x = 1\n'),
    ('```python\nx = "```"\n```', 'x = "```"\n'),
    ('```python\nx = 1', None),
    ('```bash\nls\n```', None),
    ('x' * 100_001, None),
    ('```\n' * 33_000, None),
  ],
)
def test_extract_takes_the_last_block_of_python(text, expected):
  found = code.extract(text)
  assert found == expected if expected else found in (None, '')


@pytest.mark.parametrize(
  'text', ['a```\n' * 20_000, '```' + 'a' * 99_000, '```' + ' ' * 99_000]
)
def test_fences_that_never_close_take_no_time(text):
  begun_s = time.process_time()
  assert code.extract(text) is None
  assert time.process_time() - begun_s < 2.0


def test_rows_are_scored_in_workers():
  """A reply that is cut is wrong; bad tests are errors; what a reply does to its
  processes costs no other row."""
  right, square = (
    '```python\ndef f(x):\n  return x * x\n```',
    'assert f(3) == 9',
  )
  rows = [
    (right, square, False, 1.0),
    (right, square, True, 0.0),
    (right, 'assert f(', False, 0.0),
    ('import os\nos.abort()', square, False, 0.0),
    (right, square, False, 1.0),
  ]
  *arguments, expected = (list(column) for column in zip(*rows, strict=True))
  function, kwargs = 'dash_jax.rewards.code:score_one', {'style': 'gsm8k'}
  with workers.Pool(function, kwargs, 1, 60.0) as pool:
    scores = pool.score(*arguments)
  assert scores.rewards.tolist() == expected
  assert (scores.timeouts, scores.errors) == (0, 1)


@pytest.mark.parametrize(
  ('name', 'failing', 'cause'),
  [
    ('syscall', '_LANDLOCK_CREATE', 'Landlock is needed'),
    ('prctl', '_PR_SET_SECCOMP', 'seccomp filters are needed'),
  ],
)
def test_a_machine_without_a_lock_runs_nothing(name, failing, cause):
  """In a process of its own, as a lock is for good."""
  script = (
    'import ctypes, os, types\n'
    'from dash_jax.rewards import lockdown as l\n'
    f'real, missing = l._libc, l.{failing}\n'
    f'refuse = lambda n, *a: -1 if n == missing else real.{name}(n, *a)\n'
    'l._libc = types.SimpleNamespace(syscall=real.syscall, prctl=real.prctl,'
    ' socket=real.socket)\n'
    f'l._libc.{name} = refuse\n'
    'try:\n  l.lock(os.getppid(), 5)\n'
    'except OSError as error:\n  print(error)\n'
  )
  env = os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
  done = subprocess.run(
    [sys.executable, '-c', script], env=env, capture_output=True, text=True
  )
  assert cause in done.stdout, done.stderr


def test_a_lock_that_leaves_the_network_is_found():
  script = (
    'import os\n'
    'from dash_jax.rewards import lockdown as l\n'
    'l._restrict_calls = lambda *args: None\n'
    'try:\n  l.lock(os.getppid(), 5)\n'
    'except OSError as error:\n  print(error)\n'
  )
  env = os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
  done = subprocess.run(
    [sys.executable, '-c', script], env=env, capture_output=True, text=True
  )
  assert 'seccomp leaves the network' in done.stdout, done.stderr
