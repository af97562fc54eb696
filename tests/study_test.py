"""The study: what its figures are, what its runs are, and that it goes on.

Runs that are not about learning are of tiny_run.py's model.
"""

import dataclasses
import html as html_lib
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from absl import flags
from ml_collections import config_dict, config_flags

from dash_jax import batches, checks
from dash_jax.learning import packing
from dash_jax.model import llama
from dash_jax.reporting import workdirs
from dash_jax.runs import jsonl
from dash_jax.sampling import decoding, ladder, sampler
from experiments.study import __main__ as study
from experiments.study import (
  algorithms,
  comparisons,
  curves,
  findings,
  intervals,
  jobs,
  run,
  sizes,
  suites,
  tables,
  without,
)

_FOLDER = pathlib.Path(__file__).parent

needs_two_cores = pytest.mark.skipif(
  len(getattr(os, 'sched_getaffinity', lambda _: ())(0)) < 2,
  reason='one core has one job',
)


def test_means_have_students_interval():
  """Of 10, 20, 30 the deviation is 10, and the quantile of two degrees is
  4.303."""
  found = intervals.of_mean([10, 20, 30])
  assert found.mean == 20
  assert found.high - 20 == pytest.approx(4.3027 * 10 / math.sqrt(3), rel=1e-4)
  assert 20 - found.low == pytest.approx(found.high - 20)
  # Of five seeds 2.776.
  found = intervals.of_mean([1, 2, 3, 4, 5])
  assert found.high - 3 == pytest.approx(2.7764 * math.sqrt(2.5 / 5), rel=1e-4)
  assert intervals.of_mean([7]) == intervals.Interval(7, None, None, 1)


def test_savings_are_ratios():
  """Ratios 1/2 and 1/8 have the geometric mean 1/4; both interval's ends are as
  many times away from it."""
  found = intervals.of_savings([1, 1], [2, 8])
  assert found.mean == pytest.approx(0.75)
  assert found.low < 0.75 < found.high < 1
  assert (1 - found.low) / 0.25 == pytest.approx(0.25 / (1 - found.high))
  assert intervals.of_savings([2], [1]).mean == pytest.approx(-1)


def test_deviations_have_their_tables_intervals():
  """F of (2, 2) is 39.0 at the end."""
  found = intervals.of_spread_ratio([0, 2, 4], [0, 1, 2])
  assert found.mean == pytest.approx(1)
  assert found.high == pytest.approx(1 + math.log2(39) / 2, rel=1e-4)
  assert found.low == pytest.approx(1 - math.log2(39) / 2, rel=1e-4)


def test_factors_are_as_many_times_larger_as_smaller():
  found = intervals.of_factors([2, 8])
  assert found.mean == pytest.approx(4)
  assert found.high / 4 == pytest.approx(4 / found.low)


def make_curve(shares, *, every=6, step_s=1.0, first=0, **values):
  """Returns a run of evaluations before the first step and after each `every`."""
  num = every * (len(shares) - 1)
  return curves.Curve(
    steps=[
      {'step': first + i + 1, 'step_s': step_s if i else 50.0} | values
      for i in range(num)
    ],
    evals=[
      {'step': first + every * i, 'accuracy': share, 'num_questions': 500}
      for i, share in enumerate(shares)
    ],
  )


def test_time_to_accuracy_is_read_off_straight_lines():
  """The first step, which compiles, counts as the median of the next. Accuracy
  is reached behind a step, of those between two evaluations."""
  curve = make_curve([0.2, 0.4, 0.8, 0.7], every=2, first=7)
  assert curve.seconds() == 6
  assert curve.seconds_to(0.6) == (3, 3, 4)
  assert curve.seconds_to(0.61) == (4, 3, 4)
  assert curve.seconds_to(0.41) == (3, 3, 4)
  assert curve.seconds_to(0.8) == (4, 3, 4)
  assert curve.seconds_to(0.1) == (0, 0, 0)
  assert make_curve([0.2, 0.8], every=1).seconds_to(0.3) == (50, 50, 50)
  assert curve.accuracy_at(1) == pytest.approx(0.3)
  assert curve.accuracy_at(100) == 0.7
  with pytest.raises(ValueError, match='not reached'):
    curve.seconds_to(0.9)


def test_equal_accuracy_is_one_that_both_reach():
  ours, theirs = make_curve([0.2, 0.6]), make_curve([0.2, 0.4, 1.0])
  assert curves.find_level(ours, theirs) == pytest.approx(0.2 + 0.9 * 0.4)
  assert curves.find_level(ours, make_curve([0.2, 0.22])) is None


