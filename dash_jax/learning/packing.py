"""Kept rows packed into minibatches, so that no padding is computed.

  1. `make_room` sizes a minibatch: lines of T slots, and a short ladder of
     smaller shapes for what is left at the end.
  2. `lay_out` puts the kept rows of each question, behind their prompt, into
     lines: first-fit decreasing. A question that does not fit a line is parted,
     and each part has the prompt again.
  3. `pack` writes the lines as arrays, in minibatches. The learner runs as many
     as there are, so its cost follows the tokens that are kept.

Rows are packed before the learner's forwards, so what is filtered is not
computed.
"""

import dataclasses

import jax
import numpy as np

from dash_jax import batches, sharding

# Each shape has half the slots of the one before, and is one more program.
_MOST_SHAPES = 4
_FEWEST_SLOTS = 256  # of a line, below which a smaller shape saves nothing
_UNIT = 8
# Or a group, if that is more. Few, since a row looks at its line's other prompts.
_ROWS_A_LINE = 2


@dataclasses.dataclass(frozen=True)
class Room:
  """What a minibatch has room for.

  Attributes:
    shapes: (lines, T) that a process's part of a minibatch may have, the largest
      first.
    prompt_slots: at most so many slots of a line hold prompts. They are twice
      those of its full rows, since shorter rows come with more prompts.
    max_completion_len: C.
  """

  shapes: tuple[tuple[int, int], ...]
  prompt_slots: int
  max_completion_len: int


