"""What the sampler runs on the device: programs of fixed shapes.

  1. `prepare` makes the weights ready, once for each sampling phase.
  2. `start` makes the empty arrays of a rung.
  3. `admit` runs new prompts, puts their caches and rows into free places, and
     draws each row's first token.
  4. `decode` draws tokens until enough rows have stopped, rings are full, or
     its buffer is.
  5. `narrow` takes the live rows to a rung of fewer, `lengthen` the rings to one
     of more slots.

A shard of rows and its prompts are on the same devices, so rows and caches move
within a shard alone, and places count from 0 in each shard. Places of prompts
and rows are chosen by the host (places.py), and are values of the programs.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dash_jax import batches, sharding
from dash_jax.model import attention, decoder, kernels, llama
from dash_jax.model import cache as cache_lib
from dash_jax.sampling import decoding as decoding_lib
from dash_jax.sampling import ladder


@batches.pytree
class Prompts:
  """Prompts of which rows are decoded; Q counts their places.

  Attributes:
    lengths: i32[Q], tokens; 0 where there is no prompt.
    caches: cache.Cache of P slots for each layer.
  """

  lengths: jax.Array
  caches: tuple


@batches.pytree
class Rows:
  """Rows that are decoded; B counts their places.

  Attributes:
    noise: u32[B, 2], the data of each row's key.
    last: i32[B], the newest token.
    lengths: i32[B], completion tokens so far.
    limits: i32[B], completion tokens at which a row stops anyway.
    stopped: bool[B], also where there is no row.
    prompt_lengths: i32[B].
  """

  noise: jax.Array
  last: jax.Array
  lengths: jax.Array
  limits: jax.Array
  stopped: jax.Array
  prompt_lengths: jax.Array


@batches.pytree
class Rings:
  """Keys and values of rows' own tokens.

  Attributes:
    slot: i32[], where the newest tokens stand, modulo S; counts on for ever.
    caches: cache.Cache of S slots and B rows for each layer.
  """

  slot: jax.Array
  caches: tuple


@batches.pytree
class Drawn:
  """What a program drew, for the host.

  Attributes:
    tokens: i32[B, W], new tokens of each row that was live, from column 0 on.
    logprobs: f32[B, W].
    lengths: i32[B], completion tokens by now.
    stopped: bool[B].
  """

  tokens: jax.Array
  logprobs: jax.Array
  lengths: jax.Array
  stopped: jax.Array


@dataclasses.dataclass(frozen=True)
class Programs:
  """The programs of one model, to be compiled (compiled.py).

  Attributes:
    model: the architecture and the dtype to compute in.
    prompt_len: P.
    group_size: G.
    quantize_cache: whether keys and values are kept in 8 bits.
    quantize_weights: whether matrices are.
    attention: one of kernels.ATTENTION.
    width: W, tokens that one call of `decode` draws for a row, at most.
  """

  model: llama.Llama
  prompt_len: int
  group_size: int
  quantize_cache: bool
  quantize_weights: bool
  attention: str
  width: int

  def prepare(self, params: dict) -> dict:
    """Returns `decoder.prepare`'s weights."""
    return decoder.prepare(params, self.model, self.quantize_weights)

  def start(self, rung: ladder.Rung) -> tuple[Prompts, Rows, Rings]:
    """Returns a rung's arrays without a prompt or a row in them."""
    B, Q = rung.rows * num_shards(), rung.prompts * num_shards()

    def zeros(shape, dtype=jnp.int32):
      axes = ('batch',) + (None,) * (len(shape) - 1)
      return jnp.zeros(shape, dtype, out_sharding=sharding.SAMPLE.spec(*axes))

    prompts = Prompts(zeros((Q,)), self._empty_caches(Q, self.prompt_len))
    rows = Rows(
      noise=zeros((B, 2), jnp.uint32),
      last=zeros((B,)),
      lengths=zeros((B,)),
      limits=zeros((B,)),
      stopped=~zeros((B,), bool),
      prompt_lengths=zeros((B,)),
    )
    rings = Rings(jnp.int32(-1), self._empty_caches(B, rung.slots))
    return prompts, rows, rings

  def _empty_caches(self, n, num_slots):
    config = self.model.config

    def put(shape, dtype):
      axes = ('batch', 'kv_heads') + (None,) * (len(shape) - 2)
      return jnp.zeros(shape, dtype, out_sharding=sharding.SAMPLE.spec(*axes))

    return tuple(
      cache_lib.make_empty(
        n, num_slots, config.num_kv_heads, config.head_dim,
        self.model.dtype, self.quantize_cache, put,
      )
      for _ in range(config.num_layers)
    )  # fmt: skip

  def admit(
    self,
    weights: dict,
    prompts: Prompts,
    rows: Rows,
    new: batches.PromptBatch,
    limits,
    prompt_places,
    row_places,
    key,
    decoding: decoding_lib.Decoding,
  ) -> tuple[Prompts, Rows, Drawn]:
    """Runs q new prompts and draws the first token of their rows.

    Args:
      weights: of `prepare`.
      prompts, rows: donated.
      new: the q prompts.
      limits: i32[q * G], of their rows.
      prompt_places: i32[q]; one past the last is nowhere.
      row_places: i32[q * G]; one past the last is nowhere.
      key: the noise of this call.
      decoding: how to draw.

    Returns:
      The two with the new ones in them, and `Drawn` with the new rows' first
      tokens, [q * G, 1], but lengths and stopped of all rows.
    """
    rules, G = sharding.SAMPLE.spec, self.group_size
    logits, caches = decoder.prefill(
      weights,
      self.model,
      new.tokens,
      new.mask,
      self.quantize_cache,
      attend=self._attend_prompts,
    )

    def per_row(x):
      axes = ('batch',) + (None,) * (x.ndim - 1)
      return jnp.repeat(x, G, axis=0, out_sharding=rules(*axes))

    noise = row_noise(key, new.uids, G)
    start = jnp.zeros_like(noise[:, 0], dtype=jnp.int32)
    tokens, logprobs = _draw(noise, start, per_row(logits), decoding)
    stop = decoding_lib.is_stop(tokens, decoding)
    fresh = Rows(
      noise=noise,
      last=tokens,
      lengths=start + 1,
      limits=limits,
      stopped=stop | (limits <= 1),
      prompt_lengths=per_row(new.lengths),
    )
    prompts = _put(
      prompts, Prompts(new.lengths, caches), prompt_places, _PROMPT_SPECS
    )
    rows = _put(rows, fresh, row_places, _BATCH)
    drawn = Drawn(
      tokens[:, None], logprobs[:, None], rows.lengths, rows.stopped
    )
    return prompts, rows, drawn

  def decode(
    self,
    weights: dict,
    prompts: Prompts,
    rows: Rows,
    rings: Rings,
    places,
    ended,
    decoding: decoding_lib.Decoding,
    max_steps,
    wait,
    floor,
  ) -> tuple[Rows, Rings, Drawn]:
    """Draws tokens for the live rows.

    Args:
      weights: of `prepare`.
      prompts: theirs.
      rows, rings: donated.
      places: None where rows are in order, else as `attention.attend_cached`
        takes them, within each shard: i32[Q * places], i32[B].
      ended: bool[B], rows that the host has found to be at their end.
      decoding: how to draw.
      max_steps: i32[], tokens for a row, at most.
      wait: i32[shards]; ends when a shard has no more live rows than this.
      floor: i32[]; ends when no shard has more live rows than this.

    Returns:
      The rows, their rings, and what was drawn.
    """
    num_slots = rings.caches[0].k.shape[3]
    prompt_mask = batches.mask_left(self.prompt_len, prompts.lengths)

    def attend(slot, lengths, i, q, own):
      return self._attend(
        q, prompts.caches[i], prompt_mask, own, lengths, slot, places
      )

    def step(carry):
      i, rows, rings, tokens, logprobs = carry
      slot = rings.slot + 1
      logits, caches = decoder.decode(
        weights,
        self.model,
        rows.last,
        rows.prompt_lengths + rows.lengths - 1,
        slot % num_slots,
        rings.caches,
        functools.partial(attend, slot % num_slots, rows.lengths),
        self.quantize_cache,
      )
      token, logprob = _draw(rows.noise, rows.lengths, logits, decoding)
      live = ~rows.stopped
      lengths = rows.lengths + live
      stop = decoding_lib.is_stop(token, decoding) | (lengths >= rows.limits)
      put = jax.lax.dynamic_update_slice
      tokens = put(tokens, jnp.where(live, token, 0)[:, None], (0, i))
      logprobs = put(logprobs, jnp.where(live, logprob, 0.0)[:, None], (0, i))
      rows = dataclasses.replace(
        rows,
        last=jnp.where(live, token, rows.last),
        lengths=lengths,
        stopped=rows.stopped | stop,
      )
      return i + 1, rows, Rings(slot, caches), tokens, logprobs

    def go_on(carry):
      i, rows, *_ = carry
      live = jnp.sum(
        jnp.reshape(~rows.stopped, (num_shards(), -1)), axis=1, dtype=jnp.int32
      )
      return (i < max_steps) & jnp.all(live > wait) & (jnp.max(live) > floor)

    rows = dataclasses.replace(rows, stopped=rows.stopped | ended)
    shape = (len(rows.last), self.width)
    layout = sharding.SAMPLE.spec('batch', None)
    _, rows, rings, tokens, logprobs = jax.lax.while_loop(
      go_on,
      step,
      (
        jnp.int32(0),
        rows,
        rings,
        jnp.zeros(shape, jnp.int32, out_sharding=layout),
        jnp.zeros(shape, jnp.float32, out_sharding=layout),
      ),
    )
    drawn = Drawn(tokens, logprobs, rows.lengths, rows.stopped)
    return rows, rings, drawn

  def lengthen(
    self, cache: cache_lib.Cache, slot, num_slots: int
  ) -> cache_lib.Cache:
    """Returns a layer's ring with more slots.

    Args:
      cache: the ring.
      slot: i32[], `Rings.slot`.
      num_slots: the new S.
    """

    def resize(cache, slot):
      return cache_lib.resize(cache, slot, num_slots)

    return jax.shard_map(
      resize, in_specs=(_HEADS, sharding.SAMPLE.spec()), out_specs=_HEADS
    )(cache, slot)

  def narrow(self, rows: Rows, row, live) -> Rows:
    """Returns fewer rows.

    Args:
      rows: of more.
      row: i32[B], for each place the place it had.
      live: bool[B], whether it holds a row that goes on.
    """
    return dataclasses.replace(_take(rows, row, _BATCH), stopped=~live)

  def pick(self, cache: cache_lib.Cache, places) -> cache_lib.Cache:
    """Returns what a layer's cache has at `places`, i32[n], of each shard."""
    return _take(cache, places, _HEADS)

  def pick_lengths(self, lengths, places):
    """Returns `Prompts.lengths` at `places`, i32[n], of each shard."""
    return _take(lengths, places, _BATCH)

  def _attend_prompts(self, q, k, v, mask):
    """Runs attention of whole prompts in each shard of rows and heads."""
    if self.attention != kernels.LIBRARY:
      return attention.attend(q, k, v, mask)
    heads = sharding.SAMPLE.spec('batch', None, 'kv_heads')
    return jax.shard_map(
      kernels.attend_by_library,
      in_specs=(heads, heads, heads, _BATCH),
      out_specs=heads,
      check_vma=False,
    )(q, k, v, mask)

  def _attend(self, q, prompts, prompt_mask, own, lengths, slot, places):
    """Runs attention of one token a row in each shard of rows and heads."""
    num_slots = own.k.shape[3]
    asking, place = (None, None) if places is None else places

    def run(q, prompts, prompt_mask, own, lengths, slot, asking, place):
      if self.attention == kernels.PALLAS:
        # A place without a row has none either: what it reads is not used.
        of_own = kernels.attend_ring(q, own, jnp.maximum(lengths, 1), slot)
      else:
        seen = cache_lib.seen_slots(lengths, slot, num_slots)
        of_own = attention.attend_slots(q, own, seen)
      apart = None
      if asking is not None:
        apart = asking.reshape(len(prompt_mask), -1), place
      return attention.attend_cached(q, prompts, prompt_mask, of_own, apart)

    return jax.shard_map(
      run,
      in_specs=(
        _HEADS, _HEADS, _BATCH, _HEADS, _BATCH, sharding.SAMPLE.spec(),
        _BATCH, _BATCH,
      ),
      out_specs=_HEADS,
      check_vma=False,
    )(q, prompts, prompt_mask, own, lengths, slot, asking, place)  # fmt: skip


