"""The heap: threads share it, and arrays leave their memory to the next."""

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

# Prints how many pages come from the system for 160 MB when as much was there
# before.
FILL = """
import resource
from dash_jax.sampling import memory

if {kept}:
  memory.keep_heap()
for _ in range(2):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  b'x' * 160_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

needs_glibc = pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'mallopt'), reason='not of this allocator'
)


def run_code(code):
  done = subprocess.run(
    [sys.executable, '-c', code], check=True, capture_output=True, text=True
  )
  return int(done.stdout)


def count_heaps(shared):
  return run_code(HOLD.format(shared=shared))


@needs_glibc
def test_an_array_has_the_memory_of_the_one_before():
  """160 MB are 76 pages even where they are of 2 MiB."""
  assert run_code(FILL.format(kept=True)) < 38
  assert run_code(FILL.format(kept=False)) > 50


@needs_glibc
def test_threads_share_one_heap():
  assert count_heaps(shared=True) == 1
  assert count_heaps(shared=False) > 1
