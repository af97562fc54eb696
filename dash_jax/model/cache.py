"""Keys and values of one layer, kept for decode.

A `Cache` holds n sequences of S slots: prompts, or the tokens that rows have
drawn themselves. Keys lie as [n, K, H, S], so that the scores of all slots are
adjacent; on CPU this takes a quarter off attention. With `quantize` both are
kept in 8 bits, each head of each slot with a scale of its own.

In an own cache all rows write to the same slot at the same time, whatever their
ages: it is a ring, in which the newest tokens of a row are those behind the
place that is written next (`seen_slots`). So a write is one slice, never a
scatter, and rows that begin later need no slots before their first.
"""

import jax
import jax.numpy as jnp

from dash_jax import batches
from dash_jax.model import layers


@batches.pytree
class Cache:
  """Keys and values of n sequences in one layer.

  Attributes:
    k: [n, K, H, S], rotated; int8 if quantised.
    v: [n, K, S, H]; int8 if quantised.
    k_scale, v_scale: f32[n, K, S], what 8-bit values are multiplied with; None
      if they are not quantised.
  """

  k: jax.Array
  v: jax.Array
  k_scale: jax.Array | None
  v_scale: jax.Array | None


def make(k, v, quantize: bool) -> Cache:
  """Returns the cache of keys and values [n, T, K, H], a slot a token."""
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  if not quantize:
    return Cache(k.swapaxes(2, 3), v, None, None)
  k, v = layers.quantize(k, axis=-1), layers.quantize(v, axis=-1)
  return Cache(k.values.swapaxes(2, 3), v.values, k.scale, v.scale)


def make_empty(
  n, num_slots, num_heads, head_dim, dtype, quantize, put
) -> Cache:
  """Returns an empty cache.

  Args:
    n, num_slots, num_heads, head_dim: n, S, K, H.
    dtype: of what is kept, if it is not quantised.
    quantize: whether to keep 8 bits.
    put: makes zeros of a shape and type, in their layout.
  """
  k = (n, num_heads, head_dim, num_slots)
  v = (n, num_heads, num_slots, head_dim)
  if not quantize:
    return Cache(put(k, dtype), put(v, dtype), None, None)
  scale = put((n, num_heads, num_slots), jnp.float32)
  return Cache(put(k, jnp.int8), put(v, jnp.int8), scale, scale)


def write(cache: Cache, new: Cache, slot) -> Cache:
  """Returns the cache with every sequence's `slot` taken by `new`, of S = 1."""

  def put(x, y, axis):
    return jax.lax.dynamic_update_slice_in_dim(x, y, slot, axis)

  return Cache(
    put(cache.k, new.k, 3),
    put(cache.v, new.v, 2),
    None if cache.k_scale is None else put(cache.k_scale, new.k_scale, 2),
    None if cache.v_scale is None else put(cache.v_scale, new.v_scale, 2),
  )


def seen_slots(lengths, slot, num_slots: int):
  """Returns bool[B, S], the slots of a ring that rows see.

  Args:
    lengths: i32[B], tokens of each row that are in the ring, at most S.
    slot: i32[], where the newest stands.
    num_slots: S.
  """
  ages = (slot - jnp.arange(num_slots)) % num_slots
  return ages < lengths[:, None]


def resize(cache: Cache, slot, num_slots: int) -> Cache:
  """Returns a ring with more slots, whose newest token stands at
  `slot % num_slots`.

  Args:
    cache: the ring.
    slot: i32[], where its newest stands.
    num_slots: the new S.
  """
  old = cache.k.shape[3]

  def put(x, axis):
    if x is None:
      return None
    # From the oldest to the newest, then to where they stand in the new ring.
    x = jnp.roll(x, -(slot + 1), axis)
    more = [(0, 0)] * x.ndim
    more[axis] = (num_slots - old, 0)
    return jnp.roll(jnp.pad(x, more), slot + 1, axis)

  return Cache(
    put(cache.k, 3),
    put(cache.v, 2),
    put(cache.k_scale, 2),
    put(cache.v_scale, 2),
  )


def scores(q, cache: Cache):
  """Returns f32[n, K, X, S], the products of queries [n, K, X, H] and keys."""
  out = jnp.einsum(
    'nKXH,nKHS->nKXS',
    q,
    cache.k.astype(q.dtype),
    preferred_element_type=jnp.float32,
  )
  if cache.k_scale is not None:
    out *= cache.k_scale[:, :, None]
  return out


def mix(weights, cache: Cache, dtype):
  """Returns f32[n, K, X, H], values summed with weights f32[n, K, X, S]; they
  are multiplied in `dtype`."""
  if cache.v_scale is not None:
    weights *= cache.v_scale[:, :, None]
  return jnp.einsum(
    'nKXS,nKSH->nKXH',
    weights.astype(dtype),
    cache.v.astype(dtype),
    preferred_element_type=jnp.float32,
  )
