"""A number for each array, by which one that has changed is told from what it was."""

import jax
import jax.numpy as jnp


def find(tree) -> dict[str, int]:
  """Returns a number for each array by its name, as 'layers.wq': the same on any
  mesh, and with near certainty another one for other values, dtypes or places."""
  found, _ = jax.tree_util.tree_flatten_with_path(_add_up(tree))
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): int(x)
    for path, x in found
  }


@jax.jit
def _add_up(tree):
  def add_up(x):
    bits = x
    if x.dtype != bool:
      bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}')
    mixed = bits.astype(jnp.uint32)
    # Each value with its place; the steps are murmur3's last ones.
    for axis in range(x.ndim):
      mixed ^= jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) + axis
      mixed *= jnp.uint32(0x85EBCA6B)
      mixed ^= mixed >> 13
      mixed *= jnp.uint32(0xC2B2AE35)
      mixed ^= mixed >> 16
    # Integers wrap around, so that no order of the sum matters.
    return mixed.sum(dtype=jnp.uint32)

  return jax.tree.map(add_up, tree)
