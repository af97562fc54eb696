"""The timings of the GPU suite, and the sizes that they are taken at.

  1. `measure_ceilings` finds what the machine gives: a large matmul, a large
     copy.
  2. `time_sampler` and `time_learner` make random weights and rows, run one
     large call several times, and divide the least time that its work could
     take at those ceilings (workloads.py) by the time it took.

Each yields rows, dicts for JSON: median, min and max, warm-up excluded.
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dash_jax import batches
from dash_jax.learning import learner, losses, packing
from dash_jax.model import llama
from dash_jax.planning import work
from dash_jax.runs import compiles
from dash_jax.sampling import decoding, sampler
from experiments.benchmarks import workloads

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Ceilings:
  """The best rates measured on the device."""

  flops_per_s: float
  bytes_per_s: float


class FewerRowsError(RuntimeError):
  """A sampler has taken fewer rows at once than it was to be timed with."""


@dataclasses.dataclass(frozen=True)
class Sampling:
  """One sampling call of full rows, in bf16."""

  config: llama.LlamaConfig
  num_questions: int
  group_size: int
  prompt_len: int
  completion_len: int

  @property
  def num_rows(self) -> int:
    return self.num_questions * self.group_size

  def __str__(self):
    return (
      f'{self.num_questions} prompts x {self.group_size},'
      f' {self.prompt_len} + {self.completion_len} tokens'
    )

  def least_bytes(self) -> int:
    """Weights as they rest and layer by layer, the cache, and logits."""
    c = self.config
    token = 2 * c.num_layers * c.num_kv_heads * c.head_dim * 2
    slots = (
      self.num_questions * self.prompt_len + self.num_rows * self.completion_len
    )
    logits = 2 * self.num_rows * c.vocab_size * 4
    return 4 * llama.count_params(c) + token * slots + logits


@dataclasses.dataclass(frozen=True)
class Learning:
  """One optimizer step on full rows; activations in bf16."""

  config: llama.LlamaConfig
  num_rows: int
  prompt_len: int
  completion_len: int
  optimizer: str  # a key of OPTIMIZERS
  minibatch_size: int
  param_dtype: str
  remat: bool

  def __str__(self):
    return (
      f'{self.num_rows} rows x {self.prompt_len} + {self.completion_len},'
      f' {self.optimizer}, {self.param_dtype} weights, minibatches of'
      f' {self.minibatch_size}, {self.config.num_layers} layers'
      + (', remat' if self.remat else '')
    )

  def least_bytes(self) -> int:
    """Weights, their gradient, its float32 sum, moments, and logits."""
    itemsize = jnp.dtype(self.param_dtype).itemsize
    moments = 2 * itemsize if self.optimizer == 'adam' else 0
    logits = self.minibatch_size * self.completion_len * self.config.vocab_size
    weight_bytes = 2 * itemsize + 4 + moments
    return llama.count_params(self.config) * weight_bytes + 2 * 4 * logits


# Moments take the weights' type, so that bf16 halves them too.
OPTIMIZERS = {
  'adam': lambda dtype: optax.adamw(1e-6, mu_dtype=dtype),
  'sgd': lambda dtype: optax.sgd(1e-6),
}


def measure_ceilings(tiny: bool, deadline: float) -> Iterator[dict]:
  """Measures a large bf16 matmul and a large copy, each 32 times in a
  row inside one program, so that its launch hardly counts."""
  times = 32
  size = 256 if tiny else 8192
  x = jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)

  @jax.jit
  def multiply(x, y, times):
    y = y * size**-0.5  # the product keeps its scale
    return jax.lax.fori_loop(0, times, lambda _, x: x @ y, x)

  # The count is a value, so that the compiler cannot unroll the loop.
  seconds, _ = time_runs(
    lambda i: jax.block_until_ready(multiply(x, x, times)), deadline
  )
  flops = [2 * size**3 * times / s for s in seconds]
  yield _spread(
    f'matmul, bf16, {size}^2', [f / 1e12 for f in flops], 'TFLOP/s'
  ) | {'ceilings': {'flops_per_s': max(flops)}}

  elements = 2**20 if tiny else 2**30
  x = jax.random.normal(jax.random.key(1), (elements,), jnp.bfloat16)

  # Donated, so that the loop begins with no copy that is not counted.
  @functools.partial(jax.jit, donate_argnums=0)
  def copy(x, one, times):
    return jax.lax.fori_loop(0, times, lambda _, x: x * one, x)

  one = jnp.ones((), jnp.bfloat16)

  def run(_):
    nonlocal x
    x = jax.block_until_ready(copy(x, one, times))

  seconds, _ = time_runs(run, deadline)
  moved = [2 * x.nbytes * times / s for s in seconds]
  yield _spread(
    f'copy, {x.nbytes / _GIB:.2g} GiB', [m / 1e9 for m in moved], 'GB/s'
  ) | {'ceilings': {'bytes_per_s': max(moved)}}


def time_sampler(
  case: Sampling, limits: Ceilings | None, deadline: float
) -> Iterator[dict]:
  """Times one sampling call with every row full, then with limits that make
  lengths geometric with a mean of half the slots, by the same programs."""
  config = case.config
  model = llama.Llama(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  params = llama.init_params(config, jax.random.key(0), jnp.bfloat16)
  rng = np.random.default_rng(0)
  shape = (case.num_questions, case.prompt_len)
  prompts = workloads.fill_prompts(
    rng.integers(0, config.vocab_size, shape).astype(np.int32)
  )
  rows = (case.num_questions, case.group_size)
  geometric = rng.geometric(2 / case.completion_len, rows)
  geometric = np.minimum(geometric, case.completion_len)
  settings = decoding.make_decoding(1.0)

  start = time.perf_counter()
  timed = sampler.Sampler(
    model,
    params,
    num_prompts=case.num_questions,
    group_size=case.group_size,
    max_prompt_len=case.prompt_len,
    max_completion_len=case.completion_len,
    batch_size=case.num_rows,
  )

  compile_s = time.perf_counter() - start
  yield {'message': f'{case}: compiled in {compile_s:.0f} s'}

  def draw(i, limits_of_rows=None):
    key = jax.random.key(i)
    found = timed.sample(params, prompts, key, settings, limits=limits_of_rows)
    if timed.batch_size < case.num_rows:
      raise FewerRowsError(f'there is room for {timed.batch_size} rows at once')
    return found

  seconds, _ = time_runs(draw, deadline)
  tokens = case.num_rows * case.completion_len
  floor = work.decode_floor(
    config,
    np.full(rows, case.completion_len),
    prompt_len=case.prompt_len,
    weight_bytes=2,
    cache_bytes=2,
  )
  row = _spread(
    f'sampling, {case}', [tokens / s for s in seconds], 'tokens/s'
  ) | {
    'seconds': seconds,
    'compile_s': compile_s,
    'peak_bytes': device_memory('peak_bytes_in_use'),
  }
  if limits:
    least_s = {
      'bandwidth floor': floor.bandwidth_seconds(limits.bytes_per_s),
      'bandwidth and matmul floor': floor.seconds(
        limits.flops_per_s, limits.bytes_per_s
      ),
    }
    row['shares'] = {
      name: s / statistics.median(seconds) for name, s in least_s.items()
    }
  yield row

  if _is_late(deadline, seconds):
    yield {'message': 'no time left for rows of geometric lengths'}
    return
  seconds, rollouts = time_runs(lambda i: draw(i, geometric), deadline, most=3)
  lengths = [r.lengths for r in rollouts]
  yield _spread(
    f'the same, {np.mean(lengths):.0f} tokens a row',
    [n.sum() / s for n, s in zip(lengths, seconds, strict=True)],
    'tokens/s',
  ) | {'longest': int(np.max(lengths))}


def time_learner(
  case: Learning, limits: Ceilings | None, deadline: float
) -> Iterator[dict]:
  """Times one optimizer step on every row, then on half of them."""
  config, C = case.config, case.completion_len
  dtype = jnp.dtype(case.param_dtype).type
  model = llama.Llama(
    config,
    dtype=jnp.bfloat16,
    param_dtype=dtype,
    remat='layer' if case.remat else 'attention',
  )
  optimizer = OPTIMIZERS[case.optimizer](dtype)
  state = learner.init_state(
    llama.init_params(config, jax.random.key(0), dtype), optimizer
  )
  rng = np.random.default_rng(0)
  # Each row has a prompt of its own, so that rows are all the work there is.
  B, P = case.num_rows, case.prompt_len
  rows = batches.Rollouts(
    prompts=batches.PromptBatch(
      tokens=rng.integers(0, config.vocab_size, (B, P)).astype(np.int32),
      lengths=np.full(B, P, np.int32),
      uids=np.arange(B, dtype=np.int32),
    ),
    tokens=rng.integers(0, config.vocab_size, (B, 1, C)).astype(np.int32),
    lengths=np.full((B, 1), C, np.int32),
    # Random weights give every token about this, so that ratios are near 1.
    logprobs=np.full((B, 1, C), -math.log(config.vocab_size), np.float32),
    truncated=np.zeros((B, 1), bool),
    policy_step=np.zeros((B, 1), np.int32),
  )
  minibatches = packing.make_minibatches(
    rows,
    rng.normal(size=(B, 1)).astype(np.float32),
    np.ones((B, 1), bool),
    np.full((B, 1), 1 / B / C, np.float32),
    packing.make_room(case.minibatch_size, 1, P, C),
  )
  n = len(minibatches)

  def learn(num_minibatches):
    def run(_):
      nonlocal state
      state, values = learner.update(
        state,
        minibatches[:num_minibatches],
        decoding.make_decoding(1.0),
        model=model,
        optimizer=optimizer,
        objective=losses.Objective(),
      )
      jax.block_until_ready(state)
      return {name: float(x) for name, x in values.items()}

    return run

  compiled_s = compiles.total_s()
  seconds, values = time_runs(learn(n), deadline)
  bad = [v for v in values if not all(map(math.isfinite, v.values()))]
  if bad:
    raise FloatingPointError(f'a step gave {bad[0]}')
  flops = work.learn_flops(config, case.num_rows, case.prompt_len, C)
  row = _spread(f'learning, {case}', seconds, 's a step') | {
    'tokens_per_s': case.num_rows * C / statistics.median(seconds),
    'compile_s': compiles.total_s() - compiled_s,
    'peak_bytes': device_memory('peak_bytes_in_use'),
  }
  if limits:
    mfu = flops / statistics.median(seconds) / limits.flops_per_s
    row['shares'] = {'measured matmul (MFU)': mfu}
  yield row
  if n > 1 and _is_late(deadline, seconds):
    yield {'message': 'no time left for half of the rows'}
  elif n > 1:
    half = n // 2
    fewer, _ = time_runs(learn(half), deadline, most=3)
    row = _spread(f'the same, {half / n:.0%} of the rows', fewer, 's a step')
    share = statistics.median(fewer) / statistics.median(seconds)
    yield row | {'shares': {"all rows' time": share}}


def time_runs(
  run, deadline: float, *, most: int = 5
) -> tuple[list[float], list]:
  """Runs once to warm up, then up to `most` times while time is left.

  Args:
    run: called with the number of the run; must wait for its result.
    deadline: time.monotonic() after which no run should end.
    most: timed runs.

  Returns:
    The seconds of each timed run, at least one, and what it returned.
  """
  run(0)
  seconds, results = [], []
  while len(seconds) < most:
    start = time.perf_counter()
    results.append(run(len(seconds) + 1))
    seconds.append(time.perf_counter() - start)
    if time.monotonic() + max(seconds) > deadline:
      break
  return seconds, results


def _is_late(deadline: float, seconds: list[float]) -> bool:
  """Returns whether a warm-up and a run would end after the deadline."""
  return time.monotonic() + 2 * max(seconds) > deadline


def _spread(measure: str, values: list[float], unit: str) -> dict:
  return {
    'measure': measure,
    'unit': unit,
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
    'runs': len(values),
  }


def device_memory(name: str) -> int:
  """Returns a figure of the device's memory, 0 where it keeps none."""
  return (jax.devices()[0].memory_stats() or {}).get(name, 0)
