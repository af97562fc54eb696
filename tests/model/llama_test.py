"""The model against float64 NumPy, and what each token may see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import plain_llama
import pytest

from dash_jax import sharding
from dash_jax.model import llama, presets

T = 10
# Three rows of 10, 7 and 1 tokens, padded on the left; no id appears twice, so
# the gradient of an id's embedding is the gradient of its slot.
TOKENS = np.arange(3 * T).reshape(3, T).astype(np.int32)
LENGTHS = np.array([10, 7, 1])
MASK = np.arange(T) >= T - LENGTHS[:, None]
SCALING = llama.RopeScaling(
  factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_len=32
)


def roughen(params, seed=0):
  """Moves norms and biases off their first values, where errors would hide."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params
  )


@pytest.mark.parametrize('full', [False, True])
def test_forward_equals_plain_numpy(mesh, tiny, full):
  """One form has every feature that the other lacks, and enough layers to loop
  over. Rows are padded on the left, but the reference sees them without
  padding, so positions and masks must be right."""
  config = dataclasses.replace(
    tiny,
    num_layers=5 if full else 2,
    tied=full,
    qkv_bias=full,
    qk_norm=full,
    rope_scaling=SCALING if full else None,
    norm_eps=1e-3,
  )
  params = roughen(
    jax.device_get(llama.init_params(config, jax.random.key(0), jnp.float32))
  )

  @jax.jit
  def forward(params, tokens, mask):
    model = llama.Llama(config)
    hidden = model.apply({'params': params}, tokens, mask)
    return model.apply({'params': params}, hidden, method='logits')

  found = np.asarray(forward(params, TOKENS, MASK))
  assert np.isfinite(found).all()
  for row, tokens, length in zip(found, TOKENS, LENGTHS, strict=True):
    expected = plain_llama.forward(params, config, tokens[-length:])
    assert expected.std() > 0.5
    np.testing.assert_allclose(row[-length:], expected, atol=2e-4)


def test_tokens_see_the_past_of_their_own_row_alone(mesh, tiny):
  """The gradient of slot t's output in the embeddings is zero exactly for later
  slots, padding and other rows, and not zero for every slot it may see."""
  params = llama.init_params(tiny, jax.random.key(0), jnp.float32)
  direction = jnp.asarray(
    np.random.default_rng(0).normal(size=tiny.embed_dim), jnp.float32
  )

  @jax.jit
  def gradient(embed, chosen):
    def output(embed):
      hidden = llama.Llama(tiny).apply(
        {'params': params | {'embed': embed}}, TOKENS, MASK
      )
      return jnp.sum((hidden @ direction) * chosen)

    return jnp.abs(jax.grad(output)(embed)).sum(-1)

  for row, length in enumerate(LENGTHS):
    for slot in range(T - length, T):
      chosen = np.zeros((3, T), np.float32)
      chosen[row, slot] = 1
      size = np.asarray(gradient(params['embed'], chosen))
      seen = np.zeros(tiny.vocab_size, bool)
      seen[TOKENS[row, T - length : slot + 1]] = True
      assert (size[seen] > 1e-4).all()
      assert (size[~seen] == 0).all()


def test_scaled_frequencies_are_llama_3_1s():
  """Against Llama 3.1's published numbers and form: short waves are kept, long
  ones stretched eightfold, those between blended."""
  config = dataclasses.replace(
    presets.PRESETS['llama3_8b'],
    rope_scaling=llama.RopeScaling(
      factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
      original_max_len=8192,
    ),
  )  # fmt: skip
  found = llama.rope_frequencies(config)
  np.testing.assert_allclose(
    found, plain_llama.rope_frequencies(config), rtol=1e-6
  )
  plain = 5e5 ** (-np.arange(64) / 64)
  ratio = plain / found
  wavelengths = 2 * np.pi / plain
  short, long = wavelengths < 8192 / 4, wavelengths > 8192
  np.testing.assert_allclose(ratio[short], 1, rtol=1e-6)
  np.testing.assert_allclose(ratio[long], 8, rtol=1e-6)
  between = ratio[~short & ~long]
  assert len(between) > 2
  assert (np.diff(between) > 0).all()
  assert ((between > 1) & (between < 8)).all()


