"""Attention by a library or by a kernel of our own, in place of the plain path.

`ATTENTION` names the choices; attention.py is the plain path, which both are
tested against.

  1. `attend_by_library` is prefill through `jax.nn.dot_product_attention`, which
     is cuDNN's flash attention on GPUs, in 16 bits. Decode does not use it: what
     merges a prompt with a row's own tokens is the log of a sum, which it
     returns in the type of the keys, too coarse in 16 bits.
  2. `attend_ring` is a row's own part of decode, as a Pallas kernel for TPUs. It
     reads of a ring the blocks that hold the row's tokens, where the plain path
     reads all slots of all rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from dash_jax.model import cache as cache_lib

PLAIN, LIBRARY, PALLAS = 'plain', 'library', 'pallas'
ATTENTION = (PLAIN, LIBRARY, PALLAS)

BLOCK = 128  # slots that the kernel reads at once
_MASKED = -1e30


def check(attention: str) -> None:
  """Refuses what the devices here cannot run.

  Raises:
    ValueError: says what they can.
  """
  if attention == PALLAS and jax.default_backend() == 'gpu':
    raise ValueError(
      f'sampling.attention={PALLAS!r} is a kernel for TPUs, and these are GPUs:'
      f' take {PLAIN!r} or {LIBRARY!r}'
    )


def attend_by_library(q, k, v, mask):
  """Returns what `attention.attend` returns.

  Args:
    q: [B, T, K, R, H], already scaled by H**-0.5.
    k, v: [B, T, K, H].
    mask: bool[B, T], True on slots that hold a token.
  """
  B, T, K, R, H = q.shape
  on_gpu = jax.default_backend() == 'gpu' and q.dtype.itemsize == 2
  out = jax.nn.dot_product_attention(
    q.reshape(B, T, K * R, H),
    k,
    v,
    # A slot without a token sees itself, so that no softmax is empty.
    mask=(mask[:, None, None] | jnp.eye(T, dtype=bool)),
    scale=1.0,
    is_causal=True,
    implementation='cudnn' if on_gpu else 'xla',
  )
  return out.reshape(q.shape)


def attend_ring(q, cache: cache_lib.Cache, lengths, slot, interpret=None):
  """Attention of one token a row over its own tokens in a ring.

  Args:
    q: [B, K, R, H], already scaled by H**-0.5.
    cache: of the B rows, not quantised; S is a multiple of BLOCK or less.
    lengths: i32[B], tokens of each row in the ring, 1 <= lengths <= S.
    slot: i32[], where the newest stands, in [0, S).
    interpret: run the kernel as plain operations; None does so on CPU.

  Returns:
    f32[B, K, R, H], and f32[B, K, R, 1], the log of the sum of exponentials that
    it is divided by.

  Raises:
    ValueError: S is another number, or the cache is quantised.
  """
  B, K, R, H = q.shape
  S = cache.k.shape[3]
  block = min(BLOCK, S)
  if S % block or cache.k_scale is not None:
    raise ValueError(
      f'a ring of {S} slots, {cache.k.dtype}: the kernel reads rings that are'
      f' not quantised, of {BLOCK} slots, a multiple of them, or fewer'
    )
  num_blocks = S // block

  def find_block(b, j, lengths, slot):
    """Returns the j-th newest block of row b; behind its oldest it stays."""
    newest = slot[0] // block
    # Slots of the row that stand in blocks before the newest.
    before = jnp.maximum(lengths[b] - (slot[0] % block) - 1, 0)
    needed = jnp.minimum((before + block - 1) // block, num_blocks - 1)
    return (newest - jnp.minimum(j, needed)) % num_blocks

  def keys(b, j, lengths, slot):
    return b, 0, 0, find_block(b, j, lengths, slot)

  def values(b, j, lengths, slot):
    return b, 0, find_block(b, j, lengths, slot), 0

  def row(b, j, lengths, slot):
    return b, 0, 0, 0

  kernel = functools.partial(
    _ring_kernel, num_slots=S, block=block, find_block=find_block
  )
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(B, num_blocks),
      in_specs=[
        pl.BlockSpec((1, K, R, H), row),
        pl.BlockSpec((1, K, H, block), keys),
        pl.BlockSpec((1, K, block, H), values),
      ],
      out_specs=[
        pl.BlockSpec((1, K, R, H), row),
        pl.BlockSpec((1, K, R, 1), row),
      ],
      scratch_shapes=[
        pltpu.VMEM((K, R, 1), jnp.float32),
        pltpu.VMEM((K, R, 1), jnp.float32),
        pltpu.VMEM((K, R, H), jnp.float32),
      ],
    ),
    out_shape=[
      jax.ShapeDtypeStruct((B, K, R, H), jnp.float32),
      jax.ShapeDtypeStruct((B, K, R, 1), jnp.float32),
    ],
    interpret=_on_cpu() if interpret is None else interpret,
  )(lengths, jnp.reshape(slot, 1), q, cache.k, cache.v)


def _on_cpu():
  return jax.default_backend() == 'cpu'


def _ring_kernel(
  lengths, slot, q, k, v, out, log_sum, top, total, mixed,
  *, num_slots, block, find_block,
):  # fmt: skip
  """One block of one row: the softmax so far, and what it has mixed."""
  b, j = pl.program_id(0), pl.program_id(1)

  @pl.when(j == 0)
  def _():
    top[...] = jnp.full_like(top, _MASKED)
    total[...] = jnp.zeros_like(total)
    mixed[...] = jnp.zeros_like(mixed)

  at = find_block(b, j, lengths, slot)
  is_new = (j == 0) | (at != find_block(b, j - 1, lengths, slot))

  @pl.when(is_new)
  def _():
    scores = jnp.einsum(
      'KRH,KHS->KRS', q[0], k[0], preferred_element_type=jnp.float32
    )
    slots = at * block + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 2)
    seen = (slot[0] - slots) % num_slots < lengths[b]
    scores = jnp.where(seen, scores, _MASKED)
    highest = jnp.maximum(top[...], scores.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - highest), 0.0)
    kept = jnp.exp(top[...] - highest)
    total[...] = total[...] * kept + weights.sum(-1, keepdims=True)
    mixed[...] = mixed[...] * kept + jnp.einsum(
      'KRS,KSH->KRH',
      weights.astype(v.dtype),
      v[0],
      preferred_element_type=jnp.float32,
    )
    top[...] = highest

  @pl.when(j == pl.num_programs(1) - 1)
  def _():
    out[0] = mixed[...] / total[...]
    log_sum[0] = top[...] + jnp.log(total[...])
