"""The final projection in chunks, with its own gradient.

Logits of a whole minibatch are V numbers a token: for a vocabulary of 128k they
would take more memory than all else. Here a chunk of slots is projected, turned
into a loss and differentiated before the next one is, so that logits of one
chunk exist at a time, and are computed once.
"""

import functools

import jax
import jax.numpy as jnp

# Logits that are held at a time, on one device: 64 MiB in float32.
_MOST_LOGITS = 2**24


def chunk_len(num_lines: int, num_slots: int, vocab_size: int) -> int:
  """Returns how many slots of each line are projected at a time.

  Args:
    num_lines: of a device.
    num_slots: T.
    vocab_size: a device's share of V.
  """
  most = max(_MOST_LOGITS // (num_lines * vocab_size), 1)
  return -(-num_slots // -(-num_slots // most))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def sum_over_slots(function, size, x, weights, values, shared):
  """Returns the sum of `function` over chunks of slots that hold targets.

  Its gradient in x and weights is computed with it, chunk by chunk, and kept
  in float32 for the weights.

  Args:
    function: (x [b, size, D], weights, a chunk of `values`, shared) -> (loss
      f32[], dict of more sums f32[]); a sum over slots.
    size: slots of a chunk.
    x: [b, T, D], the residual stream.
    weights: a tree of arrays, of the projection.
    values: a tree of [b, T], what else there is of each slot; `values['mask']`
      is True where a slot counts. Chunks before the first and behind the last
      of them are not computed.
    shared: a tree that every chunk is given.
  """
  run = functools.partial(function, weights=weights, shared=shared)

  def add(i, sums):
    x_i, values_i = _chunk(i, size, x, values)
    return jax.tree.map(jnp.add, sums, run(x_i, values=values_i))

  x, values = _pad(size, x, values)
  zeros = _zeros(run, *_chunk(0, size, x, values))
  return jax.lax.fori_loop(*_used(values['mask'], size), add, zeros)


def _forward(function, size, x, weights, values, shared):
  T, dtype = x.shape[1], x.dtype
  run = functools.partial(function, shared=shared)
  differentiate = jax.value_and_grad(run, argnums=(0, 1), has_aux=True)

  def add(i, carry):
    sums, dx, dw = carry
    x_i, values_i = _chunk(i, size, x, values)
    found, (dx_i, dw_i) = differentiate(x_i, weights, values_i)
    dx = jax.lax.dynamic_update_slice_in_dim(dx, dx_i, i * size, axis=1)
    dw = jax.tree.map(lambda a, b: a + b.astype(jnp.float32), dw, dw_i)
    return jax.tree.map(jnp.add, sums, found), dx, dw

  x, values = _pad(size, x, values)
  zeros = _zeros(
    functools.partial(run, weights=weights), *_chunk(0, size, x, values)
  )
  dw = jax.tree.map(lambda w: jnp.zeros_like(w, jnp.float32), weights)
  sums, dx, dw = jax.lax.fori_loop(
    *_used(values['mask'], size), add, (zeros, jnp.zeros_like(x), dw)
  )
  return sums, (dx[:, :T].astype(dtype), dw, weights)


def _backward(function, size, residuals, cotangents):
  del function, size
  dx, dw, weights = residuals
  scale, _ = cotangents  # the other sums are metrics
  return (
    (dx * scale).astype(dx.dtype),
    jax.tree.map(lambda g, w: (g * scale).astype(w.dtype), dw, weights),
    None,
    None,
  )


sum_over_slots.defvjp(_forward, _backward)


def map_over_slots(function, size, x, values):
  """Returns a tree of f32[b, T], `function` of each slot, chunk by chunk; 0 in
  chunks without a target. It is not differentiated.

  Args:
    function: (x [b, size, D], a chunk of `values`) -> a tree of f32[b, size].
    size, x, values: as `sum_over_slots`'s.
  """
  T = x.shape[1]

  def write(i, found):
    return jax.tree.map(
      lambda to, new: jax.lax.dynamic_update_slice_in_dim(
        to, new, i * size, axis=1
      ),
      found,
      function(*_chunk(i, size, x, values)),
    )

  x, values = _pad(size, x, values)
  zeros = jax.tree.map(
    lambda _: jnp.zeros_like(values['mask'], jnp.float32),
    jax.eval_shape(function, *_chunk(0, size, x, values)),
  )
  found = jax.lax.fori_loop(*_used(values['mask'], size), write, zeros)
  return jax.tree.map(lambda x: x[:, :T], found)


def _pad(size, *trees):
  """Pads T to whole chunks, with zeros."""

  def pad(x):
    behind = -x.shape[1] % size
    return jnp.pad(x, [(0, 0), (0, behind)] + [(0, 0)] * (x.ndim - 2))

  return jax.tree.map(pad, trees)


def _chunk(i, size, *trees):
  return jax.tree.map(
    lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, axis=1), trees
  )


def _used(mask, size):
  """Returns the first chunk with a target, and the one behind the last."""
  used = mask.any(axis=0).reshape(-1, size).any(axis=1)
  last = len(used) - jnp.argmax(used[::-1])
  return jnp.argmax(used), jnp.where(used.any(), last, 0)


def _zeros(function, x, values):
  return jax.tree.map(
    lambda like: jnp.zeros(like.shape, like.dtype),
    jax.eval_shape(lambda x, v: function(x, values=v), x, values),
  )
