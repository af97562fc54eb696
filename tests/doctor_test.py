"""Alarms of true runs, while they go on and afterwards; and what doctor says of
runs that were killed and of files that are damaged."""

import shutil

import pytest
import tiny_run

from dash_jax import doctor, train
from dash_jax.runs import jsonl

STEPS = 10

# So that replies of noise end.
ENDING = {'data__stop_text': ' '}
RUNS = {
  'healthy': (ENDING, []),
  'filter': (ENDING | {'algorithm__filter_threshold': 100.0}, ['filter']),
  'endless': ({'sampling__min_completion_len': 6}, ['no_stop']),
  # Noise is never an answer.
  'constant': (
    ENDING | {'reward__function': 'dash_jax.rewards.answers:score_one'},
    ['no_signal'],
  ),
}


def make_config(monkeypatch, samplers, name):
  config = tiny_run.borrow(monkeypatch)
  tiny_run.share_samplers(monkeypatch, samplers)
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = 32 * STEPS
  config.log.rollouts_every_samples = 32 * STEPS
  config.eval.every_samples = 32 * STEPS
  config.checkpoint.every_samples = 32 * STEPS
  for field, value in RUNS[name][0].items():
    section, field = field.split('__')
    config[section][field] = value
  return config


@pytest.fixture(scope='module')
def samplers():
  return {}


@pytest.fixture(scope='module')
def workdirs(tmp_path_factory, samplers):
  return {name: tmp_path_factory.mktemp(name) for name in RUNS}


@pytest.mark.parametrize('name', RUNS)
def test_doctor_finds_what_the_run_has_shown(
  mesh, monkeypatch, workdirs, samplers, capsys, name
):
  """Once, in a line of its own, and in alarms.jsonl; a healthy run is silent."""
  config, workdir = make_config(monkeypatch, samplers, name), workdirs[name]
  assert train.train(config, str(workdir))
  printed = capsys.readouterr().out
  expected = RUNS[name][1]
  found = doctor.diagnose(workdir)
  assert [alarm.name for alarm in found.alarms] == expected
  assert found.state[0] == 'complete'
  assert found.problems == found.past == []
  shown = [x for x in printed.splitlines() if x.startswith('Warning: ')]
  assert shown == [f'Warning: {alarm.text}' for alarm in found.alarms]
  if expected:
    kept = jsonl.read(workdir / 'alarms.jsonl')
    assert [(row['name'], row['step']) for row in kept] == [(*expected, 9)]
  else:
    assert not (workdir / 'alarms.jsonl').exists()


def test_a_run_that_goes_on_shows_no_alarm_again(
  mesh, monkeypatch, workdirs, samplers, capsys, tmp_path
):
  """Before the alarm it is raised anew, behind it not."""
  config = make_config(monkeypatch, samplers, 'endless')
  config.checkpoint.every_samples = 32 * 5
  workdir = tmp_path / 'run'
  shutil.copytree(workdirs['endless'], workdir)
  kept = (workdir / 'alarms.jsonl').read_text()
  rows = jsonl.read(workdir / 'metrics.jsonl')
  shutil.rmtree(workdir / 'checkpoints')
  assert train.train(config, str(workdir))
  assert capsys.readouterr().out.count('Warning: no_stop') == 1
  assert (workdir / 'alarms.jsonl').read_text() == kept
  assert train.train(config, str(workdir))
  assert 'Warning' not in capsys.readouterr().out
  assert (workdir / 'alarms.jsonl').read_text() == kept
  assert len(jsonl.read(workdir / 'metrics.jsonl')) == len(rows)


@pytest.fixture
def damaged(workdirs, tmp_path):
  workdir = tmp_path / 'damaged'
  shutil.copytree(workdirs['healthy'], workdir)
  return workdir


def test_a_killed_run_is_unfinished_and_healthy(mesh, damaged):
  """A torn last line is what a kill leaves; the command cuts it off."""
  path = damaged / 'metrics.jsonl'
  jsonl.write(path, jsonl.read(path)[:7])
  with open(path, 'a') as file:
    file.write('{"step": 8, "lo')
  found = doctor.diagnose(damaged)
  assert found.state[0].startswith('unfinished')
  assert found.state[1].startswith('7 of 10 steps')
  assert len(found.notes) == 1
  assert 'last line' in found.notes[0]
  assert found.problems == found.alarms == []


def flip_a_byte(workdir):
  (largest,) = sorted(
    (workdir / 'checkpoints' / '10' / 'params').rglob('*'),
    key=lambda path: path.stat().st_size if path.is_file() else 0,
  )[-1:]
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 255
  largest.write_bytes(data)


def skip_a_step(workdir):
  path = workdir / 'metrics.jsonl'
  rows = jsonl.read(path)
  jsonl.write(path, rows[:3] + rows[4:])


def break_a_line(workdir):
  path = workdir / 'metrics.jsonl'
  path.write_text(path.read_text().replace('"step": 4,', '"step: 4,'))


def end_in_nan(workdir):
  path = workdir / 'metrics.jsonl'
  *rows, last = jsonl.read(path)
  jsonl.write(path, [*rows, last | {'loss': float('nan')}])


@pytest.mark.parametrize(
  ('damage', 'named'),
  [
    (flip_a_byte, 'checkpoints/10 is torn'),
    (skip_a_step, 'has step 5 behind step 3'),
    (break_a_line, 'metrics.jsonl:4 is not JSON'),
    (end_in_nan, 'of step 10, the last, is not finite'),
  ],
)
def test_damage_is_named(mesh, damaged, damage, named):
  damage(damaged)
  found = doctor.diagnose(damaged)
  assert len(found.problems) == 1
  assert named in found.problems[0]


def test_exit_codes(workdirs, damaged, tmp_path, capsys):
  assert doctor.main([str(workdirs['healthy'])]) == 0
  assert 'Nothing is wrong.' in capsys.readouterr().out
  assert doctor.main([str(workdirs['constant'])]) == 1
  assert 'reward.style' in capsys.readouterr().out
  (damaged / 'config.json').write_text('[]')
  for folder, named in (
    (tmp_path, 'no config.json'),
    (damaged, 'not the config of a run'),
  ):
    with pytest.raises(SystemExit) as ended:
      doctor.main([str(folder)])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
