"""The devices that a plan is for: what they can do, and where they stand.

1. `KINDS` has the published figures of each kind.
2. `prepare` is called before jax looks for devices.
3. `find` returns the devices of `--topology`: those that the compiler for TPUs
   describes, where it is installed; else as many of the CPU, on which layouts
   are the same.
"""

import dataclasses
import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from dash_jax.sampling import memory

_TPU_DOCS = 'docs.cloud.google.com/tpu/docs/'


@dataclasses.dataclass(frozen=True)
class Kind:
  """What one device of jax's can do, by its maker; 0 is not known.

  Attributes:
    memory: bytes.
    flops_per_s: of products in bfloat16.
    bytes_per_s: of the memory.
    link_bytes_per_s: that come in from other devices over all links at once:
      half of what makers name, who count both directions.
    platform: of its compiler, as jax names it.
    source: of the figures.
    per_chip: devices of a chip.
  """

  memory: float
  flops_per_s: float
  bytes_per_s: float
  link_bytes_per_s: float
  platform: str
  source: str
  per_chip: int = 1


KINDS = {
  'v4': Kind(32e9, 275e12, 1.2e12, 300e9, 'tpu', f'{_TPU_DOCS}v4'),
  'v5e': Kind(16e9, 197e12, 819e9, 200e9, 'tpu', f'{_TPU_DOCS}v5e'),
  'v5p': Kind(95e9, 459e12, 2.765e12, 600e9, 'tpu', f'{_TPU_DOCS}v5p'),
  'v6e': Kind(32e9, 918e12, 1.638e12, 400e9, 'tpu', f'{_TPU_DOCS}v6e'),
  # A chip shows itself as two devices, which have a half each.
  'tpu7x': Kind(
    96e9, 1153.5e12, 3.69e12, 300e9, 'tpu', f'{_TPU_DOCS}tpu7x', per_chip=2
  ),
  'h100': Kind(
    80e9, 989e12, 3.35e12, 450e9, 'cuda', 'nvidia.com/en-us/data-center/h100'
  ),
  'h200': Kind(
    141e9, 989e12, 4.8e12, 450e9, 'cuda', 'nvidia.com/en-us/data-center/h200'
  ),
  'cpu': Kind(0, 0, 0, 0, 'cpu', 'none'),
}

# What jax calls them, of those that may be here.
_NAMES = (
  ('v5 lite', 'v5e'),
  ('v5e', 'v5e'),
  ('v6 lite', 'v6e'),
  ('v6e', 'v6e'),
  ('v5', 'v5p'),
  ('v4', 'v4'),
  ('7x', 'tpu7x'),
  ('h100', 'h100'),
  ('h200', 'h200'),
  ('cpu', 'cpu'),
)


# The compiler for TPUs would ask the network what machine this is, complain that
# it is none, and wait for a compiler of another process.
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Devices:
  """Devices to plan for.

  Attributes:
    name: of their kind.
    kind: what one can do; its memory is never 0.
    devices: of jax, in order.
    compiles: whether programs can be compiled for them here.
  """

  name: str
  kind: Kind
  devices: list
  compiles: bool

  def __str__(self):
    chips = len(self.devices) // self.kind.per_chip
    if chips == len(self.devices):
      return f'{chips} {self.name}'
    return f'{chips} chips of {self.name}, {len(self.devices)} devices'


def split(topology: str) -> tuple[str, int]:
  """Returns kind and number of chips of a topology such as v5e:4x4 or h200:8.

  Raises:
    ValueError: it is none.
  """
  name, _, shape = topology.partition(':')
  if name not in KINDS or not re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', shape):
    raise ValueError(
      f'--topology={topology!r}: must be a kind of device, one of'
      f' {", ".join(KINDS)}, a colon, and how many, for TPUs as they are'
      ' connected: v5e:4x4, v5p:2x2x1, h200:8'
    )
  return name, math.prod(map(int, shape.split('x')))


def prepare(wanted: list[str]) -> None:
  """Makes jax ready to plan for others than its own devices; to be called before
  it has looked for any."""
  parsed = [split(topology) for topology in wanted]
  most = max(num * KINDS[name].per_chip for name, num in parsed)
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', most)


def find(topology: str) -> Devices:
  """Returns the devices of a topology, '' for those that are here.

  Raises:
    ValueError: there are no such.
  """
  if not topology:
    here = jax.devices()
    name = _find_name(here[0].device_kind)
    return Devices(name, _measure(KINDS[name], len(here)), here, compiles=True)
  name, num = split(topology)
  num *= KINDS[name].per_chip
  kind = _measure(KINDS[name], num)
  if kind.platform == 'tpu' and importlib.util.find_spec('libtpu'):
    found = _describe_tpus(topology)
    # Of a v4 it describes the halves of chips, which jax joins.
    if len(found) == num:
      return Devices(name, kind, found, compiles=True)
  here = jax.devices('cpu')
  if len(here) < num:
    raise ValueError(
      f'--topology={topology!r}: jax was started with {len(here)} devices of the'
      f' CPU, where {num} are needed: set JAX_NUM_CPU_DEVICES={num}'
    )
  return Devices(name, kind, here[:num], compiles=name == 'cpu')


def _find_name(device_kind: str) -> str:
  for part, name in _NAMES:
    if part in device_kind.lower():
      return name
  raise ValueError(
    f'a device here is a {device_kind!r}, of which no figures are known: give'
    f' --topology with one of {", ".join(KINDS)}'
  )


def _measure(kind: Kind, num: int) -> Kind:
  """Returns the kind, with a share of this machine's memory if it has none."""
  if kind.memory:
    return kind
  return dataclasses.replace(kind, memory=memory.find_host_memory() / num)


def _describe_tpus(topology: str) -> list:
  options = {}
  if math.prod(map(int, topology.partition(':')[2].split('x'))) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    found = topologies.get_topology_desc(topology, platform='tpu', **options)
  except RuntimeError as error:
    raise ValueError(
      f'--topology={topology!r}: the compiler for TPUs knows none such:'
      f' {str(error).splitlines()[0]}'
    ) from error
  return list(found.devices)
