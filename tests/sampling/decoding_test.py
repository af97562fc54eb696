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
  (1.0, 1.0, V),
  (1.0, 1.0, 10 * V, 0.01),
  (0.7, 0.9, 3_000_000_000),
  (1.0, 1.0, 0, 0.05),
  (1.3, 0.95, 60, 0.02),
]


def draw_logits(seed=0):
  return np.random.default_rng(seed).normal(size=V).astype(np.float32) * 2


def exact(logits, temperature, top_p=1.0, top_k=0, min_p=0.0):
  """Returns f64[V], the probabilities: softmax; the top_k likeliest tokens, of
  these the likeliest until their share reaches top_p, of these those at least
  min_p times as likely as the likeliest; scaled to 1."""
  scaled = logits.astype(np.float64) / temperature
  p = np.exp(scaled - scaled.max())
  order = sorted(range(V), key=lambda i: -p[i])[: top_k or V]
  p /= p[order].sum()
  kept, mass = [], 0.0
  for token in order:
    if kept and mass >= top_p:
      break
    kept.append(token)
    mass += p[token]
  # No cumulative mass may be so near top_p that float32 could go either way.
  sums = np.cumsum(p[order])
  assert top_p == 1 or np.abs(sums - top_p).min() > 1e-5 * top_p
  kept = [token for token in kept if p[token] >= min_p * p[order[0]]]
  q = np.zeros(V)
  q[kept] = p[kept]
  return q / q.sum()


@jax.jit
def _draw(keys, logits, settings):
  rows = jnp.broadcast_to(logits, (keys.shape[0], V))
  slots = jnp.zeros(keys.shape[0], jnp.int32)
  return decoding.draw(keys, rows, slots, settings)


def draw_both(logits, num, settings):
  keys = jax.random.split(jax.random.key(3), num)
  return jax.device_get(_draw(keys, logits, settings))


def draw(logits, num, *settings, **more):
  return draw_both(logits, num, make(*settings, **more))[0]


def make(temperature, top_p=1.0, top_k=0, min_p=0.0, **more):
  return decoding.make_decoding(temperature, top_p, top_k, min_p=min_p, **more)


@pytest.mark.parametrize('settings', SETTINGS)
def test_frequencies_follow_the_exact_probabilities(settings):
  """Pearson's chi-square over tokens, those expected fewer than 10 times taken
  together. A right sampler fails one seed in 10**6; this seed is fixed, so the
  outcome is too. Tokens outside the support must never come. The logprobs that
  come with the tokens are the exact ones."""
  num = 10_000
  logits = draw_logits()
  p = exact(logits, *settings)
  tokens, logprobs = draw_both(logits, num, make(*settings))
  np.testing.assert_allclose(logprobs, np.log(p[tokens]), atol=1e-5)
  counts = np.bincount(tokens, minlength=V)
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
    np.int32(0),
    make(*settings),
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
    logits, np.int32(11), np.int32(0), decoding.make_decoding(1.0, 1.0, 3)
  )
  assert logprob == pytest.approx(np.log(expected), abs=1e-5)


