"""Losses against their formulas, and what their gradients mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.learning import losses


def run(objective, logprobs, old, gain):
  """Returns loss, whether it is clipped, and the gradient, of one token."""

  def total(x):
    found, clipped = losses.policy_loss(
      objective, x, jnp.float32([old]), jnp.float32([gain])
    )
    return found[0], clipped[0]

  (found, clipped), gradient = jax.value_and_grad(total, has_aux=True)(
    jnp.float32([logprobs])
  )
  return float(found), bool(clipped), float(gradient[0])


@pytest.mark.parametrize(
  ('ratio', 'advantage', 'loss', 'clipped'),
  [
    (1.0, 2.0, -2.0, False),
    (1.0, -2.0, 2.0, False),
    (1.5, 2.0, -2.6, True),  # held at 1 + 0.3
    (1.5, -2.0, 3.0, False),  # a mistake that grows is never clipped
    (0.5, 2.0, -1.0, False),
    (0.5, -2.0, 1.8, True),  # held at 1 - 0.1
    (1.2, 2.0, -2.4, False),  # inside
    (0.95, -2.0, 1.9, False),
    (9.0, -2.0, 8.0, True),  # but by dual clip, at 4 times the advantage
    (9.0, 2.0, -2.6, True),
  ],
)
def test_clipped_loss_in_closed_form(ratio, advantage, loss, clipped):
  """low=0.1 and high=0.3 differ, so that swapping them shows. The gradient in
  logprob is -ratio * A where free and 0 where clipped."""
  objective = losses.Objective(clip_low=0.1, clip_high=0.3, clip_dual=4.0)
  found = run(objective, -1.3 + np.log(ratio), -1.3, advantage)
  slope = 0.0 if clipped else -ratio * advantage
  assert found == (
    pytest.approx(loss, rel=1e-5), clipped, pytest.approx(slope, rel=1e-5)
  )  # fmt: skip


def test_without_dual_clip_a_mistake_is_not_bounded():
  found = run(losses.Objective(), -1.3 + np.log(9), -1.3, -2.0)
  assert found[0] == pytest.approx(18, rel=1e-5)


@pytest.mark.parametrize(
  ('ratio', 'bounded'), [(1.0, 1.0), (1.5, 1.3), (0.5, 0.9), (1.2, 1.2)]
)
@pytest.mark.parametrize('advantage', [2.0, -2.0])
def test_cispo_bounds_the_ratio_and_never_the_gradient(
  ratio, bounded, advantage
):
  """-sg(clip(ratio)) A logprob: every token keeps a gradient."""
  logprob = -1.3 + np.log(ratio)
  objective = losses.Objective('cispo', clip_low=0.1, clip_high=0.3)
  loss, clipped, slope = run(objective, logprob, -1.3, advantage)
  assert loss == pytest.approx(-bounded * advantage * logprob, rel=1e-5)
  assert slope == pytest.approx(-bounded * advantage, rel=1e-5)
  assert clipped == (ratio != bounded)


@pytest.mark.parametrize(
  ('loss', 'slope'), [('reinforce', -2.0), ('dpo', -2.0), ('supervised', -1.0)]
)
def test_plain_losses_weigh_the_log_probability(loss, slope):
  """Whatever the old log-probability is."""
  found = run(losses.Objective(loss), -0.7, -9.0, 2.0)
  assert found == (pytest.approx(-0.7 * slope), False, slope)


def test_gspo_gives_every_token_its_rows_ratio():
  """s = exp(mean of differences): by hand for a row of two and a row of three
  tokens, and its gradient s A / len for each token where it is not clipped."""
  old = np.float32([[[-1.0, -2.0, 0.0], [-1.0, -1.0, -1.0]]])
  now = np.float32([[[-0.9, -2.3, 0.0], [-0.5, -1.0, 0.5]]])
  lengths = np.array([[2, 3]])
  s = np.exp([-0.1, 2.0 / 3])
  found = losses.gspo_old_logprobs(now, old, lengths)
  ratio = np.exp(now - found)
  np.testing.assert_allclose(ratio[0, 0, :2], s[0], rtol=1e-5)
  np.testing.assert_allclose(ratio[0, 1], s[1], rtol=1e-5)
  objective = losses.Objective('gspo', clip_low=0.2, clip_high=0.4)
  gain = jnp.float32([[[1.5], [1.5]]])

  def total(x):
    loss, clipped = losses.policy_loss(objective, x, found, gain)
    weight = np.array([[[1 / 2, 1 / 2, 0], [1 / 3] * 3]])
    return (loss * weight).sum(), clipped

  (loss, clipped), slope = jax.value_and_grad(total, has_aux=True)(now)
  assert loss == pytest.approx(-(s[0] + 1.4) * 1.5, rel=1e-5)
  np.testing.assert_allclose(slope[0, 0, :2], -s[0] * 1.5 / 2, rtol=1e-5)
  assert (slope[0, 1] == 0).all()  # s is 1.95, above 1.4
  assert clipped[0, 1].all()
  assert not clipped[0, 0].any()


def test_dpo_weighs_pairs_as_the_gradient_of_its_loss_does():
  """Against jax's gradient of -log sigmoid(beta (..)), written out, in the
  log-probability of each token; the group that agrees has no pair."""
  rng = np.random.default_rng(0)
  rewards = np.float32([[0, 1, 0.5], [1, 1, 1], [0.2, 0, 0]])
  now, ref = rng.normal(-2, 1, (2, 3, 3, 4)).astype(np.float32)
  beta = 0.3

  def plain(x):
    m = (x - ref).sum(-1)
    first = jax.nn.log_sigmoid(beta * (m[0, 1] - m[0, 0]))
    return -first - jax.nn.log_sigmoid(beta * (m[2, 0] - m[2, 1]))

  pairs = losses.find_pairs(rewards)
  np.testing.assert_array_equal(pairs, [[-1, 1, 0], [0, 0, 0], [1, -1, 0]])
  found = losses.dpo_advantages(pairs, now, ref, beta)
  np.testing.assert_allclose(
    -found[..., None] * np.ones(4), jax.grad(plain)(now), atol=1e-6
  )


@pytest.mark.parametrize('estimator', losses.KL_ESTIMATORS)
def test_kl_estimates_in_expectation(estimator):
  """Over every token of a finite distribution the mean of k1 and k3 under the
  policy is KL(policy || ref) itself, and that of k2's gradient is its gradient;
  none of k2 and k3 is negative."""
  rng = np.random.default_rng(0)
  logits, ref = rng.normal(size=(2, 50))
  ref = jax.nn.log_softmax(ref)

  def kl(x):
    logp = jax.nn.log_softmax(x)
    return (jnp.exp(logp) * (logp - ref)).sum()

  def estimate(x):
    logp = jax.nn.log_softmax(x)
    drawn = jax.lax.stop_gradient(jnp.exp(logp))
    return (drawn * losses.estimate_kl(estimator, logp, ref)).sum()

  if estimator != 'k2':
    assert estimate(logits) == pytest.approx(float(kl(logits)), rel=1e-5)
  else:
    np.testing.assert_allclose(
      jax.grad(estimate)(logits), jax.grad(kl)(logits), atol=1e-6
    )
  each = losses.estimate_kl(estimator, jax.nn.log_softmax(logits), ref)
  assert bool((each < 0).any()) == (estimator == 'k1')
  assert (losses.estimate_kl(estimator, ref, ref) == 0).all()


LENGTHS = np.array([1, 4, 8, 3])


@pytest.mark.parametrize(
  ('normalizer', 'per_token', 'denominator'),
  [
    ('token', [1, 1, 1, 1], 16),
    ('sequence', [1, 1 / 4, 1 / 8, 1 / 3], 4),
    ('constant', [1 / 8, 1 / 8, 1 / 8, 1 / 8], 4),
  ],
)
def test_row_weights_in_closed_form(normalizer, per_token, denominator):
  weight, counted = losses.row_weights(normalizer, LENGTHS, 8)
  np.testing.assert_allclose(weight, per_token, rtol=1e-6)
  assert counted.sum() == denominator


@pytest.mark.parametrize('normalizer', ['token', 'sequence'])
def test_means_weigh_everything_once(normalizer):
  """Both are means: with every token's loss 1, the whole loss is 1."""
  weight, counted = losses.row_weights(normalizer, LENGTHS, 8)
  assert (weight * LENGTHS).sum() / counted.sum() == pytest.approx(1)


