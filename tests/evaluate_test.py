"""Accuracy counts every question once; its interval is Wilson's."""

import dataclasses

import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, evaluate, weights
from dash_jax.model import presets
from dash_jax.rewards import workers


@pytest.mark.parametrize(
  ('right', 'total'), [(0, 10), (1, 7), (5, 10), (99, 100), (30, 30)]
)
def test_the_interval_solves_wilsons_equation(right, total):
  """Its ends are the shares p that lie 1.96 standard errors of p itself from
  what was seen: (right / total - p)**2 = z**2 * p * (1 - p) / total."""
  low, high = evaluate.wilson_interval(right, total)
  share = right / total
  for p in (low, high):
    gap = (share - p) ** 2 - 1.959964**2 * p * (1 - p) / total
    assert gap == pytest.approx(0, abs=1e-12)
  assert 0 <= low <= share <= high <= 1
  assert low < high


def test_the_interval_of_a_published_table():
  """8 of 10, as Wilson's method is tabulated: 0.4902 to 0.9433."""
  assert evaluate.wilson_interval(8, 10) == pytest.approx(
    (0.4902, 0.9433), abs=1e-4
  )


@pytest.fixture
def parts(mesh, monkeypatch, tmp_path):
  quickstart = presets.PRESETS['quickstart']
  monkeypatch.setitem(presets.PRESETS, 'quickstart', quickstart)
  monkeypatch.syspath_prepend(tiny_run.FOLDER)
  config = tiny_run.get_config()
  config.eval.temperature = 1.0  # or all replies of a random model are alike
  built = assemble.build(config, str(tmp_path))
  with built.pool:
    yield built


def test_any_batch_size_gives_the_same_accuracy(parts):
  """Of 6 questions, batches of 4 fill the last one up with two that must not
  count, and a batch of 6 needs none."""
  params = weights.load_params(parts.config, parts.model)
  results = []
  for size in (4, 6):
    parts.config.eval.batch_size = size
    result = evaluate.evaluate(parts, params)
    assert result.pop('eval_s') > 0
    results.append(result)
  assert results[0] == results[1]
  assert results[0]['num_questions'] == 6
  assert 1 <= results[0]['completion_len_mean'] <= 6
  right = results[0]['accuracy'] * 6
  assert right == pytest.approx(round(right))
  assert (
    results[0]['accuracy_low'],
    results[0]['accuracy_high'],
  ) == evaluate.wilson_interval(round(right), 6)


def test_a_partly_right_reply_is_not_right(parts, monkeypatch):
  """Accuracy counts rewards of exactly 1; time-outs and errors stand apart."""

  def score(completions, answers, truncated):
    del answers, truncated
    assert len(completions) == 3
    rewards = [1.0, 0.5, 0.999]
    return workers.Scores(np.array(rewards, np.float32), 3, 1)

  monkeypatch.setattr(parts.pool, 'score', score)
  # A wave of four holds three questions, and a filler that is not scored.
  parts = dataclasses.replace(parts, test_questions=parts.test_questions[:3])
  params = weights.load_params(parts.config, parts.model)
  result = evaluate.evaluate(parts, params)
  assert result['accuracy'] == pytest.approx(1 / 3)
  assert (result['reward_timeouts'], result['reward_errors']) == (3, 1)
