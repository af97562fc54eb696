"""Properties of the reward workers."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import asking
import numpy as np
import pytest

from dash_jax.rewards import leftovers, workers


@pytest.fixture(autouse=True)
def _reward_functions_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(os.path.dirname(__file__))


def _pool(function='obey', **kwargs):
  return workers.Pool(f'hostile_rewards:{function}', **kwargs)


def _ends_within(pid, limit_s):
  deadline_s = time.monotonic() + limit_s
  while asking.is_alive(pid) and time.monotonic() < deadline_s:
    time.sleep(0.02)
  return not asking.is_alive(pid)


def test_rewards_keep_the_order_of_the_rows():
  # Every row asks for another number, so that a swap, a loss or a row that is
  # scored twice shows; more rows than one turn takes, over several batches.
  with _pool() as pool:
    for num_rows in (0, 1, 100, 7):
      scores = asking.score(pool, [str(i) for i in range(num_rows)])
      np.testing.assert_array_equal(scores.rewards, np.arange(num_rows))
      assert scores.rewards.dtype == np.float32
      assert (scores.timeouts, scores.errors) == (0, 0)


def test_arguments_arrive_as_given():
  # The number mixes all four, each in digits of its own.
  with _pool('describe', kwargs={'scale': 2.0}, num_workers=1) as pool:
    scores = pool.score(
      ['a\n"\u00e9\ud800', ''], ['xy', '7'], [np.True_, np.False_]
    )
  assert scores.rewards.tolist() == [2.0 * (5 + 20 + 1000), 2.0 * 10]


def test_other_functions_score_the_same_rows_and_fail_by_themselves():
  """One that raises leaves the reward as it is; one that takes its process down
  takes the row."""
  others = {
    'again': 'hostile_rewards:obey',
    'answer': 'hostile_rewards:obey_answer',
  }
  with _pool(num_workers=1, others=others) as pool:
    scores = pool.score(
      ['12', '3', '34', '5', '56'],
      ['1', 'raise', '2', 'exit', '4'],
      [False] * 5,
    )
  assert scores.rewards.tolist() == [12, 3, 34, 0, 56]
  np.testing.assert_array_equal(scores.others['again'], scores.rewards)
  assert scores.others['answer'].tolist() == [1, 0, 2, 0, 4]
  assert (scores.timeouts, scores.errors) == (0, 2)


@pytest.mark.parametrize('hang', ['loop', 'power'])
def test_rows_that_never_end_are_timeouts_and_cost_no_other_row(hang):
  # `power` is one call in C, which no exception and no thread can interrupt.
  completions = [str(i) for i in range(1, 41)]
  completions[3] = completions[20] = hang
  with _pool(timeout_s=0.8) as pool:
    scores = asking.score(pool, completions)
    again = asking.score(pool, ['5'] * 9)
  expected = np.arange(1, 41)
  expected[[3, 20]] = 0
  np.testing.assert_array_equal(scores.rewards, expected)
  assert (scores.timeouts, scores.errors) == (2, 0)
  assert (again.rewards.tolist(), again.timeouts) == ([5.0] * 9, 0)


def test_rows_that_come_too_late_one_by_one_are_no_standstill():
  done = []
  with _pool(num_workers=1, timeout_s=0.3) as pool:
    rows = ['loop'] * 3
    pool.score(rows, rows, [False] * 3, lambda: done.append(time.monotonic()))
  assert len(done) == 3
  assert np.diff(done).min() > 0.2


def test_a_timeout_kills_what_the_row_started(tmp_path):
  note = tmp_path / 'pids'
  with _pool(kwargs={'note': str(note)}, num_workers=1, timeout_s=1.0) as pool:
    assert asking.score(pool, ['spawn', '3']).rewards.tolist() == [0.0, 3.0]
    for pid in note.read_text().split():
      assert _ends_within(int(pid), 5.0)


def test_a_failure_is_said_once_with_its_cause(caplog):
  with _pool() as pool:
    asking.score(pool, ['raise', 'raise'])
    asking.score(pool, ['raise'])
  assert len(caplog.records) == 1
  assert 'hostile_rewards:obey' in caplog.text
  assert "KeyError: 'no such thing'" in caplog.text


def test_what_a_function_prints_and_reads_does_not_reach_the_pipes():
  # It prints more than a pipe holds, and lines that look like replies of 1.0.
  with _pool(num_workers=1) as pool:
    scores = asking.score(pool, ['print 3', 'read 4', 'print 5', '6'])
  assert scores.rewards.tolist() == [3.0, 4.0, 5.0, 6.0]
  assert (scores.timeouts, scores.errors) == (0, 0)


def test_completions_larger_than_a_pipe_do_not_block():
  # 8 rows a turn of 1 MB each, where a pipe holds 64 kB.
  completions = [' ' * 1_000_000 + str(i) for i in range(12)]
  with _pool('describe', kwargs={'scale': 1.0}) as pool:
    scores = asking.score(pool, completions)
  assert scores.rewards.tolist() == [float(len(c)) for c in completions]


def test_a_worker_that_died_between_batches_is_replaced():
  # Its death is no row's fault, so it may not be counted against one.
  with _pool(num_workers=1) as pool:
    pid = int(asking.score(pool, ['pid']).rewards[0])
    os.kill(pid, signal.SIGKILL)
    assert _ends_within(pid, 5.0)
    scores = asking.score(pool, ['pid', '2'])
  assert scores.rewards[0] != pid
  assert scores.rewards[1] == 2.0
  assert scores.errors == 0


def test_preparing_is_not_charged_to_a_row():
  # It takes twice the time-out, and construction does not wait for it.
  start_s = time.monotonic()
  with _pool('slow_start', timeout_s=0.6) as pool:
    assert time.monotonic() - start_s < 1.2
    assert asking.score(pool, ['a'] * 3).timeouts == 0


def test_an_interrupted_batch_leaves_no_replies_behind():
  # Else the next batch would get the rewards of this one.
  def interrupt(*unused_args):
    raise KeyboardInterrupt

  old = signal.signal(signal.SIGALRM, interrupt)
  try:
    with _pool() as pool:
      signal.setitimer(signal.ITIMER_REAL, 0.2)
      with pytest.raises(KeyboardInterrupt):
        asking.score(pool, ['1', 'loop', '2'])
      with pytest.raises(RuntimeError, match='closed'):
        asking.score(pool, ['3'])
  finally:
    signal.signal(signal.SIGALRM, old)


def test_a_batch_of_another_thread_ends_with_the_pool():
  """As where a run is stopped whose rows are ahead: nobody waits for them, and
  the process could not end before that thread."""
  pool, ended = _pool(num_workers=1, timeout_s=60.0), []

  def score():
    with pytest.raises(RuntimeError, match='the pool is closed'):
      asking.score(pool, ['loop'])
    ended.append(1)

  thread = threading.Thread(target=score, daemon=True)
  thread.start()
  while not pool._workers[0].rows:
    time.sleep(0.02)
  pool.close()
  thread.join(timeout=30)
  assert ended
  assert not pool._workers


def test_workers_end_with_the_process_that_started_them():
  code = (
    'from dash_jax.rewards import workers\n'
    "pool = workers.Pool('hostile_rewards:obey', num_workers=1)\n"
    "print(int(pool.score(['pid'], [''], [False]).rewards[0]), flush=True)\n"
    'import time; time.sleep(1000)\n'
  )
  env = os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
  parent = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, env=env
  )
  with parent:
    pid = int(parent.stdout.readline())
    assert asking.is_alive(pid)
    parent.kill()
    assert _ends_within(pid, 5.0)


def test_a_worker_that_hangs_ends_without_its_pool():
  # Driven by hand, so that nobody kills it. The call holds the interpreter's
  # lock: only the alarm's default action can end it.
  start = {
    'functions': ['hostile_rewards:obey'],
    'kwargs': {},
    'alarm_s': 0.3,
    'start_alarm_s': 60.0,
  }
  env = os.environ | {
    'PYTHONPATH': os.pathsep.join(p for p in sys.path if p),
    leftovers.MARK: 'none',
  }
  worker = subprocess.Popen(
    [sys.executable, '-m', 'dash_jax.rewards.worker'],
    stdin=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    env=env,
    start_new_session=True,
  )
  lines = [json.dumps(start), json.dumps(['power', '', False])]
  worker.communicate('\n'.join(lines).encode() + b'\n', timeout=10.0)
  assert worker.returncode == -signal.SIGALRM


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'function': 'no_colon'}, "'no_colon'; it must name a module"),
    ({'function': 'no_such_module:f'}, "No module named 'no_such_module'"),
    ({'function': 'hostile_rewards:f'}, "no attribute 'f'"),
    ({'function': 'hostile_rewards:os'}, 'not a function'),
    ({'num_workers': 0}, 'num_workers is 0'),
    ({'timeout_s': 0.0}, 'timeout_s is 0.0'),
    ({'kwargs': {'a': {1}}}, 'kwargs is .*JSON'),
  ],
)
def test_a_pool_that_cannot_work_says_so_when_it_is_made(arguments, message):
  with pytest.raises(ValueError, match=message):
    workers.Pool(**{'function': 'hostile_rewards:obey'} | arguments)


def test_a_module_that_ends_the_process_is_named_with_what_it_said(
  tmp_path, monkeypatch
):
  (tmp_path / 'ends_at_import.py').write_text(
    "import os\nos.write(2, b'no licence')\nos._exit(3)\n"
  )
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(
    ValueError, match=r'ends_at_import:f.*exit code 3\. no licence'
  ):
    workers.Pool('ends_at_import:f')


def test_lengths_that_differ_are_refused():
  with _pool(num_workers=1) as pool, pytest.raises(ValueError, match='2 comp'):
    pool.score(['1', '2'], ['1'], [False])


def test_rewards_import_no_jax():
  # A worker starts in a blink only without it.
  code = (
    'import sys\n'
    'from dash_jax.rewards import answers, latex, selftest, worker, workers\n'
    "sys.exit('jax' in sys.modules)\n"
  )
  env = os.environ | {'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
  assert subprocess.run([sys.executable, '-c', code], env=env).returncode == 0
