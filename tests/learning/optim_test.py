"""Schedules in closed form, and what the optimizer does to which weight."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax import sharding
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


def take(optimizer, params, gradients):
  """Returns the weights after a step on each gradient, and the state."""
  state = optimizer.init(params)
  for gradient in gradients:
    updates, state = jax.jit(optimizer.update)(gradient, state, params)
    params = optim.add_updates(params, updates, jax.random.key(0))
  return params, state


def test_lion_moves_by_the_rate_alone():
  """sign of 0.9 m + 0.1 g: after 1 and -0.05 the momentum 0.01 still leads."""
  params = {'w_up': jnp.zeros((1, 2))}
  steps = [
    {'w_up': jnp.float32([[1, -2]])},
    {'w_up': jnp.float32([[-0.05, 1]])},
  ]
  found, _ = take(optim.make_optimizer(config(name='lion')), params, steps)
  np.testing.assert_allclose(found['w_up'], [[-1.0, 0.0]], atol=1e-6)


def test_adafactor_divides_by_its_row_and_column():
  """The first step of a matrix of rank one: g / sqrt(v) is its sign, whose
  root mean square, 1, is not clipped."""
  g = np.outer(np.arange(1, 129), np.tile([1, -2], 64)).astype(np.float32)
  params = {'w_up': jnp.zeros((128, 128))}
  optimizer = optim.make_optimizer(config(name='adafactor'))
  found, state = take(optimizer, params, [{'w_up': jnp.asarray(g)}])
  np.testing.assert_allclose(found['w_up'], -0.5 * np.sign(g), rtol=1e-3)
  assert sum(x.size for x in jax.tree.leaves(state)) < 1000


def test_muon_turns_matrices_of_layers_and_leaves_the_rest_to_adam(mesh):
  """An update's singular values are all about as large: 0.2 root mean square,
  in each layer for itself."""
  rng = np.random.default_rng(0)
  sides = np.linalg.qr(rng.normal(size=(2, 2, 8, 8)))[0]
  w = sides[0] * np.geomspace(0.1, 1, 8) @ sides[1]
  w = w.reshape(2, 8, 2, 4).astype(np.float32)  # L, D, N, H
  params = {
    'embed': jnp.zeros((8, 4)),
    'layers': {'wq': jnp.zeros_like(w), 'attn_norm': jnp.ones((2, 8))},
  }
  grads = jax.tree.map(lambda x: jnp.ones(x.shape), params)
  grads['layers']['wq'] = jnp.asarray(w)
  found, _ = take(optim.make_optimizer(config(name='muon')), params, [grads])
  for layer in np.asarray(found['layers']['wq']):
    singular = np.linalg.svd(layer.reshape(8, 8), compute_uv=False)
    assert singular.max() / singular.min() < 2.5
    assert np.sqrt((layer**2).mean()) == pytest.approx(0.5 * 0.2, rel=0.3)
  # Adam's first step is its rate; Nesterov's momentum looks one step ahead.
  step = 0.5 * (1 + 0.9 * 0.1 / (1 - 0.9**2))
  np.testing.assert_allclose(found['embed'], -step, rtol=1e-4)
  np.testing.assert_allclose(found['layers']['attn_norm'], 1 - step, rtol=1e-4)


@pytest.mark.parametrize(
  ('moments', 'bytes_each', 'error'),
  [('bfloat16', 2, 0.02), ('int8', 1.1, 0.2)],
)
def test_moments_in_fewer_bits_follow_those_in_float32(
  moments, bytes_each, error
):
  """60 steps on noise with a drift: the way of the weights is nearly the same,
  although 1 - b2 of a second moment is below the precision."""
  rng = np.random.default_rng(0)
  sizes = rng.lognormal(0, 1, (64, 64))
  steps = [
    {'w_up': jnp.float32(sizes * rng.normal(0.5, 1, (64, 64)))}
    for _ in range(60)
  ]
  params = {'w_up': jnp.zeros((64, 64))}
  fine, _ = take(optim.make_optimizer(config(b2=0.99)), params, steps)
  small, state = take(
    optim.make_optimizer(config(b2=0.99, moments=moments)), params, steps
  )
  gap = np.linalg.norm(fine['w_up'] - small['w_up'])
  assert 0 < gap < error * np.linalg.norm(fine['w_up'])
  held = sum(x.nbytes for x in jax.tree.leaves(state))
  assert held < 2 * bytes_each * 64 * 64 + 100


def test_rounding_is_right_in_the_mean():
  """Of bfloat16 weights that move by a twentieth of their precision a step, and
  of a moment in 8 bits."""
  params = {'w_up': jnp.ones((64, 64), jnp.bfloat16)}
  step = {'w_up': jnp.full((64, 64), 2.0**-7 / 20)}
  for i in range(40):
    params = optim.add_updates(params, step, jax.random.key(i))
  assert params['w_up'].dtype == jnp.bfloat16
  mean = float(params['w_up'].astype(jnp.float32).mean())
  assert mean == pytest.approx(1 + 2 * 2.0**-7, abs=5e-4)
  x = jnp.float32(np.random.default_rng(0).normal(size=(8, 32)) ** 2)
  for is_square in (False, True):
    drawn = [
      optim._from_8_bits(
        optim._to_8_bits(x, jax.random.key(i), is_square), is_square
      )
      for i in range(200)
    ]
    np.testing.assert_allclose(np.mean(drawn, 0), x, atol=0.02)
    assert (np.min(drawn, 0) > 0).all() or not is_square


@pytest.mark.parametrize('name', optim.NAMES)
def test_state_keeps_its_layout_on_a_mesh(tiny, name):
  """Else the second step would compile again, or not fit."""
  with jax.set_mesh(jax.make_mesh((1, 2, 4), sharding.AXES)):
    params = llama.init_params(tiny, jax.random.key(0), jnp.float32)
    moments = 'int8' if name == 'adamw' else 'float32'
    optimizer = optim.make_optimizer(config(name=name, moments=moments))
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    updates, after = update(params, state, params)
    layout = functools.partial(
      jax.tree.map, lambda x: (x.shape, x.dtype, jax.typeof(x).sharding.spec)
    )
    assert layout(state) == layout(after)
    assert layout(updates) == layout(params)
