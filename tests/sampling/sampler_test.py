"""The sampler against whole forwards of the learner's model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax import batches, sharding
from dash_jax.learning import learner
from dash_jax.model import llama
from dash_jax.sampling import decoding, sampler

Q, G, P, C = 8, 4, 7, 12
NO_STOP = np.array([-1], np.int32)


def make_prompts(seed=0, num=Q):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, P + 1, num).astype(np.int32)
  tokens = rng.integers(0, 64, (num, P)).astype(np.int32)
  return batches.PromptBatch(tokens, lengths, np.arange(num, dtype=np.int32))


def run(
  params, config, prompts, *, temperature=1.0, top_p=1.0, top_k=0, seed=0,
  stop_ids=NO_STOP, group_size=G, dtype=jnp.float32,
):  # fmt: skip
  rollouts = sampler.sample(
    llama.Llama(config, dtype=dtype),
    params,
    sharding.put_rows(prompts),
    jax.random.key(seed),
    jnp.asarray(stop_ids),
    decoding.make_decoding(temperature, top_p, top_k),
    jnp.int32(3),
    group_size=group_size,
    max_completion_len=C,
  )
  return sharding.local_rows(rollouts)


@pytest.fixture
def params(mesh, tiny):
  return llama.init_params(tiny, jax.random.key(1), jnp.float32)


def test_greedy_decode_equals_argmax_of_full_forwards(params, tiny):
  """Each greedy token is recomputed by a forward over all tokens before it,
  so a wrong cache slot, position or mask changes some token."""
  rows = run(params, tiny, make_prompts(), temperature=0.0, group_size=1)
  tokens = np.concatenate([rows.prompts.tokens, rows.tokens[:, 0]], axis=1)
  mask = np.concatenate([rows.prompts.mask, rows.mask[:, 0]], axis=1)
  model = llama.Llama(tiny)
  apply = jax.jit(
    lambda p, t, m: model.apply(
      {'params': p}, model.apply({'params': p}, t, m), method='logits'
    )
  )
  logits = np.asarray(apply(params, tokens, mask))
  expected = logits[:, P - 1 : -1].argmax(-1)
  np.testing.assert_array_equal(rows.tokens[:, 0], expected)


@pytest.mark.parametrize(
  ('temperature', 'top_p', 'top_k'),
  [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.3, 0.8, 0), (0.9, 1.0, 5), (1.7, 0.9, 9)],
)
def test_learner_and_sampler_agree_on_logprobs(
  params, tiny, temperature, top_p, top_k
):
  """The sampler's figures come from the cache one token at a time, the
  learner's from whole rows: equal only if both see the same distribution."""
  rows = run(
    params, tiny, make_prompts(),
    temperature=temperature, top_p=top_p, top_k=top_k,
  )  # fmt: skip
  settings = decoding.make_decoding(temperature, top_p, top_k)
  found = jax.jit(
    lambda p, r: learner.completion_logprobs(llama.Llama(tiny), p, r, settings)
  )(params, rows)
  assert rows.mask.all()
  assert rows.logprobs.std() > 0.1
  np.testing.assert_allclose(rows.logprobs, found, atol=1e-5)


def test_in_bf16_casting_once_or_by_layer_is_the_same(params, tiny):
  """The sampler casts weights once, the learner layer by layer: in bf16, and
  with norms off their first values, not one bit may depend on which."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x * (1 + 0.3 * rng.normal(size=x.shape).astype(np.float32)),
    params,
  )
  rows = run(params, tiny, make_prompts())
  model = llama.Llama(tiny, dtype=jnp.bfloat16)

  @jax.jit
  def logprobs(params):
    how = decoding.make_decoding(1.0)
    return learner.completion_logprobs(model, params, rows, how)

  cast = jax.jit(lambda p: llama.gather_params(p, tiny, jnp.bfloat16))(params)
  np.testing.assert_array_equal(logprobs(params), logprobs(cast))


def test_rows_of_a_group_differ_and_keys_decide(params, tiny):
  prompts = make_prompts()
  first = run(params, tiny, prompts, seed=0).tokens
  for group in first:
    assert len({row.tobytes() for row in group}) == G
  again = run(params, tiny, prompts, seed=0).tokens
  np.testing.assert_array_equal(first, again)
  other = run(params, tiny, prompts, seed=1).tokens
  assert (first != other).mean() > 0.5


def test_a_row_does_not_depend_on_the_rest_of_the_batch(params, tiny):
  """Reversing the prompts reverses the rows: noise follows the uid."""
  prompts = make_prompts()
  straight = run(params, tiny, prompts).tokens
  backwards = batches.PromptBatch(
    prompts.tokens[::-1], prompts.lengths[::-1], prompts.uids[::-1]
  )
  reverse = run(params, tiny, backwards).tokens
  np.testing.assert_array_equal(straight, reverse[::-1])


def test_stop_ids_end_rows_and_are_kept(params, tiny):
  stop_ids = np.array([5, 17, 40, 41, 42, 43], np.int32)
  rows = run(params, tiny, make_prompts(), stop_ids=stop_ids)
  free = run(params, tiny, make_prompts())
  assert rows.truncated.any()
  assert (~rows.truncated).any()
  for row in np.ndindex(Q, G):
    stops = np.isin(free.tokens[row], stop_ids)
    expected = stops.argmax() + 1 if stops.any() else C
    assert rows.lengths[row] == expected
    assert rows.truncated[row] == (not stops.any())
    np.testing.assert_array_equal(
      rows.tokens[row][:expected], free.tokens[row][:expected]
    )
    assert (rows.tokens[row][expected:] == 0).all()
    assert (rows.logprobs[row][expected:] == 0).all()
  assert (rows.policy_step == 3).all()


def test_prompt_padding_is_never_seen(params, tiny):
  """Other ids in the padding leave every sampled token as it was."""
  prompts = make_prompts()
  slots = np.arange(P)[None] < P - prompts.lengths[:, None]
  assert slots.any()
  changed = np.where(slots, 63 - prompts.tokens, prompts.tokens)
  other = batches.PromptBatch(changed, prompts.lengths, prompts.uids)
  np.testing.assert_array_equal(
    run(params, tiny, prompts).tokens, run(params, tiny, other).tokens
  )


def test_settings_compile_nothing_new(params, tiny):
  from dash_jax.runs import compiles

  prompts = make_prompts()
  run(params, tiny, prompts, temperature=1.0)
  run(params, tiny, prompts, temperature=1.0, top_k=3)
  before = compiles.count()
  run(params, tiny, prompts, temperature=0.5, seed=9)
  run(params, tiny, prompts, temperature=0.7, top_k=8, top_p=0.7)
  assert compiles.count() == before


@pytest.mark.parametrize('shape', [(1, 2, 4), (1, 4, 2), (1, 8, 1), (2, 2, 2)])
def test_any_mesh_samples_the_same_tokens(shape, tiny):
  """data x fsdp x tensor meshes against one device, float32."""
  results = []
  for axes in ((1, 1, 1), shape):
    devices = jax.devices()[: np.prod(axes)]
    grid = jax.make_mesh(axes, sharding.AXES, devices=devices)
    with jax.set_mesh(grid):
      params = llama.init_params(tiny, jax.random.key(1), jnp.float32)
      results.append(run(params, tiny, make_prompts()))
  one, many = results
  np.testing.assert_array_equal(one.tokens, many.tokens)
  np.testing.assert_allclose(one.logprobs, many.logprobs, atol=1e-5)
