"""The Llama family, one forward for the learner and for the sampler.

  1. `weights` declares each weight once: shape, logical axes, initial scale.
     Init, layout and the shapes a checkpoint is read into all derive from it.
  2. `Llama` is Flax Linen used as functions: `init_params` makes one plain
     nested dict, and `Llama(..).apply({'params': params}, ..)` runs on it.
     LoRA's adapters (lora.py) are weights like others.
  3. `__call__` runs whole rows through a scan over stacked layers, so compile
     time does not grow with depth. With `keep_kv` it is also the prefill.
     `read_group` runs prompts with the completions that share them.
  4. `decode` runs one new token a row against a cache, layers unrolled.

Weights rest in the TRAIN layout and are gathered over fsdp where they are
used, one layer at a time; their gradients return in the layout they rest in.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, reshard

from dash_jax import sharding
from dash_jax.model import attention
from dash_jax.model import lora as lora_lib

# A stack this short compiles quickly without a loop, and its gradient then
# takes a quarter less time on CPU (residuals are not copied in and out).
_UNROLLED_LAYERS = 4


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


def unstack_layers(params: dict) -> tuple[dict, ...]:
  """Returns the L layers of `params` one by one, for `Llama.decode`."""

  def layer(i):
    return jax.tree.map(lambda w: w[i], params['layers'])

  return tuple(layer(i) for i in range(params['layers']['wq'].shape[0]))


def gather_params(params: dict, config: LlamaConfig, dtype) -> dict:
  """Returns `params` cast and in the SAMPLE layout, once per sampling phase."""
  return jax.tree.map(
    lambda w, x: reshard(x.astype(dtype), sharding.SAMPLE.spec(*w.axes)),
    weights(config),
    params,
    is_leaf=is_weight,
  )


def _positions(mask):
  # The first token of a row has position 0, wherever padding puts it.
  return jnp.cumsum(mask, axis=-1) - 1


def _norm(x, scale, eps):
  """Root-mean-square norm in float32. Source: arXiv 1910.07467."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  # The sampler holds scales in x's type already, and both must agree.
  return (y * scale.astype(x.dtype)).astype(x.dtype)


