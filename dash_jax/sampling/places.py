"""Which row stands where on the device: the host's side of one sampling call.

`Places` is the host's copy of what holds what, for every shard of rows. It says
which places are free, and what stands where after a step to fewer rows.
"""

import numpy as np

from dash_jax.sampling import compiled, ladder


class Places:
  """The rows and prompts of a call, by shard and place.

  Attributes:
    rung: the shape in use.
    row: i64[shards, rows], q * G + g of the shard's own prompts; -1 is none.
    live: bool[shards, rows], whether it is decoded.
    lengths: i64[shards, rows], its tokens so far.
    ended: bool[shards, rows], whether the host has found its end before the
      device has.
    waiting: of each shard, prompts that have no place yet, in order.
  """

  def __init__(
    self, rung: ladder.Rung, group_size: int, waiting: list[list[int]]
  ):
    shape = (len(waiting), rung.rows)
    self.rung = rung
    self.row = np.full(shape, -1)
    self.live = np.zeros(shape, bool)
    self.lengths = np.zeros(shape, int)
    self.ended = np.zeros(shape, bool)
    self.waiting = waiting
    self._group_size = group_size
    self._prompt = np.zeros(shape, int)  # the place of each row's prompt

  @property
  def num_waiting(self) -> int:
    return max(map(len, self.waiting))

  def find_room(self) -> np.ndarray:
    """Returns i64[shards], how many waiting prompts each shard has room for."""
    room = [len(self._free_prompts(s)) for s in range(len(self.row))]
    if not self.rung.in_order:  # else the rows of a free prompt are free
      rows = (~self.live).sum(axis=1) // self._group_size
      room = np.minimum(room, rows)
    return np.minimum(room, [*map(len, self.waiting)])

  def admit(self, num: int) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Gives places to waiting prompts, up to `num` of each shard.

    Returns:
      The prompts of each shard, and where they and their rows go: i32[shards *
      num] and i32[shards * num * G], one past the last where there are fewer.
    """
    G, room = self._group_size, self.find_room()
    shards = len(self.row)
    prompt_places = np.full((shards, num), self.rung.prompts, np.int32)
    row_places = np.full((shards, num * G), self.rung.rows, np.int32)
    taken = []
    for s in range(shards):
      n = min(num, room[s])
      taken.append(self.waiting[s][:n])
      self.waiting[s] = self.waiting[s][n:]
      prompts = self._free_prompts(s)[:n]
      if self.rung.in_order:
        rows = (prompts[:, None] * G + np.arange(G)).reshape(-1)
      else:
        rows = np.flatnonzero(~self.live[s])[: n * G]
      prompt_places[s, :n], row_places[s, : n * G] = prompts, rows
      numbers = np.array(taken[s], int)[:, None] * G + np.arange(G)
      self.row[s, rows] = numbers.reshape(-1)
      self._prompt[s, rows] = np.repeat(prompts, G)
      self.live[s, rows] = True
      self.lengths[s, rows] = 0
      self.ended[s, rows] = False
    return taken, prompt_places.reshape(-1), row_places.reshape(-1)

  def narrow(self, fewer: ladder.Rung):
    """Moves the live rows to a rung of fewer.

    Returns:
      i32 and bool[shards * rows], as `Compiled.narrow` takes them, and i32
      [shards * rows] or None.
    """
    order = np.argsort(~self.live, axis=1, kind='stable')[:, : fewer.rows]

    def take(x):
      return np.take_along_axis(x, order, axis=1)

    prompt = take(self._prompt)
    self.row, self.live = take(self.row), take(self.live)
    self.lengths, self.ended = take(self.lengths), take(self.ended)
    if compiled.keeps_prompts(self.rung, fewer):
      self._prompt, copied = prompt, None
    else:
      copied = prompt.astype(np.int32).reshape(-1)
      self._prompt = np.tile(np.arange(fewer.rows), (len(order), 1))
    self.rung = fewer
    return order.astype(np.int32).reshape(-1), self.live.reshape(-1), copied

  def describe(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns what `programs.decode` takes as places where rows are not in order."""
    shards, G = len(self.row), self._group_size
    place = self._prompt * G + self.row % G
    asking = np.zeros((shards, self.rung.prompts * G), np.int32)
    for s in range(shards):
      asking[s, place[s, self.live[s]]] = np.flatnonzero(self.live[s])
    return asking.reshape(-1), place.astype(np.int32).reshape(-1)

  def _free_prompts(self, s):
    used = np.zeros(self.rung.prompts, bool)
    used[self._prompt[s, self.live[s]]] = True
    return np.flatnonzero(~used)
