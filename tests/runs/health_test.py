"""Each way for a run to go wrong raises its own alarm and no other, names the
field to change, and raises nothing where one step alone is odd."""

import re

import pytest

from dash_jax import config as config_lib
from dash_jax.runs import health, metrics

STEPS = 24
EVALS = (0, 8, 16, 24)
FAR = (0.0, 0.5, 2.0, 3.0)


def make_row(step, **changes):
  """Returns a step of a healthy run, of 32 rows."""
  return {
    'step': step,
    'phase': 'rl',
    'loss': 0.01,
    'grad_norm': 0.3,
    'kl': 0.0,
    'entropy': 0.5 - 0.01 * step,
    'clip_fraction': 0.0,
    'logprob_gap': 1e-6,
    'step_s': 1.0,
    'trained_tokens': 100,
    'reward_mean': 0.3 + 0.02 * step,
    'accuracy': 0.3 + 0.02 * step,
    'sampled_rows': 32,
    'kept_rows': 16,
    'masked_rows': 0,
    'zero_signal_fraction': 0.5,
    'completion_len_mean': 20.0 + 0.2 * step,
    'truncated_fraction': 0.1,
    'reward_timeouts': 0,
    'reward_errors': 0,
    'compiles': 0,
    'host_memory_fraction': 0.5,
  } | changes


def make_eval(step, accuracy, drift_kl):
  return dict.fromkeys(metrics.EVAL_KEYS, 0) | {
    'step': step,
    'phase': 'rl',
    'split': 'test',
    'accuracy': accuracy,
    'accuracy_low': accuracy - 0.05,
    'accuracy_high': accuracy + 0.05,
    'drift_kl': drift_kl,
  }


def make_config(**changes):
  config = config_lib.default()
  config.algorithm.batch_size = 32
  config.algorithm.group_size = 4
  with config.unlocked():
    for name, value in changes.items():
      section, field = name.split('__')
      config[section][field] = value
  return config


def examine(
  tmp_path, config, rows, accuracies=(0.3, 0.4, 0.5, 0.6), drifts=(0,) * 4
):
  """Returns the alarms of a run, through the files that it would leave."""
  with metrics.MetricsWriter(tmp_path) as writer:
    for step, *values in zip(EVALS, accuracies, drifts, strict=True):
      writer.write_eval(make_eval(step, *values))
    for row in rows:
      writer.write(row.pop('step'), row)
  return health.Health(config).add_all(
    metrics.read(tmp_path / metrics.METRICS_NAME),
    metrics.read(tmp_path / metrics.EVALS_NAME),
  )


# By name: the alarm, what the newest 12 steps (of 24) or all are like, the
# config's changes, and what is said.
NO_GAIN = {'reward_mean': 0.3, 'accuracy': 0.3}
NO_SIGNAL = {'zero_signal_fraction': 1.0, 'kept_rows': 0, 'trained_tokens': 0}
LATE = {
  'filter': (
    {'kept_rows': 1},
    {'algorithm__filter_threshold': 2.5},
    r'keeps 6\.2% .*Lower algorithm\.filter_threshold, which is 2\.5',
  ),
  'filter budget': (
    {'kept_rows': 1},
    {'algorithm__filter': 'largest', 'algorithm__filter_rows': 1},
    r'Raise algorithm\.filter_rows, which is 1',
  ),
  'filter cosine': (
    {'gradient_cosine': 0.2},
    {},
    r'cosine is 0\.20.*algorithm\.filter_threshold',
  ),
  'entropy': (
    NO_GAIN | {'entropy': 0.002},
    {},
    r'from 0\.\d+ to 0\.002 nats.*algorithm\.entropy_coef',
  ),
  'length': (
    NO_GAIN | {'completion_len_mean': 4.0},
    {},
    r'from 21\.0 to 4\.0 tokens.*optim\.learning_rate',
  ),
  'length empty': (
    {'completion_len_mean': 1.0},
    {},
    r'1\.0 tokens long.*sampling\.min_completion_len',
  ),
  'length explosion': (
    {'completion_len_mean': 60.0, 'truncated_fraction': 0.7},
    {},
    r'70% are truncated, where 10%.*algorithm\.overlong_len',
  ),
  'truncated': (
    {'truncated_fraction': 1.0},
    {},
    r'100% of .* at 64 tokens.*Raise sampling\.max_completion_len',
  ),
  'no_signal': (
    NO_GAIN | NO_SIGNAL,
    {},
    r'0\.0% of the rows.* 0\.3 in the mean.*reward\.style',
  ),
  'no_signal easy': (
    NO_SIGNAL | {'reward_mean': 1.0, 'accuracy': 1.0},
    {},
    r'questions are learned',
  ),
  'logprob_gap': (
    {'logprob_gap': 0.3},
    {},
    r'from 1e-06 to 0\.3 nats.*algorithm\.importance_cap',
  ),
  'logprob_gap wrong': (
    {'logprob_gap': 2.0},
    {},
    r'differ by 2 nats.*sampling\.quantize_weights',
  ),
  'rewards': (
    {'reward_timeouts': 4},
    {},
    r'12% of the rows come too late.*reward\.timeout_s, which is 5\.0',
  ),
  'rewards errors': (
    {'reward_errors': 8},
    {},
    r'25% of the rows have no score.*Call dash_jax\.rewards',
  ),
  'memory': (
    {'memory_fraction': 0.99},
    {},
    r'99% of the memory of a device.*optim\.minibatch_size',
  ),
  'memory host': (
    {'host_memory_fraction': 0.95},
    {},
    r'95% of the memory of its machine.*data\.num_train',
  ),
  'nonfinite': (
    {'loss': float('nan')},
    {},
    r'not finite, the last of them step 1\d.*optim\.learning_rate',
  ),
  'drift': (
    {'kl': 3.0},
    {'algorithm__kl_coef': 0.01},
    r'3 nats a token from its reference.*algorithm\.kl_coef, which is 0\.01',
  ),
}


