"""The Llama family: its weights, and the learner's forward.

  1. `weights` declares each weight once: shape, logical axes, initial scale.
     Init, layout and the shapes a checkpoint is read into all derive from it.
  2. `Llama` is Flax Linen used as functions: `init_params` makes one plain
     nested dict, and `Llama(..).apply({'params': params}, ..)` runs on it.
     LoRA's adapters (lora.py) are weights like others.
  3. `__call__` runs whole rows through a scan over stacked layers, so compile
     time does not grow with depth. `read_lines` runs packed prompts with the
     completions that share them. The sampler's forward is decoder.py's, of the
     same functions (layers.py).

Weights rest in the TRAIN layout and are gathered over fsdp where they are
used, one layer at a time; their gradients return in the layout they rest in.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, reshard

from dash_jax import sharding
from dash_jax.model import attention, layers
from dash_jax.model import lora as lora_lib

REMAT = ('attention', 'dots', 'layer')

# A stack this short compiles quickly without a loop, and its gradient then
# takes a fifth less time on CPU (residuals are not copied in and out).
UNROLLED_LAYERS = 8


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Llama 3.1's stretch of low rotary frequencies for long contexts; but for the
  factor, all that is published has these values."""

  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_len: int = 8192


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """An architecture of the Llama family; sizes in elements."""

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ffw_dim: int
  rope_theta: float = 1e4
  norm_eps: float = 1e-5
  tied: bool = False
  qkv_bias: bool = False  # Qwen2
  qk_norm: bool = False  # Qwen3
  rope_scaling: RopeScaling | None = None
  lora: lora_lib.Lora | None = None
  scalar_head: bool = False  # a critic's, or a reward model's


@dataclasses.dataclass(frozen=True)
class Weight:
  """One weight: shape, logical axes, and the scale it starts with.

  `scale` is the standard deviation of its normal initial values; None means
  that it starts at one (norms), 0 that it starts at zero (biases).
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  scale: float | None

  def init(self, key, dtype):
    layout = sharding.TRAIN.spec(*self.axes)
    if self.scale is None:
      return jnp.ones(self.shape, dtype, out_sharding=layout)
    if not self.scale:
      return jnp.zeros(self.shape, dtype, out_sharding=layout)
    noise = jax.random.normal(key, self.shape, dtype, out_sharding=layout)
    return noise * jnp.asarray(self.scale, dtype)


def weights(config: LlamaConfig) -> dict:
  """Returns the model's weights as a nested dict of `Weight`."""
  V, D, L = config.vocab_size, config.embed_dim, config.num_layers
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  F = config.ffw_dim
  # Projections into the residual stream start smaller with depth, so that its
  # variance does not grow with L (GPT-2's rule).
  out = (2 * L) ** -0.5
  layers = {
    'attn_norm': Weight((L, D), (None, None), None),
    'wq': Weight((L, D, N, H), (None, 'embed', 'heads', None), D**-0.5),
    'wk': Weight((L, D, K, H), (None, 'embed', 'kv_heads', None), D**-0.5),
    'wv': Weight((L, D, K, H), (None, 'embed', 'kv_heads', None), D**-0.5),
    'wo': Weight(
      (L, N, H, D), (None, 'heads', None, 'embed'), (N * H) ** -0.5 * out
    ),
    'mlp_norm': Weight((L, D), (None, None), None),
    'w_gate': Weight((L, D, F), (None, 'embed', 'ffw'), D**-0.5),
    'w_up': Weight((L, D, F), (None, 'embed', 'ffw'), D**-0.5),
    'w_down': Weight((L, F, D), (None, 'ffw', 'embed'), F**-0.5 * out),
  }
  if config.qkv_bias:
    layers['bq'] = Weight((L, N, H), (None, 'heads', None), 0.0)
    layers['bk'] = Weight((L, K, H), (None, 'kv_heads', None), 0.0)
    layers['bv'] = Weight((L, K, H), (None, 'kv_heads', None), 0.0)
  if config.qk_norm:
    layers['q_norm'] = Weight((L, H), (None, None), None)
    layers['k_norm'] = Weight((L, H), (None, None), None)
  tree = {
    'embed': Weight((V, D), ('vocab', 'embed'), D**-0.5),
    'layers': layers,
    'final_norm': Weight((D,), (None,), None),
  }
  if not config.tied:
    tree['unembed'] = Weight((D, V), ('embed', 'vocab'), D**-0.5)
  if config.scalar_head:
    tree['score'] = Weight((D, 1), ('embed', None), 0.0)
  for target in config.lora.targets if config.lora else ():
    name = lora_lib.TARGETS[target][0]
    held = layers if name in layers else tree
    for adapter, *weight in lora_lib.describe_adapters(
      target, config.lora.rank, held[name].shape, held[name].axes
    ):
      held[adapter] = Weight(*weight)
  return tree


def is_weight(x) -> bool:
  return isinstance(x, Weight)


def count_params(config: LlamaConfig) -> int:
  """Returns the number of weights."""
  leaves = jax.tree.leaves(weights(config), is_leaf=is_weight)
  return sum(int(np.prod(w.shape)) for w in leaves)


def abstract_params(config: LlamaConfig, dtype) -> dict:
  """Returns ShapeDtypeStructs of the weights in the TRAIN layout."""
  mesh = jax.sharding.get_mesh()
  return jax.tree.map(
    lambda w: jax.ShapeDtypeStruct(
      w.shape, dtype, sharding=NamedSharding(mesh, sharding.TRAIN.spec(*w.axes))
    ),
    weights(config),
    is_leaf=is_weight,
  )


