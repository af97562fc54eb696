"""The next token's distribution against independent NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dash_jax.sampling import decoding

V = 300  # more than one block of the sampler, and not a multiple of it
SETTINGS = [
  (1.0, 1.0, 0),
  (0.5, 1.0, 0),
  (1.6, 0.7, 0),
  (1.0, 1.0, 7),
  (0.8, 0.9, 40),
  (1.2, 0.3, 200),
  (1.0, 1e-6, 0),
  (1.0, 1.0, 1),
]


def draw_logits(seed=0):
  return np.random.default_rng(seed).normal(size=V).astype(np.float32) * 2


def exact(logits, temperature, top_p=1.0, top_k=0):
  """Returns f64[V], the probabilities: softmax, then the likeliest tokens until
  their mass reaches top_p or their number top_k, then scaled to 1."""
  scaled = logits.astype(np.float64) / temperature
  p = np.exp(scaled - scaled.max())
  p /= p.sum()
  kept, mass = set(), 0.0
  for token in sorted(range(V), key=lambda i: -p[i]):
    if kept and (mass >= top_p or len(kept) == (top_k or V)):
      break
    kept.add(token)
    mass += p[token]
  # No cumulative mass may be so near top_p that float32 could go either way.
  sums = np.cumsum(np.sort(p)[::-1])
  assert top_p == 1 or np.abs(sums - top_p).min() > 1e-5 * top_p
  q = np.where([i in kept for i in range(V)], p, 0)
  return q / q.sum()


@jax.jit
def sample(keys, logits, settings):
  rows = jnp.broadcast_to(logits, (keys.shape[0], V))
  return decoding.sample(keys, rows, settings)


def draw(logits, num, *settings):
  return np.asarray(
    sample(
      jax.random.split(jax.random.key(3), num),
      logits,
      decoding.make_decoding(*settings),
    )
  )


@pytest.mark.parametrize('settings', SETTINGS)
def test_frequencies_follow_the_exact_probabilities(settings):
  """Pearson's chi-square over tokens, those expected fewer than 10 times taken
  together. A right sampler fails one seed in 10**6; this seed is fixed, so the
  outcome is too. Tokens outside the support must never come."""
  num = 10_000
  logits = draw_logits()
  p = exact(logits, *settings)
  counts = np.bincount(draw(logits, num, *settings), minlength=V)
  assert counts.sum() == num
  assert (counts[p == 0] == 0).all()
  order = np.argsort(-p)
  rare = p[order] * num < 10
  expected, seen = p[order] * num, counts[order]
  expected = np.append(expected[~rare], expected[rare].sum())
  seen = np.append(seen[~rare], seen[rare].sum())
  seen, expected = seen[expected > 0], expected[expected > 0]
  if len(expected) > 1:
    statistic = ((seen - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(statistic, len(expected) - 1) > 1e-6
  else:
    assert seen[0] == num


@pytest.mark.parametrize('settings', SETTINGS)
def test_logprobs_are_the_exact_ones(settings):
  """For every token of the support; `sample` draws from the same support, as
  the test above shows."""
  logits = draw_logits(1)
  p = exact(logits, *settings)
  inside = np.flatnonzero(p).astype(np.int32)
  found = decoding.token_logprobs(
    jnp.broadcast_to(logits, (len(inside), V)),
    inside,
    decoding.make_decoding(*settings),
  )
  np.testing.assert_allclose(found, np.log(p[inside]), atol=1e-5)


def test_tokens_of_an_edge_that_ties_are_all_kept():
  """Which of two equal logits a sort puts first means nothing."""
  logits = np.full(V, -1.0, np.float32)
  logits[[3, 270]] = 2.0
  logits[[7, 11, 290]] = 1.0
  found = draw(logits, 500, 1.0, 1.0, 3)
  assert set(found) == {3, 270, 7, 11, 290}
  expected = np.exp(1) / (2 * np.exp(2) + 3 * np.exp(1))
  logprob = decoding.token_logprobs(
    logits, np.int32(11), decoding.make_decoding(1.0, 1.0, 3)
  )
  assert logprob == pytest.approx(np.log(expected), abs=1e-5)


def test_a_token_outside_the_support_has_a_finite_logprob():
  """Lower precision may push a sampled token over the edge."""
  logits = draw_logits()
  unlikely = np.int32(logits.argmin())
  found = decoding.token_logprobs(
    logits, unlikely, decoding.make_decoding(1.0, 0.5, 0)
  )
  assert np.isfinite(found)


@pytest.mark.parametrize('uniform', [0.0, 1 - 2**-24, 0.5])
def test_the_ends_of_the_uniform_land_on_mass(monkeypatch, uniform):
  """Random bits reach the ends too rarely to wait for them: 0 must not take
  the massless tokens in front, nor the largest uniform those behind."""
  monkeypatch.setattr(
    jax.random, 'uniform', lambda key, shape: jnp.full(shape, uniform)
  )
  for alive in ([5], [258], [5, 6], [5, 258], [299], [0]):
    logits = np.full((1, V), -np.inf, np.float32)
    logits[0, alive] = np.arange(len(alive))
    found = decoding.sample(
      jax.random.split(jax.random.key(0), 1),
      jnp.asarray(logits),
      decoding.make_decoding(1.0),
    )
    assert int(found[0]) in alive


def test_temperature_0_takes_the_likeliest():
  logits = draw_logits(2)
  assert (draw(logits, 50, 0.0) == logits.argmax()).all()
  found = decoding.token_logprobs(
    logits, np.int32(logits.argmax()), decoding.make_decoding(0.0)
  )
  assert found == 0


def test_rows_with_other_keys_draw_apart_and_equal_keys_alike():
  logits = draw_logits()
  first, again = draw(logits, 100, 1.0), draw(logits, 100, 1.0)
  np.testing.assert_array_equal(first, again)
  assert len(set(first)) > 20


@pytest.mark.parametrize(
  ('settings', 'named'),
  [
    ((-1.0, 1.0, 0), 'temperature=-1.0'),
    ((1.0, 0.0, 0), 'top_p=0.0'),
    ((1.0, 1.1, 0), 'top_p=1.1'),
    ((1.0, 1.0, -2), 'top_k=-2'),
  ],
)
def test_settings_out_of_range_are_named(settings, named):
  with pytest.raises(ValueError, match=named):
    decoding.make_decoding(*settings)
