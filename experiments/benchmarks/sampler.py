"""Times our sampler: beside others on workload files, or against a device's
bandwidth.

    python -m experiments.benchmarks.sampler WORKLOAD.json [MORE.json ..]
        [--rows=64,512] [--turns=5] [--transformers=PYTHON] [--tunix=PYTHON]
        [--out=FILE.json]
    python -m experiments.benchmarks.sampler --config=FILE.py [--turns=5]
        [--tiny] [--out=FILE.json]

  1. On workload files every side is a process of its own (sides/), run by the
     Python that has it installed. All are warmed up first; then they take
     turns, one at a time, so that what disturbs the machine disturbs all.
     transformers' generate is what TRL samples with.
  2. Beside the sides: what sharing the prompt saves where P = C and G = 8, and
     the part of a call in which the device waits for the host.
  3. With --config (llama3_8b_h200.py) one large call of bf16 weights is timed,
     also with int8 weights and cache, and compared with the time that reading
     weights and live cache takes at a copy's measured rate.

Wall seconds mean something on a quiet machine only.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

import jax

from dash_jax import sharding
from experiments.benchmarks import folders, sampler_parts, step, workloads
from experiments.benchmarks import turns as turns_lib


def _summarize(side: turns_lib.Side) -> dict:
  rates = [a['tokens'] / a['seconds'] for a in side.answers]
  return {
    'side': side.name,
    'about': side.about,
    'tokens_per_s': step.summarize(rates),
    'seconds': step.summarize([a['seconds'] for a in side.answers]),
    'cpu_seconds': step.summarize([a['cpu_seconds'] for a in side.answers]),
    'tokens_per_cpu_s': statistics.median(
      a['tokens'] / a['cpu_seconds'] for a in side.answers
    ),
    'tokens': statistics.mean(a['tokens'] for a in side.answers),
    'turns': side.answers,
  }


def compare(path: str, num_rows: int, turns: int, pythons: dict) -> dict:
  """Returns the figures of every side on one workload.

  Args:
    path: the workload file.
    num_rows: rows of a call, a multiple of its group size.
    turns: timed calls of each side.
    pythons: {'transformers' or 'tunix': its Python, or ''}.
  """
  workload = workloads.read(path)
  options = {'num_prompts': num_rows // workload.group_size}
  with tempfile.TemporaryDirectory() as folder:
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
      folders.write_model(pathlib.Path(folder), workload)
    ours = [sys.executable, '-m', 'experiments.benchmarks.sides.ours']
    commands = {'dash_jax': (ours, {})}
    if python := pythons['transformers']:
      run = [python, str(turns_lib.SIDES / 'hf_generate.py')]
      commands['transformers'] = run, {'folder': folder}
      commands['transformers, static cache'] = (
        run, {'folder': folder, 'cache': 'static'},
      )  # fmt: skip
    if python := pythons['tunix']:
      commands['tunix'] = (
        [python, str(turns_lib.SIDES / 'tunix_sampler.py')],
        {},
      )
    with turns_lib.start(commands, path, options) as sides:
      turns_lib.take(sides, turns)
  return {
    'workload': workload.name,
    'rows': num_rows,
    'sides': [_summarize(side) for side in sides],
  }


def time_transformers(
  call: sampler_parts.Call, turns: int, python: str
) -> dict:
  """Returns the tokens a second of transformers' generate on the same call: it
  decodes every row to the longest, of which the rows' own lengths count. It
  takes as many rows at once as fit, by halves."""
  rows = call.lengths.size
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'workload.json'
    path.write_text(json.dumps(sampler_parts.describe_for_others(call)))
    folders.write_config(
      pathlib.Path(folder),
      call.model.config,
      call.prompt_len + call.max_completion_len,
    )
    while True:
      options = {
        'num_prompts': max(rows // call.lengths.shape[1], 1),
        'folder': folder,
        'random_weights': True,
      }
      side = turns_lib.Side(
        'transformers',
        [python, str(turns_lib.SIDES / 'hf_generate.py')],
        str(path),
        options,
      )
      try:
        side.wait()
        for turn in range(turns):
          side.take_turn(turn)
        break
      except RuntimeError:
        if rows <= call.lengths.shape[1]:
          raise
        rows //= 2
      finally:
        side.close()
  # A part of the rows takes its time for as large a part of the tokens.
  tokens = call.lengths.sum() * rows / call.lengths.size
  rates = [tokens / answer['seconds'] for answer in side.answers]
  return {
    'measure': f'transformers, {rows} rows at once',
    'unit': 'tokens/s',
    **step.summarize(rates),
  }


def make_table(result: dict) -> str:
  """Returns a comparison as text, a line a side."""
  lines = [
    f'{result["workload"]}, {result["rows"]} rows'.ljust(28)
    + 'tokens/s [min, max]        of ours   s a call   CPU s   tokens/CPU s'
    + '   of ours   tokens a row'
  ]
  ours = result['sides'][0]
  for side in result['sides']:
    rate = side['tokens_per_s']
    spread = f'{rate["median"]:.0f} [{rate["min"]:.0f}, {rate["max"]:.0f}]'
    times = ours['tokens_per_s']['median'] / rate['median']
    cpu_times = ours['tokens_per_cpu_s'] / side['tokens_per_cpu_s']
    lines.append(
      f'  {side["side"]}'.ljust(28)
      + spread.ljust(27)
      + f'1/{times:.2f}'.rjust(7)
      + f'{side["seconds"]["median"]:11.3f}'
      + f'{side["cpu_seconds"]["median"]:8.2f}'
      + f'{side["tokens_per_cpu_s"]:15.0f}'
      + f'1/{cpu_times:.2f}'.rjust(10)
      + f'{side["tokens"] / result["rows"]:15.1f}'
    )
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description='Times our sampler beside others, or against a device.'
  )
  parser.add_argument('workloads', nargs='*', metavar='WORKLOAD.json')
  parser.add_argument('--config', help='a config of one large call')
  parser.add_argument('--rows', default='', help="rows; default: the file's")
  parser.add_argument('--turns', type=int, default=5, help='timed calls')
  parser.add_argument(
    '--transformers', default='', help='a Python that has transformers'
  )
  parser.add_argument('--tunix', default='', help='a Python that has tunix')
  parser.add_argument(
    '--tiny', action='store_true', help="run --config's logic on a CPU"
  )
  parser.add_argument('--out', help='JSON file to write')
  args = parser.parse_args(argv)
  if bool(args.workloads) == bool(args.config):
    parser.error('give workload files, or --config')
  if args.turns < 1:
    parser.error(f'--turns={args.turns}: must be 1 or more')
  results = []

  def keep(result, text):
    print(text, flush=True)
    results.append(result)
    if args.out:  # a run that is cut short keeps what it has
      pathlib.Path(args.out).write_text(json.dumps(results, indent=1))

  # Beside others that use the device too; alone, all of it that may be taken.
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
  if not args.config:
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  if args.config:
    call = sampler_parts.read_call(args.config, args.tiny)
    if args.transformers:
      # Before ours, which takes most of the device's memory for itself.
      row = time_transformers(call, args.turns, args.transformers)
      keep(row, sampler_parts.describe(row))
    for row in sampler_parts.time_call(call, args.turns, args.tiny):
      keep(row, sampler_parts.describe(row))
  pythons = {'transformers': args.transformers, 'tunix': args.tunix}
  for path in args.workloads:
    workload = workloads.read(path)
    here = workload.num_questions * workload.group_size
    for rows in map(int, args.rows.split(',')) if args.rows else [here]:
      if rows < 1 or rows % workload.group_size:
        parser.error(
          f'--rows={rows}: must be a multiple of {workload.group_size}, the'
          f' group size of {path}'
        )
      result = compare(path, rows, args.turns, pythons)
      keep(result, make_table(result))
    for measure in (
      sampler_parts.measure_sharing, sampler_parts.measure_host,
    ):  # fmt: skip
      row = measure(workload, args.turns)
      keep(row, sampler_parts.describe(row))
  keep(step.versions() | {'cores': len(os.sched_getaffinity(0))}, '')
  print(', '.join(f'{k} {v}' for k, v in results[-1].items()))


if __name__ == '__main__':
  main()