# What the models' own pages and their checkpoints' indices count.
PUBLISHED_SIZES = {
  'llama2_7b': 6_738_415_616,
  'llama2_13b': 13_015_864_320,
  'llama2_70b': 68_976_648_192,
  'llama3_8b': 8_030_261_248,
  'llama3_70b': 70_553_706_496,
  'llama3_1_8b': 8_030_261_248,
  'llama3_1_70b': 70_553_706_496,
  'llama3_2_1b': 1_235_814_400,
  'llama3_2_3b': 3_212_749_824,
  'llama3_3_70b': 70_553_706_496,
  'mistral_7b': 7_248_023_552,
  'qwen2_5_0_5b': 494_032_768,
  'qwen2_5_1_5b': 1_543_714_304,
  'qwen2_5_3b': 3_085_938_688,
  'qwen2_5_7b': 7_615_616_512,
  'qwen3_0_6b': 596_049_920,
  'qwen3_1_7b': 1_720_574_976,
  'qwen3_4b': 4_022_468_096,
  'qwen3_8b': 8_190_735_360,
  'smollm2_135m': 134_515_008,
  'smollm2_360m': 361_821_120,
  'smollm2_1_7b': 1_711_376_384,
}


@pytest.mark.parametrize(
  'preset', sorted(presets.PRESETS.keys() - {'quickstart'})
)
def test_published_sizes(preset):
  """To the last weight: a wrong width, depth, vocabulary or tying shows."""
  num = llama.count_params(presets.PRESETS[preset])
  assert num == PUBLISHED_SIZES[preset]


def test_made_weights_have_the_declared_shapes_layouts_and_scales(tiny):
  """On a split mesh: what is declared once is what init makes and what a
  checkpoint is read into."""
  config = dataclasses.replace(tiny, qkv_bias=True, qk_norm=True, embed_dim=64)
  grid = jax.make_mesh((1, 2, 4), sharding.AXES)
  with jax.set_mesh(grid):
    made = llama.init_params(config, jax.random.key(0), jnp.bfloat16)
    expected = llama.abstract_params(config, jnp.bfloat16)
  declared = llama.weights(config)

  def check(weight, want, x):
    assert (x.shape, x.dtype) == (want.shape, want.dtype)
    assert x.sharding == want.sharding
    values = np.asarray(x, np.float32)
    if weight.scale is None:
      assert (values == 1).all()
    elif weight.scale == 0:
      assert (values == 0).all()
    else:
      # bfloat16 and the smallest weight's 4096 values leave a few percent.
      np.testing.assert_allclose(values.std(), weight.scale, rtol=0.08)
      assert abs(values.mean()) < 0.1 * weight.scale

  jax.tree.map(check, declared, expected, made, is_leaf=llama.is_weight)
  split = made['layers']['wq'].addressable_shards[0].data.shape
  assert split == (2, 32, 2, 8)  # embed over fsdp=2, heads over tensor=4
  sizes = [x.size for x in jax.tree.leaves(made)]
  assert sum(sizes) == llama.count_params(config)


def test_equal_keys_make_equal_weights_on_any_mesh(tiny):
  made = []
  for shape in ((1, 1, 1), (1, 4, 2)):
    devices = jax.devices()[: np.prod(shape)]
    grid = jax.make_mesh(shape, sharding.AXES, devices=devices)
    with jax.set_mesh(grid):
      made.append(
        jax.device_get(llama.init_params(tiny, jax.random.key(5), jnp.float32))
      )
  jax.tree.map(np.testing.assert_array_equal, *made)


def test_recomputing_activations_changes_no_gradient(mesh, tiny):
  config = dataclasses.replace(tiny, num_layers=1)
  params = llama.init_params(config, jax.random.key(0), jnp.float32)

  def gradient(remat):
    model = llama.Llama(config, remat=remat)
    return jax.jit(
      jax.grad(lambda p: jnp.sum(model.apply({'params': p}, TOKENS, MASK) ** 3))
    )(params)

  first, *others = map(gradient, llama.REMAT)
  for other in others:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
      first,
      other,
    )
