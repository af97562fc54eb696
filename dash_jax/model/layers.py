"""The layers of the Llama family, as functions of their weights.

The learner (llama.py) and the sampler (decoder.py) run the same functions. `w`
is a dict of one layer's weights by name; `...` stands for whatever dimensions
rows and slots have. The sampler's matrices are joined (`w_qkv`, `w_o`,
`w_gate_up`; decoder.py says how), and may be `Int8`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, reshard

from dash_jax import batches, sharding
from dash_jax.model import lora as lora_lib


@batches.pytree
class Int8:
  """A weight of 8 bits with a scale for each of its outputs.

  Attributes:
    values: int8, the weight's shape.
    scale: f32, the shape of its outputs: the weight is values * scale.
  """

  values: jax.Array
  scale: jax.Array


def quantize(x, axis: int) -> Int8:
  """Returns a float array in 8 bits, the largest of each output being 127.

  Args:
    x: [..].
    axis: the dimension whose elements share a scale.
  """
  x = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(x), axis) / 127
  divisor = jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), axis)
  return Int8(jnp.round(x / divisor).astype(jnp.int8), scale)


def norm(x, scale, eps):
  """Root-mean-square norm in float32. Source: arXiv 1910.07467."""
  y = x.astype(jnp.float32)
  y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
  # The sampler holds scales in x's type already, and both must agree.
  return (y * scale.astype(x.dtype)).astype(x.dtype)


def contract(rule, x, w, *, layout=None, out_dtype=None):
  """Returns the contraction of x with a weight.

  Args:
    rule: of `jnp.einsum`; the weight's outputs stand last in it.
    x: [..., inputs].
    w: an array or an `Int8`.
    layout: of what is returned, where the contraction does not tell it.
    out_dtype: of what is returned, if it is not x's.
  """
  einsum = functools.partial(jnp.einsum, rule, x, out_sharding=layout)
  if not isinstance(w, Int8):
    return einsum(w, preferred_element_type=out_dtype)
  y = einsum(w.values.astype(x.dtype), preferred_element_type=jnp.float32)
  return (y * w.scale).astype(out_dtype or x.dtype)


def adapt(config, target, w, x, key=None, layout=None):
  """Returns what a linear layer's adapter adds to it, 0 if it has none.

  Args:
    config: a LlamaConfig.
    target: a key of lora.TARGETS.
    w: the weights by name.
    x: [..., inputs].
    key: noise of the adapter's dropout; None drops nothing.
    layout: as `contract`'s.
  """
  name, inputs, outputs = lora_lib.TARGETS[target]
  if f'{name}_a' not in w:
    return 0
  if key is not None:
    keep = 1 - config.lora.dropout
    key = jax.random.fold_in(key, list(lora_lib.TARGETS).index(target))
    kept = jax.random.bernoulli(
      key, keep, x.shape, out_sharding=jax.typeof(x).sharding
    )
    x = jnp.where(kept, x / keep, 0)
  low = jnp.einsum(
    f'...{inputs},{inputs}r->...r', x, w[f'{name}_a'], out_sharding=layout
  )
  rule = f'...r,r{outputs}->...{outputs}'
  return jnp.einsum(rule, low * config.lora.scale, w[f'{name}_b'])


def linear(config, target, w, x, *, key=None, layout=None, out_dtype=None):
  """Returns a linear layer of x, with its adapter if it has one; see `adapt`
  and `contract`."""
  name, inputs, outputs = lora_lib.TARGETS[target]
  rule = f'...{inputs},{inputs}{outputs}->...{outputs}'
  y = contract(rule, x, w[name], layout=layout, out_dtype=out_dtype)
  return y + adapt(config, target, w, x, key, layout)


def project(config, w, x, key=None):
  """Returns q [..., N, H] scaled by H**-0.5, and k, v [..., K, H]."""
  x = norm(x, w['attn_norm'], config.norm_eps)
  if 'w_qkv' in w:
    # X counts a kv head's R query heads, its key and its value.
    joined = contract('...D,DKXH->...KXH', x, w['w_qkv'])
    q, k, v = joined[..., :-2, :], joined[..., -2, :], joined[..., -1, :]
    q = merge_heads(q) + adapt(config, 'q_proj', w, x, key)
    k += adapt(config, 'k_proj', w, x, key)
    v += adapt(config, 'v_proj', w, x, key)
  else:
    q = linear(config, 'q_proj', w, x, key=key)
    k = linear(config, 'k_proj', w, x, key=key)
    v = linear(config, 'v_proj', w, x, key=key)
  if config.qkv_bias:
    q, k, v = q + w['bq'], k + w['bk'], v + w['bv']
  if config.qk_norm:
    q = norm(q, w['q_norm'], config.norm_eps)
    k = norm(k, w['k_norm'], config.norm_eps)
  return q * config.head_dim**-0.5, k, v


def group_heads(config, q):
  """[..., N, H] -> [..., K, R, H]: query heads beside their kv head."""
  K = config.num_kv_heads
  *rows, heads, size = jax.typeof(q).sharding.spec
  return jnp.reshape(
    q,
    (*q.shape[:-2], K, q.shape[-2] // K, q.shape[-1]),
    # Said, since where K is 1 it would be taken for R's.
    out_sharding=PartitionSpec(*rows, heads, None, size),
  )


def merge_heads(x):
  """[..., K, R, H] -> [..., N, H]."""
  *rows, heads, _, size = jax.typeof(x).sharding.spec
  return jnp.reshape(
    x,
    (*x.shape[:-3], -1, x.shape[-1]),
    out_sharding=PartitionSpec(*rows, heads, size),
  )


def finish(config, w, x, out, key=None):
  """Adds attention's output [..., K, R, H] and the feed-forward to x."""
  rows = jax.typeof(x).sharding.spec
  add = functools.partial(linear, config, key=key, layout=rows)
  out = merge_heads(out)
  if 'w_o' in w:
    flat = jnp.reshape(
      out,
      (*x.shape[:-1], -1),
      out_sharding=PartitionSpec(*jax.typeof(out).sharding.spec[:-1]),
    )
    # X counts heads and their elements.
    x = x + contract('...X,XD->...D', flat, w['w_o'], layout=rows)
    x = x + adapt(config, 'o_proj', w, out, key, rows)
  else:
    x = x + add('o_proj', w, out)
  y = norm(x, w['mlp_norm'], config.norm_eps)
  if 'w_gate_up' in w:
    joined = contract('...D,DXF->...XF', y, w['w_gate_up'])
    gate = joined[..., 0, :] + adapt(config, 'gate_proj', w, y, key)
    up = joined[..., 1, :] + adapt(config, 'up_proj', w, y, key)
  else:
    gate = linear(config, 'gate_proj', w, y, key=key)
    up = linear(config, 'up_proj', w, y, key=key)
  return x + add('down_proj', w, jax.nn.silu(gate) * up)


