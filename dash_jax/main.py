"""The entry point: trains what a config describes.

    python -m dash_jax.main --config=experiments/quickstart.py \\
        --workdir=runs/quickstart [--config.section.field=value ..] \\
        [--profile=FIRST:LAST]

The same command again goes on where the run was. Exit codes: 0 the run is
complete; 75 a signal stopped it after a checkpoint; 69 a process of the job is
lost (runs/watch.py); 2 the input is bad.
"""

import jax
from absl import flags

from dash_jax import commands, meshes, train
from dash_jax.runs import signals, watch
from dash_jax.sampling import memory


def main(config, workdir, profile: str = ''):
  """Trains; `profile` is as --profile."""
  memory.share_heap()
  with (
    jax.set_mesh(meshes.connect(config)),
    watch.Watch(config.mesh.silent_s, config.mesh.stall_s),
  ):
    memory.keep_heap()
    finished = train.train(config, workdir, profile)
  if finished:
    return 0
  print('Stopped after a checkpoint. The same command goes on from there.')
  return signals.STOPPED


def _main(config, workdir):
  return main(config, workdir, flags.FLAGS.profile)


if __name__ == '__main__':
  flags.DEFINE_string(
    'profile', '', 'FIRST:LAST, steps to trace and to tell the time of.'
  )
  commands.run(_main)
