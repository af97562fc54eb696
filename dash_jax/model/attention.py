"""Rotary positions and grouped-query attention, the plain path.

1. `rotate` turns queries and keys by their positions.
2. `attend` is causal attention of whole rows, for prefill.
3. `attend_group` is the learner's: completions over the prompt that they share
   and over themselves, as one softmax.
4. `attend_cached` is the sampler's: one new token a row, against the caches of
   prompts and rows, which are local to a device.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dash_jax.model import cache as cache_lib

_MASKED = -1e30  # finite, so that a row with nothing to see is not NaN


def find_turns(positions, frequencies):
  """Returns (sin, cos), each f32[..., T, 1, H/2], for `rotate`.

  Args:
    positions: i32[..., T].
    frequencies: f32[H/2], radians per position.
  """
  angles = positions[..., None, None].astype(jnp.float32) * frequencies
  # Else they would be computed again wherever something is rotated.
  return jax.lax.optimization_barrier((jnp.sin(angles), jnp.cos(angles)))


def rotate(x, turns):
  """Applies rotary embeddings to the pairs (i, i + H/2).

  Args:
    x: [..., T, heads, H].
    turns: of `find_turns`.

  Returns:
    The rotated array, in `x`'s dtype.

  Source: arXiv 2104.09864, in the half-split order of Llama checkpoints.
  """
  sin, cos = turns
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


def attend_cached(q, prompts, prompt_mask, own, places=None):
  """Attention of one token a row over its prompt and its own tokens.

  Each part is a softmax of its own; the two are merged by their log sums into
  what one softmax over both would give. A prompt's keys and values are read
  once for all its rows.

  Args:
    q: [B, K, R, H], already scaled by H**-0.5.
    prompts: cache.Cache of Q prompts, P slots each.
    prompt_mask: bool[Q, P]; a prompt that no row has may be empty.
    own: attention over the rows' own tokens, as `attend_slots` returns it.
    places: (rows, place) if a prompt's rows are not neighbours: rows i32[Q, G]
      has the rows of each prompt (any row where there is none), and place
      i32[B] where a row stands in it, counted through.

  Returns:
    [B, K, R, H].
  """
  (K, R, H), Q = q.shape[1:], len(prompt_mask)
  # Rows of a prompt stand beside each other, as more query heads.
  asking = q if places is None else q[places[0].reshape(-1)]
  asking = asking.reshape(Q, -1, K, R, H).swapaxes(1, 2).reshape(Q, K, -1, H)
  of_prompt, prompt_sum = attend_slots(asking, prompts, prompt_mask)

  def by_row(x):
    """[Q, K, G * R, X] -> [B, K, R, X]."""
    x = x.reshape(Q, K, -1, R, x.shape[-1]).swapaxes(1, 2)
    x = x.reshape(-1, K, R, x.shape[-1])
    return x if places is None else x[places[1]]

  of_prompt, prompt_sum = by_row(of_prompt), by_row(prompt_sum)
  of_own, own_sum = own
  share = jax.nn.sigmoid(prompt_sum - own_sum)
  return (of_own + share * (of_prompt - of_own)).astype(q.dtype)


def attend_slots(q, cache, mask):
  """Attention over the slots of a cache.

  Args:
    q: [n, K, X, H], already scaled by H**-0.5.
    cache: cache.Cache of n sequences.
    mask: bool[n, S].

  Returns:
    f32[n, K, X, H], and f32[n, K, X, 1], the log of the sum of exponentials that
    it is divided by.
  """
  scores = jnp.where(mask[:, None, None], cache_lib.scores(q, cache), _MASKED)
  top = jnp.max(scores, axis=-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  return cache_lib.mix(weights, cache, q.dtype) / total, top + jnp.log(total)
