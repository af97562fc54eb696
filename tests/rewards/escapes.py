"""What code may try: out of its process, or into a pass that it has not earned.

Where an attempt needs something real to aim at, `code_test.py` fills in `PORT` (of
a listener), `UNIX` (the path of another), `SECRET` (a file's path), `FOLDER` (a
folder that may be written) and `PARENT` (a process).
"""

import platform

_SYSCALL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
  result = libc.syscall(*args)
  if result < 0:
    raise OSError(ctypes.get_errno(), 'refused')
  return 'done'
"""

_MACHINE = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write({code})
run = ctypes.CFUNCTYPE(ctypes.c_long)(
  ctypes.addressof(ctypes.c_char.from_buffer(page)))
def attempt():
  return run()
"""

# Each defines `attempt`, which returns if it gets out. By name, with how it must
# end: the exception, or what is said of the process.
DENIED, GONE = 'PermissionError', 'process ended'
ESCAPES = {
  # The network.
  'TCP': ('import socket\ndef attempt(): socket.create_connection(("127.0.0.1", PORT), 1)', DENIED),
  'UDP': ('import socket\ndef attempt(): socket.socket(2, 2).sendto(b"x", ("127.0.0.1", PORT))', DENIED),
  'Unix socket': ('import socket\ndef attempt(): socket.socket(1).connect("UNIX")', DENIED),
  'abstract Unix socket': ('import socket\ndef attempt(): socket.socket(1).bind("\\0x")', DENIED),
  'socket pair': ('import socket\ndef attempt(): socket.socketpair()', DENIED),
  'IPv6': ('import socket\ndef attempt(): socket.socket(10, 1)', DENIED),
  'raw socket': ('import socket\ndef attempt(): socket.socket(2, 3, 1)', DENIED),
  'netlink': ('import socket\ndef attempt(): socket.socket(16, 3, 0)', DENIED),
  'a listener': ('import socket\ndef attempt(): socket.create_server(("", 0))', DENIED),
  'a web page': ('import urllib.request\ndef attempt(): urllib.request.urlopen("http://127.0.0.1:PORT/", timeout=1)', 'URLError|OSError'),
  'a name': ('import socket\ndef attempt(): socket.getaddrinfo("localhost.example", 80)', 'gaierror|OSError'),
  'io_uring': (_SYSCALL + 'def attempt(): call(425, 4, bytes(256))', DENIED),
  # Other processes.
  'fork': ('import os\ndef attempt(): os.fork()', DENIED),
  'fork bomb': ('import os\ndef attempt():\n  while True:\n    os.fork()', DENIED),
  'fork in C': (_SYSCALL + 'def attempt():\n  if libc.fork() < 0: raise OSError(ctypes.get_errno(), "")', DENIED),
  'clone': (_SYSCALL + 'def attempt(): call(CLONE, 17, 0, 0, 0, 0)', DENIED),
  'clone into a namespace': (_SYSCALL + 'def attempt(): call(CLONE, 0x10000011, 0, 0, 0, 0)', DENIED),
  'a thread in a namespace': (_SYSCALL + 'def attempt(): call(CLONE, 0x30900, 0, 0, 0, 0)', DENIED),
  'clone3': (_SYSCALL + 'def attempt(): call(435, bytes(64), 64)', 'OSError'),
  'a shell': ('import os\ndef attempt():\n  if os.system("touch FOLDER/shell"): raise PermissionError', DENIED),
  'a program': ('import subprocess\ndef attempt(): subprocess.run(["/bin/true"])', DENIED),
  'posix_spawn': ('import os\ndef attempt(): os.posix_spawn("/bin/true", ["true"], {})', DENIED),
  'exec': ('import os\ndef attempt(): os.execv("/bin/true", ["true"])', DENIED),
  'multiprocessing': ('import multiprocessing\ndef attempt(): multiprocessing.Process(target=print).start()', DENIED),
  'a daemon': ('import os\ndef attempt():\n  if os.fork() == 0:\n    os.setsid()', DENIED),
  'a session': ('import os\ndef attempt(): os.setsid()', DENIED),
  'another group': ('import os\ndef attempt(): os.setpgid(0, 0)', DENIED),
  'kill the parent': ('import os\ndef attempt(): os.kill(PARENT, 9)', DENIED),
  'kill all': ('import os\ndef attempt(): os.kill(-1, 9)', DENIED),
  'kill the group': ('import os\ndef attempt(): os.killpg(0, 9)', DENIED),
  'ask whether it runs': ('import os\ndef attempt(): os.kill(PARENT, 0)', DENIED),
  'a queued signal': (_SYSCALL + 'def attempt(): call(129, PARENT, 9, bytes(128))', DENIED),
  'tgkill': (_SYSCALL + 'def attempt(): call(TGKILL, PARENT, PARENT, 9)', DENIED),
  'signals of a descriptor': ('import fcntl\ndef attempt(): fcntl.fcntl(0, fcntl.F_SETOWN, PARENT)', DENIED),
  'pidfd': ('import os\ndef attempt(): os.pidfd_open(PARENT)', DENIED),
  'ptrace': (_SYSCALL + 'def attempt(): call(PTRACE, 16, PARENT, 0, 0)', DENIED),
  'read memory of others': (_SYSCALL + 'def attempt(): call(VM_READ, PARENT, 0, 0, 0, 0, 0)', DENIED),
  'write memory of others': (_SYSCALL + 'def attempt(): call(VM_READ + 1, PARENT, 0, 0, 0, 0, 0)', DENIED),
  'kcmp': (_SYSCALL + 'def attempt(): call(312, PARENT, PARENT, 0, 0, 0)', DENIED),
  'priority': ('import os\ndef attempt(): os.nice(-5)', DENIED),
  'affinity': ('import os\ndef attempt(): os.sched_setaffinity(0, [0])', DENIED),
  # Files.
  'read a secret': ('def attempt(): return open("SECRET").read()', DENIED),
  'read a secret by another way': ('def attempt(): return open("/usr/lib/../../SECRET").read()', DENIED),
  'the home folder': ('import os\ndef attempt(): return os.listdir(os.path.dirname("SECRET"))', DENIED),
  'the root folder': ('import os\ndef attempt(): return os.listdir("/")', DENIED),
  'passwords': ('def attempt(): return open("/etc/passwd").read()', DENIED),
  'its own memory': ('def attempt(): return open("/proc/self/mem", "rb")', DENIED),
  'its own map': ('def attempt(): return open("/proc/self/maps").read()', DENIED),
  'memory of the parent': ('def attempt(): return open("/proc/PARENT/mem", "rb")', DENIED),
  'environment of the parent': ('def attempt(): return open("/proc/PARENT/environ").read()', DENIED),
  'descriptors of the parent': ('import os\ndef attempt(): return os.listdir("/proc/PARENT/fd")', DENIED),
  'devices': ('def attempt(): return open("/dev/zero", "rb")', DENIED),
  'a terminal': ('def attempt(): return open("/dev/tty", "r")', f'{DENIED}|OSError'),
  'write outside': ('def attempt(): open("FOLDER/x", "w").write("x")', DENIED),
  'write here': ('def attempt(): open("x", "w").write("x")', DENIED),
  'append to a secret': ('def attempt(): open("SECRET", "a").write("x")', DENIED),
  'truncate by opening': ('import os\ndef attempt(): os.open(os.__file__, os.O_TRUNC)', DENIED),
  'truncate': ('import os\ndef attempt(): os.truncate("SECRET", 0)', DENIED),
  'a temporary file': ('import tempfile\ndef attempt(): tempfile.TemporaryFile()', 'FileNotFoundError'),
  'a file without a name': ('import os\ndef attempt(): os.open("FOLDER", os.O_TMPFILE | os.O_RDWR)', DENIED),
  'shared memory': ('from multiprocessing import shared_memory\ndef attempt(): shared_memory.SharedMemory(create=True, size=9)', DENIED),
  'a file in memory': ('import os\ndef attempt(): os.memfd_create("x")', DENIED),
  'Sys V memory': (_SYSCALL + 'def attempt(): call(29, 0, 4096, 0o1600)', DENIED),
  'fill the disk': ('def attempt():\n  with open("FOLDER/full", "wb") as f:\n    while True: f.write(bytes(1 << 20))', DENIED),
  'remove': ('import os\ndef attempt(): os.remove("SECRET")', DENIED),
  'rename': ('import os\ndef attempt(): os.rename("SECRET", "FOLDER/s")', DENIED),
  'a symbolic link': ('import os\ndef attempt(): os.symlink("SECRET", "FOLDER/link")', DENIED),
  'read through a symbolic link': ('def attempt(): return open("FOLDER/to_secret").read()', DENIED),
  'a hard link': ('import os\ndef attempt(): os.link("SECRET", "FOLDER/link")', DENIED),
  'a folder': ('import os\ndef attempt(): os.mkdir("FOLDER/made")', DENIED),
  'a pipe with a name': ('import os\ndef attempt(): os.mkfifo("FOLDER/fifo")', DENIED),
  'permissions': ('import os\ndef attempt(): os.chmod("SECRET", 0o777)', DENIED),
  'owner': ('import os\ndef attempt(): os.chown("SECRET", 0, 0)', DENIED),
  'times': ('import os\ndef attempt(): os.utime("SECRET", (0, 0))', DENIED),
  'attributes': ('import os\ndef attempt(): os.setxattr("SECRET", "user.x", b"x")', DENIED),
  'another root': ('import os\ndef attempt(): os.chroot("FOLDER")', DENIED),
  'another folder': ('import os\ndef attempt(): os.chdir("FOLDER")', DENIED),
  'by handle': (_SYSCALL + 'def attempt(): call(304, -100, bytes(128), 0)', DENIED),
  # The kernel.
  'a namespace': (_SYSCALL + 'def attempt():\n  if libc.unshare(0x10000000) < 0: raise OSError(ctypes.get_errno(), "")', DENIED),
  'the parent\'s namespace': (_SYSCALL + 'def attempt():\n  if libc.setns(0, 0) < 0: raise OSError(ctypes.get_errno(), "")', DENIED),
  'mount': (_SYSCALL + 'def attempt():\n  if libc.mount(b"x", b"/mnt", b"tmpfs", 0, 0) < 0: raise OSError(ctypes.get_errno(), "")', DENIED),
  'bpf': (_SYSCALL + 'def attempt(): call(321, 0, bytes(128), 128)', DENIED),
  'perf events': (_SYSCALL + 'def attempt(): call(298, bytes(128), 0, -1, -1, 0)', DENIED),
  'userfaultfd': (_SYSCALL + 'def attempt(): call(323, 0)', DENIED),
  'keys': (_SYSCALL + 'def attempt(): call(250, 0, 0, 0, 0)', DENIED),
  'a module': (_SYSCALL + 'def attempt(): call(175, b"", 0, b"")', DENIED),
  'the clock': ('import time\ndef attempt(): time.clock_settime(0, 0)', DENIED),
  'another user': ('import os\ndef attempt(): os.setuid(1234)', DENIED),
  'more memory': ('import resource\ndef attempt(): resource.setrlimit(resource.RLIMIT_AS, (-1, -1))', f'{DENIED}|ValueError'),
  'another filter': (_SYSCALL + 'def attempt(): call(317, 0, 0, 0)', DENIED),
  'outlive the parent': (_SYSCALL + 'def attempt():\n  if libc.prctl(1, 0, 0, 0, 0) < 0: raise OSError(ctypes.get_errno(), "")', DENIED),
  'an alarm': ('import signal\ndef attempt(): signal.alarm(1)\n', 'done'),
  # What it was given.
  'a secret in the environment': ('import os\ndef attempt(): return os.environ["TOKEN"]', 'KeyError'),
  'the C environment': ('import ctypes\ndef attempt():\n  get = ctypes.CDLL(None).getenv\n  get.restype = ctypes.c_char_p\n  return get(b"TOKEN") or {}[1]', 'KeyError'),
  'standard input': ('def attempt(): return input()', 'EOFError'),
  'site packages': ('def attempt(): import numpy', 'ModuleNotFoundError'),
  'this project': ('def attempt(): import dash_jax.main', 'ModuleNotFoundError|PermissionError'),
  # Limits.
  'memory': ('def attempt():\n  eaten = []\n  while True: eaten.append(bytes(1 << 24))', 'MemoryError'),
  'memory in one piece': ('def attempt(): return len(bytearray(1 << 32))', 'MemoryError'),
  'descriptors': ('import os\ndef attempt():\n  while True: os.open(os.__file__, 0)', 'OSError'),
  'threads': ('import threading, time\ndef attempt():\n  while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()', 'RuntimeError'),
  'a crash': ('import ctypes\ndef attempt(): ctypes.string_at(0)', GONE),
  'an abort': ('import os\ndef attempt(): os.abort()', GONE),
  'a deep stack': ('import sys\nsys.setrecursionlimit(10**9)\nclass A:\n  def __getattr__(self, name): return getattr(self, name)\ndef attempt(): return A().a', f'{GONE}|MemoryError'),
  'a deep value': ('def attempt():\n  x = []\n  for _ in range(10**5): x = [x]\n  return x', 'RecursionError'),
  'a value in itself': ('def attempt():\n  x = []\n  x.append(x)\n  return x', 'RecursionError'),
  'a huge value': ('def attempt(): return "x" * (1 << 26)', GONE),
  'many megabytes of output': ('import os, sys\ndef attempt():\n  print("x" * 10**7)\n  sys.stderr.write("x" * 10**7)\n  os.write(1, bytes(10**7))', 'done'),
}  # fmt: skip
_NUMBERS = {
  'x86_64': {'CLONE': 56, 'TGKILL': 234, 'PTRACE': 101, 'VM_READ': 310},
  'aarch64': {'CLONE': 220, 'TGKILL': 131, 'PTRACE': 117, 'VM_READ': 270},
}
NUMBERS = _NUMBERS.get(platform.machine(), {})

