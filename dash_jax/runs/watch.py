"""Ends a run that cannot go on, and says which process is at fault, and where.

  1. `mark` says what the calling thread is at. Whoever marks goes on. Stages of the
     main thread are counted: all processes have the same, where other threads
     run ahead or behind.
  2. A thread of each process tells the others of it every second, through jax's
     coordination service, and hears of them; another judges.
  3. Where a process has been silent for `silent_s`, or all have marked nothing
     for `stall_s`, those that can print who it is and what it was at, and exit
     with LOST. The same command then goes on from the newest checkpoint, on
     another mesh if asked. Where one has failed by itself, all exit as it would,
     when it has been seen for `silent_s` that none is dead.

What a dead process leaves undone keeps the others waiting inside jax, where no
exception reaches them: so they are ended from a thread, by os._exit. Where process
0 is dead, jax aborts the others before they could say a word: a small process
beside each says it in its place.
"""

import contextlib
import faulthandler
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback

import jax
from jax._src import distributed  # the service's client has no public name

from dash_jax import commands

LOST = 69  # BSD's EX_UNAVAILABLE: call again

_BEAT_S = 1.0
_FOLDER = 'dash_jax/watch/'

# Prints the last line that it was given, if its parent ends and does not empty it.
# Slurm and others send a signal to every process of a job.
_LAST_WORDS = """
import signal, sys
for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
  signal.signal(number, signal.SIG_IGN)
last = ''
for last in sys.stdin:
  pass
sys.stderr.write(last.strip('\\n') and last)
"""

_GO_ON = 'The same command goes on from the newest checkpoint.'
# Of a process that has not said anything yet.
_UNKNOWN = {
  'host': '?',
  'beat': None,
  'stage': 'the start',
  'num_stages': 0,
  'idle_s': 0.0,
  'failed': '',
  'code': 1,
  'has_ended': False,
}
_watch = None  # the one at work in this process


def mark(stage: str | None = None) -> None:
  """Says that the calling thread goes on, and with what: None is the same, ''
  nothing more."""
  if watch := _watch:  # it may end meanwhile
    watch.mark(stage)


@contextlib.contextmanager
def report_failure():
  """Tells the other processes of what is raised here, before anything else that
  would wait for them hears of it."""
  try:
    yield
  except BaseException as error:
    if watch := _watch:
      watch.fail(error)
    raise


