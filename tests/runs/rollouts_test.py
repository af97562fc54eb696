"""A step's rollouts can be browsed: each row by its own question."""

import dataclasses

import numpy as np
import pytest

from dash_jax import batches
from dash_jax.data import pieces
from dash_jax.runs import jsonl, rollouts

_QUESTIONS = [
  batches.Question(prompt='1 + 1?', answer='2', uid=7),
  batches.Question(prompt='2 + 3?', answer='5', uid=9),
]
# Line ends of every kind, and text that looks like a number that is none.
_COMPLETIONS = ['2\nyes', 'nan', 'a\u2028b\x85c\r\n', 'é "5"']


_SAMPLED = batches.Rollouts(
  prompts=None,
  tokens=np.zeros((2, 2, 5), np.int32),
  lengths=np.int32([[3, 1], [4, 5]]),
  # A row's log-probabilities add up to minus its place.
  logprobs=np.full((2, 2, 5), -0.25, np.float32)
  * np.float32([[[1], [2]], [[3], [4]]])
  * np.float32([1, 0, 2, 0, 1]),
  truncated=np.array([[False, False], [True, False]]),
  policy_step=np.zeros((2, 2), np.int32),
)


def _decode(tokens):
  return 'x' * len(tokens)


def _columns(**changes):
  return {
    'rewards': np.float32([[1, 0], [0, 1]]),
    'advantages': np.float32([[0.5, -0.5], [0.0, np.nan]]),
    'kept': np.array([[True, True], [False, False]]),
    **changes,
  }


def _write(folder, step, completions, **changes):
  return rollouts.write(
    folder, step, _QUESTIONS, completions, _SAMPLED, _decode,
    **_columns(**changes),
  )  # fmt: skip


def test_each_row_comes_back_with_its_question(tmp_path):
  """Neighbours share a question; text survives as it was."""
  path = _write(tmp_path, 12, _COMPLETIONS)
  assert path == tmp_path / 'rollouts' / 'step_000012.jsonl'
  rows = jsonl.read(path)
  assert [row['completion'] for row in rows] == _COMPLETIONS
  assert [(row['uid'], row['sample']) for row in rows] == [
    (7, 0),
    (7, 1),
    (9, 0),
    (9, 1),
  ]
  assert rows[2] == {
    'step': 12,
    'uid': 9,
    'sample': 0,
    'prompt': '2 + 3?',
    'answer': '5',
    'completion': _COMPLETIONS[2],
    'reward': 0.0,
    'advantage': 0.0,
    'kept': False,
    'completion_len': 4,
    'truncated': True,
    'logprob_sum': -3.0,
    'token_widths': None,
    'logprobs': [-0.75, 0.0, -1.5, 0.0],
  }
  assert rows[3]['advantage'] == 'nan'


def test_a_step_done_again_replaces_its_file(tmp_path):
  """After a resume the folder shows what happened, and nothing beside it."""
  _write(tmp_path, 1, list('abcd'))
  _write(tmp_path, 1, list('efgh'))
  (path,) = (tmp_path / 'rollouts').iterdir()
  assert [row['completion'] for row in jsonl.read(path)] == list('efgh')


def test_lengths_that_disagree_are_named(tmp_path):
  """A column that is short would put rewards beside other replies."""
  with pytest.raises(
    ValueError, match=r'kept has shape \(2, 1\); valid: \(2, 2\)'
  ):
    _write(tmp_path, 1, _COMPLETIONS, kept=np.ones((2, 1), bool))
  with pytest.raises(ValueError, match='3 completions do not divide'):
    _write(tmp_path, 1, _COMPLETIONS[:3])
  assert not list(tmp_path.iterdir())


def test_every_character_has_its_token(tmp_path):
  """Also where a character is of several tokens, none, or no character at all,
  and where the first token's space is left out: by decoding every prefix."""
  tok = pieces.train(['a b c', 'é b é'] * 20, 268, str(tmp_path / 'm'))
  texts = ['a b  c', ' b', '漢字 b', 'é\U0001f600é', '']
  ids = [tok.encode(text) for text in texts] + [[220, 230, 3, 240, 240, 240]]
  lengths = np.int32([[len(row) for row in ids]])
  tokens = np.zeros((1, len(ids), lengths.max()), np.int32)
  for i, row in enumerate(ids):
    tokens[0, i, : len(row)] = row
  sampled = dataclasses.replace(
    _SAMPLED,
    tokens=tokens,
    lengths=lengths,
    logprobs=-np.arange(tokens.size, dtype=np.float32).reshape(tokens.shape),
    truncated=lengths > 0,
  )

  def decode(row):
    return tok.decode(row.tolist())

  completions = [decode(np.array(row, np.int32)) for row in ids]
  assert completions[2] == texts[2]
  none = np.zeros((1, len(ids)), np.float32)
  path = rollouts.write(
    tmp_path, 1, _QUESTIONS[:1], completions, sampled, decode,
    rewards=none, advantages=none, kept=none,
  )  # fmt: skip
  for row, text, tokens in zip(jsonl.read(path), completions, ids, strict=True):
    assert len(row['logprobs']) == len(row['token_widths']) == len(tokens)
    assert sum(row['token_widths']) == len(text)
    for i in range(len(tokens)):
      before = text[: sum(row['token_widths'][: i + 1])]
      said = decode(np.array(tokens[: i + 1], np.int32))
      # What a token has only begun is of the token that ends it.
      assert said == before or said.rstrip('\ufffd') == before
