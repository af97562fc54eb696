"""Our sampler, as a side of experiments/benchmarks/sampler.py."""

import sys

import jax

from dash_jax import sharding
from experiments.benchmarks import step, workloads
from experiments.benchmarks.sides import protocol


def make(raw, num_prompts, warmup, **unused_options):
  workload = workloads.read(sys.argv[1])
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  jax.set_mesh(mesh)
  params = workloads.make_params(workload)
  made = step.make_sampler(workload, params, num_prompts)
  prompts = workloads.fill_prompts(protocol.draw_prompts(raw, num_prompts))

  def sample(turn):
    key = jax.random.key(turn + 100)
    rows = made.sample(params, prompts, key, workload.decoding)
    return {'tokens': int(rows.lengths.sum())}

  return sample, {'dash_jax': f'jax {jax.__version__}'}


if __name__ == '__main__':
  protocol.serve(make)
