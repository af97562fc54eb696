"""Threads that share a heap."""

import ctypes
import subprocess
import sys

import pytest

# Ten threads hold memory at once; prints how many heaps it came from.
HOLD = """
import ctypes, tempfile, threading
from dash_jax.sampling import memory

if {shared}:
  memory.share_heap()
met = threading.Barrier(11)
def hold():
  held = bytes(100_000)
  met.wait()
  met.wait()
threads = [threading.Thread(target=hold) for _ in range(10)]
for thread in threads:
  thread.start()
met.wait()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
with tempfile.TemporaryFile() as file:
  stream = ctypes.c_void_p(libc.fdopen(file.fileno(), b'w'))
  libc.malloc_info(0, stream)
  libc.fflush(stream)
  file.seek(0)
  print(file.read().count(b'<heap nr='))
met.wait()
"""


def count_heaps(shared):
  code = HOLD.format(shared=shared)
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  return int(done.stdout)


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'mallopt'), reason='not of this allocator'
)
def test_threads_share_one_heap():
  assert count_heaps(shared=True) == 1
  assert count_heaps(shared=False) > 1
