"""Rotary positions and grouped-query attention, the plain path.

1. `rotate` turns queries and keys by their positions.
2. `attend` is causal attention of whole rows, for prefill.
3. `attend_group` is the learner's: completions over the prompt that they share
   and over themselves, as one softmax.
4. `attend_cached` is the same for one new token a row, against a cache.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

_MASKED = -1e30  # finite, so that a row with nothing to see is not NaN


def rotate(x, positions, frequencies):
  """Applies rotary embeddings to the pairs (i, i + H/2).

  Args:
    x: [..., T, heads, H].
    positions: i32[..., T].
    frequencies: f32[H/2], radians per position.

  Returns:
    The rotated array, in `x`'s dtype.

  Source: arXiv 2104.09864, in the half-split order of Llama checkpoints.
  """
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  sin, cos = jnp.sin(angles), jnp.cos(angles)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return out.astype(x.dtype)


def attend(q, k, v, mask):
  """Causal attention within each row.

  Args:
    q: [B, T, K, R, H], already scaled by H**-0.5.
    k: [B, T, K, H].
    v: [B, T, K, H].
    mask: bool[B, T], True on slots that hold a token.

  Returns:
    [B, T, K, R, H]; rows of slots without a token are arbitrary but finite.
  """
  T = q.shape[1]
  scores = jnp.einsum(
    'BTKRH,BSKH->BKRTS', q, k, preferred_element_type=jnp.float32
  )
  allowed = jnp.tril(jnp.ones((T, T), bool)) & mask[:, None, :]  # [B, T, S]
  scores = jnp.where(allowed[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores).astype(v.dtype)
  return jnp.einsum('BKRTS,BSKH->BTKRH', weights, v)


def attend_group(q, k, v, prompt_mask, num_samples):
  """Attention of prompts, and of the completions behind each.

  A completion sees its prompt and its own tokens so far; the prompt sees
  itself, so its keys and values are computed once for all its completions.

  Args:
    q: [Q, P + G * C, K, R, H], already scaled by H**-0.5: the prompt's slots,
      then those of each completion.
    k, v: [Q, P + G * C, K, H].
    prompt_mask: bool[Q, P]. Completions need none: they are padded on the
      right, where causality hides the padding.
    num_samples: G.

  Returns:
    [Q, P + G * C, K, R, H]; slots without a token are arbitrary but finite.
  """
  P, G = prompt_mask.shape[1], num_samples
  C = (q.shape[1] - P) // G

  def by_sample(x):
    x = x[:, P:]
    rows, _, *rest = jax.typeof(x).sharding.spec
    return jnp.reshape(
      x,
      (x.shape[0], G, C, *x.shape[2:]),
      out_sharding=PartitionSpec(rows, None, None, *rest),
    )

  of_prompt = attend(q[:, :P], k[:, :P], v[:, :P], prompt_mask)
  own_q, own_k, own_v = by_sample(q), by_sample(k), by_sample(v)
  over_prompt = jnp.einsum(
    'QGCKRH,QPKH->QKRGCP', own_q, k[:, :P], preferred_element_type=jnp.float32
  )
  over_own = jnp.einsum(
    'QGCKRH,QGSKH->QKRGCS', own_q, own_k, preferred_element_type=jnp.float32
  )
  over_prompt = jnp.where(
    prompt_mask[:, None, None, None, None], over_prompt, _MASKED
  )
  over_own = jnp.where(jnp.tril(jnp.ones((C, C), bool)), over_own, _MASKED)
  scores = jnp.concatenate([over_prompt, over_own], axis=-1)
  weights = jax.nn.softmax(scores).astype(v.dtype)
  out = jnp.einsum('QKRGCP,QPKH->QGCKRH', weights[..., :P], v[:, :P])
  out += jnp.einsum('QKRGCS,QGSKH->QGCKRH', weights[..., P:], own_v)
  out = jnp.reshape(
    out, q[:, P:].shape, out_sharding=jax.typeof(of_prompt).sharding.spec
  )
  return jnp.concatenate([of_prompt, out], axis=1)


def attend_cached(q, prompt, prompt_mask, own, slot):
  """Attention of one token a row over its group's prompt and its own tokens.

  Args:
    q: [B, K, R, H], already scaled by H**-0.5.
    prompt: (k, v), each [Q, K, P, H]; the G rows of a group are neighbours.
    prompt_mask: bool[Q, P].
    own: (k, v), each [B, K, C, H], filled up to and including `slot`.
    slot: i32[], the completion slot of the token that asks.

  Returns:
    [B, K, R, H].
  """
  B, Q, P = q.shape[0], *prompt_mask.shape
  # Said, because with one question rows could also stay split along G.
  rows, *rest = jax.typeof(q).sharding.spec
  by_group = PartitionSpec(rows, None, *rest)
  grouped = jnp.reshape(q, (Q, B // Q, *q.shape[1:]), out_sharding=by_group)
  over_prompt = jnp.einsum(
    'QGKRH,QKPH->QGKRP', grouped, prompt[0], preferred_element_type=jnp.float32
  )
  over_prompt = jnp.where(
    prompt_mask[:, None, None, None], over_prompt, _MASKED
  )
  over_own = jnp.einsum(
    'BKRH,BKCH->BKRC', q, own[0], preferred_element_type=jnp.float32
  )
  seen = jnp.arange(over_own.shape[-1]) <= slot
  over_own = jnp.where(seen, over_own, _MASKED)
  by_row = jax.typeof(over_own).sharding.spec
  over_prompt = jnp.reshape(
    over_prompt, (*over_own.shape[:-1], P), out_sharding=by_row
  )
  scores = jnp.concatenate([over_prompt, over_own], axis=-1)
  weights = jax.nn.softmax(scores).astype(q.dtype)
  from_prompt = jnp.einsum(
    'QGKRP,QKPH->QGKRH',
    jnp.reshape(
      weights[..., :P], (*grouped.shape[:-1], P), out_sharding=by_group
    ),
    prompt[1],
  )
  from_own = jnp.einsum('BKRC,BKCH->BKRH', weights[..., P:], own[1])
  return jnp.reshape(from_prompt, q.shape, out_sharding=by_row) + from_own
