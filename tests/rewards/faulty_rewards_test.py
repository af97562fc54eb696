"""No reward function can stall or kill a run, or cost another row its reward."""

import os
import signal
import subprocess
import sys
import threading
import time

import asking
import faulty_rewards
import pytest

from dash_jax.rewards import workers

_TIMEOUT_S = 1.0


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
  """One worker, so that the rows behind a fault pass through it or the next."""
  note = tmp_path_factory.mktemp('note') / 'pids'
  kwargs = {'note': str(note)}
  function = 'faulty_rewards:misbehave'
  with workers.Pool(function, kwargs, 1, _TIMEOUT_S) as pool:
    yield pool


@pytest.mark.parametrize('fault', faulty_rewards.FAULTS)
def test_a_fault_is_counted_and_costs_no_other_row(pool, fault):
  expected = faulty_rewards.FAULTS[fault][1]
  start_s = time.monotonic()
  scores = asking.score(pool, ['1', fault, '2', '3'])
  reward = expected if isinstance(expected, float) else 0.0
  assert scores.rewards.tolist() == [1.0, reward, 2.0, 3.0]
  assert scores.timeouts == (expected == 'timeout')
  assert scores.errors == (expected == 'error')
  assert time.monotonic() - start_s < 20


@pytest.mark.parametrize(
  'fault',
  [
    'leaves a child',
    'leaves a child, and crashes',
    'daemonises',
    'daemonises, and sleeps',
    'is a fork bomb',
  ],
)
def test_nothing_that_was_started_outlives_the_pool(tmp_path, fault):
  note = tmp_path / 'pids'
  kwargs = {'note': str(note)}
  with workers.Pool('faulty_rewards:misbehave', kwargs, 1, _TIMEOUT_S) as pool:
    asking.score(pool, [fault])
  deadline_s = time.monotonic() + 10
  pids = [int(pid) for pid in note.read_text().split()]
  assert pids
  while any(map(asking.is_alive, pids)):
    assert time.monotonic() < deadline_s, 'some are left'
    time.sleep(0.02)


def test_a_daemon_ends_with_the_process_of_the_pool(tmp_path):
  """Which was killed, so that only the worker is there to do it."""
  note = tmp_path / 'pids'
  code = (
    'from dash_jax.rewards import workers\n'
    f"kwargs = {{'note': {str(note)!r}}}\n"
    "pool = workers.Pool('faulty_rewards:misbehave', kwargs, 1)\n"
    "pool.score(['daemonises'], [''], [False])\n"
    "print('scored', flush=True)\n"
    'import time; time.sleep(1000)\n'
  )
  env = os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
  with subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, env=env
  ) as parent:
    assert parent.stdout.readline() == b'scored\n'
    parent.kill()
  deadline_s = time.monotonic() + 10
  pid = int(note.read_text())
  while asking.is_alive(pid):
    assert time.monotonic() < deadline_s, 'it is left'
    time.sleep(0.02)


_LAUNCHER_SIGNALS = [
  signal.SIGTERM,
  signal.SIGINT,
  signal.SIGHUP,
  signal.SIGUSR1,
  signal.SIGUSR2,
]


def test_signals_of_a_launcher_leave_workers_that_start_alone(monkeypatch):
  """They come before the worker's interpreter has run a line."""

  def start(*args, **kwargs):
    process = popen(*args, **kwargs)
    for number in _LAUNCHER_SIGNALS:
      process.send_signal(number)
    started.append(process.pid)
    return process

  popen, started = subprocess.Popen, []
  monkeypatch.setattr(subprocess, 'Popen', start)
  with workers.Pool('faulty_rewards:misbehave', {}, 2) as pool:
    scores = asking.score(pool, [str(i) for i in range(20)])
    assert len(started) == 2
  assert scores.rewards.tolist() == list(range(20))
  assert (scores.timeouts, scores.errors) == (0, 0)


def test_signals_of_a_launcher_leave_workers_that_score_alone():
  """To each of them, while rows are scored."""
  with workers.Pool('faulty_rewards:misbehave', {}, 2) as pool:
    pids = [worker._process.pid for worker in pool._workers]
    has_ended = threading.Event()

    def send():
      while not has_ended.wait(0.001):
        for pid in pids:
          for number in _LAUNCHER_SIGNALS:
            os.killpg(pid, number)

    sender = threading.Thread(target=send)
    sender.start()
    try:
      scores = asking.score(pool, [str(i) for i in range(1000)])
    finally:
      has_ended.set()
      sender.join()
    assert [worker._process.pid for worker in pool._workers] == pids
  assert scores.rewards.tolist() == list(range(1000))
  assert (scores.timeouts, scores.errors) == (0, 0)


def test_what_a_function_starts_can_be_stopped_by_signals():
  """A signal that the worker ignored would be ignored by its children too."""
  with workers.Pool('faulty_rewards:stop_child', {}, 1) as pool:
    assert asking.score(pool, ['']).rewards.tolist() == [signal.SIGTERM]


def test_a_worker_that_is_lost_as_it_starts_is_started_again(monkeypatch):
  """As where the machine had no memory for a moment; but not for ever."""

  def start(*args, **kwargs):
    process = popen(*args, **kwargs)
    if len(started) < num_killed:
      process.kill()
    started.append(process.pid)
    return process

  popen, started, num_killed = subprocess.Popen, [], 2
  monkeypatch.setattr(subprocess, 'Popen', start)
  with workers.Pool('faulty_rewards:misbehave', {}, 1) as pool:
    assert asking.score(pool, ['7']).rewards.tolist() == [7.0]
    assert len(started) == 3
  started, num_killed = [], 100
  with pytest.raises(ValueError, match=r'does not start.*signal 9'):
    workers.Pool('faulty_rewards:misbehave', {}, 1)
  assert len(started) == 4
