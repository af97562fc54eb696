"""The few shapes that decode is compiled for, and which of them comes next.

A `Rung` is a shape: how many rows are decoded at once, and how many slots of
their caches are read. Rows that have stopped leave by a step to half the rows,
and caches grow by steps to twice the slots, so that cost follows what lives.
The last rungs are narrow and long: there attention is a small part of the
whole, so that few slots of them are not worth a program.
"""

import dataclasses

_FEWEST_ROWS = 8  # of a shard: fewer take as long, on any device
_FEWEST_SLOTS = 32
_MAX_HALVINGS = 4  # of rows
_MAX_HALVINGS_OF_SLOTS = 2
_WIDEST_SHARE = 4  # least part of the largest cache that is worth a program


@dataclasses.dataclass(frozen=True)
class Rung:
  """One shape of decode; counts are of one shard of rows.

  Attributes:
    rows: rows decoded at once.
    slots: slots of each row's own cache, S.
    prompts: prompts whose caches are held.
    places: rows that may share a prompt.
    in_order: whether a prompt's rows are neighbours, in the order of prompts,
      with rows == prompts * places; else rows stand anywhere.
  """

  rows: int
  slots: int
  prompts: int
  places: int
  in_order: bool


@dataclasses.dataclass(frozen=True)
class Ladder:
  """The rungs of a sampler.

  Attributes:
    rungs: all of them; the first is where a call begins.
    narrower: rung -> the next with fewer rows and as many slots, if any.
    longer: rung -> the next with more slots and as many rows, if any.
  """

  rungs: tuple[Rung, ...]
  narrower: dict[Rung, Rung]
  longer: dict[Rung, Rung]

  def find_fewer(self, rung: Rung) -> int:
    """Returns the rows of the next step to fewer, 0 if there is none."""
    for here in rung, self.longer.get(rung):
      if here in self.narrower:
        return self.narrower[here].rows
    return 0

  def find_next(self, rung: Rung, num_rows: int, num_slots: int) -> Rung | None:
    """Returns the rung to go to now, None to stay.

    Args:
      rung: the one in use.
      num_rows: rows that live.
      num_slots: slots that their next token needs.
    """
    if num_slots > rung.slots:
      return self.longer[rung]
    if num_rows > self.find_fewer(rung):
      return None
    return self.narrower.get(rung) or self.longer[rung]


def make(
  num_rows: int,
  num_prompts: int,
  group_size: int,
  max_slots: int,
  refill: bool,
  slots_unit: int = 1,
) -> Ladder:
  """Returns the ladder of one sampler.

  Args:
    num_rows: rows of a shard that are decoded at once, at most.
    num_prompts: prompts of a shard whose caches are held at once, at most.
    group_size: rows of a prompt, G.
    max_slots: slots that a completion takes, at most.
    refill: whether rows that stopped are replaced, so that a prompt's rows
      come to stand apart.
    slots_unit: slots beyond it come in multiples of it.
  """

  def round_up(num_slots):
    if num_slots <= slots_unit:
      return num_slots
    return -(-num_slots // slots_unit) * slots_unit

  max_slots = round_up(max_slots)
  rows, slots = [num_rows], [max_slots]
  while rows[-1] > _FEWEST_ROWS and len(rows) <= _MAX_HALVINGS:
    rows.append(max(-(-rows[-1] // 2), _FEWEST_ROWS))
  for _ in range(_MAX_HALVINGS_OF_SLOTS):
    fewer = round_up(-(-slots[-1] // 2))
    if _FEWEST_SLOTS <= fewer < slots[-1]:
      slots.append(fewer)
  slots.reverse()

  def rung(B, S):
    if num_rows == B:
      in_order = not refill or group_size == 1
      return Rung(B, S, num_prompts, group_size, in_order)
    if num_prompts >= B:  # A copy of its prompt for each row is no larger.
      return Rung(B, S, B, 1, in_order=True)
    return Rung(B, S, num_prompts, group_size, in_order=False)

  table = {
    (B, S): rung(B, S)
    for B in rows
    for S in slots
    if max_slots == S or num_rows * max_slots <= B * S * _WIDEST_SHARE
  }
  narrower, longer = {}, {}
  for (B, S), here in table.items():
    fewer = [b for b, s in table if b < B and s == S]
    more = [s for b, s in table if b == B and s > S]
    if fewer:
      narrower[here] = table[max(fewer), S]
    if more:
      longer[here] = table[B, min(more)]
  ordered = sorted(table.values(), key=lambda r: (-r.rows, r.slots))
  return Ladder(tuple(ordered), narrower, longer)
