"""A run's programs as the compiler of its devices makes them; none is run."""

import dataclasses
import time
from collections.abc import Callable

import jax

from dash_jax.planning import estimate, hlo
from dash_jax.planning import job as job_lib
from dash_jax.sampling import memory


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program.

  Attributes:
    needs: what a device needs while it runs.
    compile_s: seconds that it took to compile.
    link_bytes: that come into a device, by kind of collective; of a loop without
      a known end those of one turn.
  """

  needs: estimate.Needs
  compile_s: float
  link_bytes: dict[str, float]


def compile_sampler(job: job_lib.Job, rows: int) -> dict[str, Program]:
  """Compiles what samples, of its shapes the largest.

  Raises:
    MemoryError: the compiler finds that it does not fit.
  """
  described = job.describe_sampler(rows)
  size, cache = described.weight_bytes, described.cache_bytes
  beside = dataclasses.replace(
    estimate.hold_beside_sampler(job),
    sampler=size * job.num_sampler_sets,
    cache=cache,
  )

  def lower(*name):
    return lambda: job.lower_sampler(described, *name)

  return {
    estimate.PREPARE: _compile(
      lower('prepare'),
      dataclasses.replace(estimate.hold(job), sampler=size),
      # What it returns are the weights that are sampled with.
      lambda stats: stats.temp_size_in_bytes,
    ),
    estimate.ADMIT: _compile(
      lower('admit', described.most_admitted),
      beside,
      _count_made,
    ),
    estimate.DECODE: _compile(
      lower('decode', described.largest),
      beside,
      _count_made,
    ),
  }


def compile_gradient(job: job_lib.Job, minibatch: int) -> Program:
  """Compiles what finds the gradient, of the largest minibatch.

  Raises:
    MemoryError: the compiler finds that it does not fit.
  """
  return _compile(
    lambda: job.lower_learner(minibatch), _learning(job), _count_made
  )


def compile_update(job: job_lib.Job) -> Program:
  """Compiles what changes the weights.

  Raises:
    MemoryError: the compiler finds that it does not fit.
  """
  return _compile(job.lower_update, _learning(job), _count_made)


def _learning(job):
  return dataclasses.replace(
    estimate.hold(job), gradient=estimate.count_gradient(job)
  )


def _count_made(stats) -> float:
  """Returns the bytes of all that a program makes beside its arguments."""
  return (
    stats.temp_size_in_bytes
    + stats.output_size_in_bytes
    - stats.alias_size_in_bytes
  )


def _compile(
  lower: Callable[[], jax.stages.Lowered],
  held: estimate.Needs,
  count: Callable,
) -> Program:
  lowered = lower()
  start = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_exhausted(error):
      raise
    raise MemoryError(str(error).splitlines()[0]) from error
  seconds = time.perf_counter() - start
  return Program(
    needs=dataclasses.replace(
      held, activations=float(count(compiled.memory_analysis()))
    ),
    compile_s=seconds,
    link_bytes=hlo.count_link_bytes(compiled.as_text()),
  )