if platform.machine() == 'x86_64':
  ESCAPES |= {
    # mov eax, 0x40000029; mov edi, 2; mov esi, 1; xor edx, edx; syscall; ret
    'a socket of the x32 ABI': (
      _MACHINE.format(
        code=rb"b'\xb8\x29\x00\x00\x40\xbf\x02\x00\x00\x00\xbe\x01\x00\x00\x00\x31\xd2\x0f\x05\xc3'".decode()
      ),
      '-1',
    ),
    # mov eax, 20 (getpid of i386); int 0x80; ret
    'a call of the i386 ABI': (
      _MACHINE.format(code=rb"b'\xb8\x14\x00\x00\x00\xcd\x80\xc3'".decode()),
      f'{GONE}|-38',
    ),
  }

# What never ends.
ENDLESS = {
  'loop': 'def attempt():\n  while True: pass',
  'a power': 'def attempt(): return 9 ** 9 ** 9 % 7',
  'signals that are ignored': 'import signal\nfor n in range(1, 32):\n  try: signal.signal(n, signal.SIG_IGN)\n  except (OSError, ValueError): pass\nwhile True: pass',
  'sleep': 'import time\ndef attempt(): time.sleep(99)',
  'a thread that is left': 'import threading\ndef attempt(): pass\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()\nthreading.Event().wait()',
  'a generator': 'def attempt():\n  while True: yield 1',
}  # fmt: skip