def test_replies_count_for_the_weights_that_sampled_them():
  """The first two steps learn from the start's replies, the third from those of
  one step behind it."""
  ours = curves.Curve(
    [
      {'accuracy': share, 'staleness': stale}
      for share, stale in ((0.1, 0.0), (0.3, 1.0), (0.5, 1.0), (0.9, 1.0))
    ],
    [],
  )
  assert ours.sampled_accuracies == pytest.approx({0: 0.2, 1: 0.5, 2: 0.9})
  theirs = curves.Curve(
    [{'accuracy': share, 'staleness': 0.0} for share in (0.2, 0.7)], []
  )
  assert comparisons._learning(ours, theirs) == pytest.approx([0.35, 0.45])


def test_falls_are_those_between_evaluations_that_both_have():
  """Of more evaluations the best is higher."""
  often = make_curve([0.2, 0.9, 0.5, 0.4], every=2)
  seldom = make_curve([0.2, 0.6], every=6)
  assert comparisons._fall(often, seldom) == pytest.approx([0.0, 0.0])
  assert comparisons._fall(often) == pytest.approx([0.5])
  recovers = make_curve([0.2, 0.9, 0.3, 0.8], every=2)
  assert comparisons._worst_fall(recovers, often) == pytest.approx([0.6, 0.5])


def find(claim, **runs):
  """Returns the finding of a claim, of curves of seeds 0, 1, .."""
  (comparison,) = (c for c in comparisons.COMPARISONS if c.claim == claim)
  return findings.find(
    comparison, {name: dict(enumerate(c)) for name, c in runs.items()}, 'tiny'
  )


_FASTER = (
  'DASH takes fewer seconds than GRPO a question a step for as many replies'
)
_SOONER = (
  'DASH takes fewer seconds than GRPO a question a step to equal accuracy'
)


def test_a_saving_is_judged_over_seeds():
  slow = [make_curve([0.2, 0.6], step_s=s) for s in (9.0, 10.0, 11.0)]
  fast = [make_curve([0.2, 0.6], step_s=1.0) for _ in range(3)]
  found = find(_FASTER, dash=fast, grpo=slow)
  assert found.question == 1
  assert 80 < found.found.low < 90 < found.found.high < 100
  assert found.found.mean == pytest.approx(100 - 100 / 990 ** (1 / 3))
  assert found.figure.startswith('90.0% [')
  assert found.verdict == 'holds, by more than in the paper'
  assert find(_FASTER, dash=slow, grpo=fast).verdict == 'does not hold here'
  same = find(_FASTER, dash=slow, grpo=slow[::-1])
  assert same.verdict == 'not decided: interval spans 0'
  one = find(_FASTER, dash=fast[:1], grpo=slow)
  assert one.verdict == 'not decided: one seed has no interval'
  assert find(_FASTER, dash=fast) is None
  # The level is reached in both runs' only interval of six steps: in as few as one
  # of theirs, as many as all of ours.
  assert find(_SOONER, dash=fast, grpo=slow).verdict == 'holds'
  near = [make_curve([0.2, 0.6], step_s=3.0) for _ in range(3)]
  assert find(_SOONER, dash=fast, grpo=near).verdict == (
    'not decided: it happened between two evaluations'
  )


def test_the_threshold_that_hurts_is_the_lowest_with_a_sure_loss():
  def make(*shares):
    return {
      seed: curves.Curve([{'accuracy': share, 'staleness': 0.0}], [])
      for seed, share in enumerate(shares)
    }

  runs = {
    'unfiltered': make(0.5, 0.6, 0.7),
    'dash': make(0.5, 0.6, 0.7),
    'filter_0.8': make(0.4, 0.7, 0.6),  # lower, or by chance
    'filter_1.2': make(0.4, 0.51, 0.6),
    'filter_1.5': make(0.3, 0.4, 0.5),
  }
  (found,) = comparisons.find_threshold(runs, 'tiny')
  assert found.figure == '1.200'
  # A higher one that does not hurt: the lower was chance.
  (found,) = comparisons.find_threshold(
    runs | {'filter_2': runs['dash']}, 'tiny'
  )
  assert (found.figure, found.verdict) == (
    'none', 'not decided: none of 0.8, 1.2, 1.5, 2',
  )  # fmt: skip
  del runs['unfiltered']
  assert not list(comparisons.find_threshold(runs, 'tiny'))


def test_seeds_that_reach_no_accuracy_decide_nothing():
  rises, stays = make_curve([0.2, 0.6]), make_curve([0.2, 0.21])
  slow = make_curve([0.2, 0.6], step_s=9.0)
  some = find(_SOONER, dash=[rises] * 3, grpo=[slow, slow, stays])
  assert some.found.num_seeds == 2
  assert some.verdict == 'not decided: none in 1 of 3 seeds'
  none = find(_SOONER, dash=[rises] * 3, grpo=[stays] * 3)
  assert none.figure == 'none'
  assert none.verdict == 'not decided: none in 3 of 3 seeds'


