"""One sampling call, from the host's side: what runs next, and what it drew.

1. Prompts are admitted while there is room.
2. The rung follows what lives: fewer rows when enough have stopped and none
   wait, more slots when a ring is full.
3. `decode` runs until one of these is to do, and what it drew is taken in.
   Rows that have stopped are handed out before the next goes on.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import numpy as np

from dash_jax import batches, sharding
from dash_jax.sampling import compiled as compiled_lib
from dash_jax.sampling import decoding as decoding_lib
from dash_jax.sampling import places as places_lib
from dash_jax.sampling import programs as programs_lib

_WIDTH_OF_TEXT = 16  # tokens between two looks for an end that is no stop id


@dataclasses.dataclass(frozen=True)
class Request:
  """What a call asks for; see `Sampler.stream`."""

  prompts: batches.PromptBatch
  key: jax.Array
  decoding: decoding_lib.Decoding
  limits: np.ndarray
  find_end: Callable[[np.ndarray, int], int] | None


@dataclasses.dataclass(frozen=True)
class Completions:
  """What has been sampled so far; grows in place.

  Attributes:
    tokens: i32[Q, G, C].
    logprobs: f32[Q, G, C].
    lengths: i32[Q, G].
    finished: bool[Q, G].
    truncated: bool[Q, G], True where a row ran out of slots.
  """

  tokens: np.ndarray
  logprobs: np.ndarray
  lengths: np.ndarray
  finished: np.ndarray
  truncated: np.ndarray

  @staticmethod
  def make(Q: int, G: int, C: int) -> 'Completions':
    return Completions(
      tokens=np.zeros((Q, G, C), np.int32),
      logprobs=np.zeros((Q, G, C), np.float32),
      lengths=np.zeros((Q, G), np.int32),
      finished=np.zeros((Q, G), bool),
      truncated=np.zeros((Q, G), bool),
    )

  def take_first(self, num: int) -> 'Completions':
    """Returns those of the first prompts, the same memory."""
    return Completions(**{name: x[:num] for name, x in vars(self).items()})

  def as_rollouts(
    self, prompts: batches.PromptBatch, policy_step: int
  ) -> batches.Rollouts:
    """Returns them as Rollouts, of weights with so many optimizer steps."""
    return batches.Rollouts(
      prompts=prompts,
      tokens=self.tokens,
      lengths=self.lengths,
      logprobs=self.logprobs,
      truncated=self.truncated,
      policy_step=np.full_like(self.lengths, policy_step),
    )


class Call:
  """The arrays of one call on the device, and what stands where in them."""

  def __init__(
    self,
    compiled: compiled_lib.Compiled,
    programs: programs_lib.Programs,
    request: Request,
    made: Completions,
  ):
    self._compiled = compiled
    self._width = programs.width
    if request.find_end:
      self._width = min(self._width, _WIDTH_OF_TEXT)
    self._group_size = programs.group_size
    self._request = request
    self._made = made
    self._num_shards = programs_lib.num_shards()
    per_shard = len(request.prompts.tokens) // self._num_shards
    # Some are done: if memory ran out before, and those that nobody asked for.
    done = made.finished.all(axis=1).reshape(self._num_shards, per_shard)
    waiting = [np.flatnonzero(~some).tolist() for some in done]
    for x in (made.tokens, made.logprobs, made.lengths):
      x[~made.finished] = 0
    self._per_shard = per_shard
    self._at = places_lib.Places(
      compiled.ladder.rungs[0], self._group_size, waiting
    )
    self._where = None  # as `decode` takes places; None until they are put
    self._none_ended = {}  # on the device, by their number

  def run(self, weights: dict) -> Iterator[np.ndarray]:
    """Decodes all rows that are not finished; yields the rows that have just
    finished, as `Sampler.stream`."""
    self._weights = weights
    self._prompts, self._rows, self._rings = self._compiled.start()
    yield from self._admit_all()
    while self._at.live.any():
      self._change_rung()
      yield from self._decode()
      yield from self._admit_all()

  def _admit_all(self):
    """Admits prompts as long as it is worth a program's call."""
    at, few = self._at, min(self._compiled.admit)
    while True:
      room, waiting = at.find_room(), [*map(len, at.waiting)]
      ready = (room > 0) & (room >= np.minimum(few, waiting))
      if not (ready.any() or (room.any() and not at.live.any())):
        return
      sizes = [n for n in self._compiled.admit if n >= room.max()]
      yield from self._admit(min(sizes, default=max(self._compiled.admit)))

  def _admit(self, num):
    at, request = self._at, self._request
    taken, prompt_places, row_places = at.admit(num)
    # Rows of these prompts that were done before memory ran out need no more.
    at.ended |= at.live & self._is_finished()
    # Places that stay empty get the first prompt, and are nowhere.
    numbers = np.zeros((self._num_shards, num), int)
    for i in range(self._num_shards):
      numbers[i, : len(taken[i])] = taken[i]
      numbers[i] += i * self._per_shard
    numbers = numbers.reshape(-1)
    self._prompts, self._rows, drawn = self._compiled.admit[num](
      self._weights,
      self._prompts,
      self._rows,
      sharding.put_rows(jax.tree.map(lambda x: x[numbers], request.prompts)),
      sharding.put_rows(request.limits[numbers].reshape(-1)),
      sharding.put_rows(prompt_places),
      sharding.put_rows(row_places),
      request.key,
      request.decoding,
    )
    self._where = None
    # What was drawn is in the order of prompts, not of places.
    places = row_places.reshape(self._num_shards, -1)
    tokens, logprobs = sharding.local_rows((drawn.tokens, drawn.logprobs))
    shape = (self._num_shards, at.rung.rows + 1, 1)

    def place(x):
      out = np.zeros(shape, x.dtype)
      np.put_along_axis(out, places[..., None], x.reshape(*places.shape, 1), 1)
      return out[:, :-1]

    yield from self._take_in(place(tokens), place(logprobs), drawn)

  def _change_rung(self):
    at, compiled = self._at, self._compiled
    while True:
      num_rows = at.live.sum(axis=1).max()
      if at.num_waiting:
        num_rows = at.rung.rows
      needed = at.lengths[at.live].max()
      rung = compiled.ladder.find_next(at.rung, num_rows, needed)
      if rung is None:
        return
      if rung.rows == at.rung.rows:
        self._rings = compiled.lengthen(at.rung, self._rings)
        at.rung = rung
        continue
      before = at.rung
      row, live, prompt = at.narrow(rung)
      self._prompts, self._rows, self._rings = compiled.narrow(
        before,
        self._prompts,
        self._rows,
        self._rings,
        sharding.put_rows(row),
        sharding.put_rows(live),
        None if prompt is None else sharding.put_rows(prompt),
      )
      self._where = None

  def _decode(self):
    at, compiled = self._at, self._compiled
    if self._where is None and not at.rung.in_order:
      self._where = tuple(map(sharding.put_rows, at.describe()))
    num_live = at.live.sum(axis=1)
    # Ends where so many have stopped that others can take their places.
    few = np.minimum(min(compiled.admit), [*map(len, at.waiting)])
    wait = at.rung.rows - few * self._group_size
    wait = np.where(num_live > wait, wait, num_live - self._group_size)
    wait = np.where(few > 0, wait, -1)
    floor = 0 if at.num_waiting else compiled.ladder.find_fewer(at.rung)
    room = at.rung.slots - at.lengths[at.live].max() + 1
    self._rows, self._rings, drawn = compiled.decode[at.rung](
      self._weights,
      self._prompts,
      self._rows,
      self._rings,
      self._where,
      self._put_ended(),
      self._request.decoding,
      np.int32(min(self._width, room)),
      wait.astype(np.int32),
      np.int32(floor),
    )
    tokens, logprobs = (
      x.reshape(self._num_shards, -1, x.shape[-1])
      for x in sharding.local_rows((drawn.tokens, drawn.logprobs))
    )
    yield from self._take_in(tokens, logprobs, drawn)

  def _put_ended(self):
    ended = self._at.ended.reshape(-1)
    if ended.any():
      return sharding.put_rows(ended)
    if ended.size not in self._none_ended:
      self._none_ended[ended.size] = sharding.put_rows(ended)
    return self._none_ended[ended.size]

  def _take_in(self, tokens, logprobs, drawn):
    """Adds what was drawn to what is made, and yields the rows that finished.

    Args:
      tokens, logprobs: [shards, rows, W].
      drawn: programs.Drawn, for the rest.
    """
    at, made = self._at, self._made
    lengths = np.asarray(drawn.lengths).reshape(at.live.shape)
    stopped = np.asarray(drawn.stopped).reshape(at.live.shape)
    # A row that has its end, or had it before memory ran out, stays as it is.
    changing = at.live & ~self._is_finished()
    row = self._find_rows()[changing]
    before = at.lengths[changing]
    after = lengths[changing]
    flat = _flatten(made)
    width = tokens.shape[-1]
    source, column = np.nonzero(np.arange(width) < (after - before)[:, None])
    to = row[source], before[source] + column
    flat.tokens[to] = tokens[changing][source, column]
    flat.logprobs[to] = logprobs[changing][source, column]
    flat.lengths[row] = after
    done = stopped[changing]
    last = flat.tokens[row, after - 1]
    flat.truncated[row] = done & ~np.isin(last, self._request.decoding.stop_ids)
    if self._request.find_end:
      looks = zip(row, before, strict=True)
      cut = np.array([self._cut(flat, *look) for look in looks], bool)
      at.ended[changing] = cut
      done |= cut
    flat.finished[row] = done
    at.lengths = np.where(at.live, lengths, at.lengths)
    at.live &= ~stopped
    yield np.sort(row[done])

  def _find_rows(self):
    """Returns i64[shards, rows], which row of Completions stands at each place."""
    first = np.arange(self._num_shards)[:, None] * self._per_shard
    return self._at.row + first * self._group_size

  def _is_finished(self):
    """Returns bool[shards, rows], of the row at each place; where there is none
    it means nothing."""
    return self._made.finished.reshape(-1)[self._find_rows()]

  def _cut(self, flat, row, seen):
    """Ends a row where its end is found behind the tokens that were seen before;
    returns whether it is."""
    tokens = flat.tokens[row, : flat.lengths[row]]
    length = self._request.find_end(tokens, int(seen))
    if not length:
      return False
    flat.tokens[row, length:] = 0
    flat.logprobs[row, length:] = 0
    flat.lengths[row] = length
    flat.truncated[row] = False
    return True


def _flatten(made):
  """Returns views of [Q * G, ..]."""
  return Completions(
    **{
      field.name: getattr(made, field.name).reshape(
        -1, *getattr(made, field.name).shape[2:]
      )
      for field in dataclasses.fields(made)
    }
  )
