"""Many completions of many prompts, at the cost of the tokens that live.

  1. `Sampler` compiles its programs (programs.py, compiled.py) once, for a short
     ladder of shapes (ladder.py). With `batch_size=AUTO` it decodes as many rows
     at once as fit the device, by the programs' own memory figures.
  2. A call admits prompts while places are free (places.py): each is run once,
     and its keys and values are shared by its G rows.
  3. `decode` then draws tokens until something is to do here: rows have stopped,
     and others take their places or the batch narrows; or rings are full, and
     grow. Rows that have stopped are handed out at once.
  4. Should memory run out, the rows that are left are begun again, half as many
     at once.

A row's noise is a function of (key, prompt uid, sample index, slot), so its
tokens depend neither on the batch, its waves and the order of places, nor on the
mesh. Each process samples on its own devices and waits for no other.
"""

import collections
import logging
from collections.abc import Callable, Iterator

import jax
import numpy as np

from dash_jax import batches, sharding
from dash_jax.model import kernels, llama
from dash_jax.sampling import calls, ladder, memory, programs
from dash_jax.sampling import compiled as compiled_lib
from dash_jax.sampling import decoding as decoding_lib

AUTO = 'auto'

_WIDTH = 128  # tokens of a row between two looks of the host, at most
_PROMPTS_PER_ROW = 3  # places for prompts whose rows stop at different times
_REFILL_SHARE = 8  # rows are replaced when this part of them has stopped
PREFILL_TOKENS = 2**14  # of a shard's prompts that run at once, at most


def sample(
  model: llama.Llama,
  params: dict,
  prompts: batches.PromptBatch,
  key: jax.Array,
  decoding: decoding_lib.Decoding,
  *,
  group_size: int,
  max_completion_len: int,
) -> batches.Rollouts:
  """Samples once, with a `Sampler` made for it; see there for arguments.

  Args:
    model, params: what to sample from.
    prompts: this process's Q prompts, NumPy.
    key: the noise.
    decoding: how to draw.
    group_size: G.
    max_completion_len: C.

  Returns:
    Rollouts on the host.
  """
  num_prompts, P = prompts.tokens.shape
  once = Sampler(
    model,
    params,
    num_prompts=num_prompts,
    group_size=group_size,
    max_prompt_len=P,
    max_completion_len=max_completion_len,
  )
  return once.sample(params, prompts, key, decoding)


