"""Runs one part of the GPU suite in this process; gpu_suite.py starts it.

1. `cases` lists the sizes of a part, largest first.
2. `run_part` yields the rows of the largest that fits the device's memory:
   measurements, checks, and messages about sizes that did not fit.
3. Each row is written at once, so a killed part keeps what it had.
"""

import argparse
import dataclasses
import gc
import json
import os
import pathlib
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax

from dash_jax import sharding
from dash_jax.model import llama, presets
from dash_jax.sampling import memory
from experiments.benchmarks import gpu_checks, gpu_timings

_GIB = 2**30

# Optimizer, rows a minibatch, layers. The last tries are a shorter stack of
# the same layers: on a smaller device the share of the ceiling still says how
# well they run.
_LLAMA3_8B_LEARNERS = (
  ('adam', 8, 32),
  ('adam', 4, 32),
  ('sgd', 4, 32),
  ('sgd', 1, 32),
  ('sgd', 4, 16),
  ('sgd', 2, 8),
)

TINY = llama.LlamaConfig(
  vocab_size=64,
  embed_dim=32,
  num_layers=1,
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  ffw_dim=48,
)


def cases(part: str, *, tiny: bool) -> list:
  """Returns the sizes that a timed part tries, in order."""
  smol = TINY if tiny else presets.PRESETS['smollm2_135m']
  large = TINY if tiny else presets.PRESETS['llama3_8b']
  num_questions = (1,) if tiny else (128, 64, 32, 16, 8, 4)
  if part == 'sampler':
    P, C = (4, 8) if tiny else (128, 256)
    return [gpu_timings.Sampling(smol, Q, 8, P, C) for Q in num_questions]
  if part == 'learner':
    rows, P, C = (8, 4, 8) if tiny else (64, 128, 256)
    return [
      gpu_timings.Learning(smol, rows, P, C, 'adam', b, 'float32', remat=False)
      for b in ((4,) if tiny else (32, 16, 8, 4))
    ]
  P, C = (4, 8) if tiny else (256, 512)
  if part == 'llama3_8b_sampler':
    return [gpu_timings.Sampling(large, Q, 8, P, C) for Q in num_questions]
  return [
    gpu_timings.Learning(
      dataclasses.replace(large, num_layers=min(num_layers, large.num_layers)),
      num_rows=16,
      prompt_len=P,
      completion_len=C,
      optimizer=optimizer,
      minibatch_size=b,
      param_dtype='bfloat16',
      remat=True,
    )
    for optimizer, b, num_layers in _LLAMA3_8B_LEARNERS
  ]


def run_part(
  part: str,
  *,
  tiny: bool,
  limits: gpu_timings.Ceilings | None,
  deadline: float,
) -> Iterator[dict]:
  """Yields the rows of one part.

  Args:
    part: a key of gpu_suite.PARTS.
    tiny: take sizes for a CPU.
    limits: what to compare with, if measured.
    deadline: time.monotonic() after which no new run should start.
  """
  if part == 'ceilings':
    yield from gpu_timings.measure_ceilings(tiny, deadline)
  elif part == 'correctness':
    # They compile faster than thirty, and still run as a loop.
    num_layers = llama.UNROLLED_LAYERS + 1
    smol = dataclasses.replace(
      presets.PRESETS['smollm2_135m'], num_layers=num_layers
    )
    yield from (
      gpu_checks.check_all(TINY, 2) if tiny else gpu_checks.check_all(smol, 8)
    )
  else:
    run = (
      gpu_timings.time_sampler
      if part.endswith('sampler')
      else gpu_timings.time_learner
    )
    yield from step_down(
      cases(part, tiny=tiny), lambda case: run(case, limits, deadline)
    )


def step_down(
  cases: list, attempt: Callable[..., Iterator[dict]]
) -> Iterator[dict]:
  """Yields the rows of the first case that fits in memory, and a message for
  each larger one.

  Raises:
    MemoryError: no case fits.
  """
  capacity = gpu_timings.device_memory('bytes_limit')
  for case in cases:
    least = case.least_bytes()
    if capacity and least > capacity:
      yield {
        'message': f'{case}: skipped, needs {least / _GIB:.1f} GiB or more,'
        f' the device has {capacity / _GIB:.1f}'
      }
      continue
    try:
      yield from attempt(case)
      return
    except gpu_timings.FewerRowsError as error:
      message = str(error)
    except jax.errors.JaxRuntimeError as error:
      if not memory.is_exhausted(error):
        raise
      message = str(error).splitlines()[0]
    # Tracebacks hold arrays, and may hold themselves.
    gc.collect()
    yield {'message': f'{case}: out of memory ({message})'}
  raise MemoryError('no size fits on this device')


def describe_device() -> dict:
  """Returns what runs here."""
  device = jax.devices()[0]
  return {
    'device': f'{device.platform} {device.device_kind}',
    'memory_bytes': gpu_timings.device_memory('bytes_limit'),
    'jax': jax.__version__,
    'XLA_FLAGS': os.environ.get('XLA_FLAGS', ''),
    'python': sys.version.split()[0],
  }


def main(argv: list[str] | None = None) -> None:
  """Runs one part in this process, and exits with 1 if it failed."""
  parser = argparse.ArgumentParser()
  parser.add_argument('part')
  parser.add_argument('--rows_file', type=pathlib.Path, required=True)
  parser.add_argument('--end', type=float, required=True, help='time.time()')
  parser.add_argument('--ceilings', type=json.loads, default=None)
  parser.add_argument('--tiny', action='store_true')
  args = parser.parse_args(argv)
  deadline = time.monotonic() + args.end - time.time()
  limits = gpu_timings.Ceilings(**args.ceilings) if args.ceilings else None
  failed = False
  with args.rows_file.open('a') as file:

    def write(row):
      print(json.dumps({'part': args.part} | row), file=file, flush=True)

    try:
      write({'environment': describe_device()})
      if jax.devices()[0].platform == 'cpu' and not args.tiny:
        raise RuntimeError(
          'jax sees no accelerator here: install jax[cuda13], or pass --tiny'
          ' to run the same logic on CPU'
        )
      mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
      with jax.set_mesh(mesh):
        for row in run_part(
          args.part,
          tiny=args.tiny,
          limits=limits,
          deadline=deadline,
        ):
          write(row)
          failed |= not row.get('passed', True)
    except Exception as error:
      traceback.print_exc()
      write({'error': f'{type(error).__name__}: {error}'})
      failed = True
  sys.exit(failed)


if __name__ == '__main__':
  main()