def test_a_healthy_run_is_silent(tmp_path):
  """Also where it ends sure of itself, and right, and far from its start."""
  rows = [make_row(step, entropy=0.4 / step) for step in range(1, STEPS)]
  assert examine(tmp_path, make_config(), rows, drifts=FAR) == []


@pytest.mark.parametrize('name', LATE)
def test_a_run_that_goes_wrong_raises_its_alarm(tmp_path, name):
  """In the middle of the run, once, and no other."""
  changes, fields, said = LATE[name]
  rows = [
    make_row(step, **(changes if step > 10 else {}))
    for step in range(1, STEPS + 1)
  ]
  alarms = examine(tmp_path, make_config(**fields), rows)
  assert [alarm.name for alarm in alarms] == [name.split()[0]]
  assert 10 < alarms[0].step < STEPS
  assert re.search(said, alarms[0].text)


@pytest.mark.parametrize('name', LATE)
def test_one_odd_step_is_silent(tmp_path, name):
  changes, fields, _ = LATE[name]
  rows = [
    make_row(step, **(changes if step == 12 else {}))
    for step in range(1, STEPS + 1)
  ]
  assert examine(tmp_path, make_config(**fields), rows) == []


def test_replies_that_never_end_are_told_from_those_that_are_cut(tmp_path):
  rows = [
    make_row(step, truncated_fraction=1.0) for step in range(1, STEPS + 1)
  ]
  (alarm,) = examine(tmp_path, make_config(), rows)
  assert alarm.name == 'no_stop'
  assert re.search(r'in 9 steps\. .*data\.template', alarm.text)


def test_a_policy_far_from_its_start_with_nothing_to_show_is_drift(tmp_path):
  """One that has learned may be as far: the healthy run above is."""
  rows = [make_row(step, **NO_GAIN) for step in range(1, STEPS + 1)]
  (alarm,) = examine(tmp_path, make_config(), rows, drifts=FAR)
  assert (alarm.name, alarm.step) == ('drift', 16)
  assert re.search(
    r'2 nats a token from where RL began.*from 0\.3 to 0\.3.*kl_coef',
    alarm.text,
  )


def test_advice_says_which_fields_a_workdir_keeps():
  """Those that it refuses to change, and no others."""
  assert health.say_where('Raise reward.timeout_s') == 'Raise reward.timeout_s'
  kept = r'A workdir keeps its optim\.learning_rate: take a new one'
  assert re.search(
    kept, health.say_where('Lower optim.learning_rate or mesh.data')
  )


def test_held_out_accuracy_that_falls_while_rewards_rise_is_drift(tmp_path):
  """Twice below the best's interval: one evaluation may be chance."""
  rows = [make_row(step) for step in range(1, STEPS + 1)]
  config = make_config(reward__model_weight=1.0)
  (alarm,) = examine(tmp_path, config, rows, (0.5, 0.9, 0.8, 0.7))
  assert alarm.name == 'drift'
  assert re.search(
    r'from 90\.0% at step 8 to 70\.0%.*Lower reward\.model_weight', alarm.text
  )


def test_one_bad_evaluation_is_no_drift(tmp_path):
  rows = [make_row(step) for step in range(1, STEPS + 1)]
  assert not examine(tmp_path, make_config(), rows, (0.5, 0.6, 0.9, 0.7))


def test_programs_that_are_compiled_again_and_again(tmp_path):
  """But not those of a first step, or of a process that goes on."""
  counts = [0, 2, 2, 2, 0, *[1] * 10, 2, 2, 3, 4, 4, 4, 4, 4, 4]
  rows = [
    make_row(step, compiles=count) for step, count in enumerate(counts, start=1)
  ]
  (alarm,) = examine(tmp_path, make_config(), rows)
  assert (alarm.name, alarm.step) == ('compiles', 19)


def test_a_step_of_one_group_is_judged_with_many_others(tmp_path):
  """The baseline's one group may agree for nineteen steps."""
  agree = {'zero_signal_fraction': 1.0, 'kept_rows': 4, 'sampled_rows': 4}
  rows = [
    make_row(step, **(agree if 40 < step < 60 else {}))
    for step in range(1, 100)
  ]
  config = make_config(algorithm__name='grpo')
  assert examine(tmp_path, config, rows) == []


def test_an_alarm_ends_and_may_begin_again():
  begun = []
  seen = health.Health(make_config())
  for step in range(1, 61):
    late = {'reward_timeouts': 9} if step % 30 < 15 else {}
    begun += [alarm.step for alarm in seen.add(make_row(step, **late))]
    assert bool(seen.ringing) == (9 <= step < 19 or 34 <= step < 49)
  assert begun == [9, 34]
