"""How many programs XLA has compiled.

A run compiles a known list of programs before its first step and in it; one that
is compiled in a later step is a defect, so every step's metrics count them.
"""

import jax

_EVENT = '/jax/core/compile/backend_compile_duration'
_seconds = []


def _listen(event: str, duration_s: float, **_):
  if event == _EVENT:
    _seconds.append(duration_s)


jax.monitoring.register_event_duration_secs_listener(_listen)


def count() -> int:
  """Returns the number of compilations since this module was imported."""
  return len(_seconds)


def total_s() -> float:
  """Returns the seconds spent in them."""
  return sum(_seconds)


class Late:
  """A context for each step of a phase; `num` is how many programs were compiled
  in all but the first."""

  def __init__(self):
    self.num = 0
    self._is_first = True

  def __enter__(self) -> 'Late':
    self._before = count()
    return self

  def __exit__(self, *exc_info):
    if not self._is_first:
      self.num += count() - self._before
    self._is_first = False
