"""A report shows what the files hold: sums, the right evaluations, seconds."""

import json

import matplotlib.image
import numpy as np
import pytest

from dash_jax import report
from dash_jax.reporting import figures, workdirs
from dash_jax.runs import jsonl, metrics


def _eval(step, phase, accuracy, split='test'):
  return {
    'step': step,
    'phase': phase,
    'split': split,
    'num_questions': 200,
    'accuracy': accuracy,
    'accuracy_low': accuracy - 0.06,
    'accuracy_high': accuracy + 0.06,
    'completion_len_mean': 30.0,
    'reward_timeouts': 0,
    'reward_errors': 0,
    'eval_s': 2.0,
  }


def _write_run(workdir, sft_steps=4, rl_steps=6):
  """Writes a run: SFT steps of 0.5 s, then RL steps of 4 s."""
  with metrics.MetricsWriter(workdir) as writer:
    for step in range(1, sft_steps + 1):
      writer.write(step, {'phase': 'sft', 'loss': 2.0, 'step_s': 0.5})
    if sft_steps:
      writer.write_eval(_eval(sft_steps, 'sft', 0.4))
    for i in range(1, rl_steps + 1):
      step = sft_steps + i
      writer.write(
        step,
        {
          'phase': 'rl',
          'reward_mean': 0.5 + 0.05 * i,
          'completion_len_mean': 30.0 - i,
          'sample_s': 2.0,
          'reward_s': 0.25,
          'learn_s': 1.5,
          'step_s': 4.0,
          'sampled_rows': 64,
          'kept_rows': 64 - 8 * i,
          'sampled_tokens': 1000,
        },
      )
      if i % 3 == 0:
        writer.write_eval(_eval(step, 'rl', 0.5 + 0.05 * i))
  (workdir / 'config.json').write_text(
    json.dumps({'algorithm': {'name': 'dash'}})
  )


def test_sums_are_of_the_rl_steps_and_evaluations_the_last(tmp_path):
  """Each figure differs from what a wrong phase or a wrong line would give."""
  _write_run(tmp_path)
  summary = report.summarize(tmp_path)
  assert summary == {
    'name': str(tmp_path),
    'algorithm': 'dash',
    'start_eval': None,
    'sft_eval': _eval(4, 'sft', 0.4),
    'rl_eval': _eval(10, 'rl', 0.8),
    'sft_steps': 4,
    'sft_s': 2.0,
    'rl_steps': 6,
    'sample_s': 12.0,
    'reward_s': 1.5,
    'learn_s': 9.0,
    'eval_s': 6.0,
    'sampled_rows': 384,
    'kept_rows': 384 - 8 * 21,
    'sampled_tokens': 6000,
  }


def test_evaluations_of_one_split_are_compared(tmp_path):
  """A rise from one split's accuracy to another's would be no rise."""
  with metrics.MetricsWriter(tmp_path) as writer:
    writer.write_eval(_eval(0, 'rl', 0.1))
    writer.write_eval(_eval(0, 'rl', 0.2, split='easy'))
    writer.write(1, {'phase': 'sft', 'step_s': 1.0})
    writer.write_eval(_eval(1, 'sft', 0.3))
    writer.write_eval(_eval(1, 'sft', 0.9, split='easy'))
    writer.write_eval(_eval(1, 'rl', 0.3))
  summary = report.summarize(tmp_path)
  assert summary['algorithm'] == 'rl'
  assert summary['start_eval'] == _eval(0, 'rl', 0.1)
  assert summary['sft_eval'] == _eval(1, 'sft', 0.3)
  assert summary['rl_eval'] == _eval(1, 'rl', 0.3)


def _draw(monkeypatch, workdirs, out_path):
  """Draws, and returns the figure."""
  figures = []
  figure_class = report.matplotlib.figure.Figure

  def keep(*args, **kwargs):
    figures.append(figure_class(*args, **kwargs))
    return figures[-1]

  monkeypatch.setattr(report.matplotlib.figure, 'Figure', keep)
  report.draw(workdirs, out_path)
  (figure,) = figures
  return figure


def _lines(monkeypatch, workdirs, out_path):
  """Draws, and returns x and y of each line with a label, by axes title."""
  figure = _draw(monkeypatch, workdirs, out_path)
  return {
    (axes.get_title(loc='left')[:1], line.get_label()): line.get_xydata()
    for axes in figure.axes
    for line in axes.get_lines()
    if not line.get_label().startswith('_')
  }


