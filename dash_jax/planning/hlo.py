"""What a compiled program moves between devices, read from its text.

1. Each collective operation is found with the type of its result and the size
   of its groups; what a compiler parts into a start, steps and an end counts
   once, by its channel.
2. In the body of a loop it counts as often as the loop turns, where the
   condition says how often; else once: such loops are over minibatches, chunks
   and tokens, and what they do is counted of one of these.
"""

import collections
import math
import re

_SIZES = {
  'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2,
  's32': 4, 'u32': 4, 'f32': 4, 's64': 8, 'u64': 8, 'f64': 8,
}  # fmt: skip
_KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
  'collective-permute',
)  # fmt: skip

_FLAG_BYTES = 4

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$'
)
_ARRAY = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')
_CALLED = re.compile(
  r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)'
)
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


def count_link_bytes(text: str) -> dict[str, float]:
  """Returns the bytes that come into a device, by kind of collective.

  Args:
    text: of a compiled program.
  """
  computations, entry = _parse(text)
  partitions = re.search(r'num_partitions=(\d+)', text)
  num_devices = int(partitions[1]) if partitions else 1
  found = {}

  def visit(name, times):
    for op in computations.get(name, ()):
      kind = op['op'].removesuffix('-start')
      if kind in _KINDS:
        size = _link_bytes(kind, op, name, num_devices) * times
        key = kind, op['channel'] or op['name']
        found[key] = max(found.get(key, 0.0), size)
      turns = times
      if op['op'] == 'while':
        turns *= _count_turns(computations, op['rest'])
      for called in _list_called(op['rest']):
        visit(called, turns)

  visit(entry, 1)
  totals = collections.defaultdict(float)
  for (kind, _), size in found.items():
    totals[kind] += size
  return dict(totals)


def _parse(text):
  computations, entry, name = {}, '', ''
  for line in text.splitlines():
    header = _COMPUTATION.match(line)
    if header and ' = ' not in line.partition('(')[0]:
      name = header[2]
      computations[name] = []
      entry = name if header[1] else entry
      continue
    match = _INSTRUCTION.match(line)
    if match and name:
      channel = re.search(r'channel_id=(\d+)', match[4])
      computations[name].append(
        {
          'name': match[1],
          'type': match[2],
          'op': match[3],
          'rest': match[4],
          'channel': channel and channel[1],
        }
      )
  return computations, entry


def _list_called(rest):
  called = _CALLED.findall(rest)
  for branches in _BRANCHES.findall(rest):
    called += [name.strip().lstrip('%') for name in branches.split(',')]
  return called


def _count_turns(computations, rest):
  """Returns how often a loop turns, 1 if that is not known."""
  known = re.search(r'known_trip_count[^\d]*(\d+)', rest)
  if known:
    return int(known[1])
  condition = re.search(r'condition=%?([\w.\-]+)', rest)
  ops = computations.get(condition[1], []) if condition else []
  constants = {
    op['name']: int(op['rest'].split(')')[0])
    for op in ops
    if op['op'] == 'constant' and op['type'].startswith('s32')
  }
  for op in ops:
    if op['op'] == 'compare' and 'direction=LT' in op['rest']:
      _, limit = re.findall(r'%?([\w.\-]+)', op['rest'].split(')')[0])[-2:]
      return constants.get(limit, 1)
  return 1


def _count_array_bytes(kind_and_shape):
  """Returns the bytes of each array of a type."""
  return [
    _SIZES.get(kind, 0) * math.prod(map(int, filter(None, shape.split(','))))
    for kind, shape in _ARRAY.findall(kind_and_shape)
  ]


def _link_bytes(kind, op, computation, num_devices):
  sizes = _count_array_bytes(op['type'])
  if op['op'].endswith('-start') and kind != 'all-reduce':
    # Of what goes in, what comes out, and perhaps of flags, which are scalars.
    sizes = [size for size in sizes if size > _FLAG_BYTES]
    sizes = sizes[len(sizes) // 2 :]
  size = sum(sizes)
  if kind == 'collective-permute':
    return size
  ways = _count_ways(op['rest'], num_devices)
  if kind == 'all-reduce':
    # Fused with a slice of its result, only a part comes to each device.
    times = 1 if computation.startswith('all-reduce-scatter') else 2
    return times * size * (ways - 1) / ways
  if kind == 'reduce-scatter':
    return size * (ways - 1)
  return size * (ways - 1) / ways


def _count_ways(rest, num_devices):
  """Returns how many devices take part in each group of a collective: all, if it
  names no groups, or in a form that is not known."""
  # Devices in an order of their own are named between the two.
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}', rest)
  if mesh:
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[name]) for name in re.findall(r'\w+', mesh[2]))
  iota = re.search(r'replica_groups=\[\d+,(\d+)\]', rest)
  if iota:
    return int(iota[1])
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', rest)
  return len(listed[1].split(',')) if listed else num_devices