@pytest.mark.parametrize(
  ('low', 'high', 'near', 'not_below'),
  [
    (-2.9, 2.9, 'holds', 'holds'),
    (0.2, 4.0, 'not decided', 'holds'),
    (4.0, 6.0, 'does not hold here', 'holds'),
    (-4.0, 1.0, 'not decided', 'not decided'),
    (-6.0, -2.0, 'not decided', 'not decided'),
    (-6.0, -4.0, 'does not hold here', 'does not hold here'),
    (-2.0, -1.0, 'holds', 'holds'),
  ],
)
def test_no_difference_is_one_within_a_margin(low, high, near, not_below):
  """A gain is no cost; what may be within the margin is not beyond it."""
  found = intervals.Interval((low + high) / 2, low, high, 3)
  for expects, verdict in (('near', near), ('not below', not_below)):
    assert findings.judge(found, expects, None, 3.0).split(':')[0] == verdict


def test_a_difference_too_small_to_matter_is_none():
  """Worse by 0 to 1 point is no loss that is worth a claim; tokens have no such
  margin."""
  claim = 'PPO-Multi is worse at equal samples'
  ours = [make_curve([0.2, 0.6 - loss]) for loss in (0.0, 0.01, 0.002)]
  theirs = [make_curve([0.2, 0.6])] * 3
  found = find(claim, ppo_multi=ours, dash=theirs)
  assert found.verdict == 'does not hold here: within 3 of 0'
  interval = intervals.Interval(0, -1, 1, 3)
  assert findings.judge(interval, 'below') == 'not decided: interval spans 0'
  # No smaller than the paper's.
  assert findings.judge(interval, 'below', -0.5, 3.0) == (
    'not decided: interval spans 0'
  )
  worse = intervals.Interval(-4, -6, -2, 3)
  assert findings.judge(worse, 'not below', None, 3.0) == (
    'not decided: a difference, and perhaps of less than 3'
  )
  assert findings.judge(interval, '') == 'measured'
  small = intervals.Interval(1.0, 0.2, 1.8, 3)
  assert findings.judge(small, 'above', 20.0, 3.0) == (
    'does not hold here: within 3 of 0'
  )
  assert findings.judge(small, 'above', 1.5, 3.0) == 'holds'
  # Nor if all of it is more than the paper's.
  assert findings.judge(small, 'above', 0.1, 3.0) == (
    'holds, by more than in the paper'
  )
  for low, high, verdict in (
    (0.2, 4.0, 'holds'),
    (-0.2, 4.0, 'not decided: interval spans 0'),
    (-4.0, -0.2, 'does not hold here'),
    (-2.0, -0.2, 'does not hold here: within 3 of 0'),
  ):
    found = intervals.Interval((low + high) / 2, low, high, 3)
    assert findings.judge(found, 'above', None, 3.0) == verdict


def test_no_accuracy_is_known_better_than_to_one_question():
  """Seeds that all agree, of 500 questions; replies that were sampled to learn
  from are more."""
  same = [make_curve([0.2, 0.6])] * 3
  found = find('PPO-Multi is worse at equal samples', ppo_multi=same, dash=same)
  assert found.figure == '0.0 points [-0.2, 0.2]'
  rows = {
    name: [curves.Curve([{'accuracy': 0.5, 'staleness': 0.0}], [])] * 3
    for name in ('ppo_multi', 'dash')
  }
  assert find('PPO-Multi learns slower', **rows).figure == (
    '0.0 points [0.0, 0.0]'
  )


def test_what_is_next_to_nothing_has_two_digits():
  def show(*numbers):
    found = intervals.Interval(*numbers, 3)
    return findings.Finding(
      5, '', '', '', found, 'nats/token', '', '', ()
    ).figure  # fmt: skip

  assert show(-0.00012, -0.00031, 0.00007) == (
    '-0.00012 nats/token [-0.00031, 0.00007]'
  )
  assert show(0.2, 0.1, 0.3) == '0.200 nats/token [0.100, 0.300]'
  assert show(0.0, 0.0, 0.0) == '0.000 nats/token [0.000, 0.000]'


