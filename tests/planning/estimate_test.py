"""Memory by arithmetic, beside what compilers say of the same programs."""

import dataclasses
import importlib.util

import jax
import pytest
import tiny_job

from dash_jax.planning import devices, estimate, measured, work

_MESHES = [(1, 1, 1), (1, 4, 1), (1, 2, 2)]


@pytest.fixture(autouse=True)
def _optimised():
  """As a run compiles, unlike the other tests."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def _compare(job, rows, minibatch):
  """Returns estimated and compiled needs of each program, in bytes."""
  estimated = estimate.estimate(job, rows, minibatch)
  compiled = measured.compile_sampler(job, rows) | {
    estimate.GRADIENT: measured.compile_gradient(job, minibatch),
    estimate.UPDATE: measured.compile_update(job),
  }
  assert compiled.keys() == estimated.keys()
  return {
    name: (estimated[name].total, compiled[name].needs.total)
    for name in compiled
  }


@pytest.mark.parametrize('mesh', _MESHES)
def test_estimate_is_within_a_tenth_of_what_is_compiled(mesh):
  with tiny_job.make(mesh) as job:
    for name, (estimated, compiled) in _compare(job, 32, 8).items():
      assert estimated == pytest.approx(compiled, rel=0.1), name


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs libtpu'
)
def test_estimate_is_within_a_tenth_of_what_is_compiled_for_tpus(monkeypatch):
  """Of a model that is too large for the memory beside a TPU's units, where small
  ones find room. What learns takes minutes to compile, and is not compiled."""
  for name, value in devices.ENVIRONMENT.items():
    monkeypatch.setenv(name, value)
  model = dataclasses.replace(
    tiny_job.MODEL, embed_dim=1024, head_dim=128, ffw_dim=4096, vocab_size=32768
  )
  changes = {'model.dtype': 'bfloat16'}
  with tiny_job.make((1, 4, 1), changes, model, topology='v5e:2x2') as job:
    estimated = estimate.estimate(job, 32, 8)
    compiled = measured.compile_sampler(job, 32)
    compiled[estimate.UPDATE] = measured.compile_update(job)
    gathered = work.prepare_work(estimate.find_shape(job)).link_bytes
  moved = compiled[estimate.PREPARE].link_bytes
  assert moved == {'all-gather': pytest.approx(gathered, rel=1e-3)}
  for name in (estimate.ADMIT, estimate.DECODE, estimate.UPDATE):
    found = compiled[name].needs.total
    assert estimated[name].total == pytest.approx(found, rel=0.1), name


@pytest.mark.parametrize('mesh', _MESHES)
@pytest.mark.parametrize('rows', [32, 16])
@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'model.dtype': 'bfloat16'},
    {'sampling.quantize_weights': True, 'sampling.quantize_cache': True},
  ],
)
def test_weights_and_caches_are_those_of_the_sampler(mesh, rows, changes):
  """Exactly, but for scales and what is no matrix in 8 bits."""
  with tiny_job.make(mesh, changes) as job:
    described = job.describe_sampler(rows)
    shape = estimate.find_shape(job)
    found = estimate.count_sampler_weights(job)
    near = 0.02 if changes.get('sampling.quantize_weights') else 1e-9
    assert found == pytest.approx(described.weight_bytes, rel=near)
    found = estimate.count_cache(job, shape, rows)
    assert found == pytest.approx(described.cache_bytes, rel=1e-9)


def test_adapters_alone_are_trained_and_the_rest_is_held():
  with tiny_job.make((1, 1, 1)) as job:
    whole = estimate.hold(job)
  with tiny_job.make((1, 1, 1), {'lora.rank': 4}) as job:
    adapters = estimate.hold(job)
    gradient = estimate.count_gradient(job)
  assert adapters.weights > whole.weights
  assert adapters.optimizer < 0.1 * whole.optimizer
  assert gradient == pytest.approx(adapters.optimizer / 2, rel=0.01)


def test_a_reference_is_held_beside_the_policy():
  with tiny_job.make((1, 1, 1)) as job:
    alone = estimate.hold(job).weights
  with tiny_job.make((1, 1, 1), {'algorithm.kl_coef': 0.1}) as job:
    assert estimate.hold(job).weights == 2 * alone
