"""What a run needs and how long a step takes at least, before it runs.

    python -m dash_jax.plan --config=experiments/X.py \\
        [--topology=v5e:4x4] [--compile | --nocompile] \\
        [--config.section.field=value ..]

  1. The run's own programs are described for the devices of --topology (those
     that are here, without it): v4, v5e, v5p, v6e, tpu7x, h100, h200 or cpu, and
     how many. No weights are made or read, no data, no tokenizer.
  2. Memory is estimated. Models of up to a billion weights are compiled too, as
     are others with --compile: what the compiler says then takes the estimate's
     place. TPUs need no TPU, but their compiler: pip install -e '.[tpu]'.
  3. Of each program's least work, and what a device can do, follow the least
     seconds of a step in which every row has all its tokens and is learned from.
     Scoring, evaluation and what the host does are not in them.
  4. If something does not fit, the end says what would.

--topology=A,B,.. prints a line for each. Exit code 1: it does not fit.
"""

from absl import flags

from dash_jax import commands
from dash_jax.planning import devices, plans, tables

_SMALL = 1_000_000_000  # weights

DOES_NOT_FIT = 1


def main(config, workdir):
  del workdir
  topologies = flags.FLAGS.topology
  if topologies:
    devices.prepare(topologies)
  if len(topologies) > 1:
    return _compare(config, topologies)
  found = devices.find(','.join(topologies))
  plan = plans.make(config, found, _make_choice(config, found), report=_report)
  print('\n'.join(tables.describe(plan)))
  if plan.all_fit:
    return 0
  print('\n'.join(tables.advise(plan, plans.suggest(plan, config))))
  return DOES_NOT_FIT


def _compare(config, topologies):
  """Prints a line for each topology."""
  made = []
  for topology in topologies:
    found = devices.find(topology)
    plan = plans.make(config, found, _make_choice(config, found))
    made.append((topology, plan))
  print('\n'.join(tables.compare(made)))
  return 0 if all(plan.all_fit for _, plan in made) else DOES_NOT_FIT


def _make_choice(config, found):
  """Returns whether to compile a model of so many weights, as a function."""
  asked = flags.FLAGS.compile
  # What compiles without TPUs numbers the devices of a program from 0.
  is_split = found.kind.platform == 'tpu' and config.mesh.sampler_devices
  if asked and is_split:
    raise ValueError(
      f'--compile: programs for a part of the devices of {found.name} cannot be'
      ' compiled without them: leave it out, or take mesh.sampler_devices=0'
    )
  if asked and not found.compiles:
    raise ValueError(
      f'--compile: there is no compiler for {found.name} here; for TPUs'
      " pip install -e '.[tpu]' brings it, and others compile where they are"
    )

  def compiles(num_weights):
    if asked is None:
      return found.compiles and not is_split and num_weights <= _SMALL
    return asked

  return compiles


def _report(line):
  print(f'.. {line}', flush=True)


def _define_flags():
  flags.DEFINE_list(
    'topology', [], 'Devices to plan for, as v5e:4x4; else those that are here.'
  )
  flags.DEFINE_bool(
    'compile', None, 'Whether to compile; else if it is a small model.'
  )


if __name__ == '__main__':
  _define_flags()
  commands.run(main, needs_workdir=False)
