"""Rows are scored while others are sampled, and every reward finds its row."""

import threading
import types

import numpy as np
import pytest

from dash_jax import assemble, batches, scoring
from dash_jax.rewards import workers
from dash_jax.runs import watch
from dash_jax.sampling import calls

Q, G, C = 3, 2, 4


class _Pool:
  """Scores a row by its text and answer; can be made to wait."""

  def __init__(self):
    self.may_go = threading.Event()
    self.may_go.set()
    self.has_begun = threading.Event()
    self.sizes = []

  def score(self, texts, answers, truncated, on_done):
    on_done()
    self.sizes.append(len(texts))
    self.has_begun.set()
    assert self.may_go.wait(60)
    rewards = [
      float(f'{text}/{answer}/{cut}' in self.right)
      for text, answer, cut in zip(texts, answers, truncated, strict=True)
    ]
    return workers.Scores(
      np.array(rewards, np.float32), len(texts), 1,
      {'length': np.array(list(map(len, texts)), np.float32)},
    )  # fmt: skip


def make_completions():
  made = calls.Completions.make(Q, G, C)
  made.tokens[:] = np.arange(Q * G * C).reshape(Q, G, C)
  made.lengths[:] = [[1, 2], [3, 4], [1, 1]]
  made.truncated[1, 1] = True
  return made


def decode(tokens):
  return ' '.join(map(str, tokens))


def test_rewards_find_their_rows_in_any_order():
  """Row 3 is question 1's second, truncated; its tokens are 12 to 15."""
  pool, made = _Pool(), make_completions()
  pool.right = {'12 13 14 15/b/True', '16/c/False'}
  with scoring.Scoring(pool, decode, ['a', 'b', 'c'], G) as scored:
    for rows in ([5, 3], [0], [1, 2, 4]):
      scored.add(np.array(rows), made)
    texts, scores = scored.finish()
  assert texts == ['0', '4 5', '8 9 10', '12 13 14 15', '16', '20']
  assert scores.rewards.tolist() == [0, 0, 0, 1, 1, 0]
  assert scores.others['length'].tolist() == [len(text) for text in texts]
  assert scores.timeouts == 6
  assert 1 <= scores.errors <= 3  # one for each batch that the pool saw


def test_scoring_goes_on_while_the_caller_does():
  """The first rows are with the workers before the last are handed over."""
  pool, made = _Pool(), make_completions()
  pool.right = set()
  pool.may_go.clear()
  with scoring.Scoring(pool, decode, ['a', 'b', 'c'], G) as scored:
    scored.add(np.arange(3), made)
    assert pool.has_begun.wait(60)
    for row in (3, 4, 5):
      scored.add(np.array([row]), made)
    pool.may_go.set()
    assert len(scored.finish()[0]) == 6
  # What came while the workers had others went to them together.
  assert pool.sizes == [3, 3]


def test_each_row_that_is_done_says_that_the_run_goes_on(monkeypatch):
  """Once as the rows are handed over, and once by what the pool calls."""
  marks = []
  monkeypatch.setattr(watch, 'mark', lambda *stage: marks.append(stage))
  pool = _Pool()
  pool.right = set()
  with scoring.Scoring(pool, decode, ['a', 'b', 'c'], G) as scored:
    scored.add(np.arange(6), make_completions())
    scored.finish()
  assert len(marks) == 2


def test_a_step_scores_rows_while_others_are_sampled():
  """The sampler hands out its last row only when the first is with the
  workers."""
  pool, made = _Pool(), make_completions()
  pool.right = {'0/a/False', '20/c/False'}

  class Sampler:
    group_size = G

    def stream(self, *unused_args, **unused_options):
      yield np.arange(5), made
      assert pool.has_begun.wait(60)
      yield np.array([5]), made

  parts = assemble.Parts(
    config=None, workdir=None, model=None, stop_ids=(), find_end=None,
    train_questions=[], test_questions=[], pool=pool, sampling_mesh=None,
    encoding=types.SimpleNamespace(encode=lambda asked: None, decode=decode),
  )  # fmt: skip
  asked = [batches.Question('', answer, uid=0) for answer in 'abc']
  sampled = parts.sample_and_score(Sampler(), {}, asked, key=None, how=None)()
  assert sampled.texts[5] == '20'
  assert sampled.scores.rewards.tolist() == [1, 0, 0, 0, 0, 1]


def test_what_a_worker_raises_reaches_the_caller():
  class Broken:
    def score(self, *unused_args):
      raise ValueError('reward function does not start')

  with scoring.Scoring(Broken(), decode, ['a', 'b', 'c'], G) as scored:
    scored.add(np.arange(6), make_completions())
    with pytest.raises(ValueError, match='does not start'):
      scored.finish()


def test_where_no_row_counts_there_is_nothing_to_score():
  """A process's share of an evaluation may be what fills the others up."""
  with scoring.Scoring(_Pool(), decode, ['a', 'b', 'c'], G) as scored:
    scored.add(np.arange(0), make_completions())
    texts, scores = scored.finish()
  assert texts == [''] * 6
  assert (scores.timeouts, scores.errors) == (0, 0)
  assert not scores.rewards.any()