def test_sizes_are_compared():
  lines = [
    {
      'size': size,
      'sample_tokens_per_s': float(size),
      'sample_bytes': size * 2**20,
      'learn_tokens_per_s': 1000.0 / size,
      'learn_bytes': size * 2**20,
    }
    for size in (8, 16, 32)
  ] + [{'auto_sampling': 32, 'auto_learning': 16}]
  found = {
    row.claim: row for row in comparisons.find_sizes([lines] * 2, 'tiny')
  }
  odd = [*lines[:-1], lines[-1] | {'auto_learning': 24}]  # not measured
  claims = [row.claim for row in comparisons.find_sizes([odd] * 2, 'tiny')]
  assert sum(', against ' in claim for claim in claims) == 1
  last = found['Sampling is fastest in larger batches than learning']
  assert last.found.mean == 2
  # The largest that was tried is the fastest: the ratio may be larger.
  assert last.metric.endswith('at least')
  assert last.verdict == 'holds'
  slower = lines[:-1] + [lines[2] | {'size': 64, 'sample_tokens_per_s': 1.0}]
  for row in slower[2:]:  # there is no memory for learning from so many
    del row['learn_tokens_per_s'], row['learn_bytes']
  *_, last = comparisons.find_sizes([slower + lines[-1:]] * 2, 'tiny')
  assert last.found.mean == 2
  assert last.verdict == 'holds, by less than in the paper'
  assert found['Fastest size of sampling, of up to 32'].found.mean == 32
  shown = {claim: row.found.mean for claim, row in found.items()}
  crossing = (
    'The size from which on sampling is faster than learning, of those tried'
  )
  assert shown[crossing] == pytest.approx(32)
  fastest = "Sampling in 32 rows, its fastest, against 8, learning's fastest"
  assert shown[fastest] == pytest.approx(75)
  auto = "Learning in 8 rows, its fastest, against 16, what 'auto' takes"
  assert shown[auto] == pytest.approx(50)
  auto = found["What 'auto' takes for learning"].found
  assert auto.mean == pytest.approx(16)
  assert not list(comparisons.find_sizes([], 'tiny'))


@pytest.mark.parametrize('suite', suites.SUITES)
def test_every_job_can_start(suite, monkeypatch):
  """Fields are a config's and pass its check, names differ, and what a job needs
  comes before it."""
  make_parts = suites.SUITES[suite].make_parts
  for part in make_parts():
    done = set()
    for job in part.jobs:
      assert set(job.needs) <= done, job.name
      assert job.name not in done
      done.add(job.name)
      command = jobs.make_command(job, 3, pathlib.Path('runs'))
      assert '{' not in ' '.join(command).replace('{split}', '')
      if job.config:
        argv = ['', *(c for c in command if c.startswith('--config'))]
        # ml_collections looks here for the fields that it is to know.
        monkeypatch.setattr(sys, 'argv', argv)
        values = flags.FlagValues()
        config_flags.DEFINE_config_file('config', flag_values=values)
        values(argv)
        checks.check(values.config)
        assert values.config.seed == 3


def test_the_cpu_suite_answers_every_question():
  """By runs that are there, and in each claim's runs all are known."""
  make_parts = suites.SUITES['cpu'].make_parts
  quickstart, addition = make_parts()
  names = {job.name for job in quickstart.jobs}
  for comparison in comparisons.COMPARISONS:
    # Groups as large as the suite's own are its `dash`.
    assert set(comparison.runs) <= names | {'group_8'}, comparison.claim
  asked = {number for job in quickstart.jobs for number in job.questions}
  assert asked == set(comparisons.QUESTIONS)
  assert {'dash', 'unfiltered', 'grpo'} <= {job.name for job in addition.jobs}


def test_the_cpu_suite_is_estimated_at_two_hours_at_most(tmp_path):
  """On two cores, some minutes left, by what jobs took when they were measured: what
  makes them slower shows when they are measured again."""
  suite = suites.SUITES['cpu']
  turns = run.list_turns(suite.make_parts(), [0, 1, 2])
  assert run.Record(tmp_path).estimate(turns, suite.at_once) < 2 * 3600 - 180


def test_what_claims_time_has_the_machine_to_itself():
  """Runs whose seconds a comparison takes."""
  measures = {
    comparisons._seconds,
    comparisons._seconds_to_equal,
    comparisons._accuracy_in_time_of,
  }
  timed = {
    name
    for comparison in comparisons.COMPARISONS
    if getattr(comparison.measure, 'func', comparison.measure) in measures
    for name in comparison.runs
  }
  assert {'dash', 'grpo', 'ppo_mini', 'without_packing'} < timed
  for part in suites.SUITES['cpu'].make_parts():
    names = {job.name for job in part.jobs}
    found = {job.name for job in part.jobs if job.is_timed}
    assert found == (timed | {'sizes'}) & names


def test_no_threshold_drops_every_row():
  """The largest advantage of four replies is 1.5."""
  parts = {name: suite.make_parts()[0] for name, suite in suites.SUITES.items()}
  for suite, most in (('cpu', 2.0), ('llama3_8b', 1.2)):
    names = {job.name for job in parts[suite].jobs}
    thresholds = comparisons.THRESHOLDS.items()
    assert max(at for name, at in thresholds if name in names) == most


