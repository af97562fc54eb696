"""Packed lines hold every kept row once, whole, and waste little."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_rows

from dash_jax import batches, sharding
from dash_jax.learning import packing
from dash_jax.model import llama


@pytest.mark.parametrize('num_samples', [1, 4, 6])
@pytest.mark.parametrize('size', [1, 3, 4, 8, 24, 40])
@pytest.mark.parametrize('num_kept', [0, 1, 7, 24])
def test_every_kept_row_comes_once_behind_its_own_prompt(
  mesh, num_samples, size, num_kept
):
  """Read back from the arrays alone; advantages here name the rows."""
  shape = (24 // num_samples, num_samples)
  rollouts = tiny_rows.draw_rollouts(*shape)
  names = np.arange(1, 25, dtype=np.float32).reshape(shape)
  keep = np.random.default_rng(0).permutation(24).reshape(shape) < num_kept
  found = []
  for minibatch in tiny_rows.pack(rollouts, names, keep, names / 4, size):
    lines, mask = minibatch.lines, minibatch.lines.mask
    for values in (minibatch.weight, minibatch.logprobs, minibatch.slots):
      assert (values[~mask] == 0).all()
    assert (lines.prompts[mask] >= 0).all()
    for line in range(len(mask)):
      prompt_slots = (lines.prompts[line] >= 0) & (lines.rows[line] == 0)
      assert np.flatnonzero(prompt_slots).max(initial=0) < lines.prompt_slots
      for row in range(1, lines.rows[line].max(initial=0) + 1):
        at = np.flatnonzero(lines.rows[line] == row)
        (prompt,) = set(lines.prompts[line][at])
        own = np.flatnonzero(prompt_slots & (lines.prompts[line] == prompt))
        np.testing.assert_array_equal(np.diff([*own]), 1)
        np.testing.assert_array_equal(np.diff(at), 1)
        (name,) = set(minibatch.advantages[line][at])
        found.append(name)
        (of,) = np.argwhere(names == name)
        of = tuple(of)
        n, p = rollouts.lengths[of], rollouts.prompts.lengths[of[0]]
        np.testing.assert_array_equal(
          lines.tokens[line][own], rollouts.prompts.tokens[of[0]][-p:]
        )
        np.testing.assert_array_equal(
          lines.tokens[line][at], rollouts.tokens[of][:n]
        )
        np.testing.assert_array_equal(
          lines.positions[line][[*own, *at]], np.arange(p + n)
        )
        np.testing.assert_array_equal(
          lines.sources[line][at], [own[-1], *at[:-1]]
        )
        np.testing.assert_array_equal(minibatch.slots[line][at], np.arange(n))
        np.testing.assert_array_equal(
          minibatch.logprobs[line][at], rollouts.logprobs[of][:n]
        )
        assert (minibatch.weight[line][at] == name / 4).all()
  assert sorted(found) == sorted(names[keep])


def fit(prompt_lens, lengths, slots, prompt_slots):
  room = packing.Room(((1, slots),), prompt_slots, slots)
  lengths = np.array(lengths)
  return packing.fit(np.array(prompt_lens), lengths, lengths > 0, room)


def test_parts_go_first_fit_from_the_largest():
  """By hand, lines of 10 slots: groups of 3, 9, 7, 6 and 2 slots; 7 + 3 and
  6 + 2 share lines, and 9 has one alone."""
  lines, filled = fit(
    [1, 2, 1, 1, 1], [[2, 0], [3, 4], [6, 0], [5, 0], [1, 0]], 10, 10
  )
  assert lines == [
    [[(2, 0)], [(0, 0)]],
    [[(1, 0), (1, 1)]],
    [[(3, 0)], [(4, 0)]],
  ]
  np.testing.assert_array_equal(filled, [10, 9, 8])


def test_a_group_longer_than_a_line_is_parted_with_its_prompt():
  lines, filled = fit([2], [[4, 4, 4]], 10, 10)
  assert lines == [[[(0, 0), (0, 1)]], [[(0, 2)]]]
  np.testing.assert_array_equal(filled, [10, 6])


def test_prompts_keep_to_their_slots():
  lines, _ = fit([3, 3, 3], [[1], [1], [1]], slots=100, prompt_slots=6)
  assert list(map(len, lines)) == [2, 1]


@pytest.mark.parametrize(
  ('filled', 'expected'),
  [
    ([90] * 8, [(4, 90)] * 2),
    ([90] * 7, [(4, 90), (2, 90), (1, 90)]),
    ([90, 40], [(2, 90)]),
    ([60], [(1, 90)]),
    ([45], [(1, 45)]),
    ([90, 80, 30], [(2, 90), (1, 45)]),
    ([], []),
  ],
)
def test_what_is_left_goes_into_smaller_shapes(filled, expected):
  room = packing.Room(((4, 90), (2, 90), (1, 90), (1, 45)), 10, 10)
  assert packing.share_out(np.array(filled, int), room) == expected


def test_little_of_what_is_computed_is_padding(mesh):
  """Replies that end at random, of mean 40 and at most 128: without packing
  six of ten slots would be padding."""
  Q, G, P, C = 64, 8, 64, 128
  rng = np.random.default_rng(0)
  lengths = np.minimum(rng.geometric(1 / 40, (Q, G)), C)
  prompt_lens = rng.integers(20, P + 1, Q)
  room = packing.make_room(32, G, P, C)
  _, filled = packing.fit(prompt_lens, lengths, lengths > 0, room)
  slots = sum(b * T for b, T in packing.share_out(filled, room))
  tokens = lengths.sum() + prompt_lens.sum()
  assert filled.sum() == tokens
  assert tokens / slots > 0.8
  assert tokens / (Q * (P + G * C)) < 0.4


@pytest.mark.parametrize('group_size', [1, 4, 8])
def test_there_is_room_for_as_many_full_rows_as_asked(mesh, group_size):
  """Or for a few more, since lines are alike; in no line for more than a group, or
  two."""
  P, C = 16, 64
  for size in range(1, 40):
    room = packing.make_room(size, group_size, P, C)
    num_lines, slots = room.shapes[0]
    in_line = max(
      n for n in range(9) if -(-n // group_size) * P + n * C <= slots
    )
    assert size <= num_lines * in_line < size + num_lines
    assert in_line <= max(group_size, 2)


def test_minibatches_are_of_the_shapes_that_were_made_ready(mesh):
  Q, G, P, C = 5, 4, 16, 64
  room = packing.make_room(16, G, P, C)
  assert room.shapes == ((4, 272), (2, 272), (1, 272))
  rollouts = batches.Rollouts(
    batches.PromptBatch(
      np.ones((Q, P), np.int32), np.full(Q, P), np.arange(Q)
    ),
    np.ones((Q, G, C), np.int32),
    np.full((Q, G), C),
    np.zeros((Q, G, C), np.float32),
    np.zeros((Q, G), bool),
    np.zeros((Q, G), np.int32),
  )  # fmt: skip
  ones = np.ones((Q, G), np.float32)

  def make(keep):
    return packing.make_minibatches(rollouts, ones, keep, ones, room)

  assert [m.slots.shape for m in make(ones > 0)] == [(4, 272), (1, 272)]
  assert make(ones < 0) == []
  empty = packing.make_empty(room)
  assert tuple(m.slots.shape for m in empty) == room.shapes
  # Else the first minibatch would compile again.
  (like, *_), (first, *_) = empty, make(ones > 0)
  assert jax.tree.structure(like) == jax.tree.structure(first)
  for a, b in zip(jax.tree.leaves(like), jax.tree.leaves(first), strict=True):
    assert (a.aval, a.sharding) == (b.aval, b.sharding)


@pytest.mark.parametrize('shape', [(2, 2, 2), (1, 8, 1)])
def test_room_is_shared_out_over_the_mesh(shape):
  """Four shards have four rows each, two lines of a group of two; of eight each
  has one line."""
  with jax.set_mesh(jax.make_mesh(shape, sharding.AXES)):
    room = packing.make_room(16, 2, 4, 6)
    num_shards = shape[0] * shape[1]
    shapes = [(num_shards, 16)]
    if num_shards == 4:
      shapes.insert(0, (8, 16))
    assert room.shapes == tuple(shapes)


@pytest.mark.parametrize('size', [2, 8])
def test_completions_see_their_prompt_and_their_own_past_alone(
  mesh, tiny, size
):
  """What predicts a completion's slot moves with every token before it in its
  row, and with no other: not with the token itself, its future, a sibling,
  another question or filler. Of groups of 2 attention looks at the whole line,
  of groups of 8 at blocks of it."""
  rollouts = tiny_rows.draw_rollouts(2, size)
  ones = np.ones((2, size), np.float32)
  minibatch = tiny_rows.pack(rollouts, ones, ones > 0, ones, size)[0]
  lines = minibatch.lines
  b, T = lines.tokens.shape
  assert (T > 16) == (size == 8)
  # Every slot has a token of its own, filler too.
  lines.tokens[:] = np.arange(b * T).reshape(b, T)
  params = llama.init_params(tiny, jax.random.key(0), jnp.float32)
  direction = jnp.asarray(
    np.random.default_rng(0).normal(size=tiny.embed_dim), jnp.float32
  )

  @jax.jit
  def gradient(embed, chosen):
    def output(embed):
      hidden = llama.Llama(tiny).apply(
        {'params': params | {'embed': embed}}, lines, method='read_lines'
      )
      return jnp.sum((hidden @ direction) * chosen)

    return jnp.abs(jax.grad(output)(embed)).sum(-1)

  assert lines.mask.sum() > 5
  for line, slot in np.argwhere(lines.mask):
    chosen = np.zeros((b, T), np.float32)
    chosen[line, slot] = 1
    size = np.asarray(gradient(params['embed'], chosen))
    rows, prompts = lines.rows[line], lines.prompts[line]
    before = (rows == rows[slot]) & (np.arange(T) < slot)
    seen = np.zeros(len(size), bool)
    seen[lines.tokens[line][before]] = True
    seen[lines.tokens[line][(prompts == prompts[slot]) & (rows == 0)]] = True
    assert (size[seen] > 1e-4).all()
    assert (size[~seen] == 0).all()
