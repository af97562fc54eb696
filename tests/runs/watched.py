"""One of two processes of a run, for watch_test: process WHO does WHAT in the
stage that both come to.

    python watched.py PORT PROCESS WHO WHAT
"""

import os
import signal
import sys
import time

import jax
from jax.experimental import multihost_utils

from dash_jax.runs import watch

port, process, who, what = sys.argv[1:]
jax.distributed.initialize(
  heartbeat_timeout_seconds=100,
  coordinator_address=f'localhost:{port}',
  num_processes=2,
  process_id=int(process),
)
if process == who and what == 'is gone':
  jax.devices()  # where the two meet
  os.kill(os.getpid(), signal.SIGKILL)
with watch.Watch(silent_s=5.0, stall_s=14.0):
  watch.mark('scoring')
  multihost_utils.sync_global_devices('both are here')
  while any(
    said['stage'] != 'scoring' for said, _ in watch._watch._heard.values()
  ):
    time.sleep(0.1)
  multihost_utils.sync_global_devices('both have heard of each other')
  # As Slurm, which stops a job by a signal to every process that it finds.
  os.kill(watch._watch._beside.pid, signal.SIGTERM)
  if process == who:
    if what == 'hangs':
      time.sleep(1000)
    elif what == 'fails unread':
      reader, writer = os.pipe()
      os.close(reader)
      os.dup2(writer, sys.stderr.fileno())
      raise RuntimeError('nobody hears this')
    elif what == 'fails':
      raise ValueError('this host has no such file')
    elif what == 'ends':
      os.kill(watch._watch._beside.pid, signal.SIGKILL)
    else:
      os.kill(os.getpid(), getattr(signal, what))
  watch.mark('learning')
  if what == 'ends':
    if process != who:
      time.sleep(9)  # the other is silent meanwhile
    print('ended')
  else:
    multihost_utils.sync_global_devices('never')
