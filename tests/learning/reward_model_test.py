"""The loss of pairs, and the scores of rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_llama
import pytest

from dash_jax import sharding
from dash_jax.learning import learner, optim, reward_model
from dash_jax.model import llama

LENGTHS = (5, 9, 3, 7)


@pytest.fixture
def model(tiny):
  """One layer, since depth adds nothing here."""
  return llama.Llama(
    dataclasses.replace(tiny, num_layers=1, tied=True, scalar_head=True)
  )


def make_params(model):
  """The head begins at zero, where all rows score 0."""
  params = llama.init_params(model.config, jax.random.key(0), jnp.float32)
  params['score'] = params['score'] + 0.1 * jnp.arange(
    model.config.embed_dim, dtype=jnp.float32
  ).reshape(-1, 1)
  return params


def draw_rows(seed):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 64, n).tolist() for n in LENGTHS]


def test_pair_loss_has_its_closed_form():
  """log 2 where nothing is known, log(1 + e^-d) at a distance d, and no more than
  a straight line far on the wrong side, where a naive form overflows."""
  d = np.float32([0, 1.5, -1.5, 200, -200])
  base = np.float32([3, -2, 0, 1, 1])
  expected = [np.log(2), *np.log1p(np.exp([-1.5, 1.5])), 0, 200]
  found = reward_model.pair_loss(base + d, base)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  slope = jax.grad(lambda d: reward_model.pair_loss(d, 0.0))
  np.testing.assert_allclose(slope(1.5), -1 / (1 + np.exp(1.5)), rtol=1e-5)


def test_the_score_is_read_at_the_last_token(model, mesh):
  """As plain NumPy has it of each row alone; what pads a row is not seen."""
  params, rows = make_params(model), draw_rows(0)
  padded = reward_model.pad(rows, 12)
  padded.tokens[np.arange(12) >= padded.lengths[:, None]] = 7
  found = reward_model.score(model, params, sharding.put_rows(padded))
  expected = []
  for row in rows:
    x, weights = plain_llama.hidden(jax.device_get(params), model.config, row)
    expected.append((x[-1] @ weights['score'])[0])
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.ptp(expected) > 0.1


def test_updates_prefer_what_was_chosen_on_any_mesh(model):
  """Four devices find the loss that one does; and steps raise the chosen above
  the rejected, which all score 0 at first."""
  optimizer = optim.make_optimizer(
    optim.OptimConfig(
      learning_rate=0.01, schedule='constant', warmup_steps=0, total_steps=1
    )
  )
  losses = []
  for shape in ((1, 1, 1), (1, 2, 2)):
    devices = jax.devices()[: np.prod(shape)]
    with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):
      params = llama.init_params(model.config, jax.random.key(0), jnp.float32)
      state = learner.init_state(params, optimizer)
      pairs = [
        sharding.put_rows(reward_model.pad(draw_rows(seed), 12))
        for seed in (1, 2)
      ]
      for _ in range(4):
        state, metrics = reward_model.update(
          state, *pairs, model=model, optimizer=optimizer
        )
        losses.append(float(metrics['loss']))
      assert metrics['accuracy'] == 1
      assert int(state.step) == 4
  assert losses[0] == pytest.approx(np.log(2), rel=1e-5)
  assert losses[3] < 0.6
  np.testing.assert_allclose(losses[4:], losses[:4], rtol=1e-3)
