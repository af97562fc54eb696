"""Rotary positions and grouped-query attention, the plain path.

1. `rotate` turns queries and keys by their positions.
2. `attend` is causal attention of whole rows, for prefill.
3. `attend_lines` is the learner's: packed completions over the prompt that they
   share and over themselves, as one softmax.
4. `attend_cached` is the sampler's: one new token a row, against the caches of
   prompts and rows, which are local to a device.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from dash_jax.model import cache as cache_lib

_BLOCKS = 4  # that the longest completion of a line is cut into
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
  allowed = jnp.tril(jnp.ones((T, T), bool)) & mask[:, None, :]  # [B, T, S]
  return _attend(q, k, v, allowed)


def _attend(q, k, v, allowed):
  """Returns [B, T, K, R, H], where slots see those that are allowed,
  bool[B, T, S]."""
  scores = jnp.einsum(
    'BTKRH,BSKH->BKRTS', q, k, preferred_element_type=jnp.float32
  )
  scores = jnp.where(allowed[:, None, None], scores, _MASKED)
  weights = jax.nn.softmax(scores).astype(v.dtype)
  return jnp.einsum('BKRTS,BSKH->BTKRH', weights, v)


def attend_lines(q, k, v, lines):
  """Attention of packed rows, batches.Lines.

  A completion's token sees its prompt and its own completion so far; a prompt's
  sees its prompt so far. So a prompt's keys and values are computed once for all
  its completions.

  The prompts of a line stand in its first slots, and a completion is never far
  from itself: a block of slots looks at the prompts and at so many slots before
  it, where that is less than the whole line.

  Args:
    q: [b, T, K, R, H], already scaled by H**-0.5.
    k, v: [b, T, K, H].
    lines: of b lines.

  Returns:
    [b, T, K, R, H]; filler slots are arbitrary but finite.
  """
  T, P = q.shape[1], lines.prompt_slots
  size = -(-lines.completion_len // _BLOCKS)
  back = -(-(lines.completion_len - 1) // size)
  at = jnp.arange(T)
  if P + (back + 1) * size >= T:
    own = lines.rows[:, None, :] == lines.rows[:, :, None]
    of_prompt = lines.rows[:, None, :] == 0
    same = lines.prompts[:, None, :] == lines.prompts[:, :, None]
    allowed = same & (own | of_prompt) & (at[None, :] <= at[:, None])
    return _attend(q, k, v, allowed)

  num = -(-T // size)

  def by_block(x, axis=1):
    """[.., T, ..] -> [.., X, size, ..]."""
    behind = [(0, 0)] * x.ndim
    behind[axis] = (0, num * size - T)
    layout = list(jax.typeof(x).sharding.spec)
    layout.insert(axis, None)
    return jnp.reshape(
      jnp.pad(x, behind),
      (*x.shape[:axis], num, size, *x.shape[axis + 1 :]),
      out_sharding=PartitionSpec(*layout),
    )

  def seen(x, axis=1):
    """[.., T, ..] -> [.., X, S, ..]: what each block looks at, prompts first."""
    of_prompts = jnp.expand_dims(jax.lax.slice_in_dim(x, 0, P, axis=axis), axis)
    shape = list(of_prompts.shape)
    shape[axis] = num
    of_prompts = jnp.broadcast_to(of_prompts, shape)
    before = [(0, 0)] * (x.ndim + 1)
    before[axis] = (back, 0)
    x = jnp.pad(by_block(x, axis), before)
    near = [
      jax.lax.slice_in_dim(x, i, i + num, axis=axis) for i in range(back + 1)
    ]
    return jnp.concatenate([of_prompts, *near], axis=axis + 1)

  slot = jnp.arange(num * size).reshape(num, size, 1)
  behind = slot[:, :1] - back * size + jnp.arange((back + 1) * size)
  seen_slot = jnp.concatenate(
    [jnp.broadcast_to(at[:P], (num, 1, P)), behind], axis=-1
  )
  rows, prompts = by_block(lines.rows)[..., None], by_block(lines.prompts)
  seen_rows = seen(lines.rows)[:, :, None]
  is_prompt = jnp.arange(P + (back + 1) * size) < P
  same = seen(lines.prompts)[:, :, None] == prompts[..., None]
  own = (seen_rows == rows) & (rows > 0)
  # bool[b, X, C, S]; X counts the blocks, C the slots of one.
  allowed = (seen_slot <= slot) & jnp.where(
    is_prompt, same & (seen_rows == 0), own
  )
  # Blocks stand behind heads, so that no array of scores is ever transposed.
  q = jnp.moveaxis(by_block(q), (3, 4), (1, 3))  # [b, K, X, R, C, H]
  k, v = (seen(jnp.swapaxes(x, 1, 2), axis=2) for x in (k, v))
  scores = jnp.einsum(
    'bKXRCH,bKXSH->bKXRCS', q, k, preferred_element_type=jnp.float32
  )
  scores += jnp.where(allowed, 0.0, _MASKED)[:, None, :, None]
  weights = jax.nn.softmax(scores).astype(v.dtype)
  out = jnp.einsum('bKXRCS,bKXSH->bKXRCH', weights, v)
  out = jnp.moveaxis(out, (1, 3), (3, 4))
  b, _, _, *rest = jax.typeof(out).sharding.spec
  return jnp.reshape(
    out,
    (out.shape[0], num * size, *out.shape[3:]),
    out_sharding=PartitionSpec(b, None, *rest),
  )[:, :T]


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
