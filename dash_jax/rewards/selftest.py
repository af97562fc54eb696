"""Scores every gold solution of a data file against its own answer.

    python -m dash_jax.rewards.selftest FILE.jsonl --style=gsm8k \\
        --solution_field=answer

A solution that its own answer rejects shows a fault in the data or in the
reward, which training on them would learn. Prints the share that scores 1 and
lists the others, and exits with 1 if the share is under --min_rate, with 2 if
the file can't be used.

The gold answer is what --answer_field holds. Where that is also the solution
field, as in GSM8K, it is the answer at the solution's end: then the test says
that every row has one and that it can be read.
"""

import argparse
import dataclasses
import sys
import time

from dash_jax.data import jsonl
from dash_jax.rewards import answers, workers


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the file: its number, its worked solution and its answer."""

  line: int
  solution: str
  gold: str


def main(argv: list[str] | None = None) -> int:
  """Runs the self-test; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='python -m dash_jax.rewards.selftest',
    description='Scores every gold solution against its own answer.',
  )
  parser.add_argument('file', help='a JSONL file, one object a line')
  parser.add_argument('--style', required=True, choices=answers.STYLES)
  parser.add_argument('--solution_field', required=True)
  parser.add_argument('--answer_field', default='answer')
  parser.add_argument('--min_rate', type=float, default=1.0)
  args = parser.parse_args(argv)
  start_s = time.monotonic()
  try:
    rows = read_rows(
      args.file, args.style, args.solution_field, args.answer_field
    )
  except (OSError, ValueError) as error:
    parser.error(str(error))
  with workers.Pool(kwargs={'style': args.style}) as pool:
    scores = pool.score(
      [row.solution for row in rows],
      [row.gold for row in rows],
      [False] * len(rows),
    )
  misses = [
    row
    for row, reward in zip(rows, scores.rewards, strict=True)
    if reward != 1.0
  ]
  for row in misses:
    extracted = answers.extract(row.solution, args.style)
    print(f'line {row.line}: extracted {extracted!r}, gold {row.gold!r}')
  num_right = len(rows) - len(misses)
  rate = num_right / len(rows)
  print(
    f'{args.file}: {num_right} of {len(rows)} gold solutions score 1'
    f' ({rate:.2%}; {scores.timeouts} timed out, {scores.errors} failed) in'
    f' {time.monotonic() - start_s:.1f} s'
  )
  return 0 if rate >= args.min_rate else 1


def read_rows(
  file: str, style: str, solution_field: str, answer_field: str
) -> list[Row]:
  """Reads a JSONL file.

  Args:
    file: its path. Blank lines are passed over.
    style: one of `answers.STYLES`.
    solution_field: the field with the worked solution.
    answer_field: the field with the answer; the same field if the solution ends
      in it and no other field holds it.

  Returns:
    Its rows, at least one.

  Raises:
    OSError: the file can't be read.
    ValueError: it is empty, or a line is no object or lacks a field.
  """
  rows = []
  for number, fields in jsonl.read(file, (solution_field, answer_field)):
    answer = str(fields[answer_field])
    gold = answer
    if answer_field == solution_field:
      gold = answers.extract(answer, style)
      if gold is None:
        raise ValueError(
          f'{file}:{number}: field {answer_field!r} ends in no answer in style'
          f' {style!r}'
        )
    rows.append(Row(number, str(fields[solution_field]), gold))
  return rows


if __name__ == '__main__':
  sys.exit(main())
