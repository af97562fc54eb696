"""The command as a user runs it: to the end, stopped and again, and wrongly."""

import re
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run

from dash_jax.runs import jsonl, metrics

STEPS = 7  # 3 of SFT, 4 of RL
OPTIONS = (
  'algorithm.sft_steps=3',
  'algorithm.kl_coef=0.05',
  'algorithm.kl_schedule=adaptive',
  'algorithm.kl_target=0.01',
  'algorithm.reference=ema',
  'algorithm.reference_decay=0.5',
)

# DESIGN.md, section 3: other people's scripts read these.
METRIC_KEYS = {
  'step', 'reward_mean', 'accuracy', 'loss', 'kl', 'entropy', 'grad_norm',
  'clip_fraction', 'sample_s', 'reward_s', 'learn_s', 'step_s',
  'sampled_tokens', 'trained_tokens', 'sampled_tokens_per_s', 'sampled_rows',
  'kept_rows', 'zero_signal_fraction', 'completion_len_mean',
  'truncated_fraction', 'reward_timeouts', 'reward_errors', 'logprob_gap',
  'compiles', 'staleness', 'skipped_updates',
}  # fmt: skip
EVAL_KEYS = {
  'step', 'phase', 'split', 'num_questions', 'accuracy', 'accuracy_low',
  'accuracy_high', 'completion_len_mean', 'reward_timeouts', 'reward_errors',
  'eval_s',
}  # fmt: skip


