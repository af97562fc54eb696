"""From logits to the next token and to the probability it really had.

1. `Decoding` holds temperature, top_p and top_k as values of the program,
   so that changing them compiles nothing.
2. `sample` draws one token a row, each row with its own key.
3. `token_logprobs` is the log-probability of given tokens under the same
   distribution. The sampler records it and the learner differentiates it,
   so both mean the same thing at any temperature and any support.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

_BLOCK = 256


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=['temperature', 'top_p', 'top_k'],
  meta_fields=['restricted'],
)
@dataclasses.dataclass(frozen=True)
class Decoding:
  """How tokens are drawn.

  Attributes:
    temperature: f32[], logits are divided by it; 0 takes the likeliest token.
    top_p: f32[], keep the fewest likeliest tokens whose mass reaches it.
    top_k: i32[], keep this many likeliest tokens; 0 keeps all.
    restricted: whether top_p or top_k cut anything. It decides if the program
      sorts the vocabulary, so it is part of the program.
  """

  temperature: jax.Array
  top_p: jax.Array
  top_k: jax.Array
  restricted: bool


def make_decoding(
  temperature: float, top_p: float = 1.0, top_k: int = 0
) -> Decoding:
  """Returns a `Decoding` of device values.

  Raises:
    ValueError: a value is out of its range.
  """
  if temperature < 0:
    raise ValueError(f'temperature={temperature}: must be 0 or more')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p={top_p}: must be in (0, 1]')
  if top_k < 0:
    raise ValueError(f'top_k={top_k}: must be 0 (all tokens) or more')
  return Decoding(
    temperature=jnp.float32(temperature),
    top_p=jnp.float32(top_p),
    top_k=jnp.int32(top_k),
    restricted=top_p < 1 or top_k > 0,
  )


def _scale(logits, decoding):
  # Greedy rows never use the scaled logits; dividing by 1 keeps them finite.
  temperature = jnp.where(decoding.temperature > 0, decoding.temperature, 1.0)
  return logits / temperature


def _least_kept(scaled, decoding):
  """Returns [..., 1], the smallest scaled logit inside the support."""
  V = scaled.shape[-1]
  ordered = -jnp.sort(-scaled, axis=-1)
  mass = jax.nn.softmax(ordered, axis=-1)
  rank = jnp.arange(V)
  top_k = jnp.where(decoding.top_k > 0, decoding.top_k, V)
  inside = (rank < top_k) & (jnp.cumsum(mass, -1) - mass < decoding.top_p)
  inside = inside | (rank == 0)
  return jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)


def _pick(x, tokens):
  """Returns x[..., tokens], also where the vocabulary is split on the mesh."""
  chosen = jnp.arange(x.shape[-1]) == tokens[..., None]
  return jnp.sum(jnp.where(chosen, x, 0.0), axis=-1)


def token_logprobs(logits, tokens, decoding: Decoding):
  """Returns f32[...], the log-probability of `tokens` as `sample` draws them.

  Ties at the edge of the support are all kept. A token that rounding has
  pushed outside the support is counted as inside it, so the result is finite.

  Args:
    logits: f32[..., V].
    tokens: i32[...].
    decoding: at temperature 0 the distribution is a point: the result is 0.
  """
  scaled = _scale(logits, decoding)
  chosen = _pick(scaled, tokens)
  if decoding.restricted:
    least = jax.lax.stop_gradient(_least_kept(scaled, decoding))
    least = jnp.minimum(least, jax.lax.stop_gradient(chosen)[..., None])
    scaled = jnp.where(scaled >= least, scaled, -jnp.inf)
  logprobs = chosen - jax.nn.logsumexp(scaled, axis=-1)
  return jnp.where(decoding.temperature > 0, logprobs, 0.0)


def sample(keys, logits, decoding: Decoding):
  """Draws one token a row by inverting the cumulative distribution in two
  levels, blocks and then tokens, each with its own uniform number.

  One pass over the vocabulary and two uniforms a row, where Gumbel noise needs
  V of them; two uniforms also give tail tokens 2**-46 of resolution.

  Args:
    keys: key[B].
    logits: f32[B, V].
    decoding: how to draw.

  Returns:
    tokens i32[B].
  """
  scaled = _scale(logits, decoding)
  B, V = scaled.shape
  mass = jnp.exp(scaled - jnp.max(scaled, axis=-1, keepdims=True))
  if decoding.restricted:
    mass = jnp.where(scaled >= _least_kept(scaled, decoding), mass, 0.0)
  pad = -V % _BLOCK
  mass = jnp.pad(mass, ((0, 0), (0, pad))).reshape(B, -1, _BLOCK)
  uniforms = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)
  block = _invert(mass.sum(-1), uniforms[:, 0])
  within = jnp.take_along_axis(mass, block[:, None, None], axis=1)[:, 0]
  drawn = block * _BLOCK + _invert(within, uniforms[:, 1])
  likeliest = jnp.argmax(logits, axis=-1)
  return jnp.where(decoding.temperature > 0, drawn, likeliest).astype(jnp.int32)


def _invert(mass, uniform):
  """Returns i32[B]: the first index whose cumulative mass exceeds a uniform
  share of the total. It never lands on an index of zero mass."""
  total = jnp.cumsum(mass, axis=-1)
  last = total[:, -1]
  at = jnp.minimum(uniform * last, jnp.nextafter(last, 0.0))
  return jnp.sum(total <= at[:, None], axis=-1).astype(jnp.int32)
