"""Figures can be told apart, and say what is what."""

import pathlib

import numpy as np
import pytest

from dash_jax.reporting import figures, workdirs


def test_labels_are_what_differs():
  """Of one line the end of its path; a dollar and an underscore are drawn."""
  assert figures.shorten(['/a/b/seed_*/dash', '/a/b/seed_*/grpo']) == [
    'seed_*/dash', 'seed_*/grpo',
  ]  # fmt: skip
  assert figures.shorten(['/a/b/c/dash']) == ['c/dash']
  assert figures.shorten(['x', '_y/$z']) == ['x', r' _y/\$z']
  (long,) = figures.shorten(['x' * 90])
  assert len(long) == 44


def test_the_first_lines_differ_without_their_colours():
  styles = [figures.make_style(i) for i in range(20)]
  shapes = [(style['linestyle'], style['marker']) for style in styles]
  assert len(set(shapes)) == 20
  assert len({style['color'] for style in styles[:6]}) == 6


def test_each_figure_shows_its_own_numbers(monkeypatch):
  """Two steps of 8 replies and 2 s, evaluated before and behind; a run whose
  evaluations do not say how far it went has no curve of it."""
  drawn = {}
  draw = figures.draw_curves

  def keep(name, title, x_label, y_label, curves, *rest, **options):
    drawn[name] = x_label, y_label, curves
    return draw(name, title, x_label, y_label, curves, *rest, **options)

  monkeypatch.setattr(figures, 'draw_curves', keep)
  values = {'reward_mean': 0.5, 'completion_len_mean': 9.0, 'entropy': 1.5}
  steps = [
    {
      'step': step, 'phase': 'rl', 'step_s': 2.0, 'sample_s': 1.0,
      'reward_s': 0.5, 'learn_s': 0.5, 'sampled_rows': 8, 'kept_rows': 2,
      'sampled_tokens': 80,
    }
    | values
    for step in (1, 2)
  ]  # fmt: skip
  evals = [
    {
      'step': step, 'phase': 'rl', 'split': 'test', 'accuracy': share,
      'accuracy_low': share, 'accuracy_high': share, 'eval_s': 3.0,
    }
    for step, share in ((0, 0.2), (2, 0.6))
  ]  # fmt: skip
  far = [evals[0], evals[1] | {'drift_kl': 0.25}]
  lines = [
    workdirs.Line(name, (workdirs.Run(pathlib.Path(name), {}, steps, rows),))
    for name, rows in (('with', far), ('without', evals))
  ]
  assert len(figures.draw(lines)) == 8
  for name, x_label, x in (
    ('accuracy_time', 'seconds', [0, 4]), ('accuracy_samples', 'replies', [0, 16])
  ):  # fmt: skip
    shown, _, (curve, _) = drawn[name]
    assert shown.startswith(x_label)
    np.testing.assert_allclose(curve.x, x)
    np.testing.assert_allclose(curve.mean, [0.2, 0.6])
  for name, y_label, y in (
    ('reward', 'mean reward', 0.5), ('length', 'tokens', 9.0),
    ('kept', 'share', 0.25), ('entropy', 'nats', 1.5),
  ):  # fmt: skip
    shown, labelled, (curve, _) = drawn[name]
    assert shown == 'replies sampled'
    assert labelled.startswith(y_label)
    assert curve.mean == pytest.approx(y)
  _, _, (curve, none) = drawn['drift']
  np.testing.assert_allclose([curve.x, curve.mean], [[16], [0.25]])
  assert not len(none.x)


def test_a_legend_of_all_that_takes_time_is_inside_the_picture(monkeypatch):
  """As is what stands beside it."""
  seconds = {name: 1.0 for name, *_ in figures._SECONDS}
  monkeypatch.setattr(workdirs, 'find_seconds', lambda line: seconds)
  kept = []
  monkeypatch.setattr(
    figures, '_end', lambda figure, *unused: kept.append(figure)
  )
  figures._draw_seconds([None], ['x' * 44])
  (figure,) = kept
  figure.draw_without_rendering()
  (legend,) = figure.legends
  assert len(legend.get_texts()) == 6
  for box in (legend.get_window_extent(), figure.get_tightbbox().transformed(
    figure.dpi_scale_trans
  )):  # fmt: skip
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.y1
  hatches = [hatch for *_, hatch in figures._SECONDS]
  assert len(set(hatches)) == len(hatches)


def test_no_line_has_no_figure():
  assert figures.draw([]) == []
