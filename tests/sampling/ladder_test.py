"""Every way down a ladder fits what lives, and ends."""

import numpy as np
import pytest

from dash_jax.sampling import ladder

SIZES = [
  # rows, prompts, group size, slots, refill, unit
  (64, 8, 8, 128, False, 1),
  (1024, 128, 8, 512, False, 1),
  (1024, 384, 8, 512, True, 128),
  (16, 6, 4, 70, True, 1),
  (21, 21, 1, 200, False, 128),
  (8, 8, 1, 6, True, 1),
  (4, 1, 4, 1, False, 1),
]


@pytest.mark.parametrize('sizes', SIZES)
def test_a_call_that_ends_row_by_row_finds_its_rungs(sizes):
  """Random lives: rows end, the longest grows. Each rung on the way has room for
  the rows and slots that live, is not twice as large as needed without a smaller
  one being there, and the last serves to the end."""
  made = ladder.make(*sizes)
  num_rows, *_, max_slots, _, _ = sizes
  assert len(made.rungs) <= 10
  rng = np.random.default_rng(0)
  for _ in range(20):
    rung, live = made.rungs[0], num_rows
    assert rung.rows == num_rows
    for slots in range(1, max_slots + 1):
      while (following := made.find_next(rung, live, slots)) is not None:
        assert following in made.rungs
        assert (following.rows < rung.rows) ^ (following.slots > rung.slots)
        rung = following
      assert live <= rung.rows
      assert slots <= rung.slots
      assert live > made.find_fewer(rung)
      live -= int(rng.binomial(live, rng.uniform(0, 0.3)))
      if not live:
        break


@pytest.mark.parametrize('sizes', SIZES)
def test_rungs_say_how_rows_and_prompts_stand(sizes):
  """In order means that prompts times places are the rows; rows that stand
  anywhere have places for all rows of every prompt. A rung of fewer rows holds
  no more prompts than the first."""
  made = ladder.make(*sizes)
  _, prompts, group_size, max_slots, refill, unit = sizes
  for rung in made.rungs:
    if rung.in_order:
      assert rung.rows == rung.prompts * rung.places
    else:
      assert (rung.prompts, rung.places) == (prompts, group_size)
    assert rung.prompts <= prompts
    assert rung.slots <= unit or rung.slots % unit == 0
  assert max(rung.slots for rung in made.rungs) >= max_slots
  assert made.rungs[0].in_order == (not refill or group_size == 1)


def test_the_shapes_of_a_large_batch():
  """Few, and those that pay: quarters of the cache at first, then fewer rows."""
  made = ladder.make(1024, 128, 8, 512, refill=False)
  assert [(rung.rows, rung.slots) for rung in made.rungs] == [
    (1024, 128), (1024, 256), (1024, 512), (512, 256), (512, 512), (256, 512),
    (128, 512), (64, 512),
  ]  # fmt: skip
