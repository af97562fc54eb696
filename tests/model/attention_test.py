"""Rotation as complex numbers, attention as loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.model import attention, cache

B, G, T, K, R, H = 4, 2, 6, 2, 3, 8
Q = B // G
FREQUENCIES = (10.0 ** -np.arange(H // 2)).astype(np.float32)


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotate(x, positions):
  return attention.rotate(x, attention.find_turns(positions, FREQUENCIES))


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def test_rotation_is_a_turn_of_complex_pairs():
  x = draw(0, B, T, K, H)
  positions = np.arange(B * T).reshape(B, T)
  found = rotate(x, positions)
  pairs = x[..., : H // 2].astype(np.float64) + 1j * x[..., H // 2 :]
  turned = pairs * np.exp(1j * positions[..., None, None] * FREQUENCIES)
  np.testing.assert_allclose(found[..., : H // 2], turned.real, atol=1e-5)
  np.testing.assert_allclose(found[..., H // 2 :], turned.imag, atol=1e-5)


def test_scores_depend_on_the_distance_alone():
  """The property that rotary positions are for."""
  q, k = draw(1, 1, 1, 1, H), draw(2, 1, 1, 1, H)

  def score(at_q, at_k):
    a = rotate(q, np.array([[at_q]]))
    b = rotate(k, np.array([[at_k]]))
    return float(jnp.sum(a * b))

  assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
  assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_attention_of_rows_equals_loops():
  q, k, v = draw(0, B, T, K, R, H), draw(1, B, T, K, H), draw(2, B, T, K, H)
  lengths = np.array([6, 4, 1, 3])
  mask = np.arange(T) >= T - lengths[:, None]
  found = np.asarray(jax.jit(attention.attend)(q, k, v, mask))
  assert np.isfinite(found).all()
  for b in range(B):
    first = T - lengths[b]
    for t in range(first, T):
      for kv in range(K):
        for r in range(R):
          keys = k[b, first : t + 1, kv].astype(np.float64)
          expected = softmax(keys @ q[b, t, kv, r]) @ v[b, first : t + 1, kv]
          np.testing.assert_allclose(found[b, t, kv, r], expected, atol=1e-5)


@pytest.mark.parametrize('order', ['neighbours', 'apart'])
@pytest.mark.parametrize('slot', [0, 2, 4, 7])
def test_cached_attention_is_one_softmax_over_both_caches(slot, order):
  """Each row sees its prompt (not its padding) and its own newest tokens in a
  ring of 5 slots, which the newest at slot 7 has gone round. What lies in other
  slots must not matter, so it is huge."""
  P, C = 4, 5
  q = draw(0, B, K, R, H)
  prompts = draw(1, Q, P, K, H), draw(2, Q, P, K, H)
  own = draw(3, B, C, K, H), draw(4, B, C, K, H)
  lengths = np.minimum(slot + 1, np.array([5, 1, 2, 4]))
  seen = np.asarray(cache.seen_slots(lengths, slot, C))
  visible = [[(slot - age) % C for age in range(n)] for n in lengths]
  for b in range(B):
    assert sorted(visible[b]) == np.flatnonzero(seen[b]).tolist()
    for x in own:
      x[b, ~seen[b]] = 1e4
  prompt_lengths = np.array([3, 1])
  prompt_mask = np.arange(P) >= P - prompt_lengths[:, None]
  prompt_of = np.array([0, 0, 1, 1])
  places = None
  if order == 'apart':
    # Row 1 stands second of prompt 1, row 2 has its last place, ..
    prompt_of = np.array([1, 1, 0, 1])
    place = np.array([3, 4, 2, 5])
    rows = np.zeros((Q, 3), np.int32)
    rows.reshape(-1)[place] = np.arange(B)
    places = (rows, place)
  found = jax.jit(attention.attend_cached)(
    q,
    cache.make(*prompts, quantize=False),
    prompt_mask,
    attention.attend_slots(q, cache.make(*own, quantize=False), seen),
    places,
  )
  for b in range(B):
    at = prompt_of[b]
    for kv in range(K):
      keys, values = (
        np.concatenate(
          [shared[at, P - prompt_lengths[at] :, kv], mine[b, visible[b], kv]]
        ).astype(np.float64)
        for shared, mine in zip(prompts, own, strict=True)
      )
      for r in range(R):
        expected = softmax(keys @ q[b, kv, r]) @ values
        np.testing.assert_allclose(found[b, kv, r], expected, atol=1e-5)
