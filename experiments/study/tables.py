"""A study as text: its jobs and their cost, what it has found, and the page."""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Sequence

from dash_jax.reporting import page, workdirs
from dash_jax.runs import jsonl
from experiments.study import (
  algorithms,
  comparisons,
  curves,
  findings,
  jobs,
  run,
  sizes,
)


def list_jobs(
  title: str,
  turns: Sequence[run.Turn],
  record: run.Record,
  at_once: int = 1,
) -> str:
  """Returns a line for each job, and what all of them cost.

  Args:
    title: of the suite.
    turns: of `run.list_turns`.
    record: what is finished.
    at_once: as `run.run`'s.
  """
  by_job = {}
  for turn in turns:
    by_job.setdefault((turn.part.name, turn.job.name), []).append(turn)
  lines = [title, '']
  lines.append(
    f'{"part":17} {"job":24} {"answers":10} {"replies":>9} {"seconds":>8}'
    f' {"done":>5}  changes'
  )
  for (part, name), some in by_job.items():
    job = some[0].job
    seconds = record.estimate(some[:1])
    done = sum(turn.key in record.rows for turn in some)
    lines.append(
      f'{part:17} {name:24} {",".join(map(str, job.questions)):10}'
      f' {job.replies or "":>9}'
      f' {"?" if seconds is None else round(seconds):>8}'
      f' {f"{done}/{len(some)}":>5}  {_show_changes(job)}'
    )
  left = [turn for turn in turns if turn.key not in record.rows]
  num = len(run.split_cores(at_once))
  whole, rest = record.estimate(turns, num), record.estimate(left, num)
  lines += ['', f'{len(turns)} jobs, {len(left)} of them to go.']
  lines.append(
    'Nobody has measured what they take.'
    if whole is None
    else f'About {run.show_seconds(whole)} in all,'
    f' {run.show_seconds(rest)} to go.'
  )
  return '\n'.join(lines)


def _show_changes(job):
  what = [] if job.module in jobs.RESUMING else [job.module]
  return ' '.join([*what, *job.flags, *jobs.show_fields(job.fields)])


def make(
  suite: str,
  command: str,
  parts: Sequence[jobs.Part],
  out: pathlib.Path,
  seeds: Sequence[int],
  found: Sequence[findings.Finding],
) -> tuple[str, str]:
  """Returns what the finished runs say, as Markdown and as JSON.

  Args:
    suite: its name.
    command: that makes it.
    parts: of the suite.
    out: the study's folder.
    seeds: that count.
    found: of `find_all`.
  """
  lines = [
    f'`{command}`, seeds {", ".join(map(str, seeds))}.',
    '',
    _note(parts),
  ]
  if suite == 'algorithms':
    runs = run.read_runs(out, parts[0], seeds)
    lines.append('')
    lines.append(
      algorithms.make_table(runs, seeds) if 'start' in runs else 'No run yet.'
    )
  titled = {'The main claims': [row for row in found if row.is_main]} | {
    f'{number}. {question}': [row for row in found if row.question == number]
    for number, question in comparisons.QUESTIONS.items()
  }
  for title, rows in titled.items():
    if rows:
      lines += ['', f'### {title}', '', _HEAD, '|---|---|---|---|---|']
      lines += [_show_finding(row) for row in rows]
  rows = [dataclasses.asdict(row) | {'figure': row.figure} for row in found]
  return '\n'.join(lines) + '\n', json.dumps(rows, indent=1) + '\n'


def _note(parts):
  """Returns how to read the findings."""
  texts = (
    'Intervals are over seeds, and hold 95%: of many claims a few are decided'
    ' wrongly by chance. All seeds are asked the same held-out questions: that'
    ' others would have other answers is in no interval, but none on held-out'
    ' accuracy is narrower than one question either way. A difference of'
    f' accuracies that is surely less than {findings.MARGIN:g} points is taken to'
    ' be none; beyond that, two differ where the interval leaves out 0, and one'
    f" costs nothing where it stays above -{findings.MARGIN:g}. The paper's figures"
    ' have one seed.',
    *(f'{part.name}: {part.note}.' for part in parts if part.note),
  )
  return ' '.join(texts)


_HEAD = '| claim | model, task | figure, 95% interval | the paper | verdict |'


def _show_finding(row):
  shown = _show(row)
  over = f', {shown.interval_over}' if shown.interval_over else ''
  return (
    f'| {row.claim} | {row.part} | {shown.figure}{over} | {row.paper} |'
    f' {row.verdict} |'
  )


