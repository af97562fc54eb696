"""What a study is made of: commands, each run once for every seed.

A `Part` is a model on a task, and its jobs in the order in which they run. The
job NAME of seed 0 has the folder OUT/PART/seed_0/NAME. In flags and values of
fields {seed} is the seed and {folder} the folder of its jobs, OUT/PART/seed_0.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

MAIN = 'dash_jax.main'
WITHOUT = 'experiments.study.without'
# These go on where they were stopped; others begin anew, in an empty folder.
RESUMING = (MAIN, WITHOUT)


@dataclasses.dataclass(frozen=True)
class Job:
  """One command.

  Attributes:
    name: its folder in the seed's.
    module: the command.
    config: the file of --config; '' for a command without.
    fields: of the config that are changed: 'section.field', or a field of
      `algorithm` by its name alone.
    shared: the same, of most jobs of the part; `fields` go before.
    flags: of the command, without its folder.
    needs: jobs of the same seed that it reads.
    questions: of comparisons.QUESTIONS that it helps to answer.
    replies: that it samples to learn from, or rows that it imitates.
    is_short: of so few steps that it has no curve.
    is_timed: a claim is about its seconds, so that nothing runs beside it.
    seconds: on the suite's hardware; None where nobody has measured it.
  """

  name: str
  module: str = MAIN
  config: str = ''
  fields: dict = dataclasses.field(default_factory=dict)
  shared: dict = dataclasses.field(default_factory=dict)
  flags: tuple[str, ...] = ()
  needs: tuple[str, ...] = ()
  questions: tuple[int, ...] = ()
  replies: int = 0
  is_short: bool = False
  is_timed: bool = False
  seconds: float | None = None

  @property
  def asks(self) -> tuple[str, ...]:
    """The runs whose newest checkpoint it reads."""
    start = '--workdir={folder}/'
    return tuple(
      flag.removeprefix(start) for flag in self.flags if flag.startswith(start)
    )


@dataclasses.dataclass(frozen=True)
class Part:
  """A model on a task.

  Attributes:
    name: its folder in the study's.
    jobs: in an order in which what is needed comes before.
    note: what one must know of the task to read the findings, or ''.
  """

  name: str
  jobs: tuple[Job, ...]
  note: str = ''


def name_fields(fields: dict) -> dict:
  """Returns them by 'section.field'."""
  return {
    name if '.' in name else f'algorithm.{name}': value
    for name, value in fields.items()
  }


def show_fields(fields: dict) -> list[str]:
  """Returns 'section.field=value' of each."""
  return [f'{name}={value}' for name, value in name_fields(fields).items()]


def find_folder(out: pathlib.Path, part: Part, seed: int) -> pathlib.Path:
  """Returns where the jobs of a seed are."""
  return out / part.name / f'seed_{seed}'


def make_command(
  job: Job, seed: int, folder: pathlib.Path | str, changes: Sequence[str] = ()
) -> list[str]:
  """Returns a job's arguments, for Python.

  Args:
    job: the job.
    seed: whose.
    folder: `find_folder`'s.
    changes: --config.section.field=value of every job, which its own override.
  """
  place = '--workdir=' if job.module in RESUMING else '--out='
  words = [f'{place}{{folder}}/{job.name}', *job.flags]
  if job.config:
    own = show_fields(job.shared | job.fields)
    words = [f'--config={job.config}', *words, '--config.seed={seed}']
    words += [*changes, *(f'--config.{field}' for field in own)]
  # Not str.format: a field may hold braces of its own.
  return ['-m', job.module] + [
    word.replace('{seed}', str(seed)).replace('{folder}', str(folder))
    for word in words
  ]