def read_steps(workdir):
  path = workdir / 'metrics.jsonl'
  return list(jsonl.read(path)) if path.exists() else []


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two workdirs of one config: run whole, and stopped by SIGTERM inside RL and
  run again. What each process printed and returned comes along."""
  whole, stopped = (tmp_path_factory.mktemp(n) for n in ('whole', 'stopped'))
  # The traced steps are the last supervised one and two of RL.
  straight = tiny_run.start(whole, *OPTIONS, flags=('--profile=3:5',))
  # Half a second a step, so that the signal finds the run at work.
  slow = tiny_run.start(stopped, *OPTIONS, SLOW='0.02')
  deadline_s = time.monotonic() + 300
  while len(read_steps(stopped)) < 4 and slow.poll() is None:
    assert time.monotonic() < deadline_s
    time.sleep(0.05)
  slow.send_signal(signal.SIGTERM)
  results = {'stopped': tiny_run.finish(slow)}
  num_steps = len(read_steps(stopped))
  results['whole'] = tiny_run.finish(straight)
  results['again'] = tiny_run.finish(tiny_run.start(stopped, *OPTIONS))
  return whole, stopped, results, num_steps


def test_a_run_ends_well_and_leaves_its_files(runs):
  whole, _, results, _ = runs
  code, output = results['whole']
  assert code == 0, output
  assert 'accuracy after DASH' in output
  assert 'profile of steps 3 to 5' in output
  assert re.search(r'program jit_\w+ +\d+\.\d{3} +\d+\.\d%', output)
  assert list(whole.glob('profile/**/*.xplane.pb'))
  found = {path.name for path in whole.iterdir()}
  assert found >= {
    'config.json', 'metrics.jsonl', 'evals.jsonl', 'rollouts', 'checkpoints',
    'curves.png', 'tensorboard', 'tokenizer.model', 'sizes.json',
  }  # fmt: skip
  assert (whole / 'curves.png').read_bytes().startswith(b'\x89PNG')
  names = sorted(path.name for path in (whole / 'rollouts').iterdir())
  assert names == [f'step_{step:06d}.jsonl' for step in (4, 5, 6, 7)]
  assert len(list(jsonl.read(whole / 'rollouts' / names[0]))) == 32


def test_every_promised_number_is_written(runs):
  whole = runs[0]
  steps = metrics.read(whole / 'metrics.jsonl')
  assert [s['step'] for s in steps] == list(range(1, STEPS + 1))
  assert [s['phase'] for s in steps] == ['sft'] * 3 + ['rl'] * 4
  for row in steps[3:]:
    assert row.keys() >= METRIC_KEYS
    assert all(np.isfinite(v) for k, v in row.items() if k != 'phase')
    assert row['sampled_rows'] == 32
    # One sampler and learner: the same weights give the same log-probability.
    assert row['logprob_gap'] < 1e-5
  # Something was learned from, and something was filtered.
  assert 0 < sum(row['kept_rows'] for row in steps[3:]) < 4 * 32
  assert steps[-1]['kl'] > 0
  evals = metrics.read(whole / 'evals.jsonl')
  assert [(e['step'], e['phase']) for e in evals] == [
    (3, 'sft'), (5, 'rl'), (7, 'rl'),
  ]  # fmt: skip
  for row in evals:
    more = {'drift_kl'} if row['phase'] == 'rl' else set()
    assert row.keys() == EVAL_KEYS | more
    assert row['num_questions'] == 6
    assert row['accuracy_low'] <= row['accuracy'] <= row['accuracy_high']
  readme = (tiny_run.FOLDER.parent / 'README.md').read_text()
  for key in {key for row in (*steps, *evals) for key in row}:
    assert f'`{key}`' in readme, key


def test_nothing_compiles_after_the_first_step_of_a_phase(runs):
  """Nor in a process that goes on."""
  for workdir in runs[:2]:
    assert {row['compiles'] for row in read_steps(workdir)} == {0}


def test_a_signal_stops_the_run_and_the_same_command_goes_on(runs):
  """To the same numbers, replies and weights, bit for bit, as if nothing had
  happened; the KL's reference moves, and its coefficient."""
  whole, stopped, results, num_steps = runs
  code, output = results['stopped']
  assert code == 75, output
  assert 4 <= num_steps < STEPS
  assert 'The same command goes on' in output
  code, output = results['again']
  assert code == 0, output

  for name in ('metrics.jsonl', 'evals.jsonl'):
    straight, resumed = (tiny_run.read_numbers(w, name) for w in runs[:2])
    assert straight == resumed
  for path in (whole / 'rollouts').iterdir():
    assert path.read_text() == (stopped / 'rollouts' / path.name).read_text()
  items = ('params', 'rest')
  with ocp.StandardCheckpointer() as reader:
    states = [
      [reader.restore(w / 'checkpoints' / str(STEPS) / item) for item in items]
      for w in (whole, stopped)
    ]
  assert len(jax.tree.leaves(states[0])) > 20
  *_, before, last = metrics.read(whole / 'metrics.jsonl')
  assert last['kl_scale'] != before['kl_scale']
  policy, rest = states[0]
  moved = rest['reference']['embed'] - policy['embed']
  assert 0 < np.abs(moved).max() < 0.1
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_evaluate_repeats_the_last_evaluation(runs):
  """Another command, the checkpoint's weights, the same answer."""
  whole = runs[0]
  last = metrics.read(whole / 'evals.jsonl')[-1]
  code, output = tiny_run.finish(
    tiny_run.start(
      whole, *OPTIONS, 'data.max_prompt_len=65', module='dash_jax.evaluate'
    )
  )
  assert code == 0, output
  # Other fields than the run's are said, and not refused.
  assert 'data.max_prompt_len: 64 there, 65 now' in output
  assert f'step {STEPS}: accuracy {last["accuracy"]:.1%}' in output
  assert 'on 6 questions' in output


def test_bad_input_is_one_line_and_exit_code_2(tmp_path):
  """bad_input/bad_commands_test.py has the other ways to be wrong."""
  code, output = tiny_run.finish(
    tiny_run.start(tmp_path, 'data.max_prompt_len=9')
  )
  assert code == 2, output
  assert re.fullmatch(
    r'dash_jax: .* data\.max_prompt_len=\d+ would.*\n', output
  )
