"""Our sampler, as a side of experiments/benchmarks/sampler.py."""

import sys

import jax
import numpy as np

from dash_jax import batches, sharding
from dash_jax.sampling import sampler
from experiments.benchmarks import workloads
from experiments.benchmarks.sides import protocol


def make(raw, num_prompts, warmup, **unused_options):
  workload = workloads.read(sys.argv[1])
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  jax.set_mesh(mesh)
  params = workloads.make_params(workload)
  made = sampler.Sampler(
    workload.model,
    params,
    num_prompts=num_prompts,
    group_size=workload.group_size,
    max_prompt_len=workload.prompt_len,
    max_completion_len=workload.completion_len,
  )
  tokens = protocol.draw_prompts(raw, num_prompts)
  prompts = batches.PromptBatch(
    tokens,
    np.full(num_prompts, workload.prompt_len, np.int32),
    np.arange(num_prompts, dtype=np.int32),
  )

  def sample(turn):
    key = jax.random.key(turn + 100)
    return made.sample(params, prompts, key, workload.decoding).lengths.sum()

  return sample, {'dash_jax': f'jax {jax.__version__}'}


if __name__ == '__main__':
  protocol.serve(make)