def test_the_table_of_algorithms_has_gains():
  """Gains of 10, 20 and 30 points have a half interval of 24.8; one has none."""
  runs = {
    'start': {s: make_curve([0, x]) for s, x in enumerate((0.5, 0.4, 0.6))},
    'rloo': {s: make_curve([0, x]) for s, x in enumerate((0.6, 0.6, 0.9))},
    'gspo': {1: make_curve([0, 0.35])},
  }
  _, _, start, rloo, gspo = algorithms.make_table(runs, [0, 1, 2]).splitlines()
  assert start == '| start |  | 50.0% | 40.0% | 60.0% |  |'
  fields = '`baseline=leave_one_out` `scale=none`'
  assert rloo == f'| RLOO | {fields} | 60.0% | 60.0% | 90.0% | +20.0 ± 24.8 |'
  assert gspo.endswith('|  | 35.0% |  | -5.0 |')


def make_tiny():
  """Returns two runs of seconds, of which each needs the one before."""
  config = str(_FOLDER / 'tiny_run.py')
  shared = {
    'num_samples': 32,
    'sft_steps': 0,
    'eval.every_samples': 32,
  }
  return jobs.Part(
    'tiny',
    (
      jobs.Job('dash', config=config, shared=shared, questions=(1,)),
      jobs.Job(
        'grpo', config=config, shared=shared, fields={'name': 'grpo'},
        questions=(1,), needs=('dash',),
      ),
    ),
  )  # fmt: skip


def run_tiny(out):
  return run.run(run.list_turns([make_tiny()], [3]), pathlib.Path(out))


def test_a_study_that_was_stopped_goes_on(tmp_path, monkeypatch):
  """SIGTERM reaches the second run at work; the same command leaves the first
  alone and ends with both, and with what they say."""
  path = f'{_FOLDER}:{_FOLDER.parent}'
  monkeypatch.setenv('PYTHONPATH', path)
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')
  code = (
    f'import sys, study_test; sys.exit(study_test.run_tiny({str(tmp_path)!r}))'
  )
  study = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  finished = tmp_path / run.FINISHED_NAME
  second = tmp_path / 'tiny' / 'seed_3' / 'grpo.log'
  end = time.monotonic() + 600
  while not second.exists() and time.monotonic() < end:
    assert study.poll() is None
    time.sleep(0.05)
  study.send_signal(signal.SIGTERM)
  output, _ = study.communicate(timeout=300)
  assert study.returncode == 75
  assert '1 to go: tiny seed 3 grpo' in output
  folder = tmp_path / 'tiny' / 'seed_3'
  first = (folder / 'dash' / 'metrics.jsonl').read_bytes()
  (done,) = jsonl.read(finished)
  assert (done['seed'], done['job']) == (3, 'dash')
  # The second run waits for the first, and may want its weights.
  assert (folder / 'dash' / 'checkpoints').exists()

  assert run_tiny(tmp_path) == 0
  assert [row['job'] for row in jsonl.read(finished)] == ['dash', 'grpo']
  assert (folder / 'dash' / 'metrics.jsonl').read_bytes() == first
  assert not (folder / 'dash' / 'checkpoints').exists()
  log = (folder / 'dash.log').read_text()
  assert run_tiny(tmp_path) == 0
  assert (folder / 'dash.log').read_text() == log

  runs = run.read_runs(tmp_path, make_tiny(), [3])
  assert {name: list(seeds) for name, seeds in runs.items()} == {
    'dash': [3],
    'grpo': [3],
  }
  parts = [make_tiny()]
  found = tables.find_all(parts, tmp_path, [3])
  text, rows = tables.make('cpu', 'study', parts, tmp_path, [3], found)
  assert '### 1. DASH against GRPO' in text
  assert any(
    row['claim'] == 'DASH ends no less accurate than GRPO a question a step'
    and row['verdict'] == 'not decided: one seed has no interval'
    for row in json.loads(rows)
  )
  page = tables.write_page('Tiny', 'study', parts, tmp_path, [3], found)
  html = page.read_text(encoding='utf-8')
  assert '1. DASH against GRPO: time to equal accuracy (tiny)' in html
  # What a finished run was really started with.
  row = jsonl.read(finished)[-1]
  words = shlex.split(row['command'].replace('{folder}', str(folder)))
  assert shlex.join(words) in html_lib.unescape(html)
  # Runs of the same names that are for no question answer none.
  others = [dataclasses.replace(job, questions=()) for job in parts[0].jobs]
  part = dataclasses.replace(parts[0], jobs=tuple(others))
  assert tables.find_all([part], tmp_path, [3]) == []


