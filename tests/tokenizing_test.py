"""Where replies end. What a run's config says of tokenizers is in train_test.py."""

import random

import numpy as np
import pytest

from dash_jax import tokenizing
from dash_jax.data import pieces

LETTERS = ['a', 'b', ' ', '\n', '1', 'ä', '日', '👩', '\u0301', 'the ']


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'trained.model'
  return pieces.train(['the ab 1 a\nthe the 11'] * 20, 275, path)


class Counted:
  """A tokenizer that counts what it decodes."""

  def __init__(self, tok):
    self.decoded = 0
    self._tok = tok

  def decode(self, ids):
    self.decoded += len(ids)
    return self._tok.decode(ids)


@pytest.mark.parametrize('seed', range(4))
def test_an_end_is_the_same_however_often_one_looks(tok, seed):
  """The first token that completes the text, also where tokens are parts of a
  letter, specials stand between, and a text begins before an earlier look."""
  rng = random.Random(seed)
  num_found = 0
  for _ in range(200):
    text = ''.join(rng.choices(LETTERS, k=rng.randrange(1, 40)))
    tokens = tok.encode(text)
    for _ in range(rng.randrange(3)):
      at = rng.randrange(len(tokens) + 1)
      tokens.insert(at, rng.choice([*tok.specials.values(), 10**6]))
    stop = ''.join(rng.choices(LETTERS, k=rng.randrange(1, 4)))
    find_end = tokenizing.make_find_end(tok, stop)
    expected = next(
      (n for n in range(len(tokens) + 1) if stop in tok.decode(tokens[:n])), 0
    )
    found = seen = 0
    while seen < len(tokens) and not found:
      now = min(seen + rng.randrange(1, 6), len(tokens))
      found = find_end(np.array(tokens[:now]), seen)
      seen = now
    assert found == expected, (text, stop)
    num_found += found > 0
  assert num_found > 20


def test_each_token_of_a_reply_is_read_a_few_times(tok):
  """However long it is: a look reads what is new."""
  counted = Counted(tok)
  find_end = tokenizing.make_find_end(counted, 'never said')
  tokens = np.array(tok.encode('the ab 1 a\n' * 400))
  looks = range(16, len(tokens), 16)
  for now in looks:
    assert not find_end(tokens[:now], now - 16)
  # 16 that are new, and twice those before them that may begin the text.
  assert counted.decoded < len(looks) * (16 + 3 * 2 * len('never said') + 32)
