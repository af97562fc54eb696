"""Times the learner at several shares of kept rows.

    python -m experiments.benchmarks.kept_rows WORKLOAD.json
        [--steps=5] [--minibatch_size=16] [--out=FILE.json]

  1. The workload's rows (workloads.py) are sampled once.
  2. Of its groups all, three quarters, a half, a quarter and none are kept, in
     turns, so that what disturbs the machine disturbs every share.
  3. Prints a line a share: seconds of the update, way to the device included.

The same compiled program serves every share.
"""

import argparse
import json
import time

import jax
import numpy as np

from dash_jax import sharding
from dash_jax.learning import advantages, learner, optim
from dash_jax.runs import compiles
from experiments.benchmarks import step, workloads

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)


def run(path: str, num_steps: int, minibatch_size: int) -> dict:
  """Returns a dict for JSON; its `shares` has a line for each of SHARES."""
  workload = workloads.read(path)
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    optimizer = optim.make_optimizer(workload.optim)
    state = learner.init_state(workloads.make_params(workload), optimizer)
    (tokens,) = workloads.make_prompts(workload, 1)
    sampled_by = step.make_sampler(workload, state.params)
    rows = step.sample_rows(workload, sampled_by, state, tokens)
    gain = advantages.find_advantages(
      workloads.fraction_even(rows.tokens, rows.mask)
    )
    Q, G = gain.shape
    minibatch_size = min(minibatch_size, Q * G)
    kept = [round(share * Q) for share in SHARES]
    seconds = [[] for _ in SHARES]
    for i in range(num_steps + 1):
      if i == 1:  # the first turn compiles
        num_programs = compiles.count()
      for groups, found in zip(kept, seconds, strict=True):
        keep = np.broadcast_to(np.arange(Q)[:, None] < groups, (Q, G))
        start = time.perf_counter()
        state, _ = step.learn(
          workload, optimizer, state, rows, gain, keep, minibatch_size
        )
        if i:
          found.append(time.perf_counter() - start)
  return {
    'workload': workload.name,
    'minibatch_size': minibatch_size,
    'versions': step.versions(),
    'compiles_while_timed': compiles.count() - num_programs,
    'shares': [
      {'kept_rows': groups * G, 'rows': Q * G, 'learn_s': step.summarize(found)}
      for groups, found in zip(kept, seconds, strict=True)
    ],
  }


def make_table(result: dict) -> str:
  """Returns the result as text, a line a share."""
  whole = result['shares'][0]['learn_s']['median']
  lines = ["rows kept      learning, s: median [min, max]   of all rows' time"]
  for share in result['shares']:
    s = share['learn_s']
    lines.append(
      f'{share["kept_rows"]:4} of {share["rows"]:4}   '
      f'{s["median"]:.3f} [{s["min"]:.3f}, {s["max"]:.3f}]'.ljust(36)
      + f'{s["median"] / whole:.0%}'.rjust(12)
    )
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description='Times the learner at several shares of kept rows.'
  )
  parser.add_argument('workload', metavar='WORKLOAD.json')
  parser.add_argument('--steps', type=int, default=5, help='timed turns')
  parser.add_argument('--minibatch_size', type=int, default=16)
  parser.add_argument('--out', help='JSON file to write')
  args = parser.parse_args(argv)
  for name in ('steps', 'minibatch_size'):
    if getattr(args, name) < 1:
      parser.error(f'--{name}={getattr(args, name)}: must be 1 or more')
  result = run(args.workload, args.steps, args.minibatch_size)
  print(make_table(result))
  if args.out:
    with open(args.out, 'w') as file:
      json.dump(result, file, indent=1)


if __name__ == '__main__':
  main()
