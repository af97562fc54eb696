"""One command that checks and times dash_jax on a machine with a GPU.

    python -m experiments.benchmarks.gpu_suite
        [--parts=ceilings,correctness,llama3_8b,sampler,learner]
        [--out=runs/gpu_suite] [--time_limit_s=540] [--tiny]

It needs jax, flax, optax, orbax and NumPy only.

  1. Each part (gpu_parts.py) runs in a process of its own, killed at its time
     limit: a part that hangs, crashes or runs out of memory costs the others
     nothing, and each has the device's whole memory.
  2. OUT/gpu_suite.json holds everything so far after each part; rows of a part
     under way are in OUT/rows.jsonl, its messages in OUT/gpu_suite.log.
  3. A table comes last. The exit code is 1 if a part failed.

XLA_FLAGS, if they are not set, leave out what makes compiling slow, and programs
are kept in JAX_COMPILATION_CACHE_DIR (runs/programs) for the next command: a
command that was too short is worth giving again.

`--parts` takes names or their beginnings: llama3_8b is both of its parts.
Ceilings are measured first if a chosen part is compared with them. `--tiny`
runs the same logic on CPU at sizes that say nothing about speed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

# Seconds that a part may take, in the order they run: what is worth most first.
PARTS = {
  'ceilings': 60,
  'correctness': 120,
  'llama3_8b_sampler': 240,
  'llama3_8b_learner': 180,
  'sampler': 120,
  'learner': 90,
}
# XLA tries hundreds of tilings of each product of matrices, which takes minutes for
# a sampler's many shapes; those of cuBLAS are few.
_FAST_TO_COMPILE = '--xla_gpu_enable_triton_gemm=false'
_NEEDS_NO_CEILINGS = ('ceilings', 'correctness')
_DEFAULT = 'ceilings,correctness,llama3_8b,sampler,learner'
# Starting Python, jax and the device takes about this long.
_LEAST_S = 5.0


def choose(text: str) -> list[str]:
  """Returns the parts that a comma-separated list names, in running order.

  Raises:
    ValueError: a name begins no part.
  """
  names = [name.strip() for name in text.split(',') if name.strip()]
  for name in names:
    if not any(part.startswith(name) for part in PARTS):
      raise ValueError(f'no part begins with {name!r}: choose of {list(PARTS)}')
  chosen = [p for p in PARTS if any(p.startswith(name) for name in names)]
  if not chosen:
    raise ValueError(f'no part is named: choose of {list(PARTS)}')
  if any(part not in _NEEDS_NO_CEILINGS for part in chosen):
    chosen = ['ceilings', *(p for p in chosen if p != 'ceilings')]
  return chosen


def make_command(
  part: str, *, limit_s: float, ceilings: dict, folder: pathlib.Path, tiny: bool
) -> list[str]:
  """Returns the command line that runs one part."""
  return [
    sys.executable,
    '-m',
    'experiments.benchmarks.gpu_parts',
    part,
    f'--rows_file={folder / "rows.jsonl"}',
    # What is left over writes the rows and ends the process.
    f'--end={time.time() + 0.9 * limit_s - 2}',
    f'--ceilings={json.dumps(ceilings)}',
    *(['--tiny'] if tiny else []),
  ]


def run_limited(command: list[str], limit_s: float, log) -> str | None:
  """Runs a command and kills it and its children at its limit.

  Args:
    command: what to run.
    limit_s: seconds it may take.
    log: open file for its output.

  Returns:
    None if it exited with 0, else what happened.
  """
  process = subprocess.Popen(
    command, stdout=log, stderr=log, start_new_session=True
  )
  try:
    code = process.wait(timeout=limit_s)
  except subprocess.TimeoutExpired:
    return f'killed after its limit of {limit_s:.0f} s'
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  return f'exit code {code}' if code else None


def run_suite(
  parts: list[str],
  folder: pathlib.Path,
  time_limit_s: float,
  command_for: Callable[..., list[str]],
) -> dict:
  """Runs the parts one after another.

  Args:
    parts: names, keys of PARTS.
    folder: where the files go; they are overwritten.
    time_limit_s: for all parts together.
    command_for: makes a part's command from its name, limit_s and ceilings.

  Returns:
    What gpu_suite.json holds: `environment`, and for each part its status
    ('ok' or 'failed'), error, seconds, limit_s and rows.
  """
  folder.mkdir(parents=True, exist_ok=True)
  rows_file = folder / 'rows.jsonl'
  rows_file.write_text('')
  result = {'environment': {}, 'parts': {}}
  ceilings = {}
  end = time.monotonic() + time_limit_s
  with (folder / 'gpu_suite.log').open('w') as log:
    for part in parts:
      limit_s = min(PARTS[part], end - time.monotonic())
      start = time.monotonic()
      if limit_s < _LEAST_S:
        error = f'no time left of the {time_limit_s:.0f} s for all parts'
      else:
        print(f'{part} (at most {limit_s:.0f} s) ..', flush=True)
        command = command_for(part, limit_s=limit_s, ceilings=ceilings)
        error = run_limited(command, limit_s, log)
      rows = []
      for row in map(json.loads, rows_file.read_text().splitlines()):
        if row.pop('part') != part:
          continue
        result['environment'] |= row.pop('environment', {})
        if 'error' in row:
          error = row['error']
        elif row:
          rows.append(row)
      wrong = [row['measure'] for row in rows if not row.get('passed', True)]
      if wrong:
        error = '; '.join([*wrong, *([error] if error else [])])
      if not error:
        for row in rows:
          ceilings |= row.get('ceilings', {})
      result['parts'][part] = {
        'status': 'failed' if error else 'ok',
        'error': error,
        'seconds': time.monotonic() - start,
        'limit_s': limit_s,
        'rows': rows,
      }
      _write(folder / 'gpu_suite.json', result)
  return result


def _write(path: pathlib.Path, result: dict) -> None:
  # Renaming replaces the file at once: a kill leaves the old one or the new.
  new = path.with_suffix('.new')
  new.write_text(json.dumps(result, indent=1))
  new.replace(path)


def make_table(result: dict) -> str:
  """Returns the results as text, one line a row."""
  lines = [', '.join(f'{k} {v}' for k, v in result['environment'].items())]
  for part, values in result['parts'].items():
    lines.append(f'\n{part}: {values["status"]}, {values["seconds"]:.0f} s')
    if values['error']:
      lines.append(f'  {values["error"].splitlines()[0]}')
    for row in values['rows']:
      if 'message' in row:
        lines.append(f'  {row["message"]}')
      elif 'passed' in row:
        verdict = 'ok  ' if row['passed'] else 'FAIL'
        lines.append(
          f'  {verdict} {row["measure"]}: {row["value"]:.2g}'
          f' (at most {row["limit"]:g})'
        )
      else:
        low, high = row['min'], row['max']
        lines.append(
          f'  {row["measure"]}: {row["median"]:.4g} {row["unit"]}'
          f' [{low:.4g}, {high:.4g}]'
          + ''.join(
            f', {share:.1%} of {name}'
            for name, share in row.get('shares', {}).items()
          )
        )
  return '\n'.join(lines)


def _is_known(flags: str) -> bool:
  """Returns whether this XLA has flags; it aborts at others."""
  environment = {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
  return not subprocess.run(
    [sys.executable, '-c', 'import jax; jax.devices()'],
    env=os.environ | environment,
    stderr=subprocess.DEVNULL,
    check=False,
  ).returncode


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description='Checks and times dash_jax on a machine with a GPU.'
  )
  parser.add_argument('--parts', default=_DEFAULT)
  parser.add_argument('--out', type=pathlib.Path, default='runs/gpu_suite')
  parser.add_argument('--time_limit_s', type=float, default=540)
  parser.add_argument('--tiny', action='store_true')
  args = parser.parse_args(argv)
  try:
    parts = choose(args.parts)
  except ValueError as error:
    parser.error(f'--parts: {error}')
  # Through `finally`, so that no part outlives the suite.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
  if args.tiny:
    os.environ['JAX_PLATFORMS'] = 'cpu'
  # JAX takes 75% by default; Llama-3 8B needs the rest.
  os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.92')
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', 'runs/programs')
  if 'XLA_FLAGS' not in os.environ and _is_known(_FAST_TO_COMPILE):
    os.environ['XLA_FLAGS'] = _FAST_TO_COMPILE

  def command_for(part, **values):
    return make_command(part, folder=args.out, tiny=args.tiny, **values)

  result = run_suite(parts, args.out, args.time_limit_s, command_for)
  print(make_table(result))
  sys.exit(any(p['error'] for p in result['parts'].values()))


if __name__ == '__main__':
  main()
