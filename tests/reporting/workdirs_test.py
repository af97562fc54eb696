"""Runs of several seeds are one line, whose means and intervals are right."""

import math
import pathlib

import numpy as np
import pytest

from dash_jax.reporting import workdirs


def _run(name='runs/x', seed=0, accuracies=(0.2, 0.4), num_steps=4, **fields):
  """Returns a run of steps of 2 s that sample 8 rows, evaluated at the start and
  behind every second step."""
  steps = [
    {
      'step': i + 1, 'phase': 'rl', 'step_s': 2.0 + seed, 'sample_s': 1.0,
      'reward_s': 0.25, 'learn_s': 0.5, 'reward_mean': float(i),
      'completion_len_mean': 10.0 * seed + i, 'sampled_rows': 8,
      'kept_rows': 2, 'sampled_tokens': 80, 'kl': 0.0,
    }
    for i in range(num_steps)
  ]  # fmt: skip
  evals = [
    {
      'step': 2 * i, 'phase': 'rl', 'split': 'test', 'accuracy': accuracy,
      'accuracy_low': accuracy - 0.1, 'accuracy_high': accuracy + 0.1,
      'eval_s': 3.0,
    }
    for i, accuracy in enumerate(accuracies)
  ]  # fmt: skip
  config = {'seed': seed, 'algorithm': {'name': 'dash'} | fields}
  return workdirs.Run(pathlib.Path(name), config, steps, evals)


def test_an_interval_is_students():
  """Quantiles of t from its tables: 12.706 for two values, 4.303 for three."""
  mean, low, high = workdirs.average(np.array([1.0, 3.0]))
  assert mean == 2
  assert (high - mean, mean - low) == pytest.approx((12.7062, 12.7062), 1e-4)
  _, _, high = workdirs.average(np.array([[0.0], [3.0], [6.0]]))
  np.testing.assert_allclose(high, 3 + 4.30265 * 3 / 3**0.5, rtol=1e-5)
  mean, low, _ = workdirs.average(np.array([5.0]))
  assert mean == 5
  assert math.isnan(low)


def test_seeds_alone_make_a_line():
  """Another field, a seed twice or a config that is not there does not; weights
  beside each workdir are the same start."""
  runs = [
    _run('s/seed_0/a', 0, weights='hf:s/seed_0/start'),
    _run('s/seed_0/b', 0, weights='hf:s/seed_0/start', kl_coef=0.1),
    _run('s/seed_1/a', 1, weights='hf:s/seed_1/start'),
    _run('s/seed_1/c', 1, weights='hf:s/seed_1/start'),
    workdirs.Run(pathlib.Path('s/d'), {}, [], []),
    workdirs.Run(pathlib.Path('s/e'), {}, [], []),
  ]
  lines = workdirs.group(runs)
  assert [(line.label, len(line.runs)) for line in lines] == [
    ('s/*/a', 2), ('s/seed_0/b', 1), ('s/seed_1/c', 1), ('s/d', 1), ('s/e', 1),
  ]  # fmt: skip


def test_only_fields_that_differ_are_named():
  lines = workdirs.group(
    [_run(kl_coef=0.0, clip_low=0.1), _run(kl_coef=0.5, clip_low=0.1)]
  )
  assert workdirs.find_fields(lines) == ['', 'algorithm.kl_coef=0.5']


def test_accuracy_is_of_what_all_seeds_have():
  """Two seeds at three evaluations, of which the second seed has two."""
  line = workdirs.Line(
    'x', (_run(accuracies=(0.2, 0.4, 0.9)), _run(seed=1, accuracies=(0.2, 0.6)))
  )
  curve = workdirs.find_accuracy(line, 'samples')
  np.testing.assert_allclose(curve.x, [0, 16])
  np.testing.assert_allclose(curve.mean, [0.2, 0.5])
  np.testing.assert_allclose(curve.low, [0.2, 0])  # no share is below 0
  np.testing.assert_allclose(curve.high, [0.2, 1])
  # Steps take 2 and 3 seconds.
  np.testing.assert_allclose(
    workdirs.find_accuracy(line, 'seconds').x, [0, 5.0]
  )
  row = workdirs.find_row(line)
  assert row.gain == pytest.approx(0.3)
  # Gains of 0.2 and 0.4: each run is compared with itself.
  assert row.gain_interval[1] == pytest.approx(0.3 + 12.7062 * 0.1, 1e-4)
  assert (row.rl_s, row.kept_share) == (10.0, 0.25)


def test_one_seed_has_the_evaluations_own_interval():
  curve = workdirs.find_accuracy(workdirs.Line('x', (_run(),)), 'samples')
  np.testing.assert_allclose(curve.low, [0.1, 0.3])
  np.testing.assert_allclose(curve.high, [0.3, 0.5])


def test_curves_are_means_around_each_step():
  line = workdirs.Line('x', (_run(num_steps=6), _run(seed=1, num_steps=7)))
  curve = workdirs.find_curve(line, 'completion_len_mean')
  np.testing.assert_allclose(curve.x, [8, 16, 24, 32, 40, 48])
  # 0, 1, 2, .. and 10 more; the first is of three steps, the third of five.
  np.testing.assert_allclose(curve.mean, [6, 6.5, 7, 8, 8.5, 9])
  assert np.isfinite(curve.low).all()


def test_a_long_run_is_drawn_with_few_points():
  line = workdirs.Line('x', (_run(num_steps=1000),))
  curve = workdirs.find_curve(line, 'reward_mean')
  assert len(curve.x) == 100
  assert curve.x[-1] == 8000
  # 25 steps around 500, that is 12 before and 12 behind.
  assert curve.mean[50] == pytest.approx(curve.x[50] / 8 - 1)


def test_seconds_are_of_whole_runs():
  line = workdirs.Line('x', (_run(), _run(seed=1)))
  assert workdirs.find_seconds(line) == pytest.approx(
    {'supervised': 0, 'sampling': 4, 'reward': 1, 'learning': 2, 'rest': 3}
    | {'evaluation': 6}
  )