def test_in_the_page_a_first_step_takes_the_medians_seconds(tmp_path):
  steps = [
    {'step': i, 'step_s': s} for i, s in enumerate((50.0, 1.0, 3.0, 2.0))
  ]
  steps += [{'step': 4, 'step_s': 9.0}] * 9  # which learn from other rows
  read = workdirs.Run(tmp_path, {}, steps, [])
  even = tables._even_first_step(read)
  assert even.steps == [{'step': 0, 'step_s': 2.0}, *steps[1:]]


def test_a_job_that_fails_costs_those_that_need_it(tmp_path, capsys):
  part = jobs.Part(
    'tiny',
    (
      jobs.Job('first', module='no_such_module'),
      jobs.Job('second', module='no_such_module', needs=('first',)),
      jobs.Job('third', module='no_such_module'),
    ),
  )
  assert run.run(run.list_turns([part], [0]), tmp_path) == 1
  output = capsys.readouterr().out
  assert 'No module named no_such_module' in output
  assert 'tiny 0 second: needs first' in output
  folder = tmp_path / 'tiny' / 'seed_0'
  assert sorted(p.name for p in folder.glob('*.log')) == [
    'first.log',
    'third.log',
  ]
  assert not (tmp_path / run.FINISHED_NAME).exists()


def make_waiting(first, second):
  """Returns two jobs that wait for files of these names, one that is timed, and
  one after both."""
  return jobs.Part(
    'tiny',
    (
      jobs.Job('timed', 'study_job', is_timed=True),
      jobs.Job('first', 'study_job', flags=(f'--other={first}',)),
      jobs.Job('second', 'study_job', flags=(f'--other={second}',)),
      jobs.Job('third', 'study_job', needs=('first', 'second')),
    ),
  )


@needs_two_cores
def test_two_jobs_at_once_have_cores_of_their_own(
  tmp_path, monkeypatch, capsys
):
  """Each ends only if the other has begun; a third waits for both, and one that
  is timed for all of them, and has all cores."""
  monkeypatch.setenv('PYTHONPATH', str(_FOLDER))
  before = os.sched_getaffinity(0)
  turns = run.list_turns([make_waiting('second', 'first')], [0])
  assert run.run(turns, tmp_path, at_once=2) == 0
  assert os.sched_getaffinity(0) == before
  folder = tmp_path / 'tiny' / 'seed_0'
  first, second, timed = (
    set(json.loads((folder / name).read_text()))
    for name in ('first', 'second', 'timed')
  )
  assert timed == before
  assert not first & second
  assert len(first) == len(second) == len(before) // 2
  assert (
    '4 to go: tiny seed 0 first, tiny seed 0 second' in capsys.readouterr().out
  )
  done = [row['job'] for row in jsonl.read(tmp_path / run.FINISHED_NAME)]
  assert set(done[:2]) == {'first', 'second'}
  assert done[2:] == ['third', 'timed']


@needs_two_cores
def test_a_signal_stops_both_jobs(tmp_path, monkeypatch, capsys):
  """Neither is finished, and no other begins."""
  monkeypatch.setenv('PYTHONPATH', str(_FOLDER))
  turns = run.list_turns([make_waiting('never', 'never')], [0])
  folder = tmp_path / 'tiny' / 'seed_0'

  def stop_when_both_are_at_work():
    wait_for_files(folder / 'first', folder / 'second')
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=stop_when_both_are_at_work).start()
  assert run.run(turns, tmp_path, at_once=2) == 75
  output = capsys.readouterr().out
  assert 'Stopped. The same command goes on from there.' in output
  assert not {'third', 'timed'} & {path.name for path in folder.iterdir()}
  assert not (tmp_path / run.FINISHED_NAME).exists()


@needs_two_cores
def test_no_job_outlives_a_study_that_fails(tmp_path, monkeypatch):
  """As where there is no room for the line of another that has ended."""
  monkeypatch.setenv('PYTHONPATH', str(_FOLDER))
  folder = tmp_path / 'tiny' / 'seed_0'
  started = []
  popen = subprocess.Popen

  def start(*args, **kwargs):
    started.append(popen(*args, **kwargs))
    return started[-1]

  def fail(*args):
    raise OSError('no room')

  monkeypatch.setattr(subprocess, 'Popen', start)
  monkeypatch.setattr(run.Record, 'add', fail)
  turns = run.list_turns([make_waiting('never', 'second')], [0])
  with pytest.raises(OSError, match='no room'):
    run.run(turns, tmp_path, at_once=2)
  assert not (folder / 'third').exists()
  assert [process.poll() for process in started] == [-signal.SIGTERM, 0]


