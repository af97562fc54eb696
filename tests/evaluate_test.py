"""Accuracy counts every question once; its interval is Wilson's."""

import contextlib
import math

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, evaluate, sharding, weights
from dash_jax.evaluating import estimates
from dash_jax.rewards import workers

ONE, FOUR = (1, 1, 1), (1, 4, 1)


@pytest.fixture
def build(monkeypatch, tmp_path):
  """Returns what builds the parts of a run on a mesh, within its context."""

  @contextlib.contextmanager
  def make(shape, batch_size='auto'):
    config = tiny_run.borrow(monkeypatch)
    config.eval.temperature = 1.0  # or all replies of a random model are alike
    config.sampling.batch_size = batch_size
    devices = jax.devices()[: math.prod(shape)]
    grid = jax.make_mesh(shape, sharding.AXES, devices=devices)
    with jax.set_mesh(grid):
      built = assemble.build(config, str(tmp_path))
      with built.pool:
        yield built, weights.load_params(config, built.model)

  return make


def test_any_batch_size_and_mesh_give_the_same_accuracy(build):
  """6 questions at once, four at once, one by one, and on four shards of rows,
  which two more questions fill up that must not count."""
  results = []
  for shape, size in ((ONE, 'auto'), (ONE, 4), (ONE, 1), (FOUR, 'auto')):
    with build(shape, size) as (parts, params):
      result = evaluate.evaluate(parts, params)
    assert result.pop('eval_s') > 0
    results.append(result)
  for other in results[1:]:
    assert other == results[0]
  assert results[0]['num_questions'] == 6
  assert 1 <= results[0]['completion_len_mean'] <= 6
  right = results[0]['accuracy'] * 6
  assert right == pytest.approx(round(right))
  assert (
    results[0]['accuracy_low'],
    results[0]['accuracy_high'],
  ) == estimates.wilson_interval(round(right), 6)


@pytest.mark.parametrize('shape', [ONE, FOUR])
def test_rows_that_fill_up_are_neither_scored_nor_counted(
  build, monkeypatch, shape
):
  """Every reply is right, and each has a time-out: of 6, whatever the mesh."""
  scored = []

  def score(completions, answers, truncated, on_done):
    del answers, truncated
    n = len(completions)
    scored.append(n)
    return workers.Scores(np.ones(n, np.float32), n, 0)

  with build(shape) as (parts, params):
    monkeypatch.setattr(parts.pool, 'score', score)
    result = evaluate.evaluate(parts, params)
  assert sum(scored) == 6
  assert result['accuracy'] == 1
  assert result['reward_timeouts'] == 6


def test_a_partly_right_reply_is_not_right(build, monkeypatch):
  """Accuracy counts rewards of exactly 1; time-outs and errors stand apart."""
  rewards = iter([1.0, 0.5, 0.999, 0.0, -1.0, 2.0])

  def score(completions, answers, truncated, on_done):
    del answers, truncated
    n = len(completions)
    found = [next(rewards) for _ in range(n)]
    return workers.Scores(np.array(found, np.float32), 2 * n, 3 * n)

  with build(ONE) as (parts, params):
    monkeypatch.setattr(parts.pool, 'score', score)
    result = evaluate.evaluate(parts, params)
  assert result['accuracy'] == pytest.approx(1 / 6)
  assert (result['reward_timeouts'], result['reward_errors']) == (12, 18)
