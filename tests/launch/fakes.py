"""Programs that stand for a cloud's: they log how they were called, and then may do
a part of what the real ones do with a command that they are given."""

import pathlib
import shutil
import subprocess

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'
_BASH = shutil.which('bash')

# A word that no shell on its way may read.
HOSTILE = (
  '--config.data.template={question}\t"$(touch gone)"\n$$ `x` it\'s \\ *'
)

# A file a call: the program's name and its words, each ended by a NUL.
_LOGS = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" > "$FAKES/calls/$EPOCHREALTIME $$"
"""


class Fakes:
  """Programs in a folder that is first on the PATH.

  Attributes:
    folder: FAKES in their environment, and what scripts start in.
  """

  def __init__(self, folder: pathlib.Path, **programs: str):
    """Makes programs by their names, of what each does after it is logged."""
    self.folder = folder / 'fakes'
    (self.folder / 'calls').mkdir(parents=True)
    for name, text in programs.items():
      self.add(f'bin/{name}', text)

  def add(self, path: str, text: str = '') -> None:
    """Makes one more, at a path in the folder."""
    path = self.folder / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_LOGS + text)
    path.chmod(0o755)

  def launch(self, script, *args, path=None, **environment):
    """Runs a script of launch/ to its end; returns the process."""
    if path is None:
      path = f'{self.folder / "bin"}:/usr/bin:/bin'
    return subprocess.run(
      [_BASH, LAUNCH / script, *args],
      env={'PATH': path, 'FAKES': str(self.folder), **environment},
      cwd=self.folder,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )

  def calls(self, *programs: str) -> list[list[str]]:
    """Returns the words of each call so far of `programs`, or of all."""
    logs = sorted((self.folder / 'calls').iterdir())
    calls = [path.read_text().split('\0')[:-1] for path in logs]
    return [c for c in calls if not programs or c[0] in programs]


def read_commands(printed: str) -> list[list[str]]:
  """Returns the words of each line, as bash reads them."""
  commands = []
  for line in printed.splitlines():
    done = subprocess.run(
      [_BASH, '-c', f'printf "%s\\0" {line}'],
      capture_output=True,
      text=True,
      check=True,
    )
    commands.append(done.stdout.split('\0')[:-1])
  return commands