def embed(table, tokens, dtype):
  """Returns [..., D], the embeddings of i32[...] tokens.

  Args:
    table: [V, D], an array or an `Int8` with a scale for each token.
    tokens: i32[...].
    dtype: of what is returned.
  """
  # Split over embed rather than vocab: each device then looks up its rows'
  # tokens alone, where a split vocab would have it ask every other device.
  split = sharding.Rules(embed='tensor')
  rows = ('batch',) + (None,) * (tokens.ndim - 1)

  def take(x, *axes):
    x = reshard(x, split.spec(None, *axes))
    return x.at[tokens].get(out_sharding=split.spec(*rows, *axes))

  if isinstance(table, Int8):
    x = take(table.values, 'embed') * take(table.scale)[..., None]
  else:
    x = take(table, 'embed')
  return reshard(x.astype(dtype), sharding.SAMPLE.spec(*rows, None))


def read_score(w, x):
  """Returns f32[...], the scalar head of the normed residual stream [..., D]."""
  # X is the head's one output.
  return contract('...D,DX->...X', x, w['score'], out_dtype=jnp.float32)[..., 0]


def unembed(config, w, x, key=None):
  """Returns f32[..., V], the logits of the residual stream [..., D].

  Args:
    config: a LlamaConfig.
    w: the weights by name: `embed` where it is tied, else `unembed`.
    x: the residual stream, normed.
    key: as `adapt`'s.
  """
  if config.tied:
    return contract('...D,VD->...V', x, w['embed'], out_dtype=jnp.float32)
  return linear(config, 'lm_head', w, x, key=key, out_dtype=jnp.float32)