class Sampler:
  """Samples from one model, with programs that are compiled before the first
  call. The mesh in use is the same at every call, and of one process."""

  def __init__(
    self,
    model: llama.Llama,
    params: dict,
    *,
    num_prompts: int,
    group_size: int,
    max_prompt_len: int,
    max_completion_len: int,
    batch_size: int | str = AUTO,
    quantize_cache: bool = False,
    quantize_weights: bool = False,
    attention: str = kernels.PLAIN,
    num_waiting: int = 0,
  ):
    """Compiles the programs.

    Args:
      model: the architecture and the dtype to compute in.
      params: its weights, TRAIN layout, or their shapes and layouts; they may
        rest on another mesh, split over the axis tensor alike.
      num_prompts: prompts of a call; a call may have others, but with more of
        them, rows wait for places.
      group_size: G, completions of a prompt.
      max_prompt_len: P.
      max_completion_len: C.
      batch_size: rows decoded at once, at most, or AUTO; fewer where a
        compiler finds that these do not fit.
      quantize_cache: keep 8 bits of keys and values.
      quantize_weights: keep 8 bits of every matrix.
      attention: one of kernels.ATTENTION.
      num_waiting: what `prepare` has returned and waits for its turn, at most,
        beside what is sampled with.

    Raises:
      ValueError: `batch_size` does not divide by G times the mesh's shards of
        rows, not even one prompt a shard fits the memory, or the devices do not
        run such attention.
    """
    kernels.check(attention)
    self._mesh = jax.sharding.get_mesh()
    source = compiled_lib.find_mesh(params)
    self._moves = source != self._mesh
    self._num_waiting = num_waiting
    self._num_shards = programs.num_shards()
    self._params = jax.tree.map(compiled_lib.describe, params)
    self._num_prompts = -(-num_prompts // self._num_shards)
    self._programs = make_programs(
      model,
      group_size=group_size,
      max_prompt_len=max_prompt_len,
      max_completion_len=max_completion_len,
      quantize_cache=quantize_cache,
      quantize_weights=quantize_weights,
      attention=attention,
    )
    self._max_completion_len = max_completion_len
    rows = self._num_prompts * group_size
    if batch_size != AUTO:
      unit = group_size * self._num_shards
      if batch_size < 1 or batch_size % unit:
        raise ValueError(
          f'sampling.batch_size={batch_size}: must divide by the group size and'
          f' the shards of rows, {group_size} * {self._num_shards}: take'
          f' {max(batch_size // unit, 1) * unit}, or {AUTO!r}'
        )
      rows = min(rows, batch_size // self._num_shards)
    self._build(rows, measure=batch_size == AUTO)
    if batch_size != AUTO and self.batch_size < rows * self._num_shards:
      self._warn(rows)

  @property
  def group_size(self) -> int:
    """G, completions of a prompt."""
    return self._programs.group_size

  @property
  def batch_size(self) -> int:
    """Rows that are decoded at once, at most."""
    return self._compiled.ladder.rungs[0].rows * self._num_shards

  @property
  def cache_bytes(self) -> int:
    """Bytes of keys and values on one device, of prompts and rows, at most."""
    return self._compiled.cache_bytes

  def prepare(self, params: dict) -> dict:
    """Returns the model's weights as `stream` takes them, on the mesh of the
    sampler: cast, gathered and, if they are on other devices, copied.

    Args:
      params: as they rest, TRAIN layout; not donated.
    """
    weights = self._compiled.prepare(params)
    return sharding.move(weights, self._mesh) if self._moves else weights

  def stream(
    self,
    weights: dict,
    prompts: batches.PromptBatch,
    key: jax.Array,
    decoding: decoding_lib.Decoding,
    *,
    limits: np.ndarray | None = None,
    find_end: Callable[[np.ndarray, int], int] | None = None,
  ) -> Iterator[tuple[np.ndarray, calls.Completions]]:
    """Samples G completions for every prompt, and hands out rows that finish.

    Args:
      weights: of `prepare`.
      prompts: this process's Q prompts, NumPy, one or more; they are shared out
        over its shards of rows, of which the last may have fewer or none.
      key: the noise of this call; a new one for every optimizer step.
      decoding: how to draw, stop ids included.
      limits: i32[Q, G], tokens of each completion, at most; None is C.
      find_end: takes a row's tokens so far, and how many of these it was asked
        about before, in vain; returns how many of them are the completion if its
        end is among them, else 0. It looks for what is no stop id, such as a
        text.

    Yields:
      i64[n], the rows q * G + g that have just finished, and all Completions:
        whenever tokens were drawn, also where no row has finished.

    Raises:
      ValueError: prompts have other sizes than the sampler, limits are out of
        range, or not even one prompt a shard fits the memory.
    """
    Q, G, C = len(prompts.tokens), self.group_size, self._max_completion_len
    limits = np.full((Q, G), C) if limits is None else np.asarray(limits)
    self._check(prompts, limits)
    # Every shard gets as many; what stands in the places that are left is never
    # sampled.
    full = np.arange(Q + -Q % self._num_shards) % Q
    request = calls.Request(
      prompts=jax.tree.map(lambda x: x[full], prompts),
      key=key,
      decoding=decoding,
      limits=limits[full].astype(np.int32),
      find_end=find_end,
    )
    made = calls.Completions.make(len(full), G, C)
    made.finished[Q:] = True
    asked = made.take_first(Q)
    while True:
      call = calls.Call(self._compiled, self._programs, request, made)
      try:
        for rows in call.run(weights):
          yield rows, asked
        return
      except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
          raise
        message = str(error)
      # Not above: the error's traceback has the arrays that did not fit, and so
      # has the call; others are to have their room.
      del call
      self._take_fewer(message)

  def sample(
    self,
    params: dict,
    prompts: batches.PromptBatch,
    key: jax.Array,
    decoding: decoding_lib.Decoding,
    policy_step: int = 0,
    **options,
  ) -> batches.Rollouts:
    """Returns all that `stream` samples, of this process's prompts, NumPy.

    Args:
      params: as `prepare`'s.
      prompts, key, decoding: as `stream`'s.
      policy_step: stamped on every row.
      **options: as `stream`'s.
    """
    parts = self.stream(self.prepare(params), prompts, key, decoding, **options)
    _, made = collections.deque(parts, maxlen=1).pop()
    return made.as_rollouts(prompts, policy_step)

  def _check(self, prompts, limits):
    Q, P = prompts.tokens.shape
    C = self._max_completion_len
    if not Q:
      raise ValueError('no prompts: give at least one')
    if self._programs.prompt_len != P:
      raise ValueError(
        f'prompts of {P} slots: must have {self._programs.prompt_len}'
      )
    lengths = prompts.lengths
    if lengths.min() < 1 or lengths.max() > P:
      raise ValueError(f'prompt lengths must be from 1 to {P}: {lengths}')
    shape = (Q, self.group_size)
    if limits.dtype.kind not in 'iu':
      raise ValueError(f'limits must be whole numbers, not {limits.dtype}')
    if limits.shape != shape or limits.min() < 1 or limits.max() > C:
      raise ValueError(
        f'limits must be {shape} numbers from 1 to {C}: {limits}'
      )

  def _build(self, rows: int, *, measure: bool, held: bool = False) -> None:
    """Compiles all programs, of fewer rows where these do not fit the device.

    Args:
      rows: of a shard, at once; a multiple of G.
      measure: whether to ask the programs' own figures what fits; compilers of
        some devices find out anyway.
      held: whether weights are on the device now.
    """
    G = self.group_size
    while True:
      self._compiled = self._describe(rows)
      try:
        share = self._find_share(held) if measure and rows > G else 1.0
        if share >= 1:
          self._compiled.compile()
          return
      except jax.errors.JaxRuntimeError as error:
        if not memory.is_exhausted(error):
          raise
        if rows == G:
          raise _nothing_fits(str(error)) from error
        share = 0.5
      rows = max(min(int(rows * share), rows - G) // G, 1) * G

  def _describe(self, rows: int) -> compiled_lib.Compiled:
    """Returns the programs that decode so many rows of a shard at once."""
    return describe_programs(
      self._params,
      self._programs,
      num_prompts=self._num_prompts,
      rows=rows,
      max_completion_len=self._max_completion_len,
    )

  def _find_share(self, held: bool) -> float:
    """Returns how many times the rows of the programs fit; 1 or more if they do."""
    needed = self._compiled.measure()
    # Weights take their room whatever the rows.
    weights = self._compiled.weight_bytes
    room = memory.find_room() - weights * (1 + self._num_waiting - held)
    return max(room, 0) / max(needed - weights, 1)

  def _take_fewer(self, message: str) -> None:
    """Compiles anew, for half the rows at once or fewer."""
    rows, G = self._compiled.ladder.rungs[0].rows, self.group_size
    if rows == G:
      raise _nothing_fits(message)
    self._build(max(rows // 2 // G, 1) * G, measure=True, held=True)
    self._warn(rows)

  def _warn(self, rows: int) -> None:
    """Says that so many rows of a shard at once were too many."""
    logging.getLogger(__name__).warning(
      'out of memory with %d rows decoded at once: going on with %d.'
      ' sampling.batch_size=%d begins so.',
      rows * self._num_shards,
      self.batch_size,
      self.batch_size,
    )


def make_programs(
  model: llama.Llama,
  *,
  group_size: int,
  max_prompt_len: int,
  max_completion_len: int,
  quantize_cache: bool,
  quantize_weights: bool,
  attention: str,
) -> programs.Programs:
  """Returns what a `Sampler` compiles; see there for arguments."""
  return programs.Programs(
    model,
    prompt_len=max_prompt_len,
    group_size=group_size,
    quantize_cache=quantize_cache,
    quantize_weights=quantize_weights,
    attention=attention,
    width=min(_WIDTH, max_completion_len),
  )


def describe_programs(
  params: dict,
  run: programs.Programs,
  *,
  num_prompts: int,
  rows: int,
  max_completion_len: int,
) -> compiled_lib.Compiled:
  """Returns the programs that decode so many rows of a shard at once.

  Args:
    params: shapes and layouts of the model's weights.
    run: what to compile.
    num_prompts: of a call, on each shard.
    rows: of a shard, at once; a multiple of G.
    max_completion_len: C.
  """
  G = run.group_size
  refill = num_prompts * G > rows
  held = rows // G
  at_once = max(PREFILL_TOKENS // run.prompt_len, 1)
  admitted = [min(held, at_once)]
  if refill:
    admitted.append(max(min(held // _REFILL_SHARE, at_once), 1))
    if G > 1:
      held = min(num_prompts, _PROMPTS_PER_ROW * held, rows - 1)
  unit = kernels.BLOCK if run.attention == kernels.PALLAS else 1
  rungs = ladder.make(rows, held, G, max_completion_len, refill, unit)
  return compiled_lib.Compiled(params, run, rungs, tuple(sorted(set(admitted))))


def _nothing_fits(message: str) -> ValueError:
  return ValueError(
    'not even one prompt a shard of rows fits the memory: '
    + message.splitlines()[0]
  )
