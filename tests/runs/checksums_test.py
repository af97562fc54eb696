"""One bit, two values that change places, layers in another order: each changes an
array's number and no other's. The mesh changes none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax import sharding
from dash_jax.runs import checksums

SPECS = {'embed': jax.P('fsdp', 'tensor'), 'layers.w': jax.P(None, 'tensor')}


def draw(dtype):
  rng = np.random.default_rng(0)
  return {
    'embed': rng.normal(size=(8, 4)).astype(dtype),
    'layers': {'w': rng.normal(size=(2, 4, 6)).astype(dtype)},
    'count': np.int32(7),
  }


def find(tree, shape=(1, 1, 1)):
  devices = jax.devices()[: int(np.prod(shape))]
  with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):

    def put(path, x):
      name = jax.tree_util.keystr(path, simple=True, separator='.')
      return jax.device_put(x, SPECS.get(name, jax.P()))

    return checksums.find(jax.tree_util.tree_map_with_path(put, tree))


def flip(w):
  bits = w.view(np.uint8)
  bits.reshape(-1)[5] ^= 1


def swap(w):
  w[0, 1], w[0, 2] = w[0, 2].copy(), w[0, 1].copy()


def turn(w):
  w[:] = w[::-1].copy()


def negate(w):
  w *= -1


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('change', [flip, swap, turn, negate])
def test_a_change_is_seen_where_it_is(dtype, change):
  one, other = find(draw(dtype)), draw(dtype)
  assert len(set(one.values())) == len(one) == 3
  change(other['layers']['w'])
  found = find(other)
  assert {n for n in one if found[n] != one[n]} == {'layers.w'}


def test_the_mesh_changes_nothing():
  tree = draw(jnp.float32)
  assert find(tree, (2, 2, 2)) == find(tree)


def test_host_arrays_of_any_kind_have_one():
  tree = {'i': np.arange(3), 'b': np.array([True, False]), 'empty': np.ones(0)}
  assert checksums.find(tree).keys() == tree.keys()
