"""Attention by a library and by the kernel against the plain path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.model import attention, cache, kernels

K, R, H = 2, 3, 8


def draw(seed, *shape, dtype=np.float32):
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, dtype)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('S', [5, 128, 256, 384])
def test_the_kernel_reads_a_ring_as_the_plain_path_does(S, dtype):
  """One, some and all slots of rings of one block and of several, with the
  newest token anywhere. What a row has not written is huge, so that reading it
  would show."""
  lengths = np.array([1, 2, S // 2 + 1, S - 1, S, min(S, 130)], np.int32)
  B = len(lengths)
  q = draw(0, B, K, R, H, dtype=dtype)
  k, v = draw(1, B, S, K, H, dtype=dtype), draw(2, B, S, K, H, dtype=dtype)
  for slot in (0, 3, S // 2, S - 2, S - 1):
    seen = cache.seen_slots(lengths, slot, S)
    hidden = ~seen[:, :, None, None]
    held = cache.make(
      jnp.where(hidden, 1e4, k), jnp.where(hidden, 1e4, v), quantize=False
    )
    expected, expected_sum = attention.attend_slots(q, held, seen)
    found, found_sum = jax.jit(kernels.attend_ring)(
      q, held, lengths, jnp.int32(slot)
    )
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(found, expected, atol=tolerance)
    np.testing.assert_allclose(found_sum, expected_sum, atol=tolerance)


@pytest.mark.parametrize(
  ('S', 'quantize', 'named'),
  [(200, False, 'a ring of 200 slots'), (5, True, 'int8')],
)
def test_rings_that_the_kernel_cannot_read_are_refused(S, quantize, named):
  x = draw(0, 1, S, K, H)
  held = cache.make(x, x, quantize)
  with pytest.raises(ValueError, match=named):
    kernels.attend_ring(draw(1, 1, K, R, H), held, np.ones(1), jnp.int32(0))


def test_the_kernel_is_refused_where_it_would_not_run(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  for choice in (kernels.PLAIN, kernels.LIBRARY):
    kernels.check(choice)
  with pytest.raises(ValueError, match="take 'plain' or 'library'"):
    kernels.check(kernels.PALLAS)


def test_the_library_attends_as_the_plain_path_does():
  B, T = 3, 9
  q = draw(0, B, T, K, R, H)
  k, v = draw(1, B, T, K, H), draw(2, B, T, K, H)
  mask = np.arange(T) >= T - np.array([9, 4, 1])[:, None]
  expected = attention.attend(q, k, v, mask)
  found = jax.jit(kernels.attend_by_library)(q, k, v, mask)
  assert np.isfinite(found).all()
  at = np.broadcast_to(mask[..., None, None, None], found.shape)
  np.testing.assert_allclose(
    np.asarray(found)[at], np.asarray(expected)[at], atol=1e-5
  )
