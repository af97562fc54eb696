"""Every layout decision, in one table that checks itself.

  1. `make_mesh` arranges devices on the axes data, fsdp and tensor. All learn and
     sample, or `split_devices` sets some of each process aside to sample.
  2. `Rules` maps logical axes (batch, embed, heads, ..) to mesh axes. TRAIN is
     how weights and optimizer state rest; SAMPLE is how they are used: gathered
     over fsdp, still split over tensor.
  3. `put_rows` moves each process's rows from the host to the devices and
     `local_rows` brings them back; `move` takes weights from the devices that
     learn to those that sample.

The mesh is explicit: a layout is part of an array's type, so a mistake is a
type error even on one device.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

AXES = ('data', 'fsdp', 'tensor')
MeshAxes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class Rules:
  """Mesh axes for each logical axis; None means not split."""

  batch: MeshAxes = ('data', 'fsdp')
  embed: MeshAxes = None
  heads: MeshAxes = 'tensor'
  kv_heads: MeshAxes = 'tensor'
  ffw: MeshAxes = 'tensor'
  vocab: MeshAxes = 'tensor'

  def spec(self, *axes: str | None) -> PartitionSpec:
    """Returns the PartitionSpec for logical `axes`, one per dimension.

    Raises:
      ValueError: two dimensions would be split over the same mesh axis.
    """
    mapped = [None if axis is None else getattr(self, axis) for axis in axes]
    flat = [
      name
      for entry in mapped
      if entry is not None
      for name in ((entry,) if isinstance(entry, str) else entry)
    ]
    if len(flat) != len(set(flat)):
      raise ValueError(
        f'axes {axes} map to {mapped}: each mesh axis may be used once'
      )
    return PartitionSpec(*mapped)


TRAIN = Rules(embed='fsdp')
SAMPLE = Rules()


def split_devices(
  num_sampling: int, devices: list | None = None
) -> tuple[list, list]:
  """Returns the devices that learn, and those that sample: the last
  `num_sampling` of each process; 0 gives all to both.

  Args:
    num_sampling: of each process.
    devices: None takes all.

  Raises:
    ValueError: none would be left to learn.
  """
  devices = jax.devices() if devices is None else devices
  by_process = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  fewest = min(map(len, by_process.values()))
  if num_sampling >= fewest:
    raise ValueError(
      f'mesh.sampler_devices={num_sampling}: a process has {fewest} devices, of'
      ' which one at least must learn: take fewer, or 0 to share them all'
    )
  if not num_sampling:
    return devices, devices
  learn = [d for own in by_process.values() for d in own[:-num_sampling]]
  sample = [d for own in by_process.values() for d in own[-num_sampling:]]
  return learn, sample


def make_mesh(
  data: int, fsdp: int, tensor: int, devices: list | None = None
) -> jax.sharding.Mesh:
  """Returns a mesh with explicit axes data, fsdp, tensor.

  At most one size may be -1: it takes the devices that the others leave.

  Args:
    data, fsdp, tensor: sizes.
    devices: None takes all.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or devices
      of two processes would hold the same rows.
  """
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  devices = jax.devices() if devices is None else devices
  num_devices = len(devices)
  free = [name for name, size in sizes.items() if size == -1]
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  bad = [name for name, size in sizes.items() if size == 0 or size < -1]
  if bad or len(free) > 1 or num_devices % max(fixed, 1):
    raise ValueError(
      f'mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor} do not fit'
      f' {num_devices} devices: each is at least 1, at most one is -1, and'
      f' their product divides {num_devices}'
    )
  if free:
    sizes[free[0]] = num_devices // fixed
  elif fixed != num_devices:
    raise ValueError(
      f'mesh.data={data}, mesh.fsdp={fsdp}, mesh.tensor={tensor} use {fixed}'
      f' of {num_devices} devices: set one of them to -1 to use the rest'
    )
  mesh = _arrange(tuple(sizes.values()), devices)
  if not _keeps_rows(mesh):
    num_processes = len({device.process_index for device in devices})
    raise ValueError(
      f'mesh.tensor={tensor} splits the model over devices of several'
      ' processes, but each process samples and scores rows of its own: take'
      f' one that divides the {num_devices // num_processes} devices of a'
      ' process'
    )
  return mesh


def _arrange(sizes, devices):
  """Returns a mesh as jax arranges devices, by how they are connected; where it
  finds no such, or would part rows of a process, in the order of processes."""
  try:
    mesh = _make_plain_mesh(_arrange_by_wires(sizes, devices))
    if _keeps_rows(mesh):
      return mesh
  # No such shape on these wires, or devices that are set aside leave holes.
  except (NotImplementedError, AssertionError):
    pass
  in_order = sorted(devices, key=lambda d: (d.process_index, d.id))
  return _make_plain_mesh(np.array(in_order).reshape(sizes))


def _arrange_by_wires(sizes, devices):
  """Returns devices as [data, fsdp, tensor], slices behind each other along data
  and, as far as these are too many for it, along fsdp.

  Raises:
    NotImplementedError, AssertionError: they cannot be arranged so.
  """
  by_slice = {}
  for device in devices:
    # Only accelerators have it.
    number = getattr(device, 'slice_index', 0)
    by_slice.setdefault(number, []).append(device)
  data, fsdp, tensor = sizes
  outer = math.gcd(data, len(by_slice))
  inner = len(by_slice) // outer
  if fsdp % inner or len(set(map(len, by_slice.values()))) > 1:
    raise NotImplementedError('a shape over parts of slices')
  of_slice = (data // outer, fsdp // inner, tensor)
  found = [
    jax.make_mesh(of_slice, AXES, devices=by_slice[number]).devices
    for number in sorted(by_slice)
  ]
  return np.concatenate(
    [
      np.concatenate(found[i : i + inner], axis=1)
      for i in range(0, len(found), inner)
    ]
  )


def _make_plain_mesh(devices):
  return jax.sharding.Mesh(
    devices, AXES, axis_types=(jax.sharding.AxisType.Explicit,) * len(AXES)
  )


def _keeps_rows(mesh):
  """Returns whether all devices with the same rows are of one process."""
  return all(
    len({device.process_index for device in split}) == 1
    for split in _by_rows(mesh)
  )


def _by_rows(mesh):
  """Returns the devices as [shards of rows, tensor]."""
  return mesh.devices.reshape(num_batch_shards(mesh), -1)


def local_mesh(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
  """Returns the part of a mesh that this process has: what runs there needs no
  other process."""
  if jax.process_count() == 1:
    return mesh
  shards = _by_rows(mesh)[_list_local_shards(mesh)]
  return _make_plain_mesh(shards[None])


def local_shards() -> list[int]:
  """Returns which shards of rows this process holds, in order."""
  return _list_local_shards(jax.sharding.get_mesh())


def _list_local_shards(mesh):
  process = jax.process_index()
  return [
    i
    for i, devices in enumerate(_by_rows(mesh))
    if devices[0].process_index == process
  ]


def num_batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Returns how many ways rows are split: a row count must divide by it."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def count_bytes(tree) -> int:
  """Returns the bytes of arrays, or of what describes them, on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


