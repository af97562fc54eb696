"""Sampling that is ahead of learning: which weights sample what, that both go on
at once, and that none of it changes what a run computes."""

import os
import signal
import threading

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, checks, phases, sharding, train, updates
from dash_jax.runs import checkpoint, jsonl

NUM_STEPS = 6


@pytest.fixture(scope='module')
def kept():
  """What other tests here have made: samplers by their sizes, runs by theirs."""
  return {'samplers': {}, 'runs': {}}


@pytest.fixture
def config(mesh, monkeypatch, kept):
  config = tiny_run.borrow(monkeypatch)
  tiny_run.share_samplers(monkeypatch, kept['samplers'])
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = NUM_STEPS * 32
  config.algorithm.importance_cap = 2.0
  config.optim.learning_rate = 3e-3
  # Behind the fourth of six steps.
  config.checkpoint.every_samples = config.eval.every_samples = 4 * 32
  return config


def run(config, workdir):
  checks.check(config)
  assert train.train(config, str(workdir))
  names = 'metrics.jsonl', 'evals.jsonl'
  return tuple(tiny_run.read_numbers(workdir, name) for name in names)


@pytest.mark.parametrize('every', [1, 8, 10, 32, 33, 10**9])
def test_the_next_step_that_is_due_is_found(config, every):
  """As one looks for it step by step, and at once where it is far away."""
  *_, phase = phases.phases(config, (1,))
  assert phase.rows_per_step == 32
  for taken in (1, 2, 7, 30_000_000):
    found = phase.find_due(taken, every)
    assert found >= taken
    assert phase.is_due(found, every)
    assert not any(phase.is_due(t, every) for t in range(taken, found)[:1000])


def split_devices(config, monkeypatch):
  """Gives sampling a device of its own, and returns it in a list."""
  learns, samples = jax.devices()[:1], jax.devices()[1:2]
  monkeypatch.setattr(
    sharding, 'split_devices', lambda n, devices: (learns, samples)
  )
  config.mesh.sampler_devices = 1
  return samples


def run_once(config, most, kept, tmp_path):
  """Returns the run of shared devices."""
  if most not in kept['runs']:
    config.algorithm.max_staleness = most
    kept['runs'][most] = run(config, tmp_path / f'once{most}')
  return kept['runs'][most]


@pytest.mark.parametrize(
  ('most', 'expected'), [(0, [0] * 6), (2, [0, 1, 2, 2, 0, 1])]
)
def test_rows_are_as_old_as_allowed_and_a_checkpoint_is_the_first_to_sample(
  config, kept, tmp_path, most, expected
):
  steps, _ = run_once(config, most, kept, tmp_path)
  assert [row['staleness'] for row in steps] == expected
  # What older weights sampled is further from the learner's.
  gaps = [row['logprob_gap'] for row in steps]
  assert [gap < 1e-5 for gap in gaps] == [age == 0 for age in expected], gaps


@pytest.mark.parametrize('most', [0, 2])
def test_devices_of_their_own_go_on_meanwhile_and_change_nothing(
  config, kept, tmp_path, monkeypatch, most
):
  """Rows, losses and evaluations are those of shared devices. With two steps
  ahead, the learner's steps end only when the next step's rows are there, if
  there are such before the checkpoint."""
  shared = run_once(config, most, kept, tmp_path)
  samples = split_devices(config, monkeypatch)
  config.algorithm.max_staleness = most
  sample, learn = assemble.Parts.sample_and_score, updates.learn
  sampled, changed = [], threading.Condition()

  def record(parts, sampled_by, prepared, *args, **options):
    used = {d for x in jax.tree.leaves(prepared) for d in x.devices()}
    assert used == set(samples)
    finish = sample(parts, sampled_by, prepared, *args, **options)
    if sampled_by is parts.train_sampler:
      with changed:
        sampled.append(1)
        changed.notify()
    return finish

  def wait(parts, phase, room, state, *args):
    step = int(state.step)
    if most and step not in (3, 5):
      with changed:
        assert changed.wait_for(lambda: len(sampled) > step + 1, timeout=60)
    return learn(parts, phase, room, state, *args)

  monkeypatch.setattr(assemble.Parts, 'sample_and_score', record)
  monkeypatch.setattr(updates, 'learn', wait)
  assert run(config, tmp_path / 'apart') == shared
  assert len(sampled) == NUM_STEPS
  for row in jsonl.read(tmp_path / 'apart' / 'metrics.jsonl'):
    assert (most == 0) == ('wait_s' not in row)


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
  config, kept, tmp_path, monkeypatch
):
  """Killed in the sixth step, it begins again behind its checkpoint, the fourth:
  the rows that it had ahead are sampled by the same weights again."""
  whole = run_once(config, 2, kept, tmp_path)
  config.algorithm.max_staleness = 2
  learn, taken = updates.learn, []

  def die(*args):
    taken.append(1)
    if len(taken) == NUM_STEPS:
      raise KeyboardInterrupt
    return learn(*args)

  killed = tmp_path / 'killed'
  with monkeypatch.context() as patched:
    patched.setattr(updates, 'learn', die)
    with pytest.raises(KeyboardInterrupt):
      run(config, killed)
  with checkpoint.Checkpoints(killed, keep=1) as saved:
    assert saved.latest_step() == 4
  assert run(config, killed) == whole