class Watch:
  """Watches the processes of a run. A context manager."""

  def __init__(self, silent_s: float, stall_s: float):
    """
    Args:
      silent_s: seconds without a word from a process after which it is dead.
      stall_s: seconds without a mark after which a run has stopped.
    """
    self._silent_s = silent_s
    self._stall_s = stall_s
    self._lock = threading.Lock()
    self._stages = {}  # by thread
    self._num_stages = 0
    self._marked_at = time.monotonic()
    self._failed = ''
    self._code = 1
    self._has_ended = False
    self._has_spoken = False
    self._beside = None  # the process that says our last words
    self._first_failed_at = self._marked_at
    self._exchanging = threading.Thread(target=self._exchange, daemon=True)
    self._beat = 0
    self._done = threading.Event()
    self._heard = {}  # by process: its newest report, and when it changed
    self._answered_at = time.monotonic()  # by the service

  def __enter__(self) -> 'Watch':
    global _watch
    _watch = self
    if jax.process_count() > 1:
      self._beside = subprocess.Popen(
        [sys.executable, '-S', '-c', _LAST_WORDS],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no Ctrl-C, nor a kill of our group
      )
      # All have met just before, so one that says nothing from now on is dead too.
      self._answered_at = now = time.monotonic()
      self._heard = {
        process: (_UNKNOWN, now)
        for process in range(jax.process_count())
        if process != jax.process_index()
      }
      self._exchanging.start()
    threading.Thread(target=self._judge, daemon=True).start()
    return self

  def __exit__(self, unused_kind, error, unused_trace) -> None:
    global _watch
    if error is not None:
      self.fail(error)
    self._done.set()
    _watch = None
    if jax.process_count() > 1:
      self._exchanging.join()
      self._has_ended = True
      self._tell()
      self._keep_last_words('')
      with contextlib.suppress(BrokenPipeError):
        self._beside.stdin.close()
      self._beside.wait()

  def fail(self, error: BaseException) -> None:
    """Tells the others of an error that ends this process; does not return, if
    there are others."""
    if jax.process_count() > 1:
      if not isinstance(error, commands.INPUT_ERRORS):
        with contextlib.suppress(OSError):  # nobody reads it
          traceback.print_exception(error)
      else:
        self._code = commands.BAD_INPUT
      self._failed = f'{type(error).__name__}: {error}'.split('\n')[0]
      # The judge ends this process too, and knows whether the error is only of
      # what another left undone.
      while True:
        time.sleep(_BEAT_S)

  def mark(self, stage: str | None) -> None:
    thread = threading.current_thread()
    with self._lock:
      self._marked_at = time.monotonic()
      if stage is None or self._stages.get(thread.name, '') == stage:
        return
      self._stages[thread.name] = stage
      self._num_stages += thread is threading.main_thread()
    if self._beside:
      self._keep_last_words(self._find_last_words())

  def _describe(self):
    with self._lock:
      return {
        'host': socket.gethostname(),
        'beat': self._beat,
        'stage': '; '.join(filter(None, self._stages.values())) or 'the start',
        'num_stages': self._num_stages,
        'idle_s': time.monotonic() - self._marked_at,
        'failed': self._failed,
        'code': self._code,
        'has_ended': self._has_ended,
      }

  def _exchange(self):
    """Tells the others, and hears of them."""
    client = distributed.global_state.client
    while not self._done.wait(_BEAT_S):
      try:
        self._tell()
        found = client.key_value_dir_get(_FOLDER)
      except jax.errors.JaxRuntimeError:
        continue  # the judge sees for how long
      finally:
        self._keep_last_words(self._find_last_words())
      now = time.monotonic()
      self._answered_at = now
      for name, text in found:
        process, said = int(name.rpartition('/')[2]), json.loads(text)
        if process == jax.process_index():
          continue
        before, _ = self._heard[process]
        if said['beat'] != before['beat']:
          self._heard[process] = said, now

  def _tell(self):
    self._beat += 1
    distributed.global_state.client.key_value_set(
      f'{_FOLDER}{jax.process_index()}',
      json.dumps(self._describe()),
      allow_overwrite=True,
    )

  def _judge(self):
    while not self._done.wait(_BEAT_S):
      if verdict := self._find_silent() or self._find_stalled():
        self._end(f'{verdict}. {_GO_ON}', LOST)
      if failed := self._find_failed():
        self._end(*failed)

  def _list_others(self):
    return [
      (process, *heard)
      for process, heard in sorted(self._heard.copy().items())
      if not heard[0]['has_ended']
    ]

  def _find_silent(self):
    if jax.process_count() == 1:
      return ''
    if time.monotonic() - self._answered_at > self._silent_s:
      said, _ = self._heard.get(0, (_UNKNOWN, 0))
      return (
        f'{_name(0, said)}, through which the others hear of each other, has not'
        f' answered for {self._silent_s:.0f} s; it was at {said["stage"]}'
      )
    for process, said, changed_at in self._list_others():
      # While the service itself is silent, nobody is heard of.
      if self._answered_at - changed_at > self._silent_s:
        return (
          f'{_name(process, said)} has not been heard of for'
          f' {self._silent_s:.0f} s; it was at {said["stage"]}'
        )
    return ''

  def _find_failed(self):
    """Returns which process failed, and the exit code. When one dies, the others
    fail too: so none is named before it is known that all are alive."""
    failed = [(p, said) for p, said, _ in self._list_others() if said['failed']]
    if self._failed:
      failed.append((jax.process_index(), self._describe()))
    if not failed:
      self._first_failed_at = time.monotonic()
    waited_s = time.monotonic() - self._first_failed_at
    if (
      len(failed) < jax.process_count()
      and waited_s < self._silent_s + 2 * _BEAT_S
    ):
      return None
    # The others fail at a stage that it did not come to.
    process, said = min(failed, key=lambda x: x[1]['num_stages'])
    return (
      f'{_name(process, said)} failed at {said["stage"]}: {said["failed"]}',
      said['code'],
    )

  def _find_stalled(self):
    reports = {process: said for process, said, _ in self._list_others()}
    reports[jax.process_index()] = self._describe()
    # What others said of themselves is a little older.
    if any(
      said['idle_s'] < self._stall_s - 2 * _BEAT_S for said in reports.values()
    ):
      return ''
    faulthandler.dump_traceback(all_threads=True)
    # All go through the same stages: the others wait for the one behind.
    least = min(said['num_stages'] for said in reports.values())
    behind = [
      f'{_name(process, said)} is at {said["stage"]}'
      for process, said in sorted(reports.items())
      if said['num_stages'] == least
    ]
    return (
      f'nothing has gone on for {self._stall_s:.0f} s: {", ".join(behind)}.'
      ' Above is where each thread of this process is'
    )

  def _end(self, verdict, code):
    with contextlib.suppress(OSError):  # nobody reads it
      print(f'dash_jax: {verdict}', file=sys.stderr, flush=True)
    if jax.process_count() > 1:
      self._has_spoken = True
      self._keep_last_words('')
      # The others are to hear what was not told yet and to come to the same
      # verdict: without process 0, jax would abort them.
      time.sleep((2 if jax.process_index() else 6) * _BEAT_S)
    os._exit(code)

  def _find_last_words(self):
    others = [
      f'{_name(process, said)} at {said["stage"]}'
      for process, said, _ in self._list_others()
    ]
    own = self._describe()
    return (
      f'dash_jax: {_name(jax.process_index(), own)} has ended without a word, at'
      f' {own["stage"]}. When last heard of: {", ".join(others) or "nobody"}.'
      f' {_GO_ON}'
    )

  def _keep_last_words(self, text):
    if self._has_spoken:
      text = ''
    # Without it there are no last words, and that is all.
    with self._lock, contextlib.suppress(BrokenPipeError):
      self._beside.stdin.write(text + '\n')
      self._beside.stdin.flush()


def _name(process, said):
  return f'process {process} of {jax.process_count()} ({said["host"]})'