def put_rows(tree):
  """Puts each process's host rows on the mesh in use as one global array.

  Args:
    tree: NumPy arrays of this process's rows.

  Returns:
    The same tree of jax.Arrays, dimension 0 times the process count long, and
    split over the batch's mesh axes.

  Raises:
    ValueError: rows do not divide over this process's shards.
  """
  mesh = jax.sharding.get_mesh()
  shards = local_shards()

  def put(x):
    x = np.asarray(x)
    size, rest = divmod(len(x), len(shards))  # rows a shard
    if rest:
      raise ValueError(f'{len(x)} rows do not divide over {len(shards)} shards')

    def fetch(index):
      first = (index[0].start or 0) // max(size, 1)
      place = shards.index(first) * size
      return x[place : place + size, *index[1:]]

    spec = SAMPLE.spec('batch', *[None] * (x.ndim - 1))
    return jax.make_array_from_callback(
      (size * num_batch_shards(mesh), *x.shape[1:]),
      NamedSharding(mesh, spec),
      fetch,
    )

  return jax.tree.map(put, tree)


def move(tree, mesh: jax.sharding.Mesh):
  """Copies arrays to another mesh, device to device within each process.

  Args:
    tree: jax.Arrays in the SAMPLE layout.
    mesh: of this process's devices, with as many parts of the axis tensor as
      theirs. What is on such a device already stays where it is.
  """

  def copy(x):
    layout = NamedSharding(mesh, x.sharding.spec)
    held = {}
    for shard in x.addressable_shards:
      held[str(shard.index), None] = shard.data
      held[str(shard.index), shard.device] = shard.data
    parts = []
    for device, index in layout.devices_indices_map(x.shape).items():
      nearest = held.get((str(index), device), held[str(index), None])
      parts.append(jax.device_put(nearest, device))
    return jax.make_array_from_single_device_arrays(x.shape, layout, parts)

  return jax.tree.map(copy, tree)


def local_rows(tree):
  """Returns this process's rows of `tree` (split over dimension 0) as NumPy."""

  def fetch(x):
    if x.is_fully_addressable:
      return np.asarray(x)
    starts = {}
    for shard in x.addressable_shards:
      starts.setdefault(shard.index[0].start or 0, shard)
    return np.concatenate([np.asarray(starts[i].data) for i in sorted(starts)])

  return jax.tree.map(fetch, tree)


def host_share(items: Sequence) -> Sequence:
  """Returns this process's equal share of `items`.

  Raises:
    ValueError: they are no multiple of the processes.
  """
  size, rest = divmod(len(items), jax.process_count())
  if rest:
    raise ValueError(
      f'{len(items)} items do not divide over {jax.process_count()} processes'
    )
  return items[jax.process_index() * size :][:size]


def sum_over_hosts(values: dict[str, float]) -> dict[str, float]:
  """Returns the sum of each value over all processes; all must call it."""
  return _reduce_over_hosts(values, np.sum)


def max_over_hosts(values: dict[str, float]) -> dict[str, float]:
  """Returns the maximum of each value over all processes."""
  return _reduce_over_hosts(values, np.max)


def wait_for_all() -> None:
  """Returns when all processes have called it."""
  gather_hosts(np.zeros(1, np.float32))


def gather_hosts(x: np.ndarray) -> np.ndarray:
  """Returns the arrays of all processes, which must be alike, stacked. They go
  over the mesh in use, which all have a part of."""
  if jax.process_count() == 1:
    return x[None]
  shards = put_rows(np.repeat(x[None], len(local_shards()), axis=0))
  everywhere = np.asarray(_replicate(shards).addressable_data(0))
  owners = [d[0].process_index for d in _by_rows(jax.sharding.get_mesh())]
  return everywhere[[owners.index(i) for i in range(jax.process_count())]]


@jax.jit
def _replicate(x):
  return jax.sharding.reshard(x, PartitionSpec())


def _reduce_over_hosts(values, reduce):
  if jax.process_count() == 1:
    return values
  # As bits, since jax would round them to float32.
  bits = np.array(list(values.values()), np.float64).view(np.int32)
  stacked = np.ascontiguousarray(gather_hosts(bits)).view(np.float64)
  return dict(zip(values, reduce(stacked, axis=0).tolist(), strict=True))
