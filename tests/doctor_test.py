"""True runs, each broken in a way of its own: the alarms that it raises, and no
others, while it goes on and afterwards. And what doctor says of runs that were
killed and of files that are damaged."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import doctor, train, updates
from dash_jax.runs import jsonl
from dash_jax.sampling import memory, sampler

STEPS = 10


def learn_other_things(patched, change):
  """Has what is learned from changed from the fifth step on.

  Args:
    patched: a pytest.MonkeyPatch.
    change: from the number of steps taken and credit to credit.
  """
  learn = updates.learn

  def learn_changed(parts, phase, room, state, rows, credit):
    if (taken := int(state.step)) > 3:
      credit = change(taken, credit)
    return learn(parts, phase, room, state, rows, credit)

  patched.setattr(updates, 'learn', learn_changed)


def lose_numbers(patched):
  def change(unused_taken, credit):
    return dataclasses.replace(credit, weight=credit.weight * np.nan)

  learn_other_things(patched, change)


def compile_each_step(patched):
  def change(taken, credit):
    jax.jit(lambda x: x * taken)(1.0)
    return credit

  learn_other_things(patched, change)


def fill_the_device(patched):
  patched.setattr(memory, 'find_device_share', lambda: 0.99)


def sample_from_others(patched):
  """The sampler's weights are not those that learn: it is surer than they are."""
  prepare = sampler.Sampler.prepare
  patched.setattr(
    sampler.Sampler,
    'prepare',
    lambda made, params: prepare(
      made, params | {'final_norm': 2 * params['final_norm']}
    ),
  )


# By name: fields, what else is broken, and the alarms. Replies of noise end where
# a space ends them; nobody learns from lots.
ENDING = {'data__stop_text': ' '}
ENDLESS = {'sampling__min_completion_len': 6}
LOTS = {
  'reward__function': 'broken_rewards:draw_lots',
  'optim__schedule': 'constant',
}
SHORT = {
  'reward__function': 'broken_rewards:prefer_short',
  'optim__schedule': 'constant',
  'optim__learning_rate': 0.03,
  'algorithm__num_samples': 32 * 14,
}
FAST = {'optim__learning_rate': 0.2, 'algorithm__num_samples': 32 * 40}
RUNS = {
  'healthy': (ENDING, None, set()),
  'filter': (ENDING | {'algorithm__filter_threshold': 100.0}, None, {'filter'}),
  'entropy': (
    ENDLESS | LOTS | FAST,
    None,
    # It cannot lose its spread and stay where it was.
    {'entropy', 'drift', 'no_stop'},
  ),
  'length': (ENDING | SHORT, None, {'length'}),
  'drift': (ENDING | LOTS | {'optim__learning_rate': 0.05}, None, {'drift'}),
  'truncated': ({}, None, {'truncated'}),
  'no_stop': (ENDLESS, None, {'no_stop'}),
  # Noise is never an answer.
  'no_signal': (
    ENDING | {'reward__function': 'dash_jax.rewards.answers:score_one'},
    None,
    {'no_signal'},
  ),
  'logprob_gap': (ENDING, sample_from_others, {'logprob_gap'}),
  'rewards': (
    ENDING | {'reward__function': 'broken_rewards:refuse_odd'},
    None,
    {'rewards'},
  ),
  'memory': (ENDING, fill_the_device, {'memory'}),
  'compiles': (ENDING, compile_each_step, {'compiles'}),
  'nonfinite': (
    ENDING | {'optim__nonfinite': 'skip'},
    lose_numbers,
    {'nonfinite'},
  ),
}


@pytest.fixture(scope='module')
def kept():
  """What other tests here have made: samplers by their sizes, runs by names."""
  return {'samplers': {}, 'runs': {}}


@pytest.fixture
def make_config(mesh, monkeypatch, kept):
  def make(name):
    fields, spoil, _ = RUNS[name]
    config = tiny_run.borrow(monkeypatch)
    tiny_run.share_samplers(monkeypatch, kept['samplers'])
    config.algorithm.sft_steps = 0
    config.algorithm.num_samples = 32 * STEPS
    for field, value in fields.items():
      section, field = field.split('__')
      config[section][field] = value
    all_samples = config.algorithm.num_samples
    config.log.rollouts_every_samples = all_samples
    config.eval.every_samples = all_samples
    config.checkpoint.every_samples = all_samples
    if spoil:
      spoil(monkeypatch)
    return config

  return make


