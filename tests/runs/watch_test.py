"""Two processes, of which one dies (before the watch begins, too), stops, hangs,
fails or is done before the other. All pairs run at once: most of what they do is
wait. The processes beside them, which say last words, hear SIGTERM and stay; one of
them is killed, and nothing follows."""

import pathlib
import re
import signal
import subprocess
import sys

import pytest
import tiny_run

from dash_jax import commands
from dash_jax.runs import watch

GO_ON = 'The same command goes on from the newest checkpoint.'
NAME = r'process {} of 2 \([^)]+\)'
SILENT = NAME + ' has not been heard of for 5 s; it was at scoring. ' + GO_ON

# Who does what; how each of both ends, and what it says.
CASES = {
  ('1', 'SIGKILL'): ((watch.LOST, SILENT.format(1)), (-signal.SIGKILL, '')),
  ('0', 'SIGKILL'): (
    (-signal.SIGKILL, ''),
    # jax's own doing, and our last words.
    (
      -signal.SIGABRT,
      NAME.format(1)
      + ' has ended without a word, at learning. When last heard of: '
      + NAME.format(0)
      + ' at scoring. ',
    ),
  ),
  ('1', 'is gone'): (
    (
      watch.LOST,
      r'process 1 of 2 \(\?\) has not been heard of for 5 s; it was at the start. '
      + GO_ON,
    ),
    (-signal.SIGKILL, ''),
  ),
  ('1', 'SIGSTOP'): ((watch.LOST, SILENT.format(1)), (-signal.SIGKILL, '')),
  ('0', 'SIGSTOP'): (
    (-signal.SIGKILL, ''),
    (
      watch.LOST,
      NAME.format(0)
      + ', through which the others hear of each other, has not answered for'
      ' 5 s; it was at scoring. ',
    ),
  ),
  ('1', 'hangs'): 2
  * (
    (
      watch.LOST,
      'nothing has gone on for 14 s: '
      + NAME.format(1)
      + ' is at scoring. Above is where each thread',
    ),
  ),
  ('1', 'fails'): 2
  * (
    (
      commands.BAD_INPUT,
      NAME.format(1)
      + ' failed at scoring: ValueError: this host has no such file\n',
    ),
  ),
  # What read its errors is gone, as a launcher that was killed.
  ('1', 'fails unread'): (
    (
      1,
      NAME.format(1) + ' failed at scoring: RuntimeError: nobody hears this\n',
    ),
    (1, ''),
  ),
  ('1', 'ends'): ((0, 'ended'), (0, 'ended')),
}


@pytest.fixture(scope='module')
def pairs():
  script = pathlib.Path(__file__).parent / 'watched.py'
  started = {}
  for case in CASES:
    port = str(tiny_run.find_port())
    started[case] = [
      subprocess.Popen(
        [sys.executable, script, port, process, *case],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
      )
      for process in '01'
    ]
  yield started
  for pair in started.values():
    for process in pair:
      process.kill()


@pytest.mark.parametrize('case', CASES, ids=' '.join)
def test_the_other_process_says_who_and_where(case, pairs):
  who, what = case
  pair = pairs[case]
  if what == 'SIGSTOP':  # it never ends by itself
    pair[1 - int(who)].wait(timeout=120)
    pair[int(who)].kill()
  for process, (code, said) in zip(pair, CASES[case], strict=True):
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert re.search(said, output), output
  if what == 'hangs':
    assert 'watched.py", line' in output


def test_one_process_alone_is_ended_where_it_hangs():
  """With the stage, and where each of its threads is."""
  script = (
    'import time\n'
    'from dash_jax.runs import watch\n'
    'def hang():\n'
    '  time.sleep(100)\n'
    'with watch.Watch(silent_s=3.0, stall_s=3.0):\n'
    "  watch.mark('scoring')\n"
    '  hang()\n'
  )
  ended = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert ended.returncode == watch.LOST, ended.stderr
  assert ' in hang\n' in ended.stderr
  assert re.search(
    r'dash_jax: nothing has gone on for 3 s: process 0 of 1 \(.+\) is at scoring\.',
    ended.stderr,
  )
