"""A person sees the run move: bars on a terminal, a few lines elsewhere."""

import io
import re

import pytest
import rich.console

from dash_jax.runs import progress

_VALUES = {'reward': 0.71, 'accuracy': 0.74, 'tokens_per_s': 5120.4}
_SHOWN = 'reward 0.71 accuracy 74% 5,120 tok/s'


def _console(is_terminal):
  return rich.console.Console(
    file=io.StringIO(), force_terminal=is_terminal, width=80
  )


def test_terminal_shows_a_bar_with_live_values(monkeypatch):
  """All of it fits on 80 columns, so nothing is cut off with an ellipsis."""
  monkeypatch.setenv('TERM', 'xterm')
  console = _console(is_terminal=True)
  with progress.Progress(console) as shown:
    phase = shown.phase('DASH', 80)
    phase.update(42, **_VALUES)
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', console.file.getvalue())
  last = text.strip().splitlines()[-1]
  assert last.startswith('DASH ━')
  assert f'42/80 {_SHOWN}' in last
  # The time left, which nobody knows yet.
  assert last.endswith('--:--')


def test_a_file_gets_about_ten_plain_lines():
  """Not one per step, no escape codes; the first and the last are there."""
  console = _console(is_terminal=False)
  with progress.Progress(console) as shown:
    phase = shown.phase('DASH', 80)
    for step in range(1, 81):
      phase.update(step, **_VALUES)
  lines = console.file.getvalue().splitlines()
  steps = [line.split()[1] for line in lines]
  assert steps == [f'{step}/80' for step in (1, *range(8, 81, 8))]
  assert lines[0].startswith(f'DASH 1/80 {_SHOWN} ')
  assert lines[0].endswith(' left')
  assert '\x1b' not in console.file.getvalue()


def test_a_resumed_phase_estimates_from_its_own_steps(monkeypatch):
  """Steps of an earlier process took none of this one's time."""
  clock_s = iter([100.0, 120.0])
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock_s))
  console = _console(is_terminal=False)
  with progress.Progress(console) as shown:
    phase = shown.phase('DASH', 80, done_steps=40)
    phase.update(42, loss=1.0)
  # Two steps took 20 s, so 38 steps take 380 s.
  assert (
    console.file.getvalue() == 'DASH 42/80 loss 1.000 0:20 gone 6:20 left\n'
  )


def _summary(**changes):
  row = {'accuracy': 0.5, 'accuracy_low': 0.4, 'accuracy_high': 0.6}
  return {
    'name': 'runs/quickstart',
    'algorithm': 'dash',
    'start_eval': None,
    'sft_eval': row,
    'rl_eval': {**row, 'accuracy': 0.55},
    'sft_steps': 20,
    'sft_s': 12.34,
    'rl_steps': 80,
    'sample_s': 100.0,
    'reward_s': 1.5,
    'learn_s': 1088.0,
    'eval_s': 4.0,
    'sampled_rows': 20480,
    'kept_rows': 10240,
    'sampled_tokens': 12345678,
    **changes,
  }


@pytest.mark.parametrize(
  ('label', 'figure'),
  [
    ('accuracy after SFT', '50.0% [40.0%, 60.0%]'),
    ('accuracy after DASH', '55.0% [40.0%, 60.0%]'),
    ('SFT, seconds', '12.3 s'),
    ('DASH, sampling', '100.0 s'),
    ('DASH, reward', '1.5 s'),
    ('DASH, learning', '1,088.0 s'),
    ('rows kept / sampled', '10,240 / 20,480 (50%)'),
    ('tokens sampled', '12,345,678'),
  ],
)
def test_summary_has_each_figure_beside_its_label(label, figure):
  console = _console(is_terminal=False)
  progress.print_summary(_summary(), console)
  (line,) = [
    line for line in console.file.getvalue().splitlines() if label in line
  ]
  assert line.split(label)[1].strip() == figure


def test_summary_leaves_out_what_was_not_done():
  """A run without SFT, or one of SFT alone, has no rows of the other."""
  console = _console(is_terminal=False)
  progress.print_summary(_summary(sft_eval=None, sft_steps=0), console)
  text = console.file.getvalue()
  assert 'SFT' not in text
  assert 'DASH, steps' in text
  console = _console(is_terminal=False)
  progress.print_summary(
    _summary(
      algorithm='sft', rl_eval=None, rl_steps=0, sampled_rows=0, kept_rows=0
    ),
    console,
  )
  text = console.file.getvalue()
  assert text.count('SFT, steps') == 1
  for absent in ('sampling', 'learning', 'kept', 'tokens'):
    assert absent not in text


@pytest.mark.parametrize('is_terminal', [True, False])
def test_a_warning_stays_as_one_line(monkeypatch, is_terminal):
  """Above the bar on a terminal; words in brackets are no markup."""
  monkeypatch.setenv('TERM', 'xterm')
  console = _console(is_terminal)
  with progress.Progress(console) as shown:
    phase = shown.phase('DASH', 80)
    phase.update(42, **_VALUES)
    shown.warn(f'f32[8] is {"very " * 20}long')
    phase.update(43, **_VALUES)
  text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', console.file.getvalue())
  joined = text.replace('\n', '') if is_terminal else text
  assert f'Warning: f32[8] is {"very " * 20}long' in joined
  if is_terminal:
    assert text.strip().splitlines()[-1].startswith('DASH ━')