# A row of a line: its question and its number in the group.
Row = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where rows go.

  Attributes:
    lines: of `fit`.
    shapes: of `share_out`; they may have room for more lines.
  """

  lines: list[list[list[Row]]]
  shapes: list[tuple[int, int]]


def make_room(
  minibatch_size: int,
  group_size: int,
  max_prompt_len: int,
  max_completion_len: int,
) -> Room:
  """Returns room for `minibatch_size` rows of full length, with a prompt for
  each group of them; of shorter rows it holds more. Lines are alike, so that
  there may be room for a few more.

  Args:
    minibatch_size: of all processes; the mesh in use splits its lines.
    group_size: G.
    max_prompt_len: P.
    max_completion_len: C.
  """
  num_shards = sharding.num_batch_shards(jax.sharding.get_mesh())
  num_local = len(sharding.local_shards())
  rows = minibatch_size // num_shards
  num_lines = -(-rows // max(group_size, _ROWS_A_LINE))
  in_line = -(-rows // num_lines)
  prompts = -(-in_line // group_size)
  slots = prompts * max_prompt_len + in_line * max_completion_len
  shapes = [(num_lines, slots)]
  while len(shapes) < _MOST_SHAPES:
    if num_lines > 1:
      num_lines = -(-num_lines // 2)
    elif slots // 2 >= max(max_prompt_len + max_completion_len, _FEWEST_SLOTS):
      slots //= 2
    else:
      break
    shapes.append((num_lines, slots))
  return Room(
    shapes=tuple(
      (num_local * n, -(-slots // _UNIT) * _UNIT) for n, slots in shapes
    ),
    prompt_slots=2 * prompts * max_prompt_len,
    max_completion_len=max_completion_len,
  )


def lay_out(rollouts: batches.Rollouts, keep: np.ndarray, room: Room) -> Layout:
  """Returns where the rows to keep go; every process must call it.

  Args:
    rollouts: Q questions with G rows each, NumPy.
    keep: bool[Q, G].
    room: of a minibatch.
  """
  lines, filled = fit(rollouts.prompts.lengths, rollouts.lengths, keep, room)
  return Layout(lines, share_out(filled, room))


def fit(
  prompt_lens: np.ndarray, lengths: np.ndarray, keep: np.ndarray, room: Room
) -> tuple[list[list[list[Row]]], np.ndarray]:
  """Lays rows into the longest lines, first-fit decreasing.

  Args:
    prompt_lens: i32[Q].
    lengths: i32[Q, G], of completions.
    keep: bool[Q, G].
    room: of a minibatch.

  Returns:
    Lines, the fullest first; each is a list of parts, each of these the rows
    behind one prompt. And how many slots of each line they take.
  """
  _, slots = room.shapes[0]
  parts, sizes = [], []
  for q in np.flatnonzero(keep.any(axis=1)):
    prompt_len = int(prompt_lens[q])
    is_open = False
    for g in np.flatnonzero(keep[q]):
      length = int(lengths[q, g])
      if not is_open or sizes[-1] + length > slots:
        parts.append([])
        sizes.append(prompt_len)
        is_open = True
      parts[-1].append((int(q), int(g)))
      sizes[-1] += length
  lines = []
  filled = np.zeros(len(parts), int)  # slots of each line
  of_prompts = np.zeros(len(parts), int)
  for i in np.argsort([-size for size in sizes], kind='stable'):
    prompt_len = int(prompt_lens[parts[i][0][0]])
    fits = (filled[: len(lines)] + sizes[i] <= slots) & (
      of_prompts[: len(lines)] + prompt_len <= room.prompt_slots
    )
    at = int(fits.argmax()) if fits.any() else len(lines)
    if at == len(lines):
      lines.append([])
    lines[at].append(parts[i])
    filled[at] += sizes[i]
    of_prompts[at] += prompt_len
  filled = filled[: len(lines)]
  order = np.argsort(-filled, kind='stable')
  return [lines[i] for i in order], filled[order]


def share_out(filled: np.ndarray, room: Room) -> list[tuple[int, int]]:
  """Returns the shapes of the minibatches that take these lines in turn, the
  same in every process; all must call it.

  Args:
    filled: slots that each of this process's lines takes, the fullest first.
    room: of a minibatch.
  """
  num = int(sharding.max_over_hosts({'lines': len(filled)})['lines'])
  padded = np.pad(filled, (0, num - len(filled))).tolist()
  fullest = sharding.max_over_hosts(dict(enumerate(padded)))
  filled = [int(fullest[i]) for i in range(num)]
  shapes, done = [], 0
  while done < len(filled):
    left = filled[done:]
    num = max(
      (n for n, _ in room.shapes if n <= len(left)), default=room.shapes[-1][0]
    )
    shapes.append(
      min(
        (
          shape
          for shape in room.shapes
          if shape[0] >= num and shape[1] >= left[0]
        ),
        key=lambda shape: shape[0] * shape[1],
      )
    )
    done += num
  return shapes


def make_minibatches(
  rollouts: batches.Rollouts,
  advantages: np.ndarray,
  keep: np.ndarray,
  weight: np.ndarray,
  room: Room,
  old_logprobs: np.ndarray | None = None,
  returns: np.ndarray | None = None,
) -> list[batches.Minibatch]:
  """Packs the rows to keep and puts them on the mesh in use.

  Every process calls it with rows of its own, and all make minibatches of the
  same shapes.

  Args:
    rollouts: Q questions with G rows each, NumPy.
    advantages: f32[Q, G], or f32[Q, G, C] of each token.
    keep: bool[Q, G].
    weight: f32[Q, G], what each token of a row counts in the loss.
    room: of a minibatch.
    old_logprobs: f32[Q, G, C], that ratios are taken to, if not those of
      `rollouts`.
    returns: f32[Q, G, C], of a critic, if there is one.
  """
  values = {
    'logprobs': rollouts.logprobs,
    'old_logprobs': rollouts.logprobs,
    'advantages': advantages,
    'weight': weight,
  }
  if old_logprobs is not None:
    values['old_logprobs'] = old_logprobs
  if returns is not None:
    values['returns'] = returns
  packed = pack(rollouts, lay_out(rollouts, keep, room), room, values)
  return [sharding.put_rows(minibatch) for minibatch in packed]


def pack(
  rollouts: batches.Rollouts,
  layout: Layout,
  room: Room,
  values: dict[str, np.ndarray],
) -> list[batches.Minibatch]:
  """Writes rows as arrays, in minibatches.

  Args:
    rollouts: Q questions with G rows each, NumPy.
    layout: where they go.
    room: of a minibatch.
    values: fields of `batches.Minibatch` by name, f32[Q, G, C], or f32[Q, G]
      where all tokens of a row have the same; others stay 0.
  """
  made, done = [], 0
  for shape in layout.shapes:
    minibatch = _make_filler(shape, room)
    for line, parts in enumerate(layout.lines[done : done + shape[0]]):
      one = jax.tree.map(lambda x: x[line], minibatch)  # noqa: B023
      _write_line(one, rollouts, parts, values)
    made.append(minibatch)
    done += shape[0]
  return made


def _make_filler(shape, room):
  """Returns a minibatch of filler, NumPy."""

  def zeros(dtype=np.int32):
    return np.zeros(shape, dtype)

  return batches.Minibatch(
    lines=batches.Lines(
      tokens=zeros(),
      positions=zeros(),
      prompts=zeros() - 1,
      rows=zeros(),
      sources=zeros() + np.arange(shape[1], dtype=np.int32),
      prompt_slots=min(room.prompt_slots, shape[1]),
      completion_len=room.max_completion_len,
    ),
    slots=zeros(),
    logprobs=zeros(np.float32),
    old_logprobs=zeros(np.float32),
    advantages=zeros(np.float32),
    weight=zeros(np.float32),
    returns=zeros(np.float32),
  )


def _write_line(minibatch, rollouts, parts, values):
  """Writes the parts of one line: their prompts, then their completions.

  Args:
    minibatch: NumPy views [T] of a line.
    rollouts, values: as `pack`'s.
    parts: of `Layout.lines`.
  """
  lines, end = minibatch.lines, 0
  last = []  # the last slot of each prompt
  for i, part in enumerate(parts):
    q = part[0][0]
    n = int(rollouts.prompts.lengths[q])
    at = slice(end, end + n)
    lines.tokens[at] = rollouts.prompts.tokens[q, -n:]
    lines.positions[at] = np.arange(n)
    lines.prompts[at] = i
    end += n
    last.append(end - 1)
  number = 0
  for i, part in enumerate(parts):
    for row in part:
      number += 1
      n = int(rollouts.lengths[row])
      at = slice(end, end + n)
      lines.tokens[at] = rollouts.tokens[row][:n]
      lines.positions[at] = rollouts.prompts.lengths[row[0]] + np.arange(n)
      lines.prompts[at] = i
      lines.rows[at] = number
      lines.sources[at] = np.arange(end - 1, end + n - 1)
      lines.sources[end] = last[i]
      minibatch.slots[at] = np.arange(n)
      for name, x in values.items():
        getattr(minibatch, name)[at] = x[row][:n] if x.ndim > 2 else x[row]
      end += n


def make_filler(room: Room) -> list[batches.Minibatch]:
  """Returns this process's part of a minibatch of filler of each shape, NumPy."""
  return [_make_filler(shape, room) for shape in room.shapes]


def make_empty(room: Room) -> list[batches.Minibatch]:
  """Returns a minibatch of filler of each shape, on the mesh in use."""
  return [sharding.put_rows(filler) for filler in make_filler(room)]


def unpack(
  values: list[np.ndarray], lines: list, rollouts: batches.Rollouts
) -> np.ndarray:
  """Returns f32[Q, G, C], what was computed of each completion token; 0 behind a
  row's end and for rows that are in no line.

  Args:
    values: f32[b, T] of each minibatch of `pack`.
    lines: what was packed.
    rollouts: of which.
  """
  found = np.zeros(rollouts.tokens.shape, np.float32)
  rows_of_lines = [line for minibatch in values for line in minibatch]
  for line, parts in zip(rows_of_lines, lines, strict=False):
    end = sum(int(rollouts.prompts.lengths[part[0][0]]) for part in parts)
    for part in parts:
      for row in part:
        n = int(rollouts.lengths[row])
        found[row][:n] = line[end : end + n]
        end += n
  return found