@pytest.mark.parametrize('apart', [False, True])
def test_a_run_that_was_stopped_goes_on_with_the_rows_it_had_ahead(
  config, kept, tmp_path, monkeypatch, apart
):
  """Asked to stop in the second step, where the rows of two more are sampled or
  under way, by weights that are gone then: no other weights sample in their
  place, and none is sampled twice."""
  whole = run_once(config, 2, kept, tmp_path)
  if apart:
    split_devices(config, monkeypatch)
  config.algorithm.max_staleness = 2
  learn, sample = updates.learn, assemble.Parts.sample_and_score
  sampled = []

  def interrupt(parts, phase, room, state, *args):
    if int(state.step) == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return learn(parts, phase, room, state, *args)

  def record(parts, sampled_by, *args, **options):
    sampled.append(sampled_by is parts.train_sampler)
    return sample(parts, sampled_by, *args, **options)

  stopped = tmp_path / 'stopped'
  checks.check(config)
  monkeypatch.setattr(assemble.Parts, 'sample_and_score', record)
  with monkeypatch.context() as patched:
    patched.setattr(updates, 'learn', interrupt)
    assert not train.train(config, str(stopped))
  with checkpoint.Checkpoints(stopped, keep=1) as saved:
    assert saved.list_steps() == [2]
  assert run(config, stopped) == whole
  assert sum(sampled) == NUM_STEPS
  rows = jsonl.read(stopped / 'rollouts' / 'step_000003.jsonl')
  assert len({row['completion'] for row in rows}) > 10


def test_stale_rows_need_a_bound_on_their_weights(config):
  config.algorithm.max_staleness = 1
  checks.check(config)
  config.algorithm.importance_cap = 0.0
  with pytest.raises(ValueError, match=r'max_staleness=1 .*importance_cap=0'):
    checks.check(config)
  config.algorithm.loss = 'gspo'  # has ratios to the sampler's own
  checks.check(config)


def test_devices_to_sample_leave_one_to_learn():
  learn, sample = sharding.split_devices(3)
  assert learn == jax.devices()[:5]
  assert sample == jax.devices()[5:]
  assert sharding.split_devices(0) == (jax.devices(), jax.devices())
  with pytest.raises(ValueError, match=r'sampler_devices=8: .* has 8 devices'):
    sharding.split_devices(8)


def test_weights_move_to_a_mesh_of_another_shape():
  """Both split over tensor alike; what is copied is what each device holds."""
  sizes = {'learn': (1, 2, 2), 'sample': (1, 1, 2)}
  learn, sample = (
    jax.make_mesh(sizes[name], sharding.AXES, devices=devices)
    for name, devices in (
      ('learn', jax.devices()[:4]),
      ('sample', jax.devices()[4:6]),
    )
  )
  x = np.arange(24.0).reshape(4, 6)
  with jax.set_mesh(learn):
    there = {
      'split': jax.device_put(x, sharding.SAMPLE.spec('embed', 'ffw')),
      'whole': jax.device_put(x, sharding.SAMPLE.spec('embed', 'embed')),
    }
  moved = sharding.move(there, sample)
  for name, y in moved.items():
    assert y.sharding.mesh == sample
    assert y.sharding.spec == there[name].sharding.spec
    np.testing.assert_array_equal(y, x)
