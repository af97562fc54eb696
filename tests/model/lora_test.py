"""Low-rank adapters beside frozen weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import plain_llama
import pytest

from dash_jax import batches, sharding
from dash_jax.learning import learner, losses, optim, packing, reading
from dash_jax.model import layers, llama, lora
from dash_jax.sampling import decoding, sampler

LORA = lora.Lora(rank=3, alpha=4.5, targets=tuple(lora.TARGETS))
BASE = llama.LlamaConfig(
  vocab_size=32, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2,
  head_dim=4, ffw_dim=24,
)  # fmt: skip
CONFIG = dataclasses.replace(BASE, lora=LORA)
P, C, Q, G = 4, 5, 4, 2


def draw_params(config=CONFIG, seed=0):
  """Weights on the host, adapters all different from zero."""
  rng = np.random.default_rng(seed)

  def draw(w):
    shift = 1 if w.scale is None else 0
    return (rng.normal(size=w.shape) * 0.3 + shift).astype(np.float32)

  return jax.tree.map(draw, llama.weights(config), is_leaf=llama.is_weight)


def put(params, config=CONFIG):
  return jax.tree.map(
    lambda x, like: jax.device_put(x, like.sharding),
    params,
    llama.abstract_params(config, np.float32),
  )


def merge_plainly(params, config=CONFIG):
  """Returns w + a b alpha / r of every layer, by loops over its dimensions."""
  merged = {'layers': {}}
  for tree, out in ((params, merged), (params['layers'], merged['layers'])):
    for name, w in tree.items():
      if name == 'layers' or name.endswith(('_a', '_b')):
        continue
      out[name] = w.astype(np.float64)
      if f'{name}_a' in tree:
        a = tree[f'{name}_a'].astype(np.float64)
        b = tree[f'{name}_b'].astype(np.float64)
        stacked = out is merged['layers']
        for at in range(len(w)) if stacked else [...]:
          flat_a = a[at].reshape(-1, config.lora.rank)
          flat_b = b[at].reshape(config.lora.rank, -1)
          added = (flat_a @ flat_b).reshape(w[at].shape) * 1.5
          out[name][at] += added
  return merged


def draw_prompts():
  rng = np.random.default_rng(3)
  return batches.PromptBatch(
    tokens=rng.integers(0, 32, (Q, P)).astype(np.int32),
    lengths=np.array([4, 2, 3, 1], np.int32),
    uids=np.arange(Q, dtype=np.int32),
  )


def sample(params, config=CONFIG):
  return sampler.sample(
    llama.Llama(config),
    params,
    draw_prompts(),
    jax.random.key(0),
    decoding.make_decoding(1.0, stop_ids=(31,)),
    group_size=G,
    max_completion_len=C,
  )


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 2, 2)])
def test_sampler_and_learner_compute_the_merged_model(shape):
  """The log-probabilities that the sampler's cache steps gave, and the
  learner's, are those of w + a b alpha / r in a float64 model that knows no
  adapters: in each of the eight kinds of linear layer, on one device and
  split over four."""
  params = draw_params()
  devices = jax.devices()[: int(np.prod(shape))]
  with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):
    rows = sample(put(params))
    found = reading.completion_logprobs(
      llama.Llama(CONFIG), put(params), rows, decoding.make_decoding(1.0)
    )
  merged = merge_plainly(params)
  for q in range(Q):
    prompt = rows.prompts.tokens[q, P - rows.prompts.lengths[q] :]
    for g in range(G):
      n = rows.lengths[q, g]
      reply = rows.tokens[q, g, :n]
      logits = plain_llama.forward(merged, BASE, [*prompt, *reply])
      logprobs = plain_llama.log_softmax(logits)[len(prompt) - 1 : -1]
      want = logprobs[np.arange(n), reply]
      np.testing.assert_allclose(rows.logprobs[q, g, :n], want, atol=2e-5)
      np.testing.assert_allclose(found[q, g, :n], want, atol=2e-5)


@pytest.fixture
def rows(mesh):
  return sample(put(draw_params()))


@pytest.fixture
def minibatches(rows):
  """Sampled rows with advantages of both signs, as the learner takes them."""
  gain = np.array([[1, -1], [0.5, -0.5], [-2, 2], [1, -1]], np.float32)
  weight, counted = losses.row_weights('sequence', rows.lengths, C)
  return packing.make_minibatches(
    rows, gain, np.ones(gain.shape, bool), weight / counted.sum(),
    packing.make_room(4, G, P, C),
  )  # fmt: skip


def test_the_adapters_gradient_is_the_chain_rules(mesh, minibatches):
  """dL/da = dL/dw b' alpha / r and dL/db = a' dL/dw alpha / r, where dL/dw is
  the gradient of a model without adapters at the merged weights; nothing else
  has a gradient."""
  minibatch = minibatches[0]
  trained, frozen = lora.split(LORA, put(draw_params()))
  rest = (None, decoding.make_decoding(1.0), losses.Objective())
  grad = jax.jit(
    jax.grad(learner.minibatch_loss, has_aux=True), static_argnums=(1, 5)
  )
  ours, _ = grad(trained, llama.Llama(CONFIG), minibatch, *rest, frozen)
  merged = put(merge_plainly(draw_params()), BASE)
  full, _ = grad(merged, llama.Llama(BASE), minibatch, *rest)
  ours, full = jax.device_get((ours, full))
  num_checked = 0
  for target, (name, *_) in lora.TARGETS.items():
    stacked = target != 'lm_head'
    got, dw, w = (
      (t['layers'] if stacked else t) for t in (ours, full, draw_params())
    )
    for at in range(2) if stacked else [...]:
      a, b = w[f'{name}_a'][at], w[f'{name}_b'][at]
      a, b = a.reshape(-1, 3), b.reshape(3, -1)
      g = dw[name][at].reshape(len(a), -1)
      for part, want in (('a', g @ b.T), ('b', a.T @ g)):
        found = got[f'{name}_{part}'][at].reshape(want.shape)
        np.testing.assert_allclose(found, want * 1.5, atol=1e-5, rtol=1e-3)
        assert np.abs(want).max() > 1e-3
        num_checked += 1
  assert num_checked == 2 * (7 * 2 + 1)  # a and b, two layers and lm_head


def test_a_step_trains_and_remembers_the_adapters_alone(mesh, minibatches):
  """Frozen weights come out bit for bit as they went in, and AdamW keeps two
  moments of the adapters and nothing of the rest."""
  optimizer = optim.make_optimizer(
    optim.OptimConfig(
      learning_rate=1e-2, schedule='constant', warmup_steps=0, total_steps=1
    )
  )
  params = draw_params()
  state = learner.init_state(put(params), optimizer, LORA)
  abstract = learner.abstract_state(llama.Llama(CONFIG), optimizer)
  shapes = functools.partial(jax.tree.map, lambda x: (x.shape, x.dtype))
  assert shapes(state.params) == shapes(abstract.params)
  num_trained = sum(x.size for x in jax.tree.leaves(state.params))
  num_moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert num_moments == pytest.approx(2 * num_trained, abs=4)  # and counters
  assert num_trained < 0.5 * llama.count_params(BASE)
  state, metrics = learner.update(
    state,
    minibatches,
    decoding.make_decoding(1.0),
    model=llama.Llama(CONFIG),
    optimizer=optimizer,
    objective=losses.Objective(),
  )
  trained, frozen = lora.split(LORA, params)
  jax.tree.map(np.testing.assert_array_equal, state.frozen, frozen)
  moved = jax.tree.map(
    lambda x, y: float(np.abs(np.asarray(x) - y).min()), state.params, trained
  )
  assert min(jax.tree.leaves(moved)) > 1e-4
  # The sampler and the learner agree on the adapters too.
  assert metrics['logprob_gap'] < 1e-5


def test_a_mesh_takes_the_step_of_one_device():
  """Of all targets, some of which are split over tensor where they sum up."""
  optimizer = optax.sgd(1.0)
  rows = None
  found = []
  for shape in ((1, 1, 1), (2, 2, 2)):
    devices = jax.devices()[: int(np.prod(shape))]
    with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):
      if rows is None:
        rows = sample(put(draw_params()))
      gain = np.tile(np.array([1, -1], np.float32), (Q, 1))
      minibatches = packing.make_minibatches(
        rows, gain, gain != 0, np.abs(gain) / gain.size,
        packing.make_room(Q * G, G, P, C),
      )  # fmt: skip
      state, metrics = learner.update(
        learner.init_state(put(draw_params()), optimizer, LORA),
        minibatches,
        decoding.make_decoding(1.0),
        model=llama.Llama(CONFIG),
        optimizer=optimizer,
        objective=losses.Objective(),
      )
      found.append(jax.device_get((state.params, metrics)))
  assert found[0][1]['grad_norm'] > 0.01
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *found)


def test_new_adapters_change_nothing(mesh):
  """b is zero, so the model starts as it was; a is not, or b had no gradient."""
  params = jax.device_get(
    llama.init_params(CONFIG, jax.random.key(1), jnp.float32)
  )
  base = lora.split(LORA, params)[1]
  rows, plain = sample(put(params)), sample(put(base, BASE), BASE)
  jax.tree.map(np.testing.assert_array_equal, rows, plain)
  for tree in (params, params['layers']):
    for name, x in tree.items():
      if name.endswith('_a'):
        assert x.std() > 0
        assert (tree[name.replace('_a', '_b')] == 0).all()


def test_merge_is_the_sum(mesh):
  params = draw_params()
  found = jax.device_get(lora.merge(LORA, put(params), np.float32))
  want = merge_plainly(params)
  assert jax.tree.structure(found) == jax.tree.structure(want)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, want
  )


def test_dropout_drops_its_share_of_an_adapters_inputs(mesh):
  """With w = 0 and a b = 1 a layer returns its adapter's inputs: each is
  dropped, or larger by what is dropped of the others. Without a key, as the
  sampler and the reference run, none is."""
  size = 64
  config = dataclasses.replace(
    BASE,
    embed_dim=size,
    ffw_dim=size,
    lora=lora.Lora(rank=size, alpha=size, targets=('up_proj',), dropout=0.25),
  )
  w = {
    'w_up': jnp.zeros((size, size)),
    'w_up_a': jnp.eye(size),
    'w_up_b': jnp.eye(size),
  }
  x = jnp.full((200, size), 3.0)

  def run(key):
    return np.asarray(layers.linear(config, 'up_proj', w, x, key=key))

  np.testing.assert_array_equal(run(None), x)
  y = run(jax.random.key(0))
  assert set(np.unique(y)) == {0.0, 4.0}
  assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
  assert (run(jax.random.key(1)) != y).mean() > 0.2


def test_a_steps_dropout_follows_its_key(mesh, minibatches):
  """The same key gives the same step, another one another step; and a step with
  dropout is not a step without."""
  optimizer = optim.make_optimizer(
    optim.OptimConfig(
      learning_rate=1e-2, schedule='constant', warmup_steps=0, total_steps=1
    )
  )

  def step(rate, seed):
    adapters = dataclasses.replace(LORA, dropout=rate)
    state, _ = learner.update(
      learner.init_state(put(draw_params()), optimizer, adapters),
      minibatches,
      decoding.make_decoding(1.0),
      jax.random.key(seed),
      model=llama.Llama(dataclasses.replace(BASE, lora=adapters)),
      optimizer=optimizer,
      objective=losses.Objective(),
    )
    return np.asarray(state.params['layers']['wq_b'])

  first = step(0.5, 0)
  np.testing.assert_array_equal(step(0.5, 0), first)
  assert (step(0.5, 1) != first).any()
  assert (step(0.0, 0) != first).any()


def count_masks(config, params):
  """Returns, by layer and target, which inputs of an adapter were dropped for
  the one token that is looked at: those have no gradient in a."""
  one = np.ones((1, 1), np.int32)
  lines = sharding.put_rows(
    batches.Lines(one, one * 0, one * 0, one * 0, one * 0, 1, 1)
  )

  def loss(trained):
    hidden = llama.Llama(config).apply(
      {'params': lora.join(trained, frozen)},
      lines,
      jax.random.key(4),
      method=llama.Llama.read_lines,
    )
    return (hidden**3).sum()

  trained, frozen = lora.split(config.lora, put(params, config))
  found = jax.device_get(jax.jit(jax.grad(loss))(trained))['layers']
  return {
    (layer, name): tuple((found[name][layer] == 0).all(-1).ravel().tolist())
    for layer in range(2)
    for name in ('wv_a', 'w_gate_a', 'w_up_a')
  }


def test_no_two_adapters_share_a_mask(mesh):
  """Not two targets of one layer, nor two layers: an input that is dropped for
  all of them would be dropped from the model."""
  targets = ('v_proj', 'gate_proj', 'up_proj')
  adapters = lora.Lora(rank=3, alpha=3.0, targets=targets, dropout=0.5)
  config = dataclasses.replace(BASE, lora=adapters)
  masks = count_masks(config, draw_params(config))
  assert len(set(masks.values())) == len(masks)
  for mask in masks.values():
    assert 0 < sum(mask) < len(mask)


def find_gradient(adapters, minibatches, seed=0):
  """Returns the loss of a step and its gradient in the adapters."""
  config = dataclasses.replace(BASE, lora=adapters)
  state = learner.init_state(
    put(draw_params(config), config), optax.sgd(0.0), adapters
  )
  (loss, _), grads = learner.sum_gradients(
    state,
    minibatches,
    decoding.make_decoding(1.0),
    jax.random.key(seed),
    model=llama.Llama(config),
    objective=losses.Objective(loss='reinforce'),
  )
  return float(loss), jax.device_get(grads)


@pytest.mark.parametrize('target', lora.TARGETS)
def test_every_target_has_dropout(minibatches, target):
  adapters = lora.Lora(rank=3, alpha=3.0, targets=(target,), dropout=0.5)
  first, second = (
    find_gradient(adapters, minibatches, seed)[0] for seed in (0, 1)
  )
  assert abs(first - second) > 1e-4


def test_chunks_of_the_projection_drop_each_their_own(minibatches, monkeypatch):
  """An input that all chunks drop would have no gradient in a."""
  monkeypatch.setattr(reading, 'chunk_len', lambda *unused: 1)
  adapters = lora.Lora(rank=3, alpha=3.0, targets=('lm_head',), dropout=0.5)
  _, grads = find_gradient(adapters, minibatches[:1])
  assert (grads['unembed_a'] != 0).any(axis=1).all()


def test_dropout_differs_by_step_and_minibatch_and_spares_the_reference(
  mesh, minibatches
):
  """At learning rate 0. The reference has the policy's own adapters, so a KL
  term is all dropout's: with the reference's dropped alike it would be 0."""
  adapters = dataclasses.replace(LORA, dropout=0.5)
  model = llama.Llama(dataclasses.replace(BASE, lora=adapters))
  optimizer = optax.sgd(0.0)
  one = minibatches[:1]
  state = learner.init_state(put(draw_params()), optimizer, adapters)
  losses_ = []
  for rows in (one, one, one * 2):
    state, metrics = learner.update(
      dataclasses.replace(
        state,
        step=state.step * (len(rows) == 1),
        reference=jax.tree.map(jnp.copy, state.params),
      ),
      rows,
      decoding.make_decoding(1.0),
      jax.random.key(0),
      model=model,
      optimizer=optimizer,
      objective=losses.Objective(kl_coef=0.5),
    )
    assert metrics['kl'] > 0.01
    losses_.append(float(metrics['loss']))
  first, next_step, both = losses_  # the last is of step 0 again
  assert abs(first - next_step) > 1e-3
  assert abs(both - 2 * first) > 1e-3