def wait_for_files(*paths):
  end = time.monotonic() + 60
  while not all(path.exists() for path in paths):
    assert time.monotonic() < end
    time.sleep(0.02)


def test_traces_are_not_those_of_a_start_whose_run_has_no_checkpoint(
  tmp_path, capsys
):
  """As where a study goes on that had nothing to wait for it."""
  traces = jobs.Job(
    'traces', 'no_such_module', flags=('--workdir={folder}/dash',)
  )
  turns = run.list_turns([jobs.Part('tiny', (traces,))], [0])
  folder = tmp_path / 'tiny' / 'seed_0'
  (folder / 'dash').mkdir(parents=True)
  assert run.run(turns, tmp_path) == 1
  assert 'traces: needs the checkpoint of dash' in capsys.readouterr().out
  assert not (folder / 'traces.log').exists()
  (folder / 'dash' / 'checkpoints' / '8').mkdir(parents=True)
  assert run.run(turns, tmp_path) == 1
  assert (folder / 'traces.log').exists()


def make_part(**seconds):
  return jobs.Part(
    'tiny',
    tuple(
      jobs.Job(name, seconds=number, replies=64, questions=(1, 6))
      for name, number in seconds.items()
    ),
  )


def test_time_left_goes_by_what_was_measured(tmp_path):
  """The first seed's run took 20 s where 10 are known: so do the others', and
  what has not run yet takes twice as long as is known."""
  turns = run.list_turns([make_part(dash=10.0, grpo=100.0)], [0, 1])
  record = run.Record(tmp_path)
  assert record.estimate(turns) == 220
  record.add(turns[0], 'command', 20.0)
  assert record.estimate(turns[1:]) == 200 + 20 + 200
  assert record.estimate(turns[1:2]) == 200
  assert run.Record(tmp_path).rows == record.rows
  unknown = run.list_turns([make_part(dash=None)], [0, 1])
  assert record.estimate(unknown) == 40
  assert run.Record(tmp_path / 'other').estimate(unknown) is None


def test_another_command_is_another_study(tmp_path):
  (turn,) = run.list_turns([make_part(dash=10.0)], [0])
  record = run.Record(tmp_path)
  record.add(turn, 'one', 20.0)
  assert record.has(turn, 'one')
  with pytest.raises(
    ValueError, match='seed 0 dash was made by another command'
  ):
    record.has(turn, 'two')


def test_jobs_come_with_what_they_need():
  turns = run.list_turns([make_tiny()], [0, 1], only=['grpo'])
  assert [turn.title for turn in turns] == [
    'tiny seed 0 dash',
    'tiny seed 0 grpo',
    'tiny seed 1 dash',
    'tiny seed 1 grpo',
  ]
  with pytest.raises(ValueError, match='take dash, grpo'):
    run.list_turns([make_tiny()], [0], only=['ppo'])


def test_the_command_lists_and_refuses(tmp_path, capsys):
  options = ['--suite=cpu', f'--out={tmp_path}', '--seeds=0,1']
  assert study.main([*options, '--list']) == 0
  output = capsys.readouterr().out
  make_parts = suites.SUITES['cpu'].make_parts
  num = len(run.list_turns(make_parts(), [0, 1]))
  assert f'{num} jobs, {num} of them to go.' in output
  assert not list(tmp_path.iterdir())
  for bad, error in (
    ('--seeds=0,x', '--seeds=0,x: must be whole numbers'),
    ('--only=nothing', "no job is named 'nothing'"),
    ('--config.seed', 'write --config.section.field=value'),
  ):
    with pytest.raises(SystemExit, match='2'):
      study.main([*options, bad, '--list'])
    assert error in capsys.readouterr().err


def test_list_shows_jobs_and_their_cost(tmp_path):
  turns = run.list_turns([make_part(dash=10.0, grpo=3600.0)], [0, 1])
  record = run.Record(tmp_path)
  record.add(turns[0], 'command', 10.0)
  lines = tables.list_jobs('Title', turns, record).splitlines()
  assert lines[0] == 'Title'
  assert lines[3].split() == ['tiny', 'dash', '1,6', '64', '10', '1/2']
  assert lines[4].split() == ['tiny', 'grpo', '1,6', '64', '3600', '0/2']
  assert lines[-2:] == [
    '4 jobs, 3 of them to go.',
    'About 2:00:20 in all, 2:00:10 to go.',
  ]


@pytest.fixture
def whole(mesh, monkeypatch):
  """What `without` takes parts out of comes back."""
  for module, name in (
    (packing, 'fit'), (packing, 'make_room'), (ladder, 'make'),
    (sampler, 'Sampler'),
  ):  # fmt: skip
    monkeypatch.setattr(module, name, getattr(module, name))


_P, _C, _G = 8, 6, 4


