"""What fits, what would, and how a step's time is made up."""

import dataclasses

import pytest
import tiny_job

from dash_jax.planning import devices, estimate, plans, tables
from dash_jax.planning import job as job_lib
from dash_jax.sampling import memory


def _shrink(found, memory):
  """Returns devices with so many bytes."""
  kind = dataclasses.replace(
    devices.KINDS['v5p'], memory=float(memory), platform='cpu'
  )
  return dataclasses.replace(found, name='v5p', kind=kind)


def _plan(memory, changes=None, num=1):
  config = tiny_job.make_config(changes)
  return plans.make(config, _shrink(devices.find(f'cpu:{num}'), memory))


_ROOMY = 2**34


def test_sizes_of_the_config_are_kept():
  plan = _plan(_ROOMY)
  assert (plan.rows, plan.minibatch) == (32, 8)
  assert plan.all_fit


@pytest.mark.parametrize('field', ['most_rows', 'most_minibatch'])
def test_the_most_that_fits_does_and_more_does_not(field):
  plan = _plan(2**27)
  job, most = plan.job, getattr(plan, field)
  unit = job.group_size if field == 'most_rows' else 1
  assert most > unit

  def needs(size):
    rows, minibatch = (size, 1) if field == 'most_rows' else (4, size)
    found = estimate.estimate(job, rows, minibatch)
    names = {'most_rows': estimate.SAMPLING, 'most_minibatch': ('gradient',)}
    return max(found[name].total for name in names[field])

  assert needs(most) <= plan.room < needs(most + unit)


def test_auto_takes_the_most_that_fits():
  auto = {'optim.minibatch_size': 'auto', 'sampling.batch_size': 'auto'}
  plan = _plan(_ROOMY, auto)
  assert (plan.rows, plan.minibatch) == (32, 32)  # there are no more in a step
  tight = _plan(2**26.5, auto)
  assert tight.rows == min(tight.most_rows, 32)
  assert tight.minibatch == min(tight.most_minibatch, 32) < 32
  assert tight.all_fit


@pytest.mark.parametrize('optimizer', ['adamw', 'adafactor'])
def test_what_is_suggested_fits(optimizer):
  """Adafactor is refused other moments, which hides no other advice."""
  fields = {'optim.minibatch_size': 32, 'optim.name': optimizer}
  config = tiny_job.make_config(fields)
  found = _shrink(devices.find('cpu:1'), 2**26.5)
  plan = plans.make(config, found)
  assert not plan.all_fit
  changes = plans.suggest(plan, config)
  assert changes
  config = tiny_job.make_config(fields | changes)
  assert plans.make(config, found).all_fit


def test_what_cannot_fit_has_no_suggestion():
  config = tiny_job.make_config()
  found = _shrink(devices.find('cpu:1'), 2**16)
  plan = plans.make(config, found)
  assert plans.suggest(plan, config) is None
  assert plans.count_devices(plan) > 100
  assert 'devices' in ' '.join(tables.advise(plan, None))


def test_a_step_is_sampling_and_learning_or_the_longer_of_the_two():
  both = _plan(_ROOMY, num=2)
  assert both.step_s == pytest.approx(both.sampling_s + both.learning_s)
  apart = _plan(
    _ROOMY,
    {
      'mesh.sampler_devices': 1,
      'algorithm.max_staleness': 1,
      'algorithm.importance_cap': 2.0,
    },
    num=2,
  )
  assert apart.step_s == max(apart.sampling_s, apart.learning_s)
  # Weights are made ready where they are learned.
  learning = [*estimate.LEARNING, estimate.PREPARE]
  assert apart.learning_s == sum(apart.steps[n].seconds for n in learning)
  assert apart.room == apart.job.devices.kind.memory * memory.USABLE
  assert apart.needs[estimate.DECODE].weights == 0
  # What is sampled with, and what waits for its turn.
  held = apart.needs[estimate.DECODE].sampler
  assert held == 2 * both.needs[estimate.DECODE].sampler
  assert 'one beside the other' in '\n'.join(tables.describe(apart))


def test_a_mesh_that_does_not_fit_the_devices_is_refused():
  config = tiny_job.make_config({'mesh.fsdp': 3})
  with pytest.raises(ValueError, match=r'mesh.fsdp=3'):
    job_lib.make_job(config, devices.find('cpu:4'))


def test_supervised_runs_sample_nothing():
  plan = _plan(_ROOMY, {'algorithm.name': 'sft', 'algorithm.sft_steps': 4})
  assert plan.rows == 0
  assert plan.sampling_s == 0
  assert list(plans.list_programs(plan)) == ['gradient', 'update']
  assert 'sampled at once' not in '\n'.join(tables.describe(plan))
