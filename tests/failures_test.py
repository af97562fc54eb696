"""What a run does where it is asked to stop, its numbers are no numbers, or its disk
is full: nothing that was done is lost, and the same command goes on."""

import os
import pathlib
import resource
import signal

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, checks, commands, train, updates
from dash_jax.runs import (
  alarms,
  checkpoint,
  jsonl,
  ownership,
  rollouts,
  symptoms,
)

NUM_STEPS = 4


@pytest.fixture(scope='module')
def kept():
  """What other tests here have made: samplers by their sizes, and the whole run."""
  return {'samplers': {}}


@pytest.fixture
def config(mesh, monkeypatch, kept):
  config = tiny_run.borrow(monkeypatch)
  tiny_run.share_samplers(monkeypatch, kept['samplers'])
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = NUM_STEPS * 32
  config.optim.learning_rate = 3e-3
  return config


def run(config, workdir):
  checks.check(config)
  return train.train(config, str(workdir))


def read(workdir):
  names = 'metrics.jsonl', 'evals.jsonl'
  return tuple(tiny_run.read_numbers(workdir, name) for name in names)


def read_weights(workdir):
  """Returns the weights of the newest checkpoint, on the host."""
  steps = checkpoint.list_committed(workdir)
  (params,) = (
    checkpoint.ocp.StandardCheckpointer().restore(
      workdir / 'checkpoints' / str(step) / 'params'
    )
    for step in steps[-1:]
  )
  return jax.device_get(params), steps


@pytest.fixture
def whole(config, kept, tmp_path):
  if 'whole' not in kept:
    assert run(config, tmp_path / 'whole')
    kept['whole'] = read(tmp_path / 'whole')
  return kept['whole']


@pytest.mark.parametrize('place', ['drawing', 'scoring', 'evaluating'])
def test_a_signal_gives_up_what_is_sampled_and_it_is_sampled_again(
  config, whole, tmp_path, monkeypatch, place
):
  """In the third step, or in the evaluation behind the second: the run ends with
  the state of before, and then comes to the same end."""
  sample, calls = assemble.Parts.sample_and_score, []
  hold = tmp_path / 'hold'

  def interrupt(parts, sampled_by, *args, **options):
    calls.append(sampled_by is parts.train_sampler)
    # One evaluation at the start, two steps, an evaluation, a step.
    if len(calls) != (4 if place == 'evaluating' else 5):
      return sample(parts, sampled_by, *args, **options)
    if place == 'scoring':
      hold.touch()
      finish = sample(parts, sampled_by, *args, **options)
      os.kill(os.getpid(), signal.SIGTERM)
      return finish
    os.kill(os.getpid(), signal.SIGTERM)
    sample(parts, sampled_by, *args, **options)
    raise AssertionError('tokens were drawn to the end')

  with monkeypatch.context() as patched:
    patched.setenv('HOLD', str(hold))
    patched.setattr(assemble.Parts, 'sample_and_score', interrupt)
    # A row that does not end would be killed after it.
    config.reward.timeout_s = 600.0
    assert not run(config, tmp_path)
  assert calls == [False, True, True, False, True][: len(calls)]
  assert len(jsonl.read(tmp_path / 'metrics.jsonl')) == 2
  assert read_weights(tmp_path)[1] == [2]
  hold.unlink(missing_ok=True)
  assert run(config, tmp_path)
  assert read(tmp_path) == whole


def test_one_run_at_a_time_has_a_workdir(config, whole, tmp_path):
  with (
    ownership.hold(tmp_path),
    pytest.raises(ValueError, match='another process is at work in it'),
  ):
    run(config, tmp_path)
  assert run(config, tmp_path)
  assert read(tmp_path) == whole


@pytest.fixture
def diverging(config):
  """The first step makes the weights so large that the second's gradient is no
  number."""
  config.optim.learning_rate = 1e38
  config.optim.max_grad_norm = 0.0
  config.optim.schedule = 'constant'
  config.checkpoint.every_samples = 32
  return config


