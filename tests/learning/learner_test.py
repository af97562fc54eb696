"""One optimizer step against float64 NumPy, and on every mesh."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_llama
import pytest
import tiny_rows

from dash_jax import sharding
from dash_jax.learning import learner, losses, optim, packing, reading
from dash_jax.model import llama
from dash_jax.sampling import decoding

MESHES = ((1, 2, 4), (1, 4, 2), (1, 8, 1), (2, 2, 2))
ROLLOUTS = tiny_rows.draw_rollouts()
GAIN = np.random.default_rng(2).normal(size=(4, 2)).astype(np.float32)
CLIP = 0.5  # of the losses that tests write out
# Under the learner's own weights, where these are not what sampled.
OLD = ROLLOUTS.logprobs + 0.3 * np.random.default_rng(5).normal(
  size=ROLLOUTS.logprobs.shape
).astype(np.float32)
RETURNS = np.random.default_rng(3).normal(size=(4, 2, tiny_rows.C))
RETURNS = RETURNS.astype(np.float32)


@pytest.fixture
def shallow(tiny):
  """One layer, for properties that depth adds nothing to."""
  return dataclasses.replace(tiny, num_layers=1)


def plain_logprobs(params, config, rollouts, row, temperature=1.0):
  """Returns f64[n] log-probabilities and entropies, of the completion of row (question, sample), from its
  tokens alone."""
  prompts, n = rollouts.prompts, rollouts.lengths[row]
  prompt = prompts.tokens[row[0]][prompts.mask[row[0]]]
  tokens = np.concatenate([prompt, rollouts.tokens[row][:n]])
  logits = plain_llama.forward(params, config, tokens) / temperature
  logprobs = plain_llama.log_softmax(logits)[-n - 1 : -1]
  entropies = -(np.exp(logprobs) * logprobs).sum(-1)
  return logprobs[np.arange(n), tokens[-n:]], entropies


def plain_values(params, config, row):
  """Returns f64[n], what the scalar head says before each token."""
  prompts, n = ROLLOUTS.prompts, ROLLOUTS.lengths[row]
  prompt = prompts.tokens[row[0]][prompts.mask[row[0]]]
  tokens = np.concatenate([prompt, ROLLOUTS.tokens[row][:n]])
  x, top = plain_llama.hidden(params, config, tokens)
  return (x @ top['score'])[-n - 1 : -1, 0]


def plain_step(params, config, *, ref=None, temperature=1.0, objective=None):
  """Returns the loss and metrics of ROLLOUTS under GAIN, all rows counted once:
  a mean over rows of means over their tokens."""
  o = objective or losses.Objective()
  names = ('kl', 'entropy', 'clipped', 'gap', 'value_loss')
  loss, sums = 0.0, dict.fromkeys(names, 0.0)
  num_tokens = ROLLOUTS.lengths.sum()
  for row, gain in np.ndenumerate(GAIN.astype(np.float64)):
    new, entropies = plain_logprobs(params, config, ROLLOUTS, row, temperature)
    sampled = ROLLOUTS.logprobs[row][ROLLOUTS.mask[row]].astype(float)
    old = OLD[row][ROLLOUTS.mask[row]] if o.importance_cap else sampled
    if o.loss == 'supervised':
      token_loss, sampled = -new, new
    else:
      ratio = np.exp(new - old)
      bound = np.clip(ratio, 1 - o.clip_low, 1 + o.clip_high)
      gained = np.minimum(ratio * gain, bound * gain)
      clipped = bound * gain < ratio * gain
      if o.clip_dual and gain < 0:
        clipped |= gained < o.clip_dual * gain
        gained = np.maximum(gained, o.clip_dual * gain)
      token_loss = -gained
      sums['clipped'] += clipped.sum()
    if o.importance_cap:
      mismatch = np.exp(old - sampled)
      token_loss = token_loss * np.minimum(mismatch, o.importance_cap)
    if o.kl_coef:
      kept, _ = plain_logprobs(ref, config, ROLLOUTS, row, temperature)
      d = kept - new
      kl = np.exp(d) - 1 - d if o.kl_estimator == 'k3' else d**2 / 2
      token_loss = token_loss + o.kl_coef * kl
      sums['kl'] += kl.sum()
    token_loss = token_loss - o.entropy_coef * entropies
    if o.value_coef:
      error = plain_values(params, config, row) - RETURNS[row][: len(new)]
      token_loss = token_loss + o.value_coef * error**2 / 2
      sums['value_loss'] += (error**2 / 2).sum()
    loss += token_loss.mean() / GAIN.size
    if o.entropy_coef:
      sums['entropy'] += entropies.sum()
    else:
      sums['entropy'] -= new.sum()
    sums['gap'] += abs(new - sampled).sum()
  return loss, {name: x / num_tokens for name, x in sums.items()}


@pytest.mark.parametrize(
  ('objective', 'temperature'),
  [
    (losses.Objective(clip_low=0.1, clip_high=0.3, kl_coef=0.2), 0.7),
    (
      losses.Objective(
        clip_low=0.1,
        clip_high=0.3,
        clip_dual=1.2,
        kl_coef=0.2,
        kl_estimator='k2',
        entropy_coef=0.3,
      ),
      1.3,
    ),
    (losses.Objective(loss='supervised', is_sampled=False), 1.0),
    (losses.Objective(value_coef=0.7), 1.0),
    (losses.Objective(importance_cap=1.2, kl_coef=0.2), 1.0),
  ],
)
def test_a_step_equals_plain_numpy(mesh, tiny, objective, temperature):
  """Loss and metrics against the formulas; the gradient against the loss's own
  differences along random directions, for which no derivative was written."""
  tiny = dataclasses.replace(tiny, scalar_head=objective.value_coef > 0)
  params, ref = (tiny_rows.draw_params(tiny, seed) for seed in (1, 2))
  if tiny.scalar_head:  # it starts at 0, where no gradient goes on
    params['score'] = np.random.default_rng(4).normal(size=(32, 1))
    params['score'] = params['score'].astype(np.float32)
  old = {'old_logprobs': OLD} if objective.importance_cap else {}
  state, metrics = tiny_rows.take_step(
    tiny, params, tiny_rows.cut(ROLLOUTS, GAIN, returns=RETURNS, **old),
    ref_params=ref if objective.kl_coef else None,
    objective=objective, temperature=temperature,
  )  # fmt: skip

  def plain(params):
    return plain_step(
      params, tiny, ref=ref, temperature=temperature, objective=objective
    )

  loss, expected = plain(params)
  assert metrics['loss'] == pytest.approx(loss, abs=1e-5)
  assert metrics['kl'] == pytest.approx(expected['kl'], abs=1e-5)
  assert metrics['entropy'] == pytest.approx(expected['entropy'], abs=1e-5)
  assert metrics['clip_fraction'] == pytest.approx(expected['clipped'])
  assert metrics['logprob_gap'] == pytest.approx(expected['gap'], abs=1e-5)
  assert metrics['value_loss'] == pytest.approx(
    expected['value_loss'], abs=1e-5
  )
  if objective.kl_coef:
    assert 0.1 < metrics['clip_fraction'] < 0.9
    assert metrics['kl'] > 0.01
  norm = check_slopes(params, state, lambda params: plain(params)[0])
  assert metrics['grad_norm'] == pytest.approx(norm, rel=1e-4)


def check_slopes(params, state, loss):
  """Checks the gradient that a step took away against a loss's differences along
  random directions, and returns its norm."""
  gradient = jax.tree.map(
    lambda a, b: a.astype(np.float64) - b, params, jax.device_get(state.params)
  )
  norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
  rng = np.random.default_rng(5)
  for _ in range(3):
    direction = jax.tree.map(lambda g: rng.normal(size=g.shape), gradient)
    slope = sum(
      (g * d).sum()
      for g, d in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True
      )
    )
    after, before = (
      loss(jax.tree.map(lambda p, d: p + e * d, params, direction))  # noqa: B023
      for e in (1e-6, -1e-6)
    )
    assert slope == pytest.approx((after - before) / 2e-6, abs=2e-4 * norm)
  return norm


def plain_rows(params, config):
  """Returns by row f64[n], log-probabilities of its completion."""
  return {
    row: plain_logprobs(params, config, ROLLOUTS, row)[0]
    for row in np.ndindex(GAIN.shape)
  }


def plain_loss(name, now, old, ref, at):
  """Returns the loss of ROLLOUTS under GAIN, as its paper has it.

  Args:
    name: of losses.LOSSES.
    now, old, ref: log-probabilities by row.
    at: as `now`, but held where a loss does not differentiate.
  """
  found = 0.0
  if name == 'dpo':
    for q in range(len(GAIN)):
      best, worst = ((q, i(GAIN[q])) for i in (np.argmax, np.argmin))
      m = 2.0 * sum(
        sign * (now[row].sum() - ref[row].sum())
        for sign, row in ((1, best), (-1, worst))
      )
      found += np.log(1 + np.exp(-m)) / len(GAIN)
    return found
  for row, gain in np.ndenumerate(GAIN.astype(np.float64)):
    if name == 'gspo':
      ratio = np.exp((now[row] - old[row]).mean())
      bound = np.clip(ratio, 1 - CLIP, 1 + CLIP)
      found -= min(ratio * gain, bound * gain) / GAIN.size
    else:
      weight = 1.0
      if name == 'cispo':
        weight = np.exp(at[row] - old[row]).clip(1 - CLIP, 1 + CLIP)
      found -= (weight * gain * now[row]).mean() / GAIN.size
  return found


FAMILIES = {
  'llama2': {'num_kv_heads': 8},
  'llama3': {'rope_scaling': llama.RopeScaling(4.0, original_max_len=8)},
  'smollm2': {'tied': True},
  'qwen2': {'qkv_bias': True, 'tied': True},
  'qwen3': {'qk_norm': True, 'head_dim': 4},
}


@pytest.mark.parametrize('family', FAMILIES)
def test_packed_rows_have_the_gradient_of_rows_apart(mesh, shallow, family):
  """Groups of four behind one prompt in lines of their own, and every row with
  its prompt in front as `Llama.__call__` runs it."""
  config = dataclasses.replace(shallow, **FAMILIES[family])
  model = llama.Llama(config)
  params = tiny_rows.draw_params(config)
  for name in ('bq', 'bk', 'bv'):  # they start at 0
    if name in params['layers']:
      noise = np.random.default_rng(6).normal(size=params['layers'][name].shape)
      params['layers'][name] = noise.astype(np.float32)
  rollouts = tiny_rows.draw_rollouts(2, 4)
  gain = np.random.default_rng(7).normal(size=(2, 4)).astype(np.float32)
  state, _ = tiny_rows.take_step(
    config, params, tiny_rows.cut(rollouts, gain),
    objective=losses.Objective(loss='reinforce'),
  )  # fmt: skip
  prompts, n = rollouts.prompts, rollouts.lengths
  tokens = np.zeros((2, 4, tiny_rows.P + tiny_rows.C), np.int32)
  weight = np.zeros(tokens.shape, np.float32)
  for q, g in np.ndindex(2, 4):
    first, last = prompts.lengths[q], prompts.lengths[q] + n[q, g]
    tokens[q, g, :first] = prompts.tokens[q][prompts.mask[q]]
    tokens[q, g, first:last] = rollouts.tokens[q, g][: n[q, g]]
    weight[q, g, first:last] = gain[q, g] / n[q, g] / 8
  tokens, weight = tokens.reshape(8, -1), weight.reshape(8, -1)
  ends = (prompts.lengths[:, None] + n).reshape(-1, 1)

  @jax.jit
  @jax.grad
  def differentiate(params):
    mask = np.arange(tokens.shape[1]) < ends
    x = model.apply({'params': params}, tokens, mask)
    logits = model.apply({'params': params}, x[:, :-1], method='logits')
    is_next = jax.nn.one_hot(tokens[:, 1:], config.vocab_size)
    logprobs = (jax.nn.log_softmax(logits) * is_next).sum(-1)
    return -(logprobs * weight[:, 1:]).sum()

  apart = jax.device_get(differentiate(tiny_rows.put_params(config, params)))
  packed = jax.tree.map(
    lambda a, b: a - b, params, jax.device_get(state.params)
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), packed, apart
  )
  assert min(np.abs(x).max() for x in jax.tree.leaves(apart)) > 1e-3


def test_rows_are_read_a_full_row_at_a_time_or_as_the_learner_learns(
  mesh, shallow, monkeypatch
):
  """A learner that has room for less than a group must not read a whole one."""
  read, shapes = reading._logprobs, []

  def record(model, params, minibatch, settings):
    shapes.append(minibatch.slots.shape)
    return read(model, params, minibatch, settings)

  monkeypatch.setattr(reading, '_logprobs', record)
  params = tiny_rows.draw_params(shallow)
  P, C = tiny_rows.P, tiny_rows.C
  G = ROLLOUTS.lengths.shape[1]
  for room in (None, packing.make_room(2 * G, G, P, C)):
    shapes.clear()
    found = reading.completion_logprobs(
      llama.Llama(shallow),
      tiny_rows.put_params(shallow, params),
      ROLLOUTS,
      decoding.make_decoding(1.0),
      room=room,
    )
    assert set(shapes) == {room.shapes[0] if room else (1, 16)}  # P + C, of 8s
    for row in np.ndindex(ROLLOUTS.lengths.shape):
      expected, _ = plain_logprobs(params, shallow, ROLLOUTS, row)
      n = ROLLOUTS.lengths[row]
      np.testing.assert_allclose(found[row][:n], expected, atol=1e-5)
      assert not found[row][n:].any()


@pytest.mark.parametrize('name', ['reinforce', 'cispo', 'gspo', 'dpo'])
def test_other_losses_have_the_gradients_of_their_papers(mesh, shallow, name):
  """Through the whole model, and for losses of whole rows through what `updates`
  does before it."""
  params, ref = (tiny_rows.draw_params(shallow, seed) for seed in (1, 2))
  model, settings = llama.Llama(shallow), decoding.make_decoding(1.0)
  now, kept = (
    reading.completion_logprobs(
      model, tiny_rows.put_params(shallow, p), ROLLOUTS, settings
    )
    for p in (params, ref)
  )
  minibatches = tiny_rows.cut(ROLLOUTS, GAIN)
  if name == 'gspo':
    old = losses.gspo_old_logprobs(now, ROLLOUTS.logprobs, ROLLOUTS.lengths)
    minibatches = tiny_rows.cut(ROLLOUTS, GAIN, old_logprobs=old)
  elif name == 'dpo':
    gain = losses.dpo_advantages(losses.find_pairs(GAIN), now, kept, 2.0)
    ones = np.ones(GAIN.shape, np.float32)
    minibatches = tiny_rows.pack(
      ROLLOUTS, gain, ones > 0, ones / len(GAIN), size=4
    )
  state, metrics = tiny_rows.take_step(
    shallow, params, minibatches,
    objective=losses.Objective(loss=name, clip_low=CLIP, clip_high=CLIP),
  )  # fmt: skip
  if name in ('cispo', 'gspo'):
    assert 0.1 < metrics['clip_fraction'] < 0.9
  old = {
    row: ROLLOUTS.logprobs[row][ROLLOUTS.mask[row]] for row in np.ndindex(4, 2)
  }
  at, before = (plain_rows(p, shallow) for p in (params, ref))
  check_slopes(
    params,
    state,
    lambda p: plain_loss(name, plain_rows(p, shallow), old, before, at),
  )


def test_on_policy_the_gap_is_zero_and_the_reference_adds_nothing(mesh, tiny):
  """With old log-probabilities from the same weights the ratio is 1, nothing is
  clipped, and against itself the policy has no KL."""
  params = tiny_rows.draw_params(tiny)
  logprobs = np.zeros_like(ROLLOUTS.logprobs)
  for row in np.ndindex(GAIN.shape):
    found, _ = plain_logprobs(params, tiny, ROLLOUTS, row, 0.7)
    logprobs[row][ROLLOUTS.mask[row]] = found
  rollouts = jax.tree.map(np.copy, ROLLOUTS)
  rollouts.logprobs[:] = logprobs
  _, metrics = tiny_rows.take_step(
    tiny, params, tiny_rows.cut(rollouts, GAIN), ref_params=params, temperature=0.7,
    objective=losses.Objective(clip_low=0.1, clip_high=0.3, kl_coef=0.2),
  )  # fmt: skip
  assert metrics['logprob_gap'] < 1e-5
  assert metrics['clip_fraction'] == 0
  assert metrics['kl'] < 1e-6
  assert metrics['loss'] == pytest.approx(-GAIN.mean(), abs=1e-5)


def test_slots_without_a_target_never_overflow(mesh, shallow):
  """What filler holds may be all but ruled out by the policy and likely to the
  reference: e^199 is infinite, and a masked infinity has no gradient of 0 but
  of 0 times infinity."""
  params = tiny_rows.draw_params(shallow)
  (minibatch,) = tiny_rows.cut(ROLLOUTS, GAIN, size=8)
  steps = []
  for hostile in (False, True):
    if hostile:
      mask = minibatch.lines.mask
      minibatch.logprobs[~mask] = -400.0
      minibatch.old_logprobs[~mask] = -400.0
      minibatch.advantages[~mask] = np.nan
      minibatch.weight[~mask] = np.inf
    steps.append(
      tiny_rows.take_step(
        shallow, params, [minibatch], ref_params=params,
        objective=losses.Objective(kl_coef=0.1),
      )
    )  # fmt: skip
  (state, metrics), (other, others) = steps
  assert metrics == others
  jax.tree.map(np.testing.assert_array_equal, state.params, other.params)


def test_any_minibatch_size_gives_the_same_update(mesh, shallow):
  params = tiny_rows.draw_params(shallow)
  rollouts = tiny_rows.draw_rollouts(12)
  gain = np.random.default_rng(2).normal(size=(12, 2)).astype(np.float32)
  results, numbers = [], []
  for size in (1, 4, 24):
    minibatches = tiny_rows.cut(rollouts, gain, size=size)
    numbers.append(len(minibatches))
    state, metrics = tiny_rows.take_step(shallow, params, minibatches)
    results.append((jax.device_get(state.params), metrics))
  assert numbers[0] > numbers[1] > numbers[2]
  for other in results[1:]:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
      results[0],
      other,
    )
  assert results[0][1]['grad_norm'] > 0.1


def test_a_step_on_nothing_changes_nothing_but_its_number(mesh, shallow):
  params = tiny_rows.draw_params(shallow)
  state, metrics = tiny_rows.take_step(shallow, params, [])
  jax.tree.map(np.testing.assert_array_equal, state.params, params)
  assert int(state.step) == 1
  assert set(metrics.values()) == {0.0}


@pytest.fixture(scope='module')
def steps_on_meshes():
  """One AdamW step of the same rows on meshes of data x fsdp x tensor."""
  config = llama.LlamaConfig(
    vocab_size=64, embed_dim=32, num_layers=1, num_heads=8, num_kv_heads=4,
    head_dim=8, ffw_dim=48, qkv_bias=True, qk_norm=True,
  )  # fmt: skip
  rollouts = tiny_rows.draw_rollouts(8)
  gain = np.random.default_rng(2).normal(size=(8, 2)).astype(np.float32)
  optimizer = optim.make_optimizer(
    optim.OptimConfig(
      learning_rate=1e-3,
      schedule='constant',
      warmup_steps=0,
      total_steps=1,
      weight_decay=0.1,
    )
  )
  with jax.set_mesh(jax.make_mesh((8, 1, 1), sharding.AXES)):
    params = tiny_rows.draw_params(config)
  found = {}
  for shape in ((1, 1, 1), *MESHES):
    devices = jax.devices()[: math.prod(shape)]
    grid = jax.make_mesh(shape, sharding.AXES, devices=devices)
    with jax.set_mesh(grid):
      state, metrics = tiny_rows.take_step(
        config,
        params,
        tiny_rows.cut(rollouts, gain, size=8),
        optimizer=optimizer,
      )
      abstract = learner.abstract_state(llama.Llama(config), optimizer)
    found[shape] = state, metrics, abstract
  return found


@pytest.mark.parametrize('shape', MESHES)
def test_any_mesh_takes_the_same_step(steps_on_meshes, shape):
  """The first moment is a tenth of the (clipped) gradient: equal moments are
  equal gradients, weight by weight."""
  state, metrics, _ = steps_on_meshes[1, 1, 1]
  other, others, _ = steps_on_meshes[shape]
  for name in metrics:
    assert others[name] == pytest.approx(metrics[name], abs=1e-5), name
  assert metrics['grad_norm'] > 0.1
  for a, b in (
    (adam_state(state).mu, adam_state(other).mu),
    (adam_state(state).nu, adam_state(other).nu),
  ):
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
      jax.device_get(a),
      jax.device_get(b),
    )
  # Adam divides by a gradient's size, so a rounding can turn a tiny one over;
  # no weight moves by more than the learning rate, though.
  moved = jax.tree.map(
    lambda x, y: np.abs(x - y), *jax.device_get((state.params, other.params))
  )
  flat = np.concatenate([x.ravel() for x in jax.tree.leaves(moved)])
  assert (flat < 1e-5).mean() > 0.999


@pytest.mark.parametrize('shape', [(1, 1, 1), *MESHES])
def test_moments_rest_where_their_weights_rest(steps_on_meshes, shape):
  """And a checkpoint is read into exactly the layout of the running state."""
  state, _, abstract = steps_on_meshes[shape]
  for moments in (adam_state(state).mu, adam_state(state).nu):
    for moment, x in zip(
      jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True
    ):
      assert moment.sharding.is_equivalent_to(x.sharding, x.ndim)
  assert jax.tree.structure(state) == jax.tree.structure(abstract)
  for (path, x), like in zip(
    jax.tree_util.tree_leaves_with_path(state),
    jax.tree.leaves(abstract),
    strict=True,
  ):
    assert (x.shape, x.dtype) == (like.shape, like.dtype), path
    assert x.sharding.is_equivalent_to(like.sharding, x.ndim), path
  share = state.params['layers']['wq'].addressable_shards[0].data.size
  _, fsdp, tensor = shape  # each data shard holds all of them
  assert share * fsdp * tensor == state.params['layers']['wq'].size


def adam_state(state):
  (found,) = (
    s
    for s in jax.tree.leaves(
      state.opt_state, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState)
    )
    if isinstance(s, optax.ScaleByAdamState)
  )
  return found


def test_changes_of_a_step_round_by_noise_of_their_own(mesh):
  """A tenth of the weights goes up in each, by a tenth of what they can tell."""
  unit = 2.0**-7
  optimizer = optax.sgd(1.0)
  state = learner.init_state({'w': jnp.ones(4096, jnp.bfloat16)}, optimizer)
  grads = {'w': jnp.full(4096, -0.1 * unit)}
  first, second = (
    np.asarray(
      learner.follow_gradient(
        state, jnp.float32(0), grads, optimizer, change, is_last=False
      ).params['w']
      > 1
    )
    for change in (0, 1)
  )
  assert first.mean() == pytest.approx(0.1, abs=0.03)
  assert second.mean() == pytest.approx(0.1, abs=0.03)
  assert (first & second).mean() == pytest.approx(0.01, abs=0.01)


def test_the_cosine_is_that_of_all_numbers_of_two_gradients():
  """48 / (5 * 13), whatever their lengths; nothing points nowhere."""
  a = {'x': jnp.array([3.0, 0.0]), 'y': jnp.array([[4.0]])}
  b = {'x': jnp.array([0.0, 5.0]), 'y': jnp.array([[12.0]])}
  twice = jax.tree.map(lambda x: 2 * x, a)
  nothing = jax.tree.map(jnp.zeros_like, a)
  for other in (a, twice):
    found = learner.compare_gradients(other, b)
    assert float(found) == pytest.approx(48 / 65)
  assert float(learner.compare_gradients(a, nothing)) == 0
