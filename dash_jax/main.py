"""The entry point: trains what a config describes.

    python -m dash_jax.main --config=experiments/quickstart.py \\
        --workdir=runs/quickstart [--config.section.field=value ..]

The same command again goes on where the run was. Exit codes: 0 the run is
complete; 75 a signal stopped it after a checkpoint; 2 the input is bad.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dash_jax import assemble, train
from dash_jax import config as config_lib

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file with get_config(), such as experiments/quickstart.py.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run keeps its files.')

STOPPED = 75  # BSD's EX_TEMPFAIL: call again


def main(argv):
  if len(argv) > 1:
    sys.exit(f'unexpected argument {argv[1]!r}: options begin with --config.')
  config = _CONFIG.value
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax has much to say
  try:
    config_lib.check(config)
    with jax.set_mesh(assemble.connect(config)):
      finished = train.train(config, _WORKDIR.value)
  except (ValueError, FileNotFoundError) as error:
    print(f'dash_jax: {error}', file=sys.stderr)
    sys.exit(2)
  if not finished:
    print('Stopped after a checkpoint. The same command goes on from there.')
    sys.exit(STOPPED)


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main)
