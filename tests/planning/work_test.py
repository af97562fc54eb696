"""The least work of programs, beside what their operations add up to."""

import dataclasses

import pytest
import tiny_job

from dash_jax.model import llama
from dash_jax.planning import devices, estimate, measured, work

_SHAPE = work.Shape(
  config=tiny_job.MODEL,
  data=1,
  fsdp=1,
  tensor=1,
  prompt_len=8,
  completion_len=16,
  group_size=4,
  itemsize=4,
  param_itemsize=4,
  trained_weights=float(llama.count_params(tiny_job.MODEL)),
  moment_itemsize=8.0,
  weight_bytes=4.0,
  cache_bytes=4.0,
  remat='layer',
  forwards=0,
)


def test_what_takes_longest_bounds():
  kind = devices.Kind(1.0, 10.0, 20.0, 40.0, 'cpu', '')
  assert work.Work(100, 100, 100).bound(kind) == (10, 'compute')
  assert work.Work(10, 100, 100).bound(kind) == (5, 'memory bandwidth')
  assert work.Work(10, 10, 100).bound(kind) == (2.5, 'interconnect')
  assert work.Work(10, 10, 10).bound(devices.KINDS['cpu'])[0] == 0


def test_one_device_gets_nothing_from_others():
  programs = (
    work.prepare_work(_SHAPE),
    work.prefill_work(_SHAPE, 4, 1),
    work.decode_work(_SHAPE, 8, 1),
    work.minibatch_work(_SHAPE, 8),
    work.update_work(_SHAPE),
  )
  assert [x.link_bytes for x in programs] == [0] * 5


def test_rows_on_more_devices_are_as_much_work_in_all():
  """Twice the rows over twice the devices is the same on each."""
  split = dataclasses.replace(_SHAPE, fsdp=2)
  assert work.minibatch_work(_SHAPE, 8).flops == pytest.approx(
    work.minibatch_work(split, 8).flops
  )
  tensor = dataclasses.replace(_SHAPE, tensor=2)
  assert work.minibatch_work(tensor, 8).flops == pytest.approx(
    work.minibatch_work(_SHAPE, 8).flops / 2
  )


def test_waves_read_the_weights_again():
  once = work.decode_work(_SHAPE, 16, 1)
  twice = work.decode_work(_SHAPE, 8, 2)
  assert twice.flops == pytest.approx(once.flops)
  assert once.bytes < twice.bytes < 2 * once.bytes


@pytest.mark.parametrize(
  'changes',
  [{'model.remat': 'attention'}, {'model.remat': 'layer'}, {'lora.rank': 4}],
)
def test_a_minibatch_has_the_operations_of_its_program(changes):
  """As jax counts them of the program before it is compiled: loops once, so of
  one minibatch and of one chunk of logits, which is all of them here. What is
  masked is counted there, and not here."""
  with tiny_job.make((1, 1, 1), changes) as job:
    counted = job.lower_learner(8).cost_analysis()['flops']
    found = work.minibatch_work(estimate.find_shape(job), 8).flops
  assert 0.75 < found / counted <= 1


def test_adapters_alone_are_changed():
  with tiny_job.make((1, 1, 1)) as job:
    whole = work.update_work(estimate.find_shape(job)).bytes
  with tiny_job.make((1, 1, 1), {'lora.rank': 4}) as job:
    adapters = work.update_work(estimate.find_shape(job)).bytes
    # Gradient and two moments in float32, and the factors themselves.
    num = estimate.count_gradient(job) / 4
  assert adapters == pytest.approx(num * (2 * 4 + 2 * 3 * 4), rel=1e-3)
  assert adapters < 0.05 * whole


@pytest.mark.parametrize(('mesh', 'sums'), [((4, 1, 1), 1), ((1, 4, 1), 2)])
def test_bytes_from_others_are_those_of_the_program(mesh, sums):
  """As its collectives are found in the compiled text. Of a gradient that is
  split over fsdp the compiler for CPUs sums the whole, and so moves it twice."""
  with tiny_job.make(mesh, {'model.remat': 'layer'}) as job:
    moved = dict(measured.compile_gradient(job, 8).link_bytes)
    shape = estimate.find_shape(job)
    found = work.minibatch_work(shape, 8 // job.shards).link_bytes
  counted = moved.pop('all-reduce') / sums + sum(moved.values())
  assert found == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize('mesh', [(1, 1, 4), (1, 2, 2)])
def test_bytes_from_others_while_sampling_are_those_of_the_programs(mesh):
  """Sums of layers, embeddings and logits; the embedding's table, which is laid out
  anew by exchanges, is not counted."""
  rows, G = 32, 4
  with tiny_job.make(mesh) as job:
    compiled = measured.compile_sampler(job, rows)
    shape = estimate.find_shape(job, job.sampling_mesh)
    own = rows // job.sampling_shards
  decode = work.decode_work(shape, own, 1).link_bytes
  counted = {
    estimate.ADMIT: work.prefill_work(shape, own // G, 1).link_bytes,
    estimate.DECODE: decode / (shape.completion_len - 1),  # a turn of its loop
  }
  for name, size in counted.items():
    moved = compiled[name].link_bytes
    assert moved['all-reduce'] + moved['all-gather'] == size, name
