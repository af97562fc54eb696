"""Rings that grow, and what eight bits cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.model import attention, cache

B, K, R, H = 3, 2, 2, 16


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('quantize', [False, True])
def test_a_ring_that_grows_keeps_every_rows_tokens(quantize):
  """Tokens are written one by one, the ring grows from 3 to 8 slots on the way,
  at any time: attention over each row's newest is that over a list of them."""
  tokens = 8
  k, v, q = (
    draw(0, tokens, B, K, H),
    draw(1, tokens, B, K, H),
    draw(2, B, K, R, H),
  )
  lengths = np.array([1, 2, 3])
  for grown_at in range(3, 8):
    ring = cache.make_empty(
      B,
      3,
      K,
      H,
      jnp.float32,
      quantize,
      lambda shape, dtype: jnp.zeros(shape, dtype),
    )
    for slot in range(tokens):
      if slot == grown_at:
        ring = cache.resize(ring, jnp.int32(slot - 1), 8)
      size = ring.k.shape[3]
      new = cache.make(k[slot][:, None], v[slot][:, None], quantize)
      ring = cache.write(ring, new, slot % size)
      seen = cache.seen_slots(np.minimum(lengths, slot + 1), slot, size)
      found, _ = attention.attend_slots(q, ring, seen)
      for b in range(B):
        n = min(lengths[b], slot + 1)
        kept = cache.make(
          k[None, slot + 1 - n : slot + 1, b], v[None, slot + 1 - n : slot + 1, b],
          quantize,
        )  # fmt: skip
        all_seen = np.ones((1, n), bool)
        expected, _ = attention.attend_slots(q[b : b + 1], kept, all_seen)
        np.testing.assert_allclose(found[b], expected[0], atol=1e-5)


def test_eight_bits_cost_what_rounding_costs():
  """Each number is off by half a step at most, a step being the largest of its
  head over 127; heads with a large one do not coarsen the others."""
  k = draw(0, B, 5, K, H)
  k[0, 0, 0, 0] = 100.0
  held = cache.make(k, np.zeros_like(k), quantize=True)
  assert held.k.dtype == jnp.int8
  restored = np.asarray(held.k, np.float32) * held.k_scale[:, :, None]
  steps = np.abs(k).max(-1, keepdims=True) / 127
  off = np.abs(restored.transpose(0, 3, 1, 2) - k)
  assert (off <= steps * 0.5001).all()
  assert off.max() > steps.max() / 4
  # A head of zeros stays one.
  assert not np.asarray(held.v).any()
  assert np.isfinite(held.v_scale).all()


def test_eight_bits_take_a_quarter_of_the_room():
  """Of float32, but for the scales: 4 of H + 4 bytes."""
  sizes = []
  for quantize in (False, True):
    held = jax.eval_shape(
      lambda x, quantize=quantize: cache.make(x, x, quantize),
      jax.ShapeDtypeStruct((B, 5, K, H), jnp.float32),
    )
    leaves = jax.tree.leaves(held)
    sizes.append(sum(x.size * x.dtype.itemsize for x in leaves))
  assert sizes[1] / sizes[0] == (H + 4) / (4 * H)
