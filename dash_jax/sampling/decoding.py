"""From logits to the next token and to the probability it really had.

1. `Decoding` holds temperature, top_k, top_p, min_p, the stop ids and the
   length before which they may not be drawn: all values of the program, so that
   changing one compiles nothing.
2. `draw` takes one token a row, each row with its own key, and its
   log-probability under the distribution that it was drawn from.
3. `token_logprobs` is the log-probability of given tokens under the same
   distribution. The learner differentiates it, so both mean the same thing at
   any temperature and any support.

The support is cut as transformers does it: to the top_k likeliest tokens, of
those to the fewest that hold top_p of their mass, of those to the ones at least
min_p times as likely as the likeliest.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import batches

_BLOCK = 256
LEAST_TEMPERATURE = 1e-6  # logits over less would overflow
_BANNED = -1e30  # finite, so that a gradient through it is not NaN
_MAX_STOP_IDS = 32  # room that every program has for them


@batches.pytree
class Decoding:
  """How tokens are drawn.

  Attributes:
    temperature: f32[], logits are divided by it; 0 takes the likeliest token.
    top_p: f32[], keep the fewest likeliest tokens whose mass reaches it.
    top_k: i32[], keep this many likeliest tokens; 0, or as many as there are,
      keeps all.
    min_p: f32[], keep tokens this many times as likely as the likeliest.
    min_len: i32[], tokens of a completion before which no stop id is drawn.
    stop_ids: i32[E], a row ends with the first of them; -1 is no token.
  """

  temperature: jax.Array
  top_p: jax.Array
  top_k: jax.Array
  min_p: jax.Array
  min_len: jax.Array
  stop_ids: jax.Array


def make_decoding(
  temperature: float,
  top_p: float = 1.0,
  top_k: int = 0,
  *,
  min_p: float = 0.0,
  min_len: int = 0,
  stop_ids: tuple[int, ...] = (),
) -> Decoding:
  """Returns a `Decoding`, whose values are NumPy's.

  Raises:
    ValueError: a value is out of its range.
  """
  if temperature and not LEAST_TEMPERATURE <= temperature < math.inf:
    raise ValueError(
      f'temperature={temperature}: must be 0 (the likeliest token), or a number'
      f' from {LEAST_TEMPERATURE}'
    )
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p={top_p}: must be in (0, 1]')
  if top_k < 0:
    raise ValueError(f'top_k={top_k}: must be 0 (all tokens) or more')
  if not 0 <= min_p <= 1:
    raise ValueError(f'min_p={min_p}: must be in [0, 1]')
  if min_len < 0:
    raise ValueError(f'min_len={min_len}: must be 0 or more')
  if len(stop_ids) > _MAX_STOP_IDS:
    raise ValueError(f'{len(stop_ids)} stop ids: at most {_MAX_STOP_IDS} do')
  padded = np.full(_MAX_STOP_IDS, -1, np.int32)
  padded[: len(stop_ids)] = stop_ids
  return Decoding(
    temperature=np.float32(temperature),
    top_p=np.float32(top_p),
    top_k=np.int32(min(top_k, np.iinfo(np.int32).max)),
    min_p=np.float32(min_p),
    min_len=np.int32(min_len),
    stop_ids=padded,
  )


def is_stop(tokens, decoding: Decoding):
  """Returns bool[...], whether tokens i32[...] end their rows."""
  return (tokens[..., None] == decoding.stop_ids).any(-1)


def _scale(logits, slots, decoding):
  """Returns f32[..., V], logits over temperature, stop ids banned where they
  would end a row too early."""
  # Greedy rows never use the scaled logits; dividing by 1 keeps them finite.
  temperature = jnp.where(decoding.temperature > 0, decoding.temperature, 1.0)
  stops = is_stop(jnp.arange(logits.shape[-1]), decoding)
  banned = stops & (slots < decoding.min_len)[..., None]
  return jnp.where(banned, _BANNED, logits / temperature)


def _find_least(scaled, decoding):
  """Returns [..., 1], the smallest scaled logit inside the support."""
  top = jax.lax.stop_gradient(jnp.max(scaled, axis=-1, keepdims=True))
  scaled = jax.lax.stop_gradient(scaled)

  def search(scaled, top):
    order, mass = _sortable(scaled), jnp.exp(scaled - top)
    V = scaled.shape[-1]
    top_k = jnp.where(decoding.top_k > 0, jnp.minimum(decoding.top_k, V), V)
    by_k = _search(
      lambda at: jnp.sum(order >= at, -1, keepdims=True) >= top_k, top
    )
    mass = jnp.where(order >= by_k, mass, 0.0)
    wanted = decoding.top_p * jnp.sum(mass, -1, keepdims=True)
    by_p = _search(
      lambda at: (
        jnp.sum(jnp.where(order >= at, mass, 0.0), -1, keepdims=True) >= wanted
      ),
      top,
    )
    by_p = jnp.where(decoding.top_p < 1, by_p, 0)
    least = _unsortable(jnp.maximum(by_k, by_p))
    return jnp.maximum(least, top + jnp.log(decoding.min_p))

  restricted = (
    (decoding.top_k > 0) | (decoding.top_p < 1) | (decoding.min_p > 0)
  )
  # All are kept, at no cost, where nothing is cut.
  least = jax.lax.cond(
    restricted, search, lambda _, top: jnp.full_like(top, -jnp.inf), scaled, top
  )
  return jnp.minimum(least, top)


def _sortable(x):
  """Returns u32[..], in the order of f32[..]."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _unsortable(order):
  bits = jnp.where(order >> 31 == 1, order ^ jnp.uint32(1 << 31), ~order)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _search(holds, like):
  """Returns u32, `like`'s shape: the largest value at which `holds`, which is
  true up to some value and false after it. It takes 32 passes, exact where a
  sort would take more, and works on a vocabulary that the mesh splits."""

  def try_bit(i, at):
    more = at | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where(holds(more), more, at)

  return jax.lax.fori_loop(
    0, 32, try_bit, jnp.zeros_like(like, dtype=jnp.uint32)
  )