# Replies to `def f(x)`, whose square is asked for, and tests of them, in which it
# is not known what is expected. None may pass.
_SQUARE = 'assert f(3) == 9'
_LIAR = """
class Liar:
  def __init__(self, *args): pass
  def say(self, *args, **kwargs): return True
  __eq__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = say
  __ne__ = lambda self, other: False
  __hash__ = lambda self: 9
  __float__ = lambda self: 9.0
  __int__ = __index__ = __round__ = __abs__ = lambda self, *args: 9
  __sub__ = __rsub__ = __add__ = __radd__ = lambda self, other: 0
  __class__ = property(lambda self: int)
def f(x): return Liar()
"""
_SUBCLASS = """
class Liar({kind}):
  def __eq__(self, other): return True
  def __ne__(self, other): return False
  __hash__ = {kind}.__hash__
def f(x): return Liar({value})
"""
_WRITE = """
import os
def f(x):
  for fd in range(0, 64):
    try: os.write(fd, {data})
    except OSError: pass
  os._exit(0)
"""
FAKES = {
  'exit at once': ('import sys\nsys.exit(0)', _SQUARE),
  '_exit at once': ('import os\nos._exit(0)', _SQUARE),
  'exit': ('import sys\ndef f(x): sys.exit(0)', _SQUARE),
  '_exit': ('import os\ndef f(x): os._exit(0)', _SQUARE),
  '_exit where exceptions are caught': ('import os\ndef f(x): os._exit(0)', 'try:\n  f(3)\nexcept BaseException: pass\nassert 1'),
  'quit': ('def f(x): quit()', _SQUARE),
  'exec nothing': ('import os\ndef f(x): os.execv("/bin/true", ["true"])', _SQUARE),
  'nothing': ('', _SQUARE),
  'no Python': ('this is no Python', _SQUARE),
  'a liar': (_LIAR, _SQUARE),
  'a liar, reversed': (_LIAR, 'assert 9 == f(3)'),
  'a liar, not unequal': (_LIAR, 'assert not f(3) != 9'),
  'a liar among': (_LIAR, 'assert f(3) in [9]'),
  'a liar among keys': (_LIAR, 'assert f(3) in {9: 1}'),
  'a liar that contains': (_LIAR, 'assert 9 in f(3)'),
  'a liar within': (_LIAR, 'assert [f(3)] == [9]'),
  'a liar, by difference': (_LIAR, 'assert abs(f(3) - 9) < 1e-6'),
  'a liar, by another difference': (_LIAR, 'assert abs(9 - f(3)) < 1e-6'),
  'a liar, close': (_LIAR, 'import math\nassert math.isclose(f(3), 9)'),
  'a liar, rounded': (_LIAR, 'assert round(f(3), 2) == 9.0'),
  'a liar, as a number': (_LIAR, 'assert int(f(3)) == 9'),
  'a liar, less': (_LIAR, 'assert 8 < f(3) < 10'),
  'a liar, by class': (_LIAR, 'assert isinstance(f(3), int)'),
  'a liar, by unittest': (_LIAR, 'import unittest\nunittest.TestCase().assertEqual(f(3), 9)\nassert 1'),
  'an int that lies': (_SUBCLASS.format(kind='int', value=1), _SQUARE),
  'a float that lies': (_SUBCLASS.format(kind='float', value=1), _SQUARE),
  'text that lies': (_SUBCLASS.format(kind='str', value=1), 'assert f(3) == "9"'),
  'a list that lies': (_SUBCLASS.format(kind='list', value=''), 'assert f(3) == [9]'),
  'a dict that lies': (_SUBCLASS.format(kind='dict', value=''), 'assert f(3) == {9: 9}'),
  'a tuple that lies': (_SUBCLASS.format(kind='tuple', value=''), 'assert f(3) == (9,)'),
  'a named tuple that lies': ('import collections\nclass T(collections.namedtuple("T", "a")):\n  def __eq__(self, other): return True\ndef f(x): return T(1)', 'assert f(3) == (9,)'),
  'not a number': ('def f(x): return float("nan")', _SQUARE),
  'a patched assert': ('import builtins\nbuiltins.AssertionError = type("E", (Exception,), {"__new__": lambda *a: 1/0})\ndef f(x): return 1', _SQUARE),
  'patched builtins': ('import builtins\nfor name in ("abs", "all", "any", "sorted", "set", "len", "isinstance", "round"):\n  setattr(builtins, name, lambda *a, **k: [9])\ndef f(x): return [1]', 'assert sorted(f(3)) == [9]'),
  'builtins of its own': ('def sorted(x): return [9]\ndef f(x): return [1]', 'assert sorted(f(3)) == [9]'),
  'a module of its own': ('class math:\n  isclose = staticmethod(lambda *a: True)\ndef f(x): return 1', 'assert math.isclose(f(3), 9)'),
  'a patched module': ('import math\nmath.isclose = lambda *a: True\ndef f(x): return 1', 'import math\nassert math.isclose(f(3), 9)'),
  'patched JSON': ('import json\njson.dumps = lambda *a: \'["done", [9, []]]\'.replace("9", "true")\ndef f(x): return 1', _SQUARE),
  'a patched side': ('import sys\nside = sys.modules["__main__"]\nside._pack = lambda *a: {"object": 0}\ndef f(x): return 1', _SQUARE),
  'nonsense from a patched side': ('import sys\nside = sys.modules["__main__"]\nside._pack = lambda *a: {"list": [{"nothing": {}}], "b": 1}\ndef f(x): return 1', _SQUARE),
  'the verdict printed': ('def f(x): print(\'["right", ""]\')', _SQUARE),
  'the verdict written': (_WRITE.format(data="b'[\"right\", \"\"]\\n'"), _SQUARE),
  'results written': (_WRITE.format(data="b'[\"done\", [true, []]]\\n' * 9"), _SQUARE),
  'unlocked written': (_WRITE.format(data="b'[\"unlocked\", \"no lock\"]\\n' * 9"), _SQUARE),
  'bytes written': (_WRITE.format(data="b'\\xff\\x00\\n'"), _SQUARE),
  'deep JSON written': (_WRITE.format(data="b'[' * 60000 + b'\\n'"), _SQUARE),
  'deep values written': (_WRITE.format(data="b'[\"done\", [' + b'{\"list\": [' * 300 + b']}' * 300 + b', []]]\\n'"), _SQUARE),
  'a huge number written': (_WRITE.format(data="b'9' * 60000 + b'\\n'"), _SQUARE),
  'a lock that fails': ('raise OSError("code cannot be locked down")', _SQUARE),
  'blanks without end': ('import os\ndef f(x):\n  for fd in range(3, 32):\n    try:\n      while True: os.write(fd, b" " * 4096)\n    except OSError: pass', _SQUARE),
  'tests in memory': ('import gc\ndef f(x):\n  return [o for o in gc.get_objects() if "assert" in repr(o)[:10]] + [9]', _SQUARE),
  'tests in frames': ('import sys\ndef f(x):\n  frame = sys._getframe()\n  while frame:\n    for value in frame.f_locals.values():\n      if "f" + "(3)" in str(value): return 9\n    frame = frame.f_back', _SQUARE),
  'tests in arguments': ('import sys\ndef f(x): return 9 if "== 9" in str(sys.argv) + str(sys.orig_argv) else 0', _SQUARE),
  'tests in descriptors': ('import os, select\ndef f(x):\n  for fd in range(3, 32):\n    try:\n      if select.select([fd], [], [], 0)[0] and b"== 9" in os.read(fd, 1 << 16): return 9\n    except (OSError, ValueError): pass', _SQUARE),
  'an error for the tests': ('def f(x): raise AssertionError', _SQUARE),
  'no more values': ('def f(x):\n  raise StopIteration', 'assert list(f(3)) == [9]'),
  'an error without text': ('class E(Exception):\n  def __str__(self): raise SystemExit\ndef f(x): raise E', _SQUARE),
  'a changed argument': ('def f(x): x[:] = [9]', 'x = (1,)\nf(x)\nassert x == (9,)'),
  'a metaclass': ('class M(type):\n  def __eq__(cls, other): return True\n  __hash__ = type.__hash__\nclass C(metaclass=M): pass\ndef f(x): return C', _SQUARE),
  'a mock': ('from unittest import mock\ndef f(x):\n  m = mock.MagicMock()\n  m.__eq__.return_value = True\n  return m', _SQUARE),
}  # fmt: skip
