"""What fits a device, what is in use, and what to make of it when something did
not fit. How a process keeps what it holds from growing."""

import ctypes
import os
import pathlib

import jax

USABLE = 0.92  # the rest goes to fragments and to the runtime

# What a container may have, in both versions of Linux's control groups.
_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def share_heap() -> None:
  """Has all threads take the host's memory from one heap, before devices start
  theirs.

  glibc gives them heaps of their own, eight a core, and each keeps room for the
  most that was ever taken from it: as work goes from thread to thread, a process
  grows for thousands of steps. Other allocators are left as they are.
  """
  _set_malloc(_M_ARENA_MAX, 1)


def keep_heap() -> None:
  """Has arrays on CPU leave their memory to the next ones; nothing on other
  devices, whose arrays are not in the host's memory.

  glibc gives what a large one had back to the system, and each step pays anew
  for pages that it had: a seventh of a learner's time, where they are dear. Now a
  process keeps the most that it ever held.
  """
  if jax.default_backend() == 'cpu':
    _set_malloc(_M_MMAP_MAX, 0)
    _set_malloc(_M_TRIM_THRESHOLD, -1)  # never


def _set_malloc(name, value):
  """Sets a number of the host's allocator, if it has such."""
  if change := getattr(ctypes.CDLL(None), 'mallopt', None):
    change(name, value)


def find_room() -> float:
  """Returns the bytes that each device of this process in the mesh in use has
  room for beside what it holds now.

  On CPU a device's memory is its share of the host's.
  """
  held = [
    device.memory_stats() for device in jax.sharding.get_mesh().local_devices
  ]
  if all(held):
    room = min(s['bytes_limit'] * USABLE - s['bytes_in_use'] for s in held if s)
  else:
    total = find_host_memory()
    used = sum(
      shard.data.nbytes
      for x in jax.live_arrays()
      for shard in x.addressable_shards
    )
    room = (total * USABLE - used) / jax.local_device_count()
  return room


def find_device_share() -> float | None:
  """Returns the most of its memory that a device of this process has used at once;
  None where devices do not tell, as on CPU."""
  held = [device.memory_stats() for device in jax.local_devices()]
  if not all(held):
    return None
  return max(s['peak_bytes_in_use'] / s['bytes_limit'] for s in held)


def find_host_share() -> float | None:
  """Returns what this process holds of the memory of its machine, or of its
  container; None where there is no /proc."""
  statm = pathlib.Path('/proc/self/statm')
  if not statm.exists():
    return None
  resident = int(statm.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  return resident / find_host_memory()


def find_host_memory() -> int:
  """Returns the bytes of the machine, or of its container if that has fewer."""
  total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  for path in map(pathlib.Path, _LIMITS):
    text = path.read_text().strip() if path.exists() else ''
    if text.isdecimal():  # else it is 'max'
      total = min(total, int(text))
  return total


def is_exhausted(error: Exception) -> bool:
  """Returns whether a device had too little memory for a program."""
  return 'RESOURCE_EXHAUSTED' in str(error)
