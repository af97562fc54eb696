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

import os
import pathlib
import sys
import traceback
from collections.abc import Callable

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from dash_jax import checks, refusals
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
  try:
    config = config_flags.DEFINE_config_file(
      'config',
      None,
      'A file with get_config(), such as experiments/quickstart.py.',
    )
  except flags.Error as error:  # reads the files of --flagfile already
    refuse(error)
  _require('config', 'a file with get_config(), as experiments/quickstart.py')
  workdir = None
  if needs_workdir:
    workdir = flags.DEFINE_string('workdir', None, "The run's folder.")
    _require('workdir', "the run's folder, as runs/mine")

  def main(argv):
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)  # Orbax has much to say
    try:
      if len(argv) > 1:
        raise ValueError(
          f'unexpected argument {argv[1]!r}: write --config.section.field=value'
        )
      checks.check(config.value)
      if needs_workdir:
        _check_workdir(workdir.value)
      return command(config.value, workdir.value if needs_workdir else None)
    except BrokenPipeError:
      raise  # nobody reads what is printed: no fault of the input
    except INPUT_ERRORS as error:
      logging.info('This was raised:', exc_info=error)
      refuse(error)
    except FailedError as error:
      logging.info('This was raised:', exc_info=error)
      _end(error, FAILED)

  app.run(main, flags_parser=_parse)


def _check_workdir(path):
  there = pathlib.Path(path).absolute()
  while not there.exists():
    there = there.parent
  if not there.is_dir():
    raise ValueError(f'--workdir={path!r}: {there} is a file, and no folder')


def _require(name, what):
  flags.register_validator(name, bool, f'must name {what}')


def _parse(argv: list[str]) -> list[str]:
  try:
    _check_names(argv)
    return flags.FLAGS(argv)
  except (flags.Error, FileNotFoundError) as error:
    refuse(_join_lines(error))
  except Exception as error:  # of the file, which may raise anything
    given = [arg for arg in argv if arg.lstrip('-').startswith('config=')]
    file = given[-1] if given else '--config'
    refuse(f'{file}: get_config() fails{_find_line(error, file)}: {error!r}')


def _join_lines(error) -> str:
  """Returns an error's text on one line, without the traceback in it, which
  ml_collections adds where get_config refuses its argument."""
  text, _, trace = str(error).partition('Traceback')
  lines = [*text.splitlines(), *trace.splitlines()[-1:]]
  return '; '.join(line.strip() for line in lines if line.strip())


def _find_line(error, file) -> str:
  """Returns where in a file an error was raised, '' if it was not there."""
  for frame in reversed(traceback.extract_tb(error.__traceback__)):
    if frame.filename in file:
      return f' at line {frame.lineno}'
  return ''


def _check_names(argv):
  """Names what ml_collections would report with a traceback."""
  known = config_lib.default()
  for arg in argv[1:]:
    name, _, value = arg.lstrip('-').partition('=')
    if name == 'config' and '=' in arg:
      # A colon hands the rest to get_config.
      path = value.partition(':')[0]
      refusals.check_file('--config', path)
      if not os.path.isfile(path):
        raise flags.Error(f'--config={path!r}: must be a Python file')
    if not arg.startswith('-') or not name.startswith('config.'):
      continue
    section, _, field = name.removeprefix('config.').partition('.')
    if section not in known:
      raise flags.Error(
        f'--{name}: sections of a config are {", ".join(known)}'
      )
    if section == 'seed' and field:
      raise flags.Error(f'--{name}: seed has no fields: write --config.seed=0')
    if section != 'seed' and field not in known[section]:
      raise flags.Error(
        f'--{name}: fields of {section} are {", ".join(known[section])}'
      )


def refuse(error: object):
  """Ends the process, as one whose input is bad: says so in a line."""
  _end(error, BAD_INPUT)


def _end(error, code):
  print(f'dash_jax: {error}', file=sys.stderr)
  sys.exit(code)