@functools.partial(jax.jit, static_argnames=('config', 'dtype'))
def init_params(config: LlamaConfig, key, dtype) -> dict:
  """Returns random weights, made where they rest: no device holds them all."""
  model = Llama(config, param_dtype=dtype)
  return model.init(key, method=Llama.touch)['params']


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
  """Returns f32[H/2], radians per position.

  Source: arXiv 2104.09864; the scaling is Llama 3.1's: wavelengths over
  `original_max_len / low_freq_factor` slots are stretched by `factor`, those
  under `original_max_len / high_freq_factor` are kept, the rest blended.
  """
  H = config.head_dim
  frequencies = config.rope_theta ** (-np.arange(0, H, 2) / H)
  if config.rope_scaling is not None:
    s = config.rope_scaling
    turns = s.original_max_len * frequencies / (2 * np.pi)
    keep = (turns - s.low_freq_factor) / (
      s.high_freq_factor - s.low_freq_factor
    )
    keep = np.clip(keep, 0.0, 1.0)
    frequencies = frequencies * (keep + (1 - keep) / s.factor)
  return frequencies.astype(np.float32)


def count_positions(mask):
  """Returns i32[B, T]: a row's first token is at 0, wherever padding puts it."""
  return jnp.cumsum(mask, axis=-1) - 1


class Llama(nn.Module):
  """A Llama-family model.

  Attributes:
    config: the architecture.
    dtype: what activations are computed in.
    param_dtype: what `init_params` makes weights in.
    remat: of REMAT, what is computed again in the backward pass: attention's
      scores, all but products of a layer, or the whole layer.
  """

  config: LlamaConfig
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'attention'

  def setup(self):
    self.w = {
      name: self.param(name, self._init_tree, tree)
      for name, tree in weights(self.config).items()
    }

  def _init_tree(self, key, tree):
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_weight)
    keys = jax.random.split(key, len(leaves))
    return treedef.unflatten(
      [w.init(k, self.param_dtype) for w, k in zip(leaves, keys, strict=True)]
    )

  def touch(self):
    """Declares the weights and computes nothing."""

  def __call__(self, tokens, mask):
    """Runs whole rows.

    Args:
      tokens: i32[B, T].
      mask: bool[B, T], True on tokens; each row's tokens are contiguous.

    Returns:
      [B, T, D], the normed residual stream that `logits` takes.
    """
    attend = functools.partial(attention.attend, mask=mask)
    return self._run(tokens, count_positions(mask), attend)

  def read_lines(self, lines, dropout_key=None):
    """Runs packed rows, each prompt once for its completions.

    Args:
      lines: batches.Lines.
      dropout_key: noise of the adapters' dropout; None drops nothing.

    Returns:
      [b, T, D], the normed residual stream from which `logits` predicts each
      completion slot: that of the token before it.
    """
    attend = functools.partial(attention.attend_lines, lines=lines)
    x = self._run(lines.tokens, lines.positions, attend, dropout_key)
    return jnp.take_along_axis(x, lines.sources[..., None], axis=1)

  def _run(self, tokens, positions, attend, dropout_key=None):
    """Runs i32[B, T] tokens through every layer and the last norm.

    Args:
      tokens: i32[B, T].
      positions: i32[B, T].
      attend: attention of q [B, T, K, R, H] over k and v [B, T, K, H].
      dropout_key: as `read_lines`'s.
    """
    turns = attention.find_turns(positions, rope_frequencies(self.config))
    rotate = functools.partial(attention.rotate, turns=turns)

    def block(x, layer):
      w, key = layer
      w = self._gather(w, layer=True)
      q, k, v = layers.project(self.config, w, x, key)
      q = layers.group_heads(self.config, rotate(q))
      x = layers.finish(self.config, w, x, attend(q, rotate(k), v), key)
      return x, None

    unroll = self.config.num_layers <= UNROLLED_LAYERS
    # In a loop nothing could take the place of what is computed again.
    recompute = functools.partial(jax.checkpoint, prevent_cse=unroll)
    if self.remat == 'layer':
      block = recompute(block)
    elif self.remat == 'dots':
      policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
      block = recompute(block, policy=policy)
    elif not unroll:
      # Scores are many and cheap: to copy them in and out of the loop costs more
      # than to compute them again.
      attend = recompute(attend)
    keys = None
    if dropout_key is not None:
      keys = jax.random.split(dropout_key, self.config.num_layers)
    x, _ = jax.lax.scan(
      block,
      layers.embed(self.w['embed'], tokens, self.dtype),
      (self.w['layers'], keys),
      unroll=unroll,
    )
    return layers.norm(x, self.w['final_norm'], self.config.norm_eps)

  def logits(self, x, dropout_key=None):
    """Returns f32[..., V] from the residual stream [..., D].

    Args:
      x: the residual stream.
      dropout_key: as `read_lines`'s.
    """
    return layers.unembed(self.config, self.head(), x, dropout_key)

  def head(self):
    """Returns the weights by name that `layers.unembed` takes."""
    # Split over the vocabulary alone: embed is gathered.
    unused = ('layers', 'final_norm') + (() if self.config.tied else ('embed',))
    return self._gather({n: w for n, w in self.w.items() if n not in unused})

  def _gather(self, w, layer: bool = False):
    """Returns weights by name as they are used: cast, and gathered over fsdp.

    Args:
      w: weights by name, of the top or of one layer.
      layer: whether they are of one layer.
    """
    declared = weights(self.config)
    declared = declared['layers'] if layer else declared
    return {
      name: reshard(
        x.astype(self.dtype),
        sharding.SAMPLE.spec(*declared[name].axes[1 if layer else 0 :]),
      )
      for name, x in w.items()
    }