def test_a_token_outside_the_support_has_a_finite_logprob():
  """Lower precision may push a sampled token over the edge."""
  logits = draw_logits()
  unlikely = np.int32(logits.argmin())
  found = decoding.token_logprobs(
    logits, unlikely, np.int32(0), decoding.make_decoding(1.0, 0.5, 0)
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
    found, _ = decoding.draw(
      jax.random.split(jax.random.key(0), 1),
      jnp.asarray(logits),
      np.zeros(1, np.int32),
      decoding.make_decoding(1.0),
    )
    assert int(found[0]) in alive


@pytest.mark.parametrize('num_blocks', [501, 593])
def test_the_largest_uniform_lands_in_the_support(monkeypatch, num_blocks):
  """Of a large vocabulary, of which most blocks have no mass: sums over them
  are not flat in float32. Llama 3 has 501 blocks, Qwen 593."""
  monkeypatch.setattr(
    jax.random, 'uniform', lambda key, shape: jnp.full(shape, 1 - 2**-23)
  )
  rng = np.random.default_rng(0)
  logits = 3 * rng.normal(size=(64, num_blocks * 256)).astype(np.float32)
  keys = jax.random.split(jax.random.key(0), len(logits))
  tokens, logprobs = jax.jit(decoding.draw)(
    keys, logits, np.zeros(len(logits), np.int32), make(1.0, top_k=20)
  )
  assert tokens.max() < logits.shape[1]
  drawn = np.take_along_axis(logits, np.asarray(tokens)[:, None], axis=1)
  assert (drawn >= np.sort(logits)[:, -20:-19]).all()
  assert np.isfinite(logprobs).all()


def test_temperature_0_takes_the_likeliest():
  logits = draw_logits(2)
  assert (draw(logits, 50, 0.0) == logits.argmax()).all()
  found = decoding.token_logprobs(
    logits,
    np.int32(logits.argmax()),
    np.int32(0),
    decoding.make_decoding(0.0),
  )
  assert found == 0


def test_stop_ids_are_banned_before_the_least_length():
  """What is drawn has the probabilities of the other tokens alone, scaled to 1;
  the learner's figures agree slot by slot."""
  logits = draw_logits(3)
  stops = (int(logits.argmax()), 5, 299)
  p = exact(logits, 1.0)
  rest = np.where(np.isin(np.arange(V), stops), 0, p)
  rest /= rest.sum()
  how = make(1.0, stop_ids=stops, min_len=2)
  tokens, logprobs = draw_both(logits, 5_000, how)
  assert not np.isin(tokens, stops).any()
  np.testing.assert_allclose(logprobs, np.log(rest[tokens]), atol=1e-5)
  token = np.int32(np.argsort(-rest)[0])
  found = decoding.token_logprobs(
    jnp.broadcast_to(logits, (4, V)), np.full(4, token), np.arange(4), how
  )
  expected = np.log([rest[token]] * 2 + [p[token]] * 2)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  greedy = draw(logits, 3, 0.0, stop_ids=stops, min_len=1)
  assert (greedy == token).all()
  later = decoding.draw(
    jax.random.split(jax.random.key(0), 1), logits[None], np.array([1]),
    make(0.0, stop_ids=stops, min_len=1),
  )  # fmt: skip
  assert later[0] == logits.argmax()


def test_a_banned_token_has_a_finite_gradient():
  """Rows of weight 0 may hold any token, and 0 times infinity is NaN."""
  how = make(1.0, top_k=3, stop_ids=(7,), min_len=5)

  def logprob(logits):
    return decoding.token_logprobs(logits, np.int32(7), np.int32(0), how)

  value, grad = jax.value_and_grad(logprob)(jnp.asarray(draw_logits()))
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


def test_rows_with_other_keys_draw_apart_and_equal_keys_alike():
  logits = draw_logits()
  first, again = draw(logits, 100, 1.0), draw(logits, 100, 1.0)
  np.testing.assert_array_equal(first, again)
  assert len(set(first)) > 20


@pytest.mark.parametrize(
  ('settings', 'named'),
  [
    ((-1.0, 1.0, 0), 'temperature=-1.0'),
    ((float('nan'), 1.0, 0), 'temperature=nan'),
    ((float('inf'), 1.0, 0), 'temperature=inf'),
    ((1e-30, 1.0, 0), 'temperature=1e-30: must be 0 .* from 1e-06'),
    ((1.0, 0.0, 0), 'top_p=0.0'),
    ((1.0, 1.1, 0), 'top_p=1.1'),
    ((1.0, 1.0, -2), 'top_k=-2'),
    ((1.0, 1.0, 0, 1.5), 'min_p=1.5'),
  ],
)
def test_settings_out_of_range_are_named(settings, named):
  with pytest.raises(ValueError, match=named):
    make(*settings)


def test_more_settings_out_of_range_are_named():
  with pytest.raises(ValueError, match='min_len=-1'):
    make(1.0, min_len=-1)
  with pytest.raises(ValueError, match='33 stop ids: at most 32'):
    make(1.0, stop_ids=tuple(range(33)))


@pytest.mark.parametrize('settings', SETTINGS)
def test_entropy_is_that_of_the_distribution(settings):
  """In float64; its gradient is finite, tokens outside the support included."""
  logits = draw_logits()
  how = decoding.make_decoding(
    *settings[:3], min_p=dict(enumerate(settings)).get(3, 0)
  )
  p = exact(logits, *settings)
  p = p[p > 0]
  slot = jnp.int32(0)
  found, slope = jax.value_and_grad(decoding.token_entropy)(logits, slot, how)
  assert found == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
  assert np.isfinite(slope).all()
