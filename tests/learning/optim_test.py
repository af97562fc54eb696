"""Schedules in closed form, and what the optimizer does to which weight."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.learning import optim
from dash_jax.model import llama


def config(**changes):
  fields = {
    'learning_rate': 0.5,
    'schedule': 'constant',
    'warmup_steps': 0,
    'total_steps': 12,
    'max_grad_norm': 0.0,
  }
  return optim.OptimConfig(**fields | changes)


@pytest.mark.parametrize(
  ('schedule', 'shape'),
  [
    ('constant', lambda x: 1.0),
    ('linear', lambda x: 1 - x),
    ('cosine', lambda x: (1 + math.cos(math.pi * x)) / 2),
  ],
)
@pytest.mark.parametrize('warmup_steps', [0, 4])
def test_schedules_in_closed_form(schedule, shape, warmup_steps):
  """A linear rise, then the named form over the steps that are left."""
  rate = optim.make_schedule(
    config(schedule=schedule, warmup_steps=warmup_steps)
  )
  rest = 12 - warmup_steps
  for step in range(12):
    rise = (step + 1) / (warmup_steps + 1) if step < warmup_steps else None
    expected = shape((step - warmup_steps) / rest) if rise is None else rise
    assert rate(step) == pytest.approx(0.5 * expected, abs=1e-6)


def test_every_named_schedule_is_known():
  for schedule in optim.SCHEDULES:
    assert optim.make_schedule(config(schedule=schedule))(0) == 0.5


def test_adamw_by_hand():
  """Two steps against the formulas of AdamW in float64."""
  optimizer = optim.make_optimizer(config(weight_decay=0.1))
  weight, m, v = 2.0, 0.0, 0.0
  params = {'w_up': jnp.float32([weight])}
  state = optimizer.init(params)
  for step, gradient in enumerate((0.3, -0.7), start=1):
    updates, state = optimizer.update(
      {'w_up': jnp.float32([gradient])}, state, params
    )
    params = {'w_up': params['w_up'] + updates['w_up']}
    m = 0.9 * m + 0.1 * gradient
    v = 0.999 * v + 0.001 * gradient**2
    adam = (m / (1 - 0.9**step)) / (math.sqrt(v / (1 - 0.999**step)) + 1e-8)
    weight -= 0.5 * (adam + 0.1 * weight)
    assert params['w_up'][0] == pytest.approx(weight, rel=1e-5)


def test_norms_and_biases_do_not_decay(mesh, tiny):
  """With zero gradients the only change is decay: matrices shrink by it, what
  `llama.weights` starts at one or zero stays."""
  declared = llama.weights(
    llama.LlamaConfig(**{**vars(tiny), 'qkv_bias': True})
  )
  params = jax.tree.map(
    lambda w: np.ones(w.shape, np.float32), declared, is_leaf=llama.is_weight
  )
  optimizer = optim.make_optimizer(config(weight_decay=0.1))
  zeros = jax.tree.map(np.zeros_like, params)
  updates, _ = jax.jit(
    lambda: optimizer.update(zeros, optimizer.init(params), params)
  )()

  def check(weight, update):
    np.testing.assert_allclose(update, -0.05 if weight.scale else 0, rtol=1e-6)

  jax.tree.map(check, declared, updates, is_leaf=llama.is_weight)


@pytest.mark.parametrize(
  ('limit', 'factor'), [(0.0, 1.0), (1.0, 0.2), (10.0, 1.0)]
)
def test_the_global_norm_is_clipped(limit, factor):
  """Adam forgets scale after one step, so two steps show the clip: of norm 5,
  then of norm 0.5, which no limit here touches."""
  big, small = np.float32([3.0, 4.0]), np.float32([0.3, 0.4])

  def run(gradients, limit):
    optimizer = optim.make_optimizer(config(max_grad_norm=limit))
    params = {'w_up': jnp.zeros(2)}
    state = optimizer.init(params)
    for gradient in gradients:
      updates, state = optimizer.update({'w_up': gradient}, state, params)
    return updates['w_up']

  np.testing.assert_allclose(
    run([big, small], limit), run([big * factor, small], 0.0), rtol=1e-5
  )
