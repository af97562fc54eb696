"""Times our optimizer step on workloads that other programs run too.

    python -m experiments.benchmarks.step WORKLOAD.json [MORE.json ..]
        [--steps=5] [--warmup=1] [--minibatch_size=16] [--out=FILE.json]

  1. A workload file gives the model's shape and the step's sizes
     (workloads.py); weights are random, prompts and reward are the file's.
  2. Each step samples, scores, filters, cuts and learns as dash_jax/steps.py
     does, the way to the host and back included.
  3. Prints a table; --out gets JSON with every step's figures. Several files
     run one after another, each in a process of its own, so that compile time
     and peak memory are theirs.

Wall seconds mean something on a quiet machine only; CPU seconds count every
thread of the process, spinning ones too.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import batches, sharding
from dash_jax.learning import (
  advantages,
  filtering,
  learner,
  losses,
  optim,
  packing,
)
from dash_jax.runs import compiles
from dash_jax.sampling import sampler
from experiments.benchmarks import workloads

# Settings of the environment that change speed, for a fair comparison.
_ENVIRONMENT = ('XLA_FLAGS', 'GLIBC_TUNABLES', 'LD_PRELOAD', 'JAX_PLATFORMS')
_MIB = 2**20


def take_step(
  workload: workloads.Workload,
  sampled_by: sampler.Sampler,
  optimizer,
  state: batches.TrainState,
  tokens: np.ndarray,
  minibatch_size: int,
) -> tuple[batches.TrainState, dict]:
  """Takes one optimizer step as the workload states it.

  Args:
    workload: sizes and objective.
    sampled_by: its sampler.
    optimizer: its optimizer.
    state: donated.
    tokens: i32[Q, P], the prompts, all full.
    minibatch_size: rows a minibatch of the learner.

  Returns:
    The new state and the step's seconds, CPU seconds and token counts.
  """
  cpu_start, start = time.process_time(), time.perf_counter()
  rows = sample_rows(workload, sampled_by, state, tokens)
  cpu_sampled, sampled_at = time.process_time(), time.perf_counter()

  rewards = workloads.fraction_even(rows.tokens, rows.mask)
  gain = advantages.find_advantages(rewards)
  keep = filtering.select(gain, 0.0)
  lengths = rows.lengths
  scored_at = time.perf_counter()

  state, values = learn(
    workload, optimizer, state, rows, gain, keep, minibatch_size
  )
  cpu_end, end = time.process_time(), time.perf_counter()
  return state, {
    'step_s': end - start,
    'sample_s': sampled_at - start,
    'reward_s': scored_at - sampled_at,
    'learn_s': end - scored_at,
    'cpu_s': cpu_end - cpu_start,
    'sample_cpu_s': cpu_sampled - cpu_start,
    'learn_cpu_s': cpu_end - cpu_sampled,
    'sampled_tokens': int(lengths.sum()),
    'trained_tokens': int(lengths[keep].sum()),
    'computed_tokens': int(values['computed_tokens']),
    'sampled_tokens_per_s': lengths.sum() / (sampled_at - start),
    'trained_tokens_per_s': lengths[keep].sum() / (end - scored_at),
    'kept_rows': int(keep.sum()),
    'completion_len_mean': float(lengths.mean()),
    'loss': values['loss'],
    'logprob_gap': values['logprob_gap'],
  }


def make_sampler(
  workload: workloads.Workload, params: dict, num_prompts: int | None = None
) -> sampler.Sampler:
  """Returns the compiled sampler of a workload, for its number of prompts or
  another."""
  return sampler.Sampler(
    workload.model,
    params,
    num_prompts=num_prompts or workload.num_questions,
    group_size=workload.group_size,
    max_prompt_len=workload.prompt_len,
    max_completion_len=workload.completion_len,
  )


def sample_rows(
  workload: workloads.Workload,
  sampled_by: sampler.Sampler,
  state: batches.TrainState,
  tokens: np.ndarray,
) -> batches.Rollouts:
  """Returns the rows that a step samples."""
  step = int(state.step)
  return sampled_by.sample(
    state.params,
    workloads.fill_prompts(tokens),
    jax.random.fold_in(jax.random.key(workload.seed), step),
    workload.decoding,
    policy_step=step,
  )


def learn(
  workload: workloads.Workload,
  optimizer,
  state: batches.TrainState,
  rows: batches.Rollouts,
  gain: np.ndarray,
  keep: np.ndarray,
  minibatch_size: int,
) -> tuple[batches.TrainState, dict]:
  """Learns from the rows to keep, and waits for the new state.

  Returns:
    The state, whose old one is donated, and the learner's metrics, with
    `computed_tokens`: slots of its minibatches, filled or not.
  """
  weight, counted = losses.row_weights(
    'sequence', rows.lengths, workload.completion_len
  )
  minibatches = packing.make_minibatches(
    rows,
    gain,
    keep,
    weight / counted.sum(),
    _make_room(workload, minibatch_size),
  )
  state, values = learner.update(
    state,
    minibatches,
    workload.decoding,
    model=workload.model,
    optimizer=optimizer,
    objective=_objective(workload),
  )
  jax.block_until_ready(state)
  values['computed_tokens'] = sum(m.slots.size for m in minibatches)
  return state, {name: float(x) for name, x in values.items()}


def compile_learner(
  workload: workloads.Workload, state: batches.TrainState, minibatch_size: int
) -> None:
  """Compiles the gradient for every shape of minibatch that `learn` makes."""
  learner.sum_gradients(
    state,
    packing.make_empty(_make_room(workload, minibatch_size)),
    workload.decoding,
    model=workload.model,
    objective=_objective(workload),
  )


def _make_room(workload, minibatch_size):
  return packing.make_room(
    minibatch_size,
    workload.group_size,
    workload.prompt_len,
    workload.completion_len,
  )


def _objective(workload):
  return losses.Objective(clip_low=workload.clip, clip_high=workload.clip)


def run(path: str, num_steps: int, num_warmup: int, minibatch_size: int):
  """Runs one workload file.

  Returns:
    A dict for JSON: settings, versions, `steps` (the timed ones), and for each
    of their figures a `summary` of median, min and max.
  """
  workload = workloads.read(path)
  num_rows = workload.num_questions * workload.group_size
  minibatch_size = min(minibatch_size, num_rows)
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    optimizer = optim.make_optimizer(workload.optim)
    state = learner.init_state(workloads.make_params(workload), optimizer)
    steps, num_programs, compiled_s = [], 0, compiles.total_s()
    sampled_by = make_sampler(workload, state.params)
    all_prompts = workloads.make_prompts(workload, num_warmup + num_steps)
    for i, tokens in enumerate(all_prompts):
      if i == num_warmup:
        num_programs = compiles.count()
      state, values = take_step(
        workload, sampled_by, optimizer, state, tokens, minibatch_size
      )
      steps.append(values)
  timed = steps[num_warmup:]
  return {
    'workload': workload.name,
    'settings': {
      'minibatch_size': minibatch_size,
      'rows': num_rows,
      'dtype': jnp.dtype(workload.model.dtype).name,
      'remat': workload.model.remat,
      'steps': num_steps,
      'warmup': num_warmup,
      'cores': len(os.sched_getaffinity(0)),
      'environment': environment(),
    },
    'versions': versions(),
    'compile_s': compiles.total_s() - compiled_s,
    'compiles_while_timed': compiles.count() - num_programs,
    'peak_memory_bytes': peak_memory_bytes(),
    'summary': {name: summarize([s[name] for s in timed]) for name in timed[0]},
    'steps': timed,
  }


def environment() -> dict:
  """Returns the settings of the environment that change speed."""
  return {name: os.environ.get(name, '') for name in _ENVIRONMENT}


def summarize(values: list[float]) -> dict:
  """Returns median, min and max."""
  return {
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
  }


def peak_memory_bytes() -> int:
  """Returns the device's peak, or on CPU this process's peak resident set."""
  device = jax.devices()[0]
  if device.platform == 'cpu':
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
  return device.memory_stats()['peak_bytes_in_use']


def versions() -> dict:
  """Returns what ran: jax, python and the device."""
  device = jax.devices()[0]
  return {
    'jax': jax.__version__,
    'python': platform.python_version(),
    'device': f'{device.platform} {device.device_kind}',
  }


def make_table(results: list[dict]) -> str:
  """Returns the results as text, one column a workload."""

  def spread(name, digits):
    def show(result):
      s = result['summary'][name]
      low, high = s['min'], s['max']
      return f'{s["median"]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]'

    return show

  lines = {
    'optimizer step, s': spread('step_s', 3),
    'sampling, s': spread('sample_s', 3),
    'learning, s': spread('learn_s', 3),
    'sampling, tokens/s': spread('sampled_tokens_per_s', 0),
    'learning, tokens/s': spread('trained_tokens_per_s', 0),
    'CPU seconds a step': spread('cpu_s', 2),
    'of them sampling': spread('sample_cpu_s', 2),
    'of them learning': spread('learn_cpu_s', 2),
    'mean completion, tokens': spread('completion_len_mean', 1),
    'rows kept': spread('kept_rows', 0),
    'compiling, s': lambda r: f'{r["compile_s"]:.1f}',
    'compiles while timed': lambda r: str(r['compiles_while_timed']),
    'peak memory, MiB': lambda r: f'{r["peak_memory_bytes"] / _MIB:.0f}',
    'minibatch_size': lambda r: (
      f'{r["settings"]["minibatch_size"]} of {r["settings"]["rows"]} rows'
    ),
  }
  header = ['median [min, max]', *(r['workload'] for r in results)]
  table = [header, *([k, *map(f, results)] for k, f in lines.items())]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  text = [
    '  '.join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
    for row in table
  ]
  first = results[0]
  fixed = first['versions'] | {
    'cores': first['settings']['cores'],
    'timed steps': first['settings']['steps'],
    **{k: v for k, v in first['settings']['environment'].items() if v},
  }
  text.append(', '.join(f'{k} {v}' for k, v in fixed.items()))
  return '\n'.join(text)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description='Times our optimizer step on workload files.'
  )
  parser.add_argument('workloads', nargs='+', metavar='WORKLOAD.json')
  parser.add_argument('--steps', type=int, default=5, help='timed steps')
  parser.add_argument('--warmup', type=int, default=1, help='steps before them')
  parser.add_argument(
    '--minibatch_size', type=int, default=16, help="rows; at most the step's"
  )
  parser.add_argument('--out', help='JSON file to write')
  args = parser.parse_args(argv)
  for name, least in ('steps', 1), ('warmup', 0), ('minibatch_size', 1):
    if getattr(args, name) < least:
      parser.error(f'--{name}={getattr(args, name)}: must be {least} or more')
  options = (args.steps, args.warmup, args.minibatch_size)
  if len(args.workloads) == 1:
    results = [run(args.workloads[0], *options)]
  else:
    with concurrent.futures.ProcessPoolExecutor(
      max_workers=1,
      mp_context=multiprocessing.get_context('spawn'),
      max_tasks_per_child=1,
    ) as pool:
      tasks = [pool.submit(run, path, *options) for path in args.workloads]
      results = [task.result() for task in tasks]
  print(make_table(results))
  if args.out:
    with open(args.out, 'w') as file:
      json.dump(results, file, indent=1)


if __name__ == '__main__':
  main()
