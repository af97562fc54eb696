"""Signals that ask a run to stop, and the exit codes of those that did."""

import os
import signal

from dash_jax import sharding

STOPPED = 75  # BSD's EX_TEMPFAIL: call again
INTERRUPTED = 130  # as a shell has it: 128 and the signal's number

_SHOW_CURSOR = b'\x1b[?25h'  # which progress bars hide


class Stopped(Exception):
  """A signal has asked the run to stop; the state is as it was."""


class Stop:
  """Turns SIGTERM and Ctrl-C into a request to stop where no work is lost; a
  context. Until `begin`, when there is nothing to lose, they end the process at
  once with STOPPED; a second Ctrl-C always ends it at once.

  Each process sees its own signals only.
  """

  def __init__(self):
    self._has_begun = False
    self._requested = False
    self._interrupted = False
    self._previous = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exc_info):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def begin(self) -> None:
    """Says that there is work now which a stop must save."""
    self._has_begun = True

  def check(self) -> None:
    """Raises Stopped if this process is asked to stop."""
    if self._requested:
      raise Stopped

  def check_all(self) -> None:
    """Raises Stopped in each process if any is asked to stop; all must call it."""
    if sharding.max_over_hosts({'stop': self._requested})['stop']:
      raise Stopped

  def _receive(self, number, frame):
    del frame
    if number == signal.SIGINT and self._interrupted:
      _end(INTERRUPTED)
    if not self._has_begun:
      os.write(2, b'\nStopped: the run had not gone on yet.\n')
      _end(STOPPED)
    self._requested = True
    self._interrupted |= number == signal.SIGINT
    # Not print: a handler may run inside another write to the same stream.
    os.write(2, b'\nStopping with a checkpoint. Ctrl-C twice stops at once.\n')


def _end(code):
  if os.isatty(2):
    os.write(2, _SHOW_CURSOR)
  os._exit(code)