def test_a_step_that_is_not_finite_is_not_taken_and_says_why(
  diverging, tmp_path
):
  with pytest.raises(commands.FailedError) as error:
    run(diverging, tmp_path)
  message = str(error.value)
  assert message.startswith('step 2: the loss (')
  assert 'the gradient (norm nan) is not finite, and the weights' in message
  assert '--config.optim.nonfinite=skip' in message
  # The weights are those of before, and all that was learned from is there.
  _, steps = read_weights(tmp_path)
  assert steps == [1]
  folder = tmp_path / updates.NONFINITE_NAME / 'step_000002_change_0'
  assert str(folder.parent) in message
  files = sorted(folder.iterdir())
  num_tokens = 0
  for file in files:
    held = np.load(file)
    num_tokens += (held['lines.rows'] > 0).sum()
    assert held['advantages'].shape == held['lines.tokens'].shape
  path = rollouts.path(tmp_path, 2)
  assert str(path) in message
  kept = [row['completion_len'] for row in jsonl.read(path) if row['kept']]
  assert num_tokens == sum(kept) > 0
  assert jsonl.read(tmp_path / 'metrics.jsonl')[-1]['skipped_updates'] == 1


def test_a_supervised_step_that_is_not_finite_names_no_rollouts(
  diverging, tmp_path
):
  diverging.algorithm.sft_steps = 3
  diverging.optim.sft_learning_rate = 1e38
  with pytest.raises(commands.FailedError) as error:
    run(diverging, tmp_path)
  assert str(error.value).startswith('step 2: the loss (')
  assert 'rollouts' not in str(error.value)
  assert list((tmp_path / updates.NONFINITE_NAME).iterdir())


def test_the_last_evaluation_raises_its_alarm_while_the_run_is_there(
  config, tmp_path, monkeypatch
):
  def check(seen):
    is_last = seen.evals and seen.evals[-1]['step'] == NUM_STEPS
    return ('it is worse', 'Stop') if is_last else None

  monkeypatch.setattr(symptoms, 'CHECKS', {'worse': check})
  assert run(config, tmp_path)
  assert [(a.name, a.step) for a in alarms.read(tmp_path)] == [
    ('worse', NUM_STEPS)
  ]


def test_a_run_may_go_on_without_such_steps(diverging, tmp_path, caplog):
  """It may be told so where it has stopped."""
  with pytest.raises(commands.FailedError):
    run(diverging, tmp_path)
  before, _ = read_weights(tmp_path)
  diverging.optim.nonfinite = 'skip'
  assert run(diverging, tmp_path)
  rows = jsonl.read(tmp_path / 'metrics.jsonl')
  assert [row['skipped_updates'] for row in rows] == [0, 1, 1, 1]
  after, steps = read_weights(tmp_path)
  assert steps[-1] == NUM_STEPS
  jax.tree.map(np.testing.assert_array_equal, before, after)
  assert 'step 4: the loss (' in caplog.text


def test_what_a_checkpoint_counts_on_is_on_the_disk_before_it(
  config, tmp_path, monkeypatch
):
  """Every line and every name, so that a loss of power takes none; steps without
  a checkpoint do not wait for it."""
  wait, save, learn = os.fsync, checkpoint.Checkpoints.save, updates.learn
  synced, steps = {}, []

  def find_contents(path):
    return sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()

  def record(number):
    wait(number)
    path = pathlib.Path(os.readlink(f'/proc/self/fd/{number}'))
    synced[path] = find_contents(path)

  def check(saved, step, *args):
    for name in ('metrics.jsonl', 'evals.jsonl', 'rollouts', ''):
      path = tmp_path / name
      assert synced[path] == find_contents(path)
    steps.append(step)
    synced.clear()
    return save(saved, step, *args)

  def look(*args):
    assert tmp_path / 'metrics.jsonl' not in synced
    return learn(*args)

  with monkeypatch.context() as patched:
    patched.setattr(os, 'fsync', record)
    patched.setattr(checkpoint.Checkpoints, 'save', check)
    patched.setattr(updates, 'learn', look)
    assert run(config, tmp_path)
  assert steps == [2, 4]


def test_a_full_disk_ends_the_run_and_loses_nothing(
  config, whole, tmp_path, monkeypatch
):
  """No file may grow, as on a full disk, from the last step on."""
  learn, limits = updates.learn, resource.getrlimit(resource.RLIMIT_FSIZE)

  def fill(parts, phase, room, state, *args):
    if int(state.step) == NUM_STEPS - 1:
      resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    return learn(parts, phase, room, state, *args)

  try:
    with monkeypatch.context() as patched:
      patched.setattr(updates, 'learn', fill)
      with pytest.raises(
        commands.FailedError, match=r'the disk is full \(.*, step 2$'
      ):
        run(config, tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert read_weights(tmp_path)[1] == [2]
  assert run(config, tmp_path)
  assert read(tmp_path) == whole
