"""What a run shows comes from its files, once, and follows them when it goes on."""

import pytest

from dash_jax import config as config_lib
from dash_jax.runs import alarms, jsonl, metrics, progress
from dash_jax.sampling import memory


class Bars(progress.Progress):
  """Keeps what is shown."""

  def __init__(self):
    super().__init__(shown=False)
    self.lines = []

  def warn(self, text):
    self.lines.append(text.split(',')[0])


def write_steps(workdir, alarmed, first, last):
  """Writes steps of SFT whose loss is not finite from the fifth on."""
  with metrics.MetricsWriter(workdir, first - 1) as log:
    for step in range(first, last + 1):
      loss = float('nan') if step >= 5 else 1.0
      log.write(
        step, {'phase': 'sft', 'loss': loss, 'grad_norm': 1.0, 'compiles': 0}
      )
      alarmed.look()


def read_steps(workdir):
  return [
    (row['name'], row['step']) for row in jsonl.read(workdir / 'alarms.jsonl')
  ]


@pytest.fixture
def start(tmp_path, monkeypatch):
  """Returns a function that makes the alarms of a process and its bars; the host
  has room."""
  monkeypatch.setattr(memory, 'find_host_share', lambda: 0.1)

  def make():
    bars = Bars()
    return alarms.Alarms(tmp_path, config_lib.default(), bars), bars

  return make


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path):
  path = tmp_path / 'rows.jsonl'
  tail = jsonl.Tail(path)
  assert tail.read() == []
  for text, rows in (
    ('{"a": 1}\n{"a"', [{'a': 1}]),
    ('', []),
    (': 2}\n', [{'a': 2}]),
  ):
    with open(path, 'a') as file:
      file.write(text)
    assert tail.read() == rows


def test_an_alarm_is_shown_once_however_often_it_begins(tmp_path, start):
  first, bars = start()
  write_steps(tmp_path, first, 1, 12)
  assert bars.lines == ['nonfinite']
  assert read_steps(tmp_path) == [('nonfinite', 7)]
  again, bars = start()
  write_steps(tmp_path, again, 13, 20)
  assert bars.lines == []
  assert read_steps(tmp_path) == [('nonfinite', 7)]


def test_alarms_behind_the_checkpoint_are_forgotten(tmp_path, start):
  first, _ = start()
  write_steps(tmp_path, first, 1, 12)
  with metrics.MetricsWriter(tmp_path, 6):
    pass
  again, bars = start()
  assert read_steps(tmp_path) == []
  write_steps(tmp_path, again, 7, 12)
  assert bars.lines == ['nonfinite']
  assert read_steps(tmp_path) == [('nonfinite', 7)]


def test_the_memory_of_the_host_is_of_the_process(tmp_path, start, monkeypatch):
  """No file but alarms.jsonl has it, and it outlives the process there."""
  monkeypatch.setattr(memory, 'find_host_share', lambda: 0.95)
  first, bars = start()
  write_steps(tmp_path, first, 1, 4)
  assert bars.lines == []
  write_steps(tmp_path, first, 5, 10)
  assert bars.lines == ['nonfinite', 'memory']
  rows = metrics.read(tmp_path / 'metrics.jsonl')
  assert not any('memory' in key for row in rows for key in row)
  start()
  assert ('memory', 9) in read_steps(tmp_path)


def test_the_share_of_this_process_is_measured():
  assert 0 < memory.find_host_share() < 1
  assert memory.find_device_share() is None


def test_a_container_has_what_it_may_have(tmp_path, monkeypatch):
  limit = tmp_path / 'memory.max'
  monkeypatch.setattr(memory, '_LIMITS', (str(limit),))
  machine = memory.find_host_memory()
  share = memory.find_host_share()
  for text in ('max\n', f'{2 * machine}\n'):
    limit.write_text(text)
    assert memory.find_host_memory() == machine
  limit.write_text(f'{machine // 4}\n')
  assert memory.find_host_memory() == machine // 4
  assert memory.find_host_share() > 2 * share
