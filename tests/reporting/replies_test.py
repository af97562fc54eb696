"""What a page holds of replies is bounded, and says what it leaves out."""

import json

import pytest

from dash_jax.reporting import replies
from dash_jax.runs import jsonl


def _write(folder, step, num_groups, *, text='reply', **changes):
  rows = [
    {
      'step': step, 'uid': 5, 'sample': g, 'prompt': 'why?', 'answer': '1',
      'completion': text, 'reward': 1.0, 'advantage': 0.12345, 'kept': True,
      'completion_len': 1, 'truncated': False, 'token_widths': [len(text)],
      'logprobs': [-0.123],
    } | changes
    for _ in range(num_groups)
    for g in range(2)
  ]  # fmt: skip
  jsonl.write(folder / 'rollouts' / f'step_{step:06d}.jsonl', rows)


@pytest.mark.parametrize(
  ('room', 'chosen'),
  [(9, [4]), (10, [4]), (25, [0, 4]), (30, [0, 2, 4]), (50, [0, 1, 2, 3, 4])],
)
def test_steps_are_spread_and_the_last_is_among_them(room, chosen):
  """Of five steps of ten bytes."""
  assert replies.choose_steps([10] * 5, room) == chosen


def test_large_steps_leave_room_for_fewer():
  assert replies.choose_steps([10, 90, 10, 90, 10], 30) == [0, 2, 4]
  assert replies.choose_steps([], 30) == []


def test_all_is_held_where_there_is_room(tmp_path):
  """A question that was drawn twice is two groups; processes' files are one
  step's."""
  _write(tmp_path / 'host_0', 3, 2)
  _write(tmp_path / 'host_1', 3, 1)
  _write(tmp_path / 'host_0', 12, 1)
  packed = replies.pack('run', tmp_path, 10_000)
  found = json.loads(packed.text)
  assert found['name'] == 'run'
  assert [group['step'] for group in found['groups']] == [3, 3, 3, 12]
  assert (
    found['groups'][0]['rows']
    == [['reply', 1.0, 0.123, True, 1, False, [5], [-0.12]]] * 2
  )
  assert (packed.num_steps, packed.of_steps) == (2, 2)
  assert (packed.num_groups, packed.of_groups) == (4, 4)


@pytest.mark.parametrize(
  'text', ['reply', '\u6f22' * 40, '<' * 40], ids=['a', 'b', 'c']
)
@pytest.mark.parametrize('room', [30, 1_000, 6_000], ids=str)
def test_no_page_grows_beyond_its_room(tmp_path, text, room):
  """Whatever replies are made of; groups that are not there are counted."""
  for step in (1, 2, 3):
    _write(tmp_path, step, 10, text=text)
  packed = replies.pack('run', tmp_path, room)
  assert len(packed.text.encode()) <= room
  assert '<' not in packed.text
  groups = json.loads(packed.text)['groups']
  assert len(groups) == packed.num_groups <= packed.of_groups
  assert len({group['step'] for group in groups}) == packed.num_steps
  assert packed.of_steps == 3
  # What is left out could not have been put in.
  assert room < 1_000 or groups


def test_a_damaged_file_is_named(tmp_path):
  _write(tmp_path, 1, 1)
  path = tmp_path / 'rollouts' / 'step_000001.jsonl'
  rows = jsonl.read(path)
  del rows[1]['reward']
  jsonl.write(path, rows)
  with pytest.raises(ValueError, match=r'step_000001.jsonl:2: no reward'):
    replies.pack('run', tmp_path, 10_000)


def test_replies_of_older_runs_are_shown_without_tokens(tmp_path):
  _write(tmp_path, 1, 1)
  path = tmp_path / 'rollouts' / 'step_000001.jsonl'
  rows = jsonl.read(path)
  for row in rows:
    del row['logprobs'], row['token_widths']
  jsonl.write(path, rows)
  (group,) = json.loads(replies.pack('run', tmp_path, 10_000).text)['groups']
  assert group['rows'][0][-2:] == [None, None]
