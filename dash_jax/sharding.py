"""Every layout decision, in one table that checks itself.

  1. `make_mesh` arranges the devices on the axes data, fsdp and tensor.
  2. `Rules` maps logical axes (batch, embed, heads, ..) to mesh axes. TRAIN is
     how weights and optimizer state rest; SAMPLE is how they are used: gathered
     over fsdp, still split over tensor.
  3. `put_rows` moves each process's rows from the host to the devices and
     `local_rows` brings them back.

The mesh is explicit: a layout is part of an array's type, so a mistake is a
type error even on one device.
"""

import dataclasses

import jax
import numpy as np
from jax.experimental import multihost_utils
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


def make_mesh(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
  """Returns a mesh over all devices with explicit axes data, fsdp, tensor.

  At most one size may be -1: it takes the devices that the others leave.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  sizes = {'data': data, 'fsdp': fsdp, 'tensor': tensor}
  num_devices = jax.device_count()
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
  return jax.make_mesh(tuple(sizes.values()), AXES)


def num_batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Returns how many ways rows are split: a row count must divide by it."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def put_rows(tree, *, axis: int = 0):
  """Puts each process's host rows on the mesh in use as one global array.

  Args:
    tree: NumPy arrays; dimension `axis` holds this process's rows.
    axis: the dimension that is split over the batch's mesh axes.

  Returns:
    The same tree of jax.Arrays, dimension `axis` times the process count long.
  """
  mesh = jax.sharding.get_mesh()

  def put(x):
    axes = [None] * x.ndim
    axes[axis] = 'batch'
    sharding = NamedSharding(mesh, SAMPLE.spec(*axes))
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put, tree)


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


def put_replicated(tree):
  """Puts the same host values on every device of the mesh in use."""
  sharding = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)),
    tree,
  )


def host_share(items: list) -> list:
  """Returns this process's equal, contiguous share of `items`."""
  size = len(items) // jax.process_count()
  return items[jax.process_index() * size :][:size]


def sum_over_hosts(values: dict[str, float]) -> dict[str, float]:
  """Returns the sum of each value over all processes; all must call it."""
  return _gather_hosts(values, np.sum)


def max_over_hosts(values: dict[str, float]) -> dict[str, float]:
  """Returns the maximum of each value over all processes."""
  return _gather_hosts(values, np.max)


def _gather_hosts(values, reduce):
  if jax.process_count() == 1:
    return values
  stacked = multihost_utils.process_allgather(
    np.array(list(values.values()), np.float32)
  )
  return dict(zip(values, reduce(stacked, axis=0).tolist(), strict=True))