def test_accuracy_is_drawn_against_seconds_spent(tmp_path, monkeypatch):
  """4 SFT steps of 0.5 s, then 3 and 6 RL steps of 4 s each."""
  _write_run(tmp_path)
  lines = _lines(monkeypatch, [tmp_path], tmp_path / 'curves.png')
  (label,) = figures.shorten([str(tmp_path)])
  np.testing.assert_allclose(
    lines['A', label], [[2.0, 0.4], [14.0, 0.65], [26.0, 0.8]]
  )


def test_several_runs_are_lines_of_one_picture(tmp_path, monkeypatch):
  """Each run is in each panel of curves; the file is a whole PNG."""
  workdirs = [tmp_path / name for name in ('dash', 'grpo', 'no_sft')]
  for workdir, sft_steps in zip(workdirs, (4, 4, 0), strict=True):
    _write_run(workdir, sft_steps)
  out_path = tmp_path / 'out' / 'curves.png'
  lines = _lines(monkeypatch, workdirs, out_path)
  for label in figures.shorten([str(workdir) for workdir in workdirs]):
    assert {(panel, label) for panel in 'ABD'} <= lines.keys()
  pixels = matplotlib.image.imread(out_path)
  assert pixels.shape[:2] == (880, 1320)


def test_a_run_that_samples_ahead_has_a_timeline(tmp_path, monkeypatch):
  """One bar for sampling, one for its reward, one for learning, of each step
  since the run went on; of its seconds, waiting counts."""
  with metrics.MetricsWriter(tmp_path) as writer:
    for step, at in ((1, 0.0), (2, 4.0), (3, 0.0), (4, 3.0)):
      times = {
        'sample_s': 2.0, 'reward_s': 0.5, 'learn_s': 1.0, 'step_s': 2.0,
        'wait_s': 0.5, 'sampling_at_s': at, 'learning_at_s': at + 3.0,
      }  # fmt: skip
      more = {
        'phase': 'rl', 'reward_mean': 0.5, 'completion_len_mean': 3.0,
        'kept_rows': 1, 'sampled_rows': 2, 'sampled_tokens': 6,
      }  # fmt: skip
      writer.write(step, times | more)
  figure = _draw(monkeypatch, [tmp_path], tmp_path / 'curves.png')
  (axes,) = [a for a in figure.axes if 'sampled ahead' in a.get_title('left')]
  bars = [(b.get_x(), b.get_y() + 0.3, b.get_width()) for b in axes.patches]
  assert bars == [
    (0.0, 1.0, 2.0), (2.0, 1.0, 0.5), (3.0, 1.0, 2.0), (5.0, 1.0, 0.5),
    (3.0, 0.0, 1.0), (6.0, 0.0, 1.0),
  ]  # fmt: skip
  steps = metrics.read(tmp_path / 'metrics.jsonl')
  np.testing.assert_allclose(workdirs.find_parts(steps)[:, 0], [0.5, 0, 1, 0.5])


def test_a_run_with_no_rl_step_yet_is_drawn(tmp_path):
  """A run that was stopped early still has its curves."""
  _write_run(tmp_path, rl_steps=0)
  report.draw([tmp_path], tmp_path / 'curves.png')
  assert (tmp_path / 'curves.png').exists()
  assert report.summarize(tmp_path)['rl_eval'] is None


def test_command_prints_tables_and_names_its_files(tmp_path, capsys):
  _write_run(tmp_path / 'run')
  report.main([str(tmp_path / 'run'), f'--out={tmp_path / "out"}'])
  printed = capsys.readouterr().out
  assert 'accuracy after DASH' in printed
  assert '80.0% [74.0%, 86.0%]' in printed
  files = [tmp_path / 'out' / name for name in ('curves.png', 'report.html')]
  assert printed.splitlines()[-2:] == list(map(str, files))
  assert all(path.exists() for path in files)


def test_command_names_rollouts_that_are_damaged(tmp_path, capsys):
  _write_run(tmp_path)
  path = tmp_path / 'rollouts' / 'step_000010.jsonl'
  jsonl.write(path, [{'step': 10, 'uid': 1}])
  with pytest.raises(SystemExit):
    report.main([str(tmp_path), f'--out={tmp_path / "out"}'])
  assert f'{path}:1: no sample' in capsys.readouterr().err


def test_command_names_a_folder_that_is_no_run(tmp_path, capsys):
  with pytest.raises(SystemExit):
    report.main([str(tmp_path), f'--out={tmp_path}'])
  assert f'{tmp_path} holds no metrics.jsonl' in capsys.readouterr().err
