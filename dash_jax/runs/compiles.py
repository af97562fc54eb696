"""How many programs XLA has compiled since this module was imported.

A run compiles a known list of programs in its first steps; a count that still
grows later is a defect, so every step's metrics carry it.
"""

import jax

_EVENT = '/jax/core/compile/backend_compile_duration'
_seconds = []


def _listen(event: str, duration_s: float, **_):
  if event == _EVENT:
    _seconds.append(duration_s)


jax.monitoring.register_event_duration_secs_listener(_listen)


def count() -> int:
  """Returns the number of compilations."""
  return len(_seconds)


def total_s() -> float:
  """Returns the seconds spent in them."""
  return sum(_seconds)
