"""Runs a command as several processes on this machine, as hosts of one job.

    python launch/local.py --processes=4 [--dry-run] -- \\
        python -m dash_jax.main --config=experiments/quickstart.py \\
        --workdir=runs/quickstart --config.mesh.multi_host=True

1. Each process gets COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID, by which
   it joins the others over loopback. What it prints comes behind its number.
2. Ctrl-C, SIGTERM and SIGHUP are passed on, and the processes waited for: a run
   stops after a checkpoint.
3. When one fails, the launcher says which, ends the others, and exits with that
   one's code, 128 + n if signal n ended it. It exits with 75 if they were
   stopped and the same command goes on, and with 0 if all are complete.

Each process sees all accelerators of the machine. This is for CPUs, and to try
what several hosts do: one process alone drives all GPUs of a machine.
"""

import argparse
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading

STOPPED = 75  # dash_jax.main's: the same command goes on
NOT_FOUND = 127  # a shell's
GRACE_S = 5  # from SIGTERM to SIGKILL, for those that outlive a failure


def main():
  parser = argparse.ArgumentParser(
    usage='%(prog)s --processes=N [--dry-run] -- COMMAND ..',
    allow_abbrev=False,
  )
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument('--dry-run', action='store_true')
  parser.add_argument('command', nargs='+')
  flags = parser.parse_args()
  if flags.processes < 1:
    parser.error(f'--processes={flags.processes}: must be 1 or more')
  places = _list_places(flags.processes)
  if flags.dry_run:
    for place in places:
      words = [f'{name}={value}' for name, value in place.items()]
      print(*words, shlex.join(flags.command), '&')
    print('wait')
    return 0
  try:
    job = _Job(flags.command, places)
  except OSError as error:
    _say(f'{flags.command[0]!r} does not start: {error.strerror}')
    return NOT_FOUND
  return job.wait()


def _list_places(num_processes):
  """Returns what is added to the environment of each process."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [
    {
      'COORDINATOR_ADDRESS': f'localhost:{port}',
      'NUM_PROCESSES': str(num_processes),
      'PROCESS_ID': str(i),
      'PYTHONUNBUFFERED': '1',
    }
    for i in range(num_processes)
  ]


class _Job:
  """Processes that run."""

  def __init__(self, command, places):
    self._processes = []
    self._ended = queue.SimpleQueue()  # (number, code), in the order of time
    self._threads = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
      signal.signal(number, self._pass_on)
    for i, place in enumerate(places):
      process = subprocess.Popen(
        command,
        env=os.environ | place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A terminal's Ctrl-C reaches it from here, and so once.
        start_new_session=True,
      )
      self._processes.append(process)
      self._run_beside(_copy, i, process.stdout)
      self._run_beside(self._report, i, process)

  def wait(self) -> int:
    """Returns the job's exit code, after the last process has ended."""
    codes = []
    for _ in self._processes:
      i, code = self._ended.get()
      if code not in (0, STOPPED):
        how = f'exit code {code}' if code > 0 else signal.Signals(-code).name
        _say(f'process {i} failed with {how}; ending the others')
        self._end()
        return code if code > 0 else 128 - code
      codes.append(code)
    self._join()
    return max(codes)

  def _run_beside(self, function, *arguments):
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    self._threads.append(thread)

  def _report(self, i, process):
    self._ended.put((i, process.wait()))

  def _pass_on(self, number, frame):
    del frame
    for process in self._processes:
      process.send_signal(number)

  def _end(self):
    for process in self._processes:
      process.terminate()
    # One that waits for the failed one in a collective hears no SIGTERM.
    for process in self._processes:
      try:
        process.wait(GRACE_S)
      except subprocess.TimeoutExpired:
        break
    for process in self._processes:
      try:
        os.killpg(process.pid, signal.SIGKILL)
      except ProcessLookupError:
        continue
    self._join()

  def _join(self):
    """Lets the last lines out. What a process left behind may hold its output
    open, so there is an end to it."""
    for thread in self._threads:
      thread.join(timeout=1)


def _copy(i, output):
  for line in output:
    end = b'' if line.endswith(b'\n') else b'\n'
    sys.stdout.buffer.write(f'[{i}] '.encode() + line + end)
    sys.stdout.buffer.flush()


def _say(text):
  print(f'local.py: {text}', file=sys.stderr, flush=True)


if __name__ == '__main__':
  sys.exit(main())
