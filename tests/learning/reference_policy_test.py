"""Where the reference policy goes, and how strongly it pulls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dash_jax import batches
from dash_jax.learning import reference


def make_state(dtype=jnp.float32, size=4):
  params = {'w': jnp.arange(1, 1 + size, dtype=dtype)}
  state = batches.TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optax.sgd(1.0).init(params),
    kl_scale=jnp.float32(1),
  )
  return reference.begin(state)


def go_on(rule, state, kls):
  """Yields the state after steps that add 1 to each weight, of so many."""
  for taken, kl in enumerate(kls, 1):
    params = {'w': state.params['w'] + 1}
    state = dataclasses.replace(state, params=params, step=jnp.int32(taken))
    state = reference.follow(rule, state, taken=taken, num_steps=8, kl=kl)
    yield jax.device_get(state)


@pytest.mark.parametrize(
  ('rule', 'expected'),
  [
    (reference.Rule(schedule='linear'), [0, 0, 0, 0, 0]),
    (reference.Rule('periodic', every=2), [0, 2, 2, 4, 4]),
    # r + (1 - 0.75) (p - r), from r = p = 0
    (
      reference.Rule('ema', decay=0.75),
      [0.25, 0.6875, 1.265625, 1.94921875, 2.7119140625],
    ),
  ],
)
def test_the_reference_goes_where_its_rule_says(mesh, rule, expected):
  """How far from where it began; the policy is 1, 2, .. 5 away."""
  start = np.arange(1, 5)
  for state, away in zip(
    go_on(rule, make_state(), [0.0] * 5), expected, strict=True
  ):
    np.testing.assert_array_equal(state.reference['w'], start + away)


def test_an_average_in_bfloat16_moves_by_less_than_its_unit(mesh):
  """Of 1/64 of 1 at 1024, whose neighbours are 8 away, the mean comes through."""
  rule = reference.Rule('ema', decay=1 - 1 / 64)
  state = make_state(jnp.bfloat16, 1)
  full = jnp.full(4096, 1024, jnp.bfloat16)
  state = dataclasses.replace(
    state, params={'w': full + 64}, reference={'w': full}
  )
  state = reference.follow(rule, state, taken=1, num_steps=8, kl=0.0)
  moved = np.asarray(state.reference['w'], np.float32) - 1024
  assert set(moved.tolist()) == {0.0, 8.0}
  assert moved.mean() == pytest.approx(1, abs=5 * (7 / 4096) ** 0.5)


@pytest.mark.parametrize(
  ('schedule', 'expected'),
  [
    ('constant', [1, 1, 1, 1]),
    ('linear', [7 / 8, 6 / 8, 5 / 8, 4 / 8]),
    # kl / target - 1 is -0.5, 0.1, 0 and 3
    (
      'adaptive',
      [0.98, 0.98 * 1.01, 0.98 * 1.01, 0.98 * 1.01 * 1.02],
    ),
  ],
)
def test_the_coefficient_follows_its_schedule(mesh, schedule, expected):
  target = 0.2 if schedule == 'adaptive' else 0.0
  rule = reference.Rule('periodic', 9, schedule=schedule, target=target)
  states = go_on(rule, make_state(), [0.1, 0.22, 0.2, 0.8])
  scales = [float(state.kl_scale) for state in states]
  assert scales == pytest.approx(expected, rel=1e-6)


def test_a_step_without_a_number_leaves_the_coefficient(mesh):
  """Else it would have none for ever, and no step could be taken any more."""
  rule = reference.Rule(schedule='adaptive', target=0.2)
  states = go_on(rule, make_state(), [float('nan'), None, 0.8])
  scales = [float(state.kl_scale) for state in states]
  assert scales == pytest.approx([1, 1, 1.02], rel=1e-6)
