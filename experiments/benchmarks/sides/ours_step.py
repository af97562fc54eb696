"""Our optimizer steps, as a side of experiments/benchmarks/learner.py."""

import sys

import jax

from dash_jax import sharding
from dash_jax.learning import learner, optim
from dash_jax.runs import compiles
from experiments.benchmarks import step, workloads
from experiments.benchmarks.sides import protocol


def make(raw, turns, warmup, minibatch_size, **unused_options):
  workload = workloads.read(sys.argv[1])
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  jax.set_mesh(mesh)
  optimizer = optim.make_optimizer(workload.optim)
  params = workloads.make_params(workload)
  sampled_by = step.make_sampler(workload, params)
  state = learner.init_state(params, optimizer)
  step.compile_learner(workload, state, minibatch_size)
  prompts = workloads.make_prompts(workload, warmup + turns)

  def take_step(turn):
    nonlocal state
    num_programs = compiles.count()
    state, figures = step.take_step(
      workload,
      sampled_by,
      optimizer,
      state,
      prompts[turn + warmup],
      minibatch_size,
    )
    return figures | {'compiles': compiles.count() - num_programs}

  return take_step, {'dash_jax': f'jax {jax.__version__}'}


if __name__ == '__main__':
  protocol.serve(make)
