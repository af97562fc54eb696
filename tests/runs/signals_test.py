"""A run is asked to stop by a signal, and told twice to stop at once."""

import os
import signal
import subprocess
import sys

import pytest

from dash_jax.runs import signals


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_one_signal_asks_for_a_stop(number):
  """Where there is something to save; and old handlers come back."""
  before = signal.getsignal(number)
  with signals.Stop() as stop:
    stop.begin()
    for check in (stop.check, stop.check_all):
      check()
    os.kill(os.getpid(), number)
    for check in (stop.check, stop.check_all):
      with pytest.raises(signals.Stopped):
        check()
  assert signal.getsignal(number) is before


IMPATIENT = """
import concurrent.futures, os, signal, sys, time
from dash_jax.runs import signals

# Python would wait for this thread before it ends.
concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 600)
with signals.Stop() as stop:
  if sys.argv[1:]:
    stop.begin()
    for number in signal.SIGTERM, signal.SIGINT:
      os.kill(os.getpid(), number)
    print('asked', flush=True)
  os.kill(os.getpid(), signal.SIGINT)
  print('goes on', flush=True)
"""


@pytest.mark.parametrize(
  ('arguments', 'code', 'said'),
  [
    # Somebody who presses Ctrl-C twice does not want to wait.
    (['begun'], signals.INTERRUPTED, 'asked\n'),
    ([], signals.STOPPED, ''),
  ],
)
def test_a_second_interrupt_or_one_before_any_work_ends_at_once(
  arguments, code, said
):
  done = subprocess.run(
    [sys.executable, '-c', IMPATIENT, *arguments],
    stdout=subprocess.PIPE,
    text=True,
    timeout=60,
  )
  assert (done.returncode, done.stdout) == (code, said)