_BATCH = sharding.SAMPLE.spec('batch')
_HEADS = sharding.SAMPLE.spec('batch', 'kv_heads')
_PROMPT_SPECS = Prompts(_BATCH, _HEADS)


def num_shards() -> int:
  """Returns how many shards of rows the mesh in use has."""
  return sharding.num_batch_shards(jax.sharding.get_abstract_mesh())


def row_noise(key, uids, group_size: int):
  """Returns u32[Q * G, 2], the data of one key for each (prompt uid, sample
  index): noise that depends on nothing else."""
  rows = sharding.SAMPLE.spec('batch')
  uids = jnp.repeat(uids, group_size, out_sharding=rows)
  samples = jnp.arange(uids.size, dtype=jnp.uint32) % group_size
  samples = jax.sharding.reshard(samples, rows)

  def make(uid, sample):
    return jax.random.key_data(
      jax.random.fold_in(jax.random.fold_in(key, uid), sample)
    )

  return jax.vmap(make)(uids, samples)


def _draw(noise, lengths, logits, decoding):
  """Runs `decoding.draw` in each shard of rows.

  Args:
    noise: u32[B, 2], the data of each row's key.
    lengths: i32[B], which token of its row is drawn.
    logits: f32[B, V].
    decoding: how to draw.
  """

  def draw(noise, lengths, logits, decoding):
    keys = jax.vmap(jax.random.fold_in)(
      jax.random.wrap_key_data(noise), lengths
    )
    return decoding_lib.draw(keys, logits, lengths, decoding)

  return jax.shard_map(
    draw,
    in_specs=(_BATCH, _BATCH, _BATCH, sharding.SAMPLE.spec()),
    out_specs=_BATCH,
  )(noise, lengths, logits, decoding)


def _put(tree, new, places, specs):
  """Returns `tree` with rows of `new` at `places`, within each shard."""

  def put(tree, new, places):
    return jax.tree.map(
      lambda x, y: x.at[places].set(y.astype(x.dtype), mode='drop'), tree, new
    )

  return jax.shard_map(
    put, in_specs=(specs, specs, _BATCH), out_specs=specs
  )(tree, new, places)  # fmt: skip


def _take(tree, places, specs):
  """Returns the rows of `tree` at `places`, within each shard."""

  def take(tree, places):
    return jax.tree.map(lambda x: x[places], tree)

  return jax.shard_map(
    take, in_specs=(specs, _BATCH), out_specs=specs
  )(tree, places)  # fmt: skip
