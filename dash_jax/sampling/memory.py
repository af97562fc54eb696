"""What fits a device, and what to make of it when something did not."""

import os

import jax

USABLE = 0.92  # the rest goes to fragments and to the runtime


def find_room() -> float:
  """Returns the bytes that each device of this process in the mesh in use has
  room for beside what it holds now.

  On CPU a device's memory is its share of the machine's.
  """
  held = [
    device.memory_stats() for device in jax.sharding.get_mesh().local_devices
  ]
  if all(held):
    room = min(s['bytes_limit'] * USABLE - s['bytes_in_use'] for s in held if s)
  else:
    total = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    used = sum(
      shard.data.nbytes
      for x in jax.live_arrays()
      for shard in x.addressable_shards
    )
    room = (total * USABLE - used) / jax.local_device_count()
  return room


def is_exhausted(error: Exception) -> bool:
  """Returns whether a device had too little memory for a program."""
  return 'RESOURCE_EXHAUSTED' in str(error)