@dataclasses.dataclass(frozen=True)
class _Shown:
  """A finding as a row of the page, whose columns are these."""

  claim: str
  model_and_task: str
  figure: str
  interval_over: str
  the_paper: str
  verdict: str


def write_page(
  title: str,
  command: str,
  parts: Sequence[jobs.Part],
  out: pathlib.Path,
  seeds: Sequence[int],
  found: Sequence[findings.Finding],
  changes: Sequence[str] = (),
) -> pathlib.Path:
  """Writes a page of a study's findings and runs, a section for each question and
  part, and returns its path.

  Args:
    title: of the suite.
    command: that makes it.
    parts: of the suite.
    out: the study's folder.
    seeds: that count.
    found: of `find_all`.
    changes: as `jobs.make_command`'s.
  """
  record = run.Record(out)
  main = [_show(row) for row in found if row.is_main]
  sections = (
    [page.Section('The main claims', (), command, _note(parts), findings=main)]
    if main
    else []
  )
  for number, question in comparisons.QUESTIONS.items():
    for part in parts:
      rows = [r for r in found if (r.question, r.part) == (number, part.name)]
      if rows:
        turns = [
          turn
          for turn in run.list_turns([part], seeds)
          if number in turn.job.questions
          and turn.key in record.rows
          and not turn.job.is_short
        ]
        sections.append(
          page.Section(
            f'{number}. {question} ({part.name})',
            _make_lines(turns, out),
            command,
            more_figures=sizes.draw(_read_sizes(out, part, seeds))
            if number == 2
            else (),
            findings=[_show(row) for row in rows],
          )
        )
  sections.append(
    page.Section(
      f'The runs and their commands, of seed {seeds[0]}',
      (),
      command,
      findings=_list_commands(parts, out, seeds[0], changes),
    )
  )
  return page.write(out, f'Study: {title}', sections, command)


@dataclasses.dataclass(frozen=True)
class _Command:
  """How a job is run by hand, as a row of the page."""

  model_and_task: str
  job: str
  command: str


def _list_commands(parts, out, seed, changes):
  """Returns the rows of every job."""
  rows = []
  for part in parts:
    folder = jobs.find_folder(out, part, seed)
    for job in part.jobs:
      words = jobs.make_command(job, seed, folder, changes)
      rows.append(_Command(part.name, job.name, shlex.join(['python', *words])))
  return rows


def _make_lines(turns, out):
  """Returns a line for each run, over its seeds."""
  runs = {}
  for turn in turns:
    if folder := run.find_workdir(out, turn):
      read = _even_first_step(workdirs.read(folder))
      runs.setdefault(turn.job.name, []).append(read)
  return [workdirs.Line(name, tuple(some)) for name, some in runs.items()]


def _even_first_step(read):
  """Returns a run whose first step, which compiles, takes the median's seconds, as
  in curves.py."""
  first, *rest = read.steps
  first = {
    key: curves.count_first([row[key] for row in read.steps])
    if key in comparisons.SECONDS
    else value
    for key, value in first.items()
  }
  return dataclasses.replace(read, steps=[first, *rest])


def _show(row):
  return _Shown(
    row.claim,
    row.part,
    f'{row.metric}: {row.figure}',
    f'{row.found.num_seeds} seeds' if row.found else '',
    row.paper,
    row.verdict,
  )


def find_all(
  parts: Sequence[jobs.Part], out: pathlib.Path, seeds: Sequence[int]
) -> list[findings.Finding]:
  """Returns every finding of what is finished on questions that the parts' jobs
  are for, in their order."""
  found = []
  for part in parts:
    runs = run.read_runs(out, part, seeds)
    asked = {number for job in part.jobs for number in job.questions}
    rows = [
      *(findings.find(c, runs, part.name) for c in comparisons.COMPARISONS),
      *comparisons.find_threshold(runs, part.name),
      *comparisons.find_sizes(_read_sizes(out, part, seeds), part.name),
    ]
    found += [row for row in rows if row and row.question in asked]
  return sorted(found, key=lambda row: row.question)


def _read_sizes(out, part, seeds):
  """Returns the lines of each seed's sizes.jsonl."""
  return [
    jsonl.read(path)
    for seed in seeds
    if (
      path := jobs.find_folder(out, part, seed) / 'sizes' / sizes.NAME
    ).exists()
  ]
