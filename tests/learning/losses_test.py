"""Losses against their formulas, and what their gradients mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.learning import losses


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
  ],
)
def test_clipped_loss_in_closed_form(ratio, advantage, loss, clipped):
  """low=0.1 and high=0.3 differ, so that swapping them shows. The gradient in
  logprob is -ratio * A where free and 0 where clipped."""
  old = jnp.float32([[-1.3]])
  logprobs = old + np.log(ratio)

  def total(x):
    found, at_bound = losses.clipped_policy_loss(
      x, old, jnp.float32([advantage]), 0.1, 0.3
    )
    return found[0, 0], at_bound[0, 0]

  (found, at_bound), gradient = jax.value_and_grad(total, has_aux=True)(
    logprobs
  )
  assert found == pytest.approx(loss, rel=1e-5)
  assert at_bound == clipped
  slope = 0.0 if clipped else -ratio * advantage
  assert gradient[0, 0] == pytest.approx(slope, rel=1e-5)


def test_k3_is_the_kl_in_expectation():
  """Over every token of a finite distribution the mean of k3 under the policy
  is KL(policy || ref) itself, and no single value is negative."""
  rng = np.random.default_rng(0)
  policy, ref = rng.dirichlet(np.ones(50), size=2)
  found = np.asarray(losses.k3_kl(jnp.log(policy), jnp.log(ref)), np.float64)
  assert (found > 0).all()
  kl = (policy * np.log(policy / ref)).sum()
  assert (policy * found).sum() == pytest.approx(kl, rel=1e-5)
  assert (losses.k3_kl(jnp.log(policy), jnp.log(policy)) == 0).all()


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