def token_logprobs(logits, tokens, slots, decoding: Decoding):
  """Returns f32[...], the log-probability of `tokens` as `draw` draws them.

  Ties at the edge of the support are all kept. A token that rounding has
  pushed outside the support is counted as inside it, so the result is finite.

  Args:
    logits: f32[..., V].
    tokens: i32[...].
    slots: i32[...], tokens that stand before each in its completion.
    decoding: at temperature 0 the distribution is a point: the result is 0.
  """
  scaled = _scale(logits, slots, decoding)
  # Not an index, which would gather a vocabulary that the mesh splits.
  at = jnp.arange(scaled.shape[-1]) == tokens[..., None]
  chosen = jnp.sum(jnp.where(at, scaled, 0.0), axis=-1)
  least = _find_least(scaled, decoding)
  least = jnp.minimum(least, jax.lax.stop_gradient(chosen)[..., None])
  scaled = jnp.where(scaled >= least, scaled, -jnp.inf)
  logprobs = chosen - jax.nn.logsumexp(scaled, axis=-1)
  return jnp.where(decoding.temperature > 0, logprobs, 0.0)


def token_entropy(logits, slots, decoding: Decoding):
  """Returns f32[...], the entropy in nats of what `draw` draws from.

  Args:
    logits: f32[..., V].
    slots: i32[...], as `token_logprobs`'s.
    decoding: at temperature 0 the distribution is a point: the result is 0.
  """
  scaled = _scale(logits, slots, decoding)
  inside = scaled >= _find_least(scaled, decoding)
  kept = jnp.where(inside, scaled, _BANNED)
  total = jax.nn.logsumexp(kept, axis=-1)
  share = jnp.exp(kept - total[..., None])
  entropy = total - jnp.sum(share * jnp.where(inside, scaled, 0.0), axis=-1)
  return jnp.where(decoding.temperature > 0, entropy, 0.0)


def draw(keys, logits, slots, decoding: Decoding):
  """Draws one token a row.

  The cumulative distribution is inverted in two levels, blocks and then tokens,
  each with its own uniform number: one pass over the vocabulary and two
  uniforms a row, where Gumbel noise needs V of them. A block's chance comes in
  steps of 2**-23, and that of a token within its block in as fine ones again.

  Args:
    keys: key[B].
    logits: f32[B, V].
    slots: i32[B], as `token_logprobs`'s.
    decoding: how to draw.

  Returns:
    Tokens i32[B] and their log-probabilities f32[B].
  """
  scaled = _scale(logits, slots, decoding)
  top = jnp.max(scaled, axis=-1, keepdims=True)
  least = _find_least(scaled, decoding)

  def invert(keys, scaled):
    mass = jnp.where(scaled >= least, jnp.exp(scaled - top), 0.0)
    B, V = mass.shape
    blocks = jnp.pad(mass, ((0, 0), (0, -V % _BLOCK))).reshape(B, -1, _BLOCK)
    sums = blocks.sum(-1)
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
    block = _invert(sums, uniforms[:, 0])
    within = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    token = block * _BLOCK + _invert(within, uniforms[:, 1])
    chosen = jnp.take_along_axis(scaled, token[:, None], axis=1)
    logprob = chosen - top - jnp.log(sums.sum(-1, keepdims=True))
    return token, logprob[:, 0]

  def take_likeliest(keys, scaled):
    token = jnp.argmax(scaled, axis=-1).astype(jnp.int32)
    return token, jnp.zeros_like(top[:, 0])

  return jax.lax.cond(
    decoding.temperature > 0, invert, take_likeliest, keys, scaled
  )


def _invert(mass, uniform):
  """Returns i32[B]: the first index whose cumulative mass exceeds a uniform
  share of the total. It never lands on an index of zero mass."""
  # Sums in parallel round differently from place to place, so they may rise, or
  # fall, where there is no mass.
  total = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), 0.0)
  last = total.max(-1)
  at = jnp.minimum(uniform * last, jnp.nextafter(last, 0.0))
  return jnp.argmax(total > at[:, None], axis=-1).astype(jnp.int32)
