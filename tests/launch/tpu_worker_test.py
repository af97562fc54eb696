"""A worker keeps a command running, prints it, and tells how it ended."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from fakes import LAUNCH, Fakes

# Says what it hears, and is then as one that checkpoints.
_TRAINS = (
  'trap "echo asked; sleep 0.3; exit 75" TERM; echo begins; touch "$FAKES/on"; '
  'for i in {1..600}; do sleep 0.1; done'
)


@pytest.fixture
def worker(tmp_path):
  """Fakes with a home; whatever is left running ends with the test."""
  worker = Fakes(tmp_path, sudo='', mountpoint='exit 1', gcsfuse='')
  yield worker
  call(worker, 'stop')


def call(worker, *args):
  return worker.launch('tpu_worker.sh', *args, HOME=str(worker.folder))


def wait_for(path):
  deadline_s = time.monotonic() + 30
  while not path.exists():
    assert time.monotonic() < deadline_s
    time.sleep(0.02)


def read_holder(worker):
  return int((worker.folder / 'dash_jax_run/holder').read_text())


def test_a_command_goes_on_without_the_session_that_started_it(worker):
  """`start` returns at once, and a second one starts nothing."""
  assert call(worker, 'start', 'bash', '-c', _TRAINS).returncode == 0
  wait_for(worker.folder / 'on')
  holder = read_holder(worker)
  done = call(worker, 'start', 'bash', '-c', 'echo second')
  assert done.returncode == 0
  assert 'a run is at work already' in done.stdout
  assert read_holder(worker) == holder
  assert os.getsid(holder) == holder


def test_a_run_begins_though_another_session_asks_whether_one_does(worker):
  """Which holds the lock for a moment."""
  lock = worker.folder / 'dash_jax_run/lock'
  lock.parent.mkdir()
  asks = subprocess.Popen(
    ['flock', lock, 'bash', '-c', 'touch "$1"; sleep 0.5', '_', f'{lock}ed']
  )
  wait_for(lock.with_name('locked'))
  assert call(worker, 'hold', 'true').returncode == 0
  assert asks.wait() == 0


def test_stop_asks_waits_and_gives_the_code(worker):
  call(worker, 'start', 'bash', '-c', _TRAINS)
  wait_for(worker.folder / 'on')
  done = call(worker, 'stop')
  assert done.returncode == 75, done.stderr
  host = done.stdout.split(' ')[0]
  assert done.stdout == f'{host} begins\n{host} asked\n'


def test_follow_prints_all_and_gives_the_code_also_later(worker):
  call(worker, 'start', 'bash', '-c', 'echo one; sleep 0.3; echo two; exit 3')
  for _ in range(2):
    done = call(worker, 'follow')
    assert done.returncode == 3, done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()] == [
      'one', 'two',
    ]  # fmt: skip


def test_a_next_run_has_its_own_log_and_code(worker):
  for word, code in (('one', 75), ('two', 0)):
    call(worker, 'start', 'bash', '-c', f'echo {word}; exit {code}')
    done = call(worker, 'follow')
    assert done.returncode == code
    assert done.stdout.split()[1:] == [word]


def test_a_run_that_was_cut_off_is_lost(worker):
  """As by a machine that went down: there is no code, also not that of the run
  before, and a new run may start."""
  call(worker, 'start', 'true')
  assert call(worker, 'follow').returncode == 0
  call(worker, 'start', 'bash', '-c', _TRAINS)
  wait_for(worker.folder / 'on')
  os.killpg(read_holder(worker), signal.SIGKILL)
  done = call(worker, 'follow')
  assert done.returncode == 255
  assert 'cut off' in done.stderr
  call(worker, 'start', 'true')
  assert call(worker, 'follow').returncode == 0


def test_setup_makes_what_a_new_worker_lacks(worker, tmp_path):
  """An environment with the tested Python, and the bucket's mount, which a start
  makes again on a worker that has lost it."""
  source = tmp_path / 'dash_jax'
  (source / 'launch').mkdir(parents=True)
  script = source / 'launch/tpu_worker.sh'
  shutil.copy(LAUNCH / 'tpu_worker.sh', script)
  worker.add('.local/bin/uv')
  for words in (
    ['setup', 'my-bucket'],
    ['setup', 'my-bucket'],
    ['start', 'true'],
  ):
    done = worker.launch(script, *words, HOME=str(worker.folder))
    assert done.returncode == 0, done.stderr
    (source / '.venv').mkdir(exist_ok=True)
  install = [
    *['uv', 'pip', 'install', '--python=.venv/bin/python'],
    '--editable=.[tpu,smollm2,hub]',
  ]
  assert worker.calls('uv') == [
    ['uv', 'venv', '--python=3.11', '.venv'], install, install,
  ]  # fmt: skip
  mount = [
    *['gcsfuse', '--implicit-dirs', '--metadata-cache-ttl-secs=0'],
    *['--metadata-cache-negative-ttl-secs=0', 'my-bucket', '/mnt/my-bucket'],
  ]
  assert worker.calls('gcsfuse') == [mount] * 3


def test_a_start_needs_no_bucket(worker):
  assert call(worker, 'start', 'true').returncode == 0
  assert worker.calls('gcsfuse', 'sudo') == []


def test_unknown_commands_are_refused(worker):
  done = call(worker, 'rm', 'x')
  assert done.returncode == 2
  assert "'rm' is no command; valid: setup, start, follow" in done.stderr