def test_every_named_normalizer_differs():
  found = {
    name: tuple(losses.row_weights(name, LENGTHS, 8)[0])
    for name in losses.NORMALIZERS
  }
  assert len(set(found.values())) == len(losses.NORMALIZERS) == 3


@pytest.mark.parametrize(
  ('loss', 'clip_dual'),
  [(name, 0.0) for name in losses.LOSSES] + [('clip', 1.5)],
)
def test_gradients_in_float64_are_those_worked_out_by_hand(loss, clip_dual):
  """Of 500 tokens, none at a kink; with a ratio r to the old policy, d r = r."""
  rng = np.random.default_rng(0)
  new, old, A = rng.normal(size=(3, 500))
  objective = losses.Objective(loss=loss, clip_dual=clip_dual)
  r = np.exp(new - old)
  if loss == 'supervised':
    expected = -np.ones(500)
  elif loss in ('reinforce', 'dpo'):
    expected = -A
  elif loss == 'cispo':
    expected = -np.clip(r, 0.8, 1.2) * A
  else:
    moves = np.where(A > 0, r < 1.2, r > 0.8)
    if clip_dual:
      moves &= (A > 0) | (r < clip_dual)
    expected = np.where(moves, -r * A, 0.0)
  with jax.enable_x64(True):
    gradient = jax.grad(
      lambda x: losses.policy_loss(objective, x, old, A)[0].sum()
    )(new)
    assert gradient.dtype == np.float64
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
  ('estimator', 'slope'),
  [
    ('k1', lambda d: np.ones_like(d)),
    ('k2', lambda d: -d),
    ('k3', lambda d: 1 - np.exp(d)),
  ],
)
def test_slopes_of_kl_estimates_in_float64(estimator, slope):
  new, ref = np.random.default_rng(1).normal(size=(2, 500))
  with jax.enable_x64(True):
    gradient = jax.grad(lambda x: losses.estimate_kl(estimator, x, ref).sum())(
      new
    )
    np.testing.assert_allclose(gradient, slope(ref - new), rtol=1e-10)
