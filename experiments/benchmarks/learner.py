"""Times our optimizer step beside others on workload files, and the parts of
our learner.

    python -m experiments.benchmarks.learner WORKLOAD.json [MORE.json ..]
        [--turns=5] [--trl=PYTHON] [--switches=static] [--tunix=PYTHON]
        [--minibatch_size=16] [--out=FILE.json]

  1. Whole steps, sampling included, of ours, of TRL's GRPOTrainer and of
     Tunix's GRPOLearner. Every side is a process of its own (sides/), run by
     the Python that has it installed, in this process's environment; they take
     turns until each has had --turns clean ones, twice as many at most. A turn
     is clean if no other process had an eighth of a core and nothing was
     compiled. TRL is one more side for each of --switches: `static` cache,
     continuous `batching`, or its own `defaults`, bfloat16 and gradient
     checkpointing.
  2. Learning is all of a step that is not sampling. The tokens that a learner
     computes, padding included, tell work that is not done from speed.
  3. Ours alone (learner_parts.py): the update with prompts shared and not, at
     several shares of kept rows, and the memory of its program.

Wall seconds mean something on a quiet machine only.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile

import jax

from dash_jax import sharding
from experiments.benchmarks import folders, learner_parts, step, workloads
from experiments.benchmarks import turns as turns_lib

_SWITCHES = ('static', 'batching', 'defaults')  # of sides/trl_step.py

# The figures of a step that are compared.
_COMPARED = (
  'step_s', 'sample_s', 'learn_s', 'cpu_s', 'sample_cpu_s', 'learn_cpu_s',
  'sampled_tokens', 'trained_tokens', 'computed_tokens', 'learn_s_per_token',
)  # fmt: skip


def compare(
  path: str,
  turns: int,
  minibatch_size: int,
  pythons: dict,
  switches: list[str],
) -> dict:
  """Returns the figures of every side on one workload, ours first.

  Args:
    path: the workload file.
    turns: clean steps of each side.
    minibatch_size: full rows of our learner's minibatch.
    pythons: {'trl' or 'tunix': its Python, or ''}.
    switches: of _SWITCHES, one more side of TRL each.
  """
  workload = workloads.read(path)
  most = 2 * turns
  options = {'turns': most, 'minibatch_size': minibatch_size}
  with tempfile.TemporaryDirectory() as folder:
    ours = [sys.executable, '-m', 'experiments.benchmarks.sides.ours_step']
    commands = {'dash_jax': (ours, {})}
    if python := pythons['trl']:
      mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
      with jax.set_mesh(mesh):
        folders.write_model(pathlib.Path(folder), workload)
      run = [python, str(turns_lib.SIDES / 'trl_step.py')]
      for switch in '', *switches:
        name = f'trl, {switch}' if switch else 'trl'
        commands[name] = run, {'folder': folder, 'switch': switch}
    if python := pythons['tunix']:
      commands['tunix'] = [python, str(turns_lib.SIDES / 'tunix_step.py')], {}
    with turns_lib.start(commands, path, options) as sides:
      turns_lib.take(sides, turns, most)
  found = [_summarize(side) for side in sides]
  for side in found:
    side['of_ours'] = {
      name: side[name]['median'] / found[0][name]['median']
      for name in _COMPARED
    }
  return {
    'workload': workload.name,
    'rows': workload.num_questions * workload.group_size,
    'minibatch_size': minibatch_size,
    'environment': step.environment(),
    'sides': found,
  }


def _summarize(side: turns_lib.Side) -> dict:
  """Returns median, min and max of each figure over the clean turns, or if
  there are none, over all."""
  clean = side.clean_answers()
  turns = [_divide(answer) for answer in clean or side.answers]
  return {
    'side': side.name,
    'about': side.about,
    'clean_turns': len(clean),
    **{name: step.summarize([t[name] for t in turns]) for name in _COMPARED},
    'turns': side.answers,
  }


def _divide(answer):
  """Returns a step's seconds and tokens, its learning apart from sampling."""
  learn_s = answer['seconds'] - answer['sample_s']
  return answer | {
    'step_s': answer['seconds'],
    'learn_s': learn_s,
    'cpu_s': answer['cpu_seconds'],
    'learn_cpu_s': answer['cpu_seconds'] - answer['sample_cpu_s'],
    # Had all rows equal rewards, our learner computed nothing.
    'learn_s_per_token': learn_s / max(answer['computed_tokens'], 1),
  }


def make_table(result: dict) -> str:
  """Returns a comparison as text, a line a side."""
  shown = {
    'step, s': ('step_s', 3),
    'sampling': ('sample_s', 3),
    'learning': ('learn_s', 3),
    'CPU s': ('cpu_s', 2),
    'sampled': ('sampled_tokens', 0),
    'computed': ('computed_tokens', 0),
  }
  head = f'{result["workload"]}, {result["rows"]} rows'
  lines = [
    f'median, (x ours); computed: tokens of the learner, padding included\n'
    f'{head:22}'
    + ''.join(f'{title:>16}' for title in shown)
    + '   step [min, max]   clean turns'
  ]
  for side in result['sides']:
    values = (
      f'{side[name]["median"]:.{digits}f} ({side["of_ours"][name]:.2f})'
      for name, digits in shown.values()
    )
    spread = f'[{side["step_s"]["min"]:.3f}, {side["step_s"]["max"]:.3f}]'
    lines.append(
      f'  {side["side"]:20}'
      + ''.join(f'{value:>16}' for value in values)
      + f'{spread:>18}'
      + f'{side["clean_turns"]:>6} of {len(side["turns"])}'
    )
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description='Times our optimizer step beside others, and its parts.'
  )
  parser.add_argument('workloads', nargs='+', metavar='WORKLOAD.json')
  parser.add_argument('--turns', type=int, default=5, help='clean steps')
  parser.add_argument('--trl', default='', help='a Python that has trl')
  parser.add_argument(
    '--switches', default='static', help=f'of trl: {", ".join(_SWITCHES)}'
  )
  parser.add_argument('--tunix', default='', help='a Python that has tunix')
  parser.add_argument(
    '--minibatch_size', type=int, default=16, help="rows; at most the step's"
  )
  parser.add_argument('--out', help='JSON file to write')
  args = parser.parse_args(argv)
  for name in ('turns', 'minibatch_size'):
    if getattr(args, name) < 1:
      parser.error(f'--{name}={getattr(args, name)}: must be 1 or more')
  switches = args.switches.split(',') if args.switches else []
  for switch in switches:
    if switch not in _SWITCHES:
      parser.error(f'--switches={switch}: must be of {", ".join(_SWITCHES)}')
  results = []

  def keep(result, text):
    print(text, flush=True)
    results.append(result)
    if args.out:  # a run that is cut short keeps what it has
      pathlib.Path(args.out).write_text(json.dumps(results, indent=1))

  # Others use the device too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  pythons = {'trl': args.trl, 'tunix': args.tunix}
  for path in args.workloads:
    workload = workloads.read(path)
    size = min(
      args.minibatch_size, workload.num_questions * workload.group_size
    )
    result = compare(path, args.turns, size, pythons, switches)
    keep(result, make_table(result))
    for measure in (
      learner_parts.measure_sharing, learner_parts.measure_filtering,
    ):  # fmt: skip
      row = measure(workload, args.turns, size)
      keep(row, learner_parts.describe(row))
  row = learner_parts.measure_memory()
  keep(row, learner_parts.describe(row))
  keep(step.versions() | {'cores': len(os.sched_getaffinity(0))}, '')
  print(', '.join(f'{k} {v}' for k, v in results[-1].items()))


if __name__ == '__main__':
  main()
