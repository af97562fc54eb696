"""The study: every claim of the paper on our own runs, in one command.

    python -m experiments.study --suite=cpu --out=runs/study
        [--list] [--seeds=0,1,2] [--only=JOB,..] [--config.section.field=value ..]

  1. suites.py has the runs, which share one supervised start a seed; run.py runs
     those that are not finished. --list shows them and what they cost.
  2. comparisons.py has the questions and claims, findings.py decides them over
     seeds.
  3. OUT/findings.md is the table, OUT/findings.json the same for programs, and
     OUT/report.html the page with the runs' curves and replies. They are also
     made of a study that is not finished.

Fields that are given are set in every run, as where data lies; what a run of the
suite changes stays as it is. Exit codes: 0 all is finished; 1 a run failed; 2 the
input is bad; 75 a signal stopped it, and the same command goes on.
"""

import argparse
import pathlib
import shlex
import sys

from dash_jax.runs import jsonl
from experiments.study import run, suites, tables


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m experiments.study',
    description=__doc__.splitlines()[0],
    allow_abbrev=False,
  )
  parser.add_argument('--suite', choices=suites.SUITES, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--only', default='', help='names of jobs')
  parser.add_argument('--list', action='store_true', help='run nothing')
  args, changes = parser.parse_known_args(argv)
  for change in changes:
    if not change.startswith('--config.') or '=' not in change:
      parser.error(f'{change}: write --config.section.field=value')
  suite = suites.SUITES[args.suite]
  parts = suite.make_parts()
  try:
    seeds = _read_seeds(args.seeds)
    only = [name for name in args.only.split(',') if name]
    turns = run.list_turns(parts, seeds, only)
    if args.list:
      print(
        tables.list_jobs(
          suite.title, turns, run.Record(args.out), suite.at_once
        )
      )
      return 0
    code = run.run(turns, args.out, changes, suite.at_once)
  except ValueError as error:
    parser.error(str(error))
  options = sys.argv[1:] if argv is None else argv
  command = shlex.join(['python', '-m', 'experiments.study', *options])
  found = tables.find_all(parts, args.out, seeds)
  text, rows = tables.make(args.suite, command, parts, args.out, seeds, found)
  jsonl.replace(args.out / 'findings.md', text)
  jsonl.replace(args.out / 'findings.json', rows)
  print(text)
  print(
    tables.write_page(
      suite.title, command, parts, args.out, seeds, found, changes
    )
  )
  return code


def _read_seeds(text):
  names = text.split(',')
  if not all(name.isdecimal() for name in names):
    raise ValueError(f'--seeds={text}: must be whole numbers, as 0,1,2')
  return [int(name) for name in dict.fromkeys(names)]


if __name__ == '__main__':
  sys.exit(main())