class Llama(nn.Module):
  """A Llama-family model.

  Attributes:
    config: the architecture.
    dtype: what activations are computed in.
    param_dtype: what `init_params` makes weights in.
    remat: recompute each layer's activations in the backward pass.
  """

  config: LlamaConfig
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: bool = False

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

  def __call__(self, tokens, mask, *, keep_kv: bool = False):
    """Runs whole rows.

    Args:
      tokens: i32[B, T].
      mask: bool[B, T], True on tokens; each row's tokens are contiguous.
      keep_kv: also return every layer's keys and values.

    Returns:
      [B, T, D], the normed residual stream that `logits` takes; with keep_kv
      also (k, v), each [L, B, K, T, H], keys already rotated.
    """
    x, kv = self._run(
      tokens,
      _positions(mask),
      functools.partial(attention.attend, mask=mask),
      keep_kv,
    )
    return (x, kv) if keep_kv else x

  def read_group(self, prompts, prompt_mask, completions, dropout_key=None):
    """Runs prompts once each, with the completions that share them.

    Args:
      prompts: i32[Q, P], padded on the left.
      prompt_mask: bool[Q, P], True on tokens.
      completions: i32[Q, G, C], padded on the right.
      dropout_key: noise of the adapters' dropout; None drops nothing.

    Returns:
      [Q, G, C, D], the normed residual stream from which `logits` predicts
      each completion slot: that of the token before it.
    """
    (Q, P), (_, G, C) = prompts.shape, completions.shape
    own = jnp.reshape(
      completions, (Q, G * C), out_sharding=sharding.SAMPLE.spec('batch', None)
    )
    lengths = prompt_mask.sum(axis=-1, keepdims=True)
    x, _ = self._run(
      jnp.concatenate([prompts, own], axis=1),
      jnp.concatenate(
        [_positions(prompt_mask), lengths + jnp.tile(jnp.arange(C), G)], axis=1
      ),
      functools.partial(
        attention.attend_group, prompt_mask=prompt_mask, num_samples=G
      ),
      keep_kv=False,
      dropout_key=dropout_key,
    )
    own = jnp.reshape(
      x[:, P:],
      (Q, G, C, x.shape[-1]),
      out_sharding=sharding.SAMPLE.spec('batch', None, None, None),
    )
    last = jnp.broadcast_to(x[:, None, P - 1 : P], own[:, :, :1].shape)
    return jnp.concatenate([last, own[:, :, :-1]], axis=2)

  def _run(self, tokens, positions, attend, keep_kv, dropout_key=None):
    """Runs i32[B, T] tokens through every layer and the last norm.

    Args:
      tokens: i32[B, T].
      positions: i32[B, T].
      attend: attention of q [B, T, K, R, H] over k and v [B, T, K, H].
      keep_kv: as `__call__`'s.
      dropout_key: as `read_group`'s.
    """
    rotate = functools.partial(
      attention.rotate,
      positions=positions,
      frequencies=rope_frequencies(self.config),
    )

    def block(x, layer):
      w, key = layer
      w = self._gather_layer(w)
      q, k, v = self._project(w, x, key)
      q, k = rotate(q), rotate(k)
      x = self._finish(w, x, attend(self._group(q), k, v), key)
      kv = (k.swapaxes(1, 2), v.swapaxes(1, 2)) if keep_kv else None
      return x, kv

    if self.remat:
      block = jax.checkpoint(block, prevent_cse=False)
    keys = None
    if dropout_key is not None:
      keys = jax.random.split(dropout_key, self.config.num_layers)
    x, kv = jax.lax.scan(
      block,
      self._embed(tokens),
      (self.w['layers'], keys),
      unroll=self.config.num_layers <= _UNROLLED_LAYERS,
    )
    return _norm(x, self.w['final_norm'], self.config.norm_eps), kv

  def decode(
    self, layers, tokens, positions, prompt_kv, prompt_mask, own, slot
  ):
    """Runs one new token a row, and adds its keys and values to the cache.

    Args:
      layers: `unstack_layers(params)`.
      tokens: i32[B].
      positions: i32[B], each token's position in its row.
      prompt_kv: for each layer (k, v), each [Q, K, P, H].
      prompt_mask: bool[Q, P].
      own: for each layer (k, v), each [B, K, C, H].
      slot: i32[], the completion slot that `tokens` take.

    Returns:
      logits f32[B, V] for the token after, and the new `own`.
    """
    rotate = functools.partial(
      attention.rotate,
      positions=positions,
      frequencies=rope_frequencies(self.config),
    )
    x = self._embed(tokens)
    new = []
    for w, prompt, (k_cache, v_cache) in zip(
      layers, prompt_kv, own, strict=True
    ):
      q, k, v = self._project(w, x)
      q, k = rotate(q), rotate(k)
      at = (0, 0, slot, 0)
      k_cache = jax.lax.dynamic_update_slice(k_cache, k[:, :, None], at)
      v_cache = jax.lax.dynamic_update_slice(v_cache, v[:, :, None], at)
      out = attention.attend_cached(
        self._group(q), prompt, prompt_mask, (k_cache, v_cache), slot
      )
      x = self._finish(w, x, out)
      new.append((k_cache, v_cache))
    x = _norm(x, self.w['final_norm'], self.config.norm_eps)
    return self.logits(x), tuple(new)

  def logits(self, x, dropout_key=None):
    """Returns f32[..., V] from the residual stream [..., D].

    Args:
      x: the residual stream.
      dropout_key: as `read_group`'s.
    """
    spec = sharding.SAMPLE.spec
    if self.config.tied:
      w = reshard(self.w['embed'].astype(self.dtype), spec('vocab', None))
      return jnp.einsum(
        '...D,VD->...V', x, w, preferred_element_type=jnp.float32
      )
    declared = weights(self.config)
    # Split over the vocabulary alone: embed is gathered.
    top = {
      name: reshard(w.astype(self.dtype), spec(*declared[name].axes))
      for name, w in self.w.items()
      if name.startswith('unembed')
    }
    return self._linear(
      'lm_head', top, x, key=dropout_key, out_dtype=jnp.float32
    )

  def _embed(self, tokens):
    # Split over embed rather than vocab: each device then looks up its rows'
    # tokens alone, where a split vocab would have it ask every other device.
    split = sharding.Rules(embed='tensor')
    table = reshard(self.w['embed'], split.spec(None, 'embed'))
    rows = ('batch',) + (None,) * (tokens.ndim - 1)
    x = table.at[tokens].get(out_sharding=split.spec(*rows, 'embed'))
    return reshard(x.astype(self.dtype), sharding.SAMPLE.spec(*rows, None))

  def _gather_layer(self, w):
    declared = weights(self.config)['layers']
    return {
      name: reshard(
        x.astype(self.dtype), sharding.SAMPLE.spec(*declared[name].axes[1:])
      )
      for name, x in w.items()
    }

  def _linear(self, target, w, x, *, key=None, layout=None, out_dtype=None):
    """Returns a linear layer of x, with its adapter if it has one.

    Args:
      target: a key of lora.TARGETS, which says the layer's dimensions.
      w: the weights by name.
      x: [..., inputs].
      key: noise of the adapter's dropout; None drops nothing.
      layout: of what is returned, where a contraction does not tell it.
      out_dtype: of what is returned, if it is not x's.
    """
    name, inputs, outputs = lora_lib.TARGETS[target]
    einsum = functools.partial(jnp.einsum, preferred_element_type=out_dtype)
    y = einsum(
      f'...{inputs},{inputs}{outputs}->...{outputs}',
      x, w[name], out_sharding=layout,
    )  # fmt: skip
    if f'{name}_a' not in w:
      return y
    if key is not None:
      keep = 1 - self.config.lora.dropout
      key = jax.random.fold_in(key, list(lora_lib.TARGETS).index(target))
      kept = jax.random.bernoulli(
        key, keep, x.shape, out_sharding=jax.typeof(x).sharding
      )
      x = jnp.where(kept, x / keep, 0)
    low = jnp.einsum(
      f'...{inputs},{inputs}r->...r', x, w[f'{name}_a'], out_sharding=layout
    )
    rule = f'...r,r{outputs}->...{outputs}'
    return y + einsum(rule, low * self.config.lora.scale, w[f'{name}_b'])

  def _project(self, w, x, key=None):
    """Returns q [..., N, H] scaled by H**-0.5, and k, v [..., K, H]."""
    x = _norm(x, w['attn_norm'], self.config.norm_eps)
    q = self._linear('q_proj', w, x, key=key)
    k = self._linear('k_proj', w, x, key=key)
    v = self._linear('v_proj', w, x, key=key)
    if self.config.qkv_bias:
      q, k, v = q + w['bq'], k + w['bk'], v + w['bv']
    if self.config.qk_norm:
      q = _norm(q, w['q_norm'], self.config.norm_eps)
      k = _norm(k, w['k_norm'], self.config.norm_eps)
    return q * self.config.head_dim**-0.5, k, v

  def _group(self, q):
    """[..., N, H] -> [..., K, R, H]: query heads beside their kv head."""
    K = self.config.num_kv_heads
    *rows, heads, size = jax.typeof(q).sharding.spec
    return jnp.reshape(
      q,
      (*q.shape[:-2], K, q.shape[-2] // K, q.shape[-1]),
      # Said, since where K is 1 it would be taken for R's.
      out_sharding=PartitionSpec(*rows, heads, None, size),
    )

  def _finish(self, w, x, out, key=None):
    """Adds attention's output [..., K, R, H] and the feed-forward to x."""
    *batch, heads, _, size = jax.typeof(out).sharding.spec
    out = jnp.reshape(
      out,
      (*x.shape[:-1], -1, out.shape[-1]),
      out_sharding=PartitionSpec(*batch, heads, size),
    )
    rows = jax.typeof(x).sharding.spec
    x = x + self._linear('o_proj', w, out, key=key, layout=rows)
    y = _norm(x, w['mlp_norm'], self.config.norm_eps)
    gate = self._linear('gate_proj', w, y, key=key)
    up = self._linear('up_proj', w, y, key=key)
    y = jax.nn.silu(gate) * up
    return x + self._linear('down_proj', w, y, key=key, layout=rows)