@pytest.fixture
def run(make_config, kept, capsys, tmp_path_factory):
  """Returns a function from a run's name to its workdir and what it printed."""

  def find(name):
    if name not in kept['runs']:
      config, workdir = make_config(name), tmp_path_factory.mktemp(name)
      capsys.readouterr()
      assert train.train(config, str(workdir))
      kept['runs'][name] = workdir, capsys.readouterr().out
    return kept['runs'][name]

  return find


@pytest.mark.parametrize('name', RUNS)
def test_a_run_raises_its_alarm_and_doctor_the_same(run, name):
  """Once, in a line of its own, and in alarms.jsonl; a healthy run is silent."""
  workdir, printed = run(name)
  expected = RUNS[name][2]
  found = doctor.diagnose(workdir)
  assert {alarm.name for alarm in found.alarms} == expected
  assert found.state[0] == 'complete'
  assert found.past == []
  assert bool(found.problems) == (name == 'nonfinite')
  shown = [x for x in printed.splitlines() if x.startswith('Warning: ')]
  assert sorted(shown) == sorted(f'Warning: {a.text}' for a in found.alarms)
  if expected:
    rows = jsonl.read(workdir / 'alarms.jsonl')
    assert {(row['name'], row['step']) for row in rows} == {
      (alarm.name, alarm.step) for alarm in found.alarms
    }
  else:
    assert not (workdir / 'alarms.jsonl').exists()


def test_a_run_that_goes_on_shows_no_alarm_again(
  run, make_config, capsys, tmp_path
):
  """Before the alarm it is raised anew, behind it not."""
  first, _ = run('no_stop')
  config = make_config('no_stop')
  config.checkpoint.every_samples = 32 * 5
  workdir = tmp_path / 'run'
  shutil.copytree(first, workdir)
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
def damaged(run, tmp_path):
  workdir = tmp_path / 'damaged'
  shutil.copytree(run('healthy')[0], workdir)
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


def spoil_sizes(workdir):
  (workdir / 'sizes.json').write_text('{')


def lose_a_key(workdir):
  path = workdir / 'evals.jsonl'
  path.write_text(path.read_text().replace('"accuracy"', '"accvracy"'))


def lose_a_metric(workdir):
  path = workdir / 'metrics.jsonl'
  rows = jsonl.read(path)
  del rows[3]['sampled_rows']
  jsonl.write(path, rows)


@pytest.mark.parametrize(
  ('damage', 'named'),
  [
    (flip_a_byte, 'checkpoints/10 is torn'),
    (skip_a_step, 'has step 5 behind step 3'),
    (break_a_line, 'metrics.jsonl:4 is not JSON'),
    (end_in_nan, 'of step 10, the last, is not finite'),
    (spoil_sizes, 'sizes.json: not JSON'),
    (lose_a_key, 'evals.jsonl:1: no accuracy, which'),
    (lose_a_metric, 'metrics.jsonl:4: no sampled_rows, which'),
  ],
)
def test_damage_is_named(mesh, damaged, damage, named):
  damage(damaged)
  found = doctor.diagnose(damaged)
  assert len(found.problems) == 1
  assert named in found.problems[0]


def test_exit_codes(run, damaged, tmp_path, capsys):
  workdirs = [str(run(name)[0]) for name in ('healthy', 'no_signal')]
  assert doctor.main(workdirs[:1]) == 0
  assert 'Nothing is wrong.' in capsys.readouterr().out
  assert doctor.main(workdirs[1:]) == 1
  assert 'reward.style' in capsys.readouterr().out
  (damaged / 'config.json').write_text('[]')
  for folder, named in (
    (tmp_path, 'config.json is not there'),
    (damaged, 'not a JSON object'),
  ):
    with pytest.raises(SystemExit) as ended:
      doctor.main([str(folder)])
    assert ended.value.code == 2
    assert named in capsys.readouterr().err