def fit_some():
  """Returns kept rows' (question, sample), the parts of lines, slots in use, and
  how many slots the rows and prompts have of their own."""
  prompt_lens = np.array([3, 5, 8])
  lengths = np.array([[1, 6, 2, 3], [4, 4, 1, 1], [6, 6, 6, 6]])
  keep = np.ones((3, _G), bool)
  keep[0, 1] = False
  room = packing.make_room(8, _G, _P, _C)
  lines, filled = packing.fit(prompt_lens, lengths, keep, room)
  parts = [part for line in lines for part in line]
  rows = sorted(row for part in parts for row in part)
  assert rows == [tuple(at) for at in np.argwhere(keep).tolist()]
  tokens = sum(int(lengths[row]) for row in rows)
  return parts, int(filled.sum()), tokens, prompt_lens


def test_without_packing_rows_take_all_their_slots(whole):
  _, packed, tokens, prompt_lens = fit_some()
  assert packed == tokens + prompt_lens.sum()
  config = config_dict.create(data={'max_prompt_len': _P})
  without.PARTS['packing'](config)
  parts, padded, _, _ = fit_some()
  assert padded == 11 * _C + len(parts) * _P > packed


def test_without_sharing_rows_have_prompts_of_their_own(whole):
  without.PARTS['sharing'](None)
  parts, filled, tokens, prompt_lens = fit_some()
  assert all(len(part) == 1 for part in parts)
  assert filled == tokens + 3 * prompt_lens[0] + 4 * prompt_lens[1:].sum()


def sample_some(config, **settings):
  """Returns completions of two prompts, three each, which rows were handed out, and
  the sampler."""
  model = llama.Llama(config)
  params = llama.init_params(config, jax.random.key(0), jnp.float32)
  sampled_by = sampler.Sampler(
    model, params, num_prompts=2, group_size=3, max_prompt_len=4,
    max_completion_len=5,
  )  # fmt: skip
  prompts = batches.PromptBatch(
    tokens=np.array([[0, 0, 7, 8], [5, 6, 7, 8]], np.int32),
    lengths=np.array([2, 4], np.int32),
    uids=np.array([2**31 - 1, 4], np.int32),
  )
  how = decoding.make_decoding(**settings)
  stream = sampled_by.stream(
    sampled_by.prepare(params), prompts, jax.random.key(1), how
  )
  handed, made = zip(*stream, strict=True)
  return made[-1], np.concatenate(handed).tolist(), sampled_by


def test_without_sampled_sharing_a_reply_runs_its_prompt(whole, mesh, tiny):
  shared, _, _ = sample_some(tiny, temperature=0.0)
  drawn_shared, _, one = sample_some(tiny, temperature=1.0)
  without.PARTS['sampled_sharing'](None)
  apart, handed, several = sample_some(tiny, temperature=0.0)
  assert sorted(handed) == list(range(6))
  np.testing.assert_array_equal(apart.tokens, shared.tokens)
  np.testing.assert_allclose(apart.logprobs, shared.logprobs, atol=1e-5)
  # The two prompts' are not alike, and replies to one have noise of their own.
  assert (apart.tokens[0] != apart.tokens[1]).any()
  drawn, _, _ = sample_some(tiny, temperature=1.0)
  assert len(np.unique(drawn.tokens[0], axis=0)) == 3
  assert (drawn.tokens != drawn_shared.tokens).any()
  # As runs see it, where 'auto' has found how many rows fit.
  assert several.batch_size == one.batch_size == 6
  assert several.group_size == one.group_size == 3


def test_without_stopping_a_batch_never_narrows(whole):
  sizes_ = (64, 8, 8, 128, False)
  made = ladder.make(*sizes_)
  assert made.find_next(made.rungs[0], 1, 1) is not None
  without.PARTS['stopping'](None)
  wide = ladder.make(*sizes_)
  rung = wide.rungs[0]
  assert rung == made.rungs[0]
  assert wide.find_next(rung, 1, 1) is None
  while rung.slots < 128:
    rung = wide.find_next(rung, 1, rung.slots + 1)
    assert rung.rows == 64


def test_sizes_are_measured(mesh, tmp_path, monkeypatch):
  """With one size, since each is compiled."""
  config = tiny_run.borrow(monkeypatch)
  config.algorithm.sft_steps = 0
  config.algorithm.batch_size = config.algorithm.group_size = 8
  row, auto = sizes.measure(config, tmp_path)
  assert row.pop('size') == 8
  assert set(row) == {
    'sample_tokens_per_s',
    'sample_bytes',
    'learn_tokens_per_s',
    'learn_bytes',
  }
  assert all(value > 0 for value in row.values())
  assert auto == {'auto_sampling': 8, 'auto_learning': 8}
