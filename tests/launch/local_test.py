"""Processes of one machine: they meet, end together, and hear signals."""

import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import tiny_run

from dash_jax.runs import jsonl

_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'local.py'
_OPTIONS = (
  'algorithm.sft_steps=0', 'algorithm.num_samples=64', 'optim.sft_batch_size=4',
  'eval.num_questions=3',
)  # fmt: skip

# Writes its process id to a file, and what it hears; a second signal ends it.
_LISTENER = """
import os, pathlib, signal, sys, time
me = os.environ['PROCESS_ID']
heard = []
for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
  number = getattr(signal, name)
  signal.signal(number, lambda n, frame: heard.append(n))
pathlib.Path(sys.argv[1], me).write_text(str(os.getpid()))
while not heard:
  time.sleep(0.02)
if sys.argv[2] == 'deaf':
  time.sleep(100)
time.sleep(0.1 * int(me))
print('heard', signal.Signals(heard[0]).name, len(heard))
sys.exit(75)
"""


def _start(num_processes, *command, flags=()):
  return subprocess.Popen(
    [sys.executable, _SCRIPT, f'--processes={num_processes}', *flags, '--']
    + [str(word) for word in command],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _start_listeners(folder, how='polite'):
  """Returns the launcher, and the ids of its processes once all listen."""
  started = _start(3, sys.executable, '-c', _LISTENER, folder, how)
  deadline_s = time.monotonic() + 60
  while True:
    ids = [(folder / str(i)) for i in range(3)]
    if all(path.exists() and path.read_text() for path in ids):
      return started, [int(path.read_text()) for path in ids]
    assert time.monotonic() < deadline_s
    time.sleep(0.02)


def _is_alive(process_id):
  return pathlib.Path(f'/proc/{process_id}/cmdline').exists() and bool(
    pathlib.Path(f'/proc/{process_id}/cmdline').read_bytes()
  )


def test_four_processes_train_as_one(tmp_path):
  """The same metrics as one process of one device, whose rows four processes
  share; one of them evaluates nothing, and one is slow: a step's seconds are its."""
  alone, together = tmp_path / 'alone', tmp_path / 'together'
  one = tiny_run.start(alone, *_OPTIONS)
  four = tiny_run.start(
    together,
    *_OPTIONS,
    'mesh.fsdp=4',
    'mesh.multi_host=True',
    launcher=[_SCRIPT, '--processes=4', '--', sys.executable],
    SLOW='0.3@3',
  )
  for process in (one, four):
    code, output = tiny_run.finish(process)
    assert code == 0, output
  assert '[0] Curves:' in output
  assert {line[:4] for line in output.splitlines()} <= {
    '[0] ', '[1] ', '[2] ', '[3] ',
  }  # fmt: skip
  for name, num_rows in (('metrics.jsonl', 2), ('evals.jsonl', 2)):
    rows = [tiny_run.read_numbers(w, name) for w in (alone, together)]
    assert [len(r) for r in rows] == [num_rows, num_rows]
    for a, b in zip(*rows, strict=True):
      assert b == pytest.approx(a, abs=1e-5)
  for row in jsonl.read(together / 'metrics.jsonl'):
    assert row['reward_s'] > 0.2
  step = 'rollouts/step_000002.jsonl'
  whole, *shares = (
    [(row['uid'], row['completion']) for row in jsonl.read(folder / step)]
    for folder in (alone, *(together / f'host_{i}' for i in range(4)))
  )
  assert whole == [row for share in shares for row in share]


def test_a_killed_process_is_named_and_ends_the_others(tmp_path):
  started, ids = _start_listeners(tmp_path)
  subprocess.run(['kill', '-KILL', str(ids[1])], check=True)
  output, _ = started.communicate(timeout=60)
  assert started.returncode == 128 + signal.SIGKILL
  assert 'process 1 failed with SIGKILL; ending the others' in output
  # They were asked first.
  assert '[0] heard SIGTERM' in output
  assert not any(_is_alive(i) for i in ids)


def test_one_that_hears_no_sigterm_is_killed(tmp_path):
  """As one that waits in a collective for the process that failed."""
  started, ids = _start_listeners(tmp_path, 'deaf')
  subprocess.run(['kill', '-KILL', str(ids[2])], check=True)
  assert started.wait(timeout=60) == 128 + signal.SIGKILL
  assert not any(_is_alive(i) for i in ids)


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_signals_are_passed_on_once_and_waited_for(tmp_path, name):
  started, ids = _start_listeners(tmp_path)
  started.send_signal(getattr(signal, name))
  output, _ = started.communicate(timeout=60)
  assert started.returncode == 75, output
  for i in range(3):
    assert f'[{i}] heard {name} 1' in output
  assert not any(_is_alive(i) for i in ids)


def test_the_first_failure_gives_the_code():
  """A stopped or finished process is none, and the others' ends come after."""
  started = _start(
    3,
    'bash',
    '-c',
    'case $PROCESS_ID in 0) exit 0;; 1) sleep 0.5; printf last; exit 3;; '
    '2) exit 75;; esac',
  )
  output, _ = started.communicate(timeout=60)
  assert started.returncode == 3
  assert 'process 1 failed with exit code 3' in output
  assert '[1] last' in output


def test_dry_run_prints_lines_that_a_shell_runs(tmp_path):
  """Read by a shell, each line gives a process its place and its words."""
  words = ['a b', "it's", '$(touch gone)', 'two\nlines', '*', '']
  started = _start(2, 'python', *words, flags=('--dry-run',))
  printed, _ = started.communicate(timeout=60)
  assert started.returncode == 0
  fake = tmp_path / 'python'
  fake.write_text(
    '#!/bin/bash\nprintf "%s\\0" "$COORDINATOR_ADDRESS" "$NUM_PROCESSES" "$@" '
    '> "process $PROCESS_ID"\n'
  )
  fake.chmod(0o755)
  subprocess.run(
    ['/bin/bash', '-c', printed],
    cwd=tmp_path,
    env={'PATH': f'{tmp_path}:/usr/bin:/bin'},
    check=True,
  )
  for i in range(2):
    address, *rest = (tmp_path / f'process {i}').read_text().split('\0')
    assert re.fullmatch(r'localhost:\d+', address)
    assert rest == ['2', *words, '']
  assert not (tmp_path / 'gone').exists()


@pytest.mark.parametrize(
  ('args', 'code', 'message'),
  [
    ('--processes=0 -- true', 2, '--processes=0: must be 1 or more'),
    ('-- true', 2, 'required: --processes'),
    ('--processes=2', 2, 'required: command'),
    ('--processes=2 -- ./gone', 127, "'./gone' does not start: No such file"),
  ],
)
def test_bad_flags_are_named(args, code, message):
  done = subprocess.run(
    [sys.executable, _SCRIPT, *shlex.split(args)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code
  assert message in done.stderr
