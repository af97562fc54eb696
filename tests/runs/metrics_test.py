"""Metrics survive crashes and resumes: each step once, each line valid JSON."""

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.runs import metrics


def _eval(step, phase='rl', split='test', **values):
  return {
    'step': step,
    'phase': phase,
    'split': split,
    'num_questions': 100,
    'accuracy': 0.5,
    'accuracy_low': 0.4,
    'accuracy_high': 0.6,
    'completion_len_mean': 20.0,
    'reward_timeouts': 0,
    'reward_errors': 0,
    'eval_s': 1.5,
    **values,
  }


def _refuse(token):
  raise AssertionError(f'{token} is not JSON')


def _strict_lines(path):
  """Parses as a strict reader would: JSON has no NaN or Infinity."""
  lines = path.read_text().splitlines()
  return [json.loads(line, parse_constant=_refuse) for line in lines]


def test_every_number_comes_back(tmp_path):
  """Python, NumPy and JAX scalars and non-finite values are all kept."""
  values = {
    'phase': 'rl',
    'kept_rows': np.int32(7),
    'loss': jnp.float32(0.25),
    'kl': float('nan'),
    'grad_norm': np.float32('inf'),
    'entropy': -math.inf,
  }
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, values)
    # Read while the writer is open: a killed run must not lose the line.
    (row,) = metrics.read(tmp_path / 'metrics.jsonl')
  assert math.isnan(row.pop('kl'))
  assert row == {
    'step': 1,
    'phase': 'rl',
    'kept_rows': 7,
    'loss': 0.25,
    'grad_norm': math.inf,
    'entropy': -math.inf,
  }
  (strict,) = _strict_lines(tmp_path / 'metrics.jsonl')
  assert strict['kl'] == 'nan'
  assert strict['grad_norm'] == 'inf'


def test_lines_that_a_checkpoint_has_and_the_file_has_not_are_named(
  tmp_path, caplog
):
  with metrics.MetricsWriter(tmp_path) as writer:
    for step in range(1, 4):
      writer.write(step, {'phase': 'sft'})
  with metrics.MetricsWriter(tmp_path, resume_step=3):
    assert not caplog.text
  with metrics.MetricsWriter(tmp_path, resume_step=5):
    assert 'ends at step 3, and the run goes on from step 5' in caplog.text


def test_resume_shows_no_step_twice(tmp_path):
  """Steps after the checkpoint are done again, so their first lines go."""
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write_eval(_eval(0))
    for step in range(1, 6):
      writer.write(step, {'phase': 'sft', 'loss': 1.0})
      writer.write_eval(_eval(step, 'sft'))
  for name in ('metrics.jsonl', 'evals.jsonl'):
    with open(tmp_path / name, 'ab') as f:
      # The line that a kill tore, inside a character.
      f.write('{"step": 3, "ö'.encode()[:-1])
  with metrics.MetricsWriter(tmp_path, resume_step=3) as writer:
    assert writer.has_eval(3, 'sft', 'test')
    assert not writer.has_eval(4, 'sft', 'test')
    for step in range(4, 6):
      writer.write(step, {'phase': 'rl', 'loss': 2.0})
      writer.write_eval(_eval(step))
  rows = metrics.read(tmp_path / 'metrics.jsonl')
  assert [row['step'] for row in rows] == [1, 2, 3, 4, 5]
  assert [row['loss'] for row in rows] == [1.0, 1.0, 1.0, 2.0, 2.0]
  evals = metrics.read(tmp_path / 'evals.jsonl')
  assert [row['step'] for row in evals] == [0, 1, 2, 3, 4, 5]
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    'evals.jsonl',
    'metrics.jsonl',
    'tensorboard',
  ]


def test_steps_grow_over_phases_and_resumes(tmp_path):
  """A repeated step means that two updates were counted as one."""
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'phase': 'sft', 'loss': 1.0})
    with pytest.raises(ValueError, match='step 1 follows step 1'):
      writer.write(1, {'phase': 'rl', 'loss': 1.0})
  with (
    metrics.MetricsWriter(tmp_path, resume_step=1) as writer,
    pytest.raises(ValueError, match='step 1 follows step 1'),
  ):
    writer.write(1, {'phase': 'sft', 'loss': 1.0})
  assert len(metrics.read(tmp_path / 'metrics.jsonl')) == 1


def test_evaluations_appear_once(tmp_path):
  """One step may be evaluated in two phases, but never twice in one."""
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write_eval(_eval(4, 'sft'))
    writer.write_eval(_eval(4, 'rl'))
    with pytest.raises(ValueError, match='already evaluated at step 4'):
      writer.write_eval(_eval(4, 'rl'))
  assert len(metrics.read(tmp_path / 'evals.jsonl')) == 2


@pytest.mark.parametrize(
  ('values', 'error', 'message'),
  [
    ({'loss': 1.0}, ValueError, 'phase is None; valid: sft, rl'),
    ({'phase': 'warmup'}, ValueError, "phase is 'warmup'"),
    ({'phase': 'rl', 'step': 2}, ValueError, "values holds 'step'"),
    ({'phase': 'rl', 'loss': 'low'}, TypeError, "loss is 'low'"),
    ({'phase': 'rl', 'loss': np.zeros(2)}, TypeError, 'loss is ndarray'),
  ],
)
def test_bad_values_are_named_and_not_written(tmp_path, values, error, message):
  """A refused line leaves the file as it was."""
  with metrics.MetricsWriter(tmp_path) as writer:
    with pytest.raises(error, match=message):
      writer.write(1, values)
    writer.write(1, {'phase': 'rl'})
  assert metrics.read(tmp_path / 'metrics.jsonl') == [
    {'step': 1, 'phase': 'rl'}
  ]


def test_evaluation_names_missing_keys(tmp_path):
  """Readers count on every key, the interval above all."""
  values = _eval(1)
  del values['accuracy_low'], values['eval_s']
  with (
    metrics.MetricsWriter(tmp_path) as writer,
    pytest.raises(ValueError, match='accuracy_low, eval_s'),
  ):
    writer.write_eval(values)


def test_damage_in_the_middle_is_an_error(tmp_path):
  """Only a last line can be torn: anything else must not pass unseen."""
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
  with pytest.raises(ValueError, match=r'metrics\.jsonl:2'):
    metrics.read(path)


def test_tensorboard_gets_the_values_by_phase(tmp_path):
  """Reads the event files by their record format: length, crc, data, crc."""
  from tensorboardX.proto import event_pb2

  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write(1, {'phase': 'sft', 'loss': 2.0})
    writer.write(2, {'phase': 'rl', 'loss': 0.5})
    writer.write_eval(_eval(2))
  (path,) = (tmp_path / 'tensorboard').iterdir()
  data = path.read_bytes()
  found = {}
  while data:
    (length,) = struct.unpack('<Q', data[:8])
    event = event_pb2.Event.FromString(data[12 : 12 + length])
    data = data[12 + length + 4 :]
    for value in event.summary.value:
      found[value.tag, event.step] = value.simple_value
  assert found['sft/loss', 1] == 2.0
  assert found['rl/loss', 2] == 0.5
  assert found['rl/test_accuracy', 2] == 0.5
