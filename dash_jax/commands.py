"""What every command shares: its flags, and one line where the input is bad.

    python -m dash_jax.COMMAND --config=FILE.py --workdir=DIR \\
        [--config.section.field=value ..]

  1. `run` reads the flags. A field that no config has, a value of another type
     and a file that is not there end here.
  2. The config is checked, and the command is called with it.
  3. What a command raises about its input becomes one line and exit code 2, a
     failure that explains itself one line and 1; --verbosity=0 shows where it was
     raised.
"""

import sys
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from dash_jax import checks
from dash_jax import config as config_lib

BAD_INPUT = 2
FAILED = 1
INPUT_ERRORS = (ValueError, OSError, ModuleNotFoundError)


class FailedError(RuntimeError):
  """What a command was at has failed, and the message says all that is to know."""


def run(
  command: Callable[[ml_collections.ConfigDict, str | None], int],
  *,
  needs_workdir: bool = True,
) -> None:
  """Runs `command(config, workdir)` and exits with the code that it returns.

  Args:
    command: gets the checked config. A ValueError or OSError that it raises,
      or a missing package, is about the input: exits with `BAD_INPUT`. What
      goes wrong later it must raise as something else.
    needs_workdir: whether it has a use for a workdir; else it gets None.
  """
  config = config_flags.DEFINE_config_file(
    'config',
    None,
    'A file with get_config(), such as experiments/quickstart.py.',
  )
  required, workdir = ['config'], None
  if needs_workdir:
    workdir = flags.DEFINE_string('workdir', None, "The run's folder.")
    required.append('workdir')
  flags.mark_flags_as_required(required)

  def main(argv):
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Orbax has much to say
    try:
      if len(argv) > 1:
        raise ValueError(
          f'unexpected argument {argv[1]!r}: write --config.section.field=value'
        )
      checks.check(config.value)
      return command(config.value, workdir.value if needs_workdir else None)
    except INPUT_ERRORS as error:
      logging.info('This was raised:', exc_info=error)
      _refuse(error)
    except FailedError as error:
      logging.info('This was raised:', exc_info=error)
      _end(error, FAILED)

  app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    _check_names(argv)
    return flags.FLAGS(argv)
  except (flags.Error, FileNotFoundError) as error:
    _refuse(error)


def _check_names(argv):
  """Names what ml_collections would report with a traceback."""
  known = config_lib.default()
  for arg in argv[1:]:
    name, _, value = arg.lstrip('-').partition('=')
    if name == 'config' and value:
      # A colon hands the rest to get_config.
      checks.check_file('--config', value.partition(':')[0])
    if not arg.startswith('-') or not name.startswith('config.'):
      continue
    section, _, field = name.removeprefix('config.').partition('.')
    if section not in known:
      raise flags.Error(
        f'--{name}: sections of a config are {", ".join(known)}'
      )
    if section != 'seed' and field not in known[section]:
      raise flags.Error(
        f'--{name}: fields of {section} are {", ".join(known[section])}'
      )


def _refuse(error):
  _end(error, BAD_INPUT)


def _end(error, code):
  print(f'dash_jax: {error}', file=sys.stderr)
  sys.exit(code)
