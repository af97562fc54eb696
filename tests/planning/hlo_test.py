"""Bytes between devices, against programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dash_jax.planning import hlo

_N, _TURNS = 8, 5


@pytest.fixture
def eight():
  mesh = jax.make_mesh((_N,), ('x',), devices=jax.devices()[:_N])
  with jax.set_mesh(mesh):
    yield mesh


def _compile(mesh, function, *shapes):
  """Returns the text of a program over arrays that are split over their rows."""
  split = NamedSharding(mesh, PartitionSpec('x'))
  described = [
    jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for shape in shapes
  ]
  return jax.jit(function).lower(*described).compile().as_text()


def test_a_gather_brings_what_others_hold(eight):
  def gather(x):
    return jax.sharding.reshard(x, PartitionSpec())

  found = hlo.count_link_bytes(_compile(eight, gather, (64, 16)))
  assert found == {'all-gather': 64 * 16 * 4 * 7 / 8}


def test_a_sum_comes_in_twice(eight):
  """Once as parts that are added up, once as parts of the sum."""

  def total(x):
    return jnp.sum(x, axis=0)

  found = hlo.count_link_bytes(_compile(eight, total, (64, 1024)))
  assert found == {'all-reduce': 2 * 1024 * 4 * 7 / 8}


def test_a_loop_counts_as_often_as_it_turns(eight):
  def repeat(x):
    def turn(carry, _):
      return jnp.sin(carry + jnp.sum(jnp.sin(x * carry), axis=0)), None

    return jax.lax.scan(turn, jnp.ones(1024), length=_TURNS)[0]

  found = hlo.count_link_bytes(_compile(eight, repeat, (64, 1024)))
  assert found == {'all-reduce': _TURNS * 2 * 1024 * 4 * 7 / 8}


def test_a_loop_of_unknown_length_counts_once(eight):
  def repeat(x):
    def turn(carry):
      return jnp.sin(carry + jnp.sum(jnp.sin(x * carry), axis=0))

    return jax.lax.while_loop(lambda c: c[0] < 0.5, turn, jnp.zeros(1024))

  found = hlo.count_link_bytes(_compile(eight, repeat, (64, 1024)))
  assert found == {'all-reduce': 2 * 1024 * 4 * 7 / 8}


@pytest.mark.parametrize(
  ('groups', 'ways'),
  [
    ('replica_groups={{0,1,2,3},{4,5,6,7}}', 4),
    ('replica_groups=[4,2]<=[8]', 2),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", 4),
    ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
    (
      "replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}",
      4,
    ),
  ],
)
def test_groups_are_read_however_they_are_written(groups, ways):
  text = '\n'.join(
    [
      'ENTRY %main (p: f32[8]) -> bf16[8,100] {',
      f'  %a = bf16[8,100]{{1,0:T(8,128)}} all-gather(%p), channel_id=1, {groups}',
      '}',
    ]
  )
  expected = 8 * 100 * 2 * (ways - 1) / ways
  assert hlo.count_link_bytes(text) == {'all-gather': expected}


def test_the_parts_of_one_operation_count_once():
  """As compilers for TPUs write a gather that runs beside other work."""
  text = '\n'.join(
    [
      '%start (p: f32[8]) -> f32[8] {',
      '  %a = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1}}',
      '}',
      '%end (p: f32[8]) -> f32[8] {',
      '  %b = f32[8]{0} all-gather(%p), channel_id=7, replica_groups={{0,1}}',
      '}',
      'ENTRY %main (p: f32[8]) -> f32[8] {',
      '  %c = f32[8]{0} fusion(%p), kind=kCustom, calls=%start',
      '  %d = f32[8]{0} fusion(%c), kind=kCustom, calls=%end',
      '}',
    ]
  )
  assert hlo.count_link_bytes(text) == {'all-gather': 8 * 4 / 2}


@pytest.mark.parametrize(
  ('kind', 'result', 'size'),
  [
    ('all-gather', '(f32[8]{0}, f32[16]{0})', 16 * 4 / 2),
    (
      'all-gather',
      '((f32[8]{0}, bf16[4]{0}), (f32[16]{0}, bf16[8]{0}))',
      (16 * 4 + 8 * 2) / 2,
    ),
    ('all-reduce', '(f32[16]{0}, f32[8]{0})', 24 * 4),
    ('reduce-scatter', '((f32[16]{0}), f32[8]{0})', 8 * 4),
    ('collective-permute', '(f32[8]{0}, f32[8]{0}, u32[], u32[])', 8 * 4),
  ],
)
def test_what_a_start_brings_is_what_comes_out(kind, result, size):
  """Its type names what goes in too, but for a sum's."""
  text = '\n'.join(
    [
      'ENTRY %main (p: f32[8]) -> f32[8] {',
      f'  %a = {result} {kind}-start(%p), channel_id=1, replica_groups={{{{0,1}}}}',
      f'  %b = f32[16]{{0}} {kind}-done(%a)',
      '}',
    ]
  )
  assert hlo.count_link_bytes(text) == {kind: size}


def test_groups_that_are_not_named_are_all_devices():
  text = """HloModule m, num_partitions=4

ENTRY %main (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%p), channel_id=1, replica_groups={}, dimensions={0}
}
"""
  assert hlo.count_link_bytes(text) == {'all-gather': 32 * 4 * 3 / 4}
