"""The rules table checks itself; rows come back from the mesh as they went."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from dash_jax import batches, sharding


def test_rules_map_logical_axes():
  assert sharding.TRAIN.spec('embed', 'heads', None) == P(
    'fsdp', 'tensor', None
  )
  assert sharding.SAMPLE.spec('embed', 'heads', None) == P(None, 'tensor', None)
  assert sharding.TRAIN.spec('batch', None) == P(('data', 'fsdp'), None)


@pytest.mark.parametrize(
  'axes', [('heads', 'ffw'), ('batch', 'embed'), ('vocab', None, 'kv_heads')]
)
def test_a_mesh_axis_used_twice_is_refused(axes):
  with pytest.raises(ValueError, match='each mesh axis may be used once'):
    sharding.TRAIN.spec(*axes)


def test_the_sampler_may_split_what_the_learner_may_not():
  """Rows are split over fsdp, where the learner keeps embed."""
  assert sharding.SAMPLE.spec('batch', 'embed') == P(('data', 'fsdp'), None)


@pytest.mark.parametrize(
  ('sizes', 'shape'),
  [
    ((1, -1, 1), (1, 8, 1)),
    ((2, -1, 2), (2, 2, 2)),
    ((1, 2, 4), (1, 2, 4)),
    ((-1, 1, 8), (1, 1, 8)),
  ],
)
def test_meshes_use_every_device(sizes, shape):
  mesh = sharding.make_mesh(*sizes)
  assert mesh.axis_names == sharding.AXES
  assert mesh.devices.shape == shape
  assert len(set(mesh.devices.flat)) == 8
  assert sharding.num_batch_shards(mesh) == shape[0] * shape[1]
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Explicit}


@pytest.mark.parametrize(
  ('sizes', 'said'),
  [
    ((1, 3, 1), 'divides 8'),
    ((1, 0, 1), 'at least 1'),
    ((-1, -1, 1), 'at most one is -1'),
    ((1, -2, 1), 'at least 1'),
    ((1, 2, 2), 'use 4 of 8 devices: set one of them to -1'),
    ((1, 16, 1), 'divides 8'),
    ((1, -1, 3), 'divides 8'),
  ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, said):
  data, fsdp, tensor = sizes
  named = f'mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor}'
  with pytest.raises(ValueError, match=named) as caught:
    sharding.make_mesh(*sizes)
  assert said in str(caught.value)


@pytest.mark.parametrize('shape', [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_rows_come_back_as_they_went(shape):
  """Also where tensor repeats them, and whatever order the devices are in."""
  rng = np.random.default_rng(0)
  rows = batches.PromptBatch(
    tokens=rng.integers(0, 9, (16, 5)).astype(np.int32),
    lengths=np.arange(16, dtype=np.int32),
    uids=np.arange(16, dtype=np.int32) + 100,
  )
  mesh = jax.make_mesh(shape, sharding.AXES)
  with jax.set_mesh(mesh):
    put = sharding.put_rows(rows)
    share = put.tokens.addressable_shards[0].data.shape
    assert share == (16 // sharding.num_batch_shards(mesh), 5)
    jax.tree.map(np.testing.assert_array_equal, sharding.local_rows(put), rows)
    assert put.tokens.sharding.spec == P(('data', 'fsdp'), None)
    num = sharding.num_batch_shards(mesh)
    with pytest.raises(ValueError, match=f'15 rows do not divide over {num}'):
      sharding.put_rows(rows.tokens[:15])


@dataclasses.dataclass(frozen=True)
class Device:
  process_index: int
  id: int = 0
  slice_index: int = 0


def test_shares_are_of_processes(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  for process, share in enumerate([[0, 1], [2, 3], [4, 5]]):
    monkeypatch.setattr(jax, 'process_index', lambda p=process: p)
    assert sharding.host_share(list(range(6))) == share


@pytest.mark.parametrize(
  ('grid', 'own'),
  [
    ([[0, 0], [1, 1]], [2, 3]),
    ([[0], [1], [1], [0], [2], [2]], [1, 2]),
  ],
)
def test_a_process_has_a_part_of_a_mesh(monkeypatch, grid, own):
  """Meshes may order processes in any way (a TPU's topology decides)."""
  numbers = iter(range(6))
  grid = np.array([[[Device(p, next(numbers)) for p in row] for row in grid]])
  shape = {'data': 1, 'fsdp': grid.shape[1], 'tensor': grid.shape[2]}
  monkeypatch.setattr(sharding, '_make_plain_mesh', lambda devices: devices)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  mesh = types.SimpleNamespace(devices=grid, shape=shape)
  found = sharding.local_mesh(mesh)
  assert found.shape == (1, len(own) // shape['tensor'], shape['tensor'])
  assert [device.id for device in found.flat] == own


def test_values_of_processes_are_in_their_order(monkeypatch):
  """One of each, however many shards of rows it has and wherever they are."""
  owners = [2, 2, 0, 0, 1, 1]
  grid = np.array([[[Device(p)] for p in owners]])
  shape = {'data': 1, 'fsdp': 6, 'tensor': 1}
  mesh = types.SimpleNamespace(devices=grid, shape=shape)
  monkeypatch.setattr(jax.sharding, 'get_mesh', lambda: mesh)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  rows = np.array(owners)[:, None]
  shards = types.SimpleNamespace(addressable_data=lambda i: rows)
  monkeypatch.setattr(sharding, 'put_rows', lambda x: shards)
  monkeypatch.setattr(sharding, '_replicate', lambda x: x)
  assert sharding.gather_hosts(np.zeros(1)).tolist() == [[0], [1], [2]]
  # To the last digit, which float32 would not hold.
  rows = (2.0**24 + 1 + rows).view(np.int32)
  assert sharding.sum_over_hosts({'a': 0.0}) == {'a': 3 * 2.0**24 + 6}


def _fake_meshes(monkeypatch, arrange):
  """Makes meshes plain, and lets `arrange(devices)` say how jax would order a
  mesh's devices."""

  def make(devices, axis_names, axis_types=None):
    del axis_types
    shape = dict(zip(axis_names, devices.shape, strict=True))
    return types.SimpleNamespace(devices=devices, shape=shape)

  def make_mesh(sizes, axis_names, devices):
    return make(np.array(arrange(devices)).reshape(sizes), axis_names)

  monkeypatch.setattr(jax, 'make_mesh', make_mesh)
  monkeypatch.setattr(jax.sharding, 'Mesh', make)


_TWO_PROCESSES = [Device(process_index=i // 4, id=i) for i in range(8)]


def test_a_shard_of_rows_stays_within_a_process(monkeypatch):
  _fake_meshes(monkeypatch, list)
  with pytest.raises(ValueError, match=r'mesh\.tensor=8 .* the 4 devices'):
    sharding.make_mesh(1, 1, 8, _TWO_PROCESSES)


@pytest.mark.parametrize('error', [None, NotImplementedError, AssertionError])
def test_devices_of_a_process_stay_together(monkeypatch, error):
  """Where jax, which goes by wires, would part them or finds no mesh, as of
  devices with holes between them."""

  def arrange(devices):
    if error:
      raise error
    return devices[::2] + devices[1::2]

  _fake_meshes(monkeypatch, arrange)
  mesh = sharding.make_mesh(1, 2, 4, _TWO_PROCESSES)
  found = [[d.process_index for d in row] for row in mesh.devices[0]]
  assert found == [[0] * 4, [1] * 4]


@pytest.mark.parametrize(
  ('sizes', 'expected'),
  [
    ((2, 2, 2), [[0, 0], [1, 1]]),
    ((1, 4, 2), [[0, 0, 1, 1]]),
    ((4, 1, 2), [[0], [0], [1], [1]]),
  ],
)
def test_slices_are_behind_each_other(monkeypatch, sizes, expected):
  """jax arranges the devices of each, as it refuses those of several. Only along
  data, or else fsdp, does anything go from one to another."""

  def arrange(devices):
    assert len({d.slice_index for d in devices}) == 1
    return devices[::-1]

  _fake_meshes(monkeypatch, arrange)
  devices = [
    dataclasses.replace(d, slice_index=d.process_index) for d in _TWO_PROCESSES
  ]
  mesh = sharding.make_mesh(*sizes, devices)
  assert [
    [row[0].slice_index for row in rows] for rows in mesh.devices
  ] == expected
  assert [d.id for d in mesh.devices.flat] == [3, 2, 1, 0, 7, 6, 5, 4]


def test_one_process_shares_and_sums_with_nobody(mesh):
  assert sharding.host_share(list(range(7))) == list(range(7))
  assert sharding.sum_over_hosts({'a': 2.5}) == {'a': 2.5}
  assert sharding.max_over_hosts({'a': True}) == {'a': True}
