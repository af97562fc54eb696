"""The sampler's benchmark runs, counts and compares what it says."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import tiny_workload

from experiments.benchmarks import sampler, sampler_parts, workloads


def test_sides_take_turns_and_parts_are_measured(tmp_path, capsys):
  """Our side alone, in a process of its own, as others have theirs: tokens are
  counted, and the parts' figures are where they can be."""
  path = tiny_workload.write(tmp_path, num_prompts=1)
  out = tmp_path / 'out.json'
  workload = workloads.read(path)
  G, C = workload.group_size, workload.completion_len
  sampler.main([path, f'--rows={2 * G}', '--turns=2', f'--out={out}'])
  compared, sharing, host, versions = json.loads(out.read_text())
  (side,) = compared['sides']
  assert compared['rows'] == 2 * G
  assert len(side['turns']) == 2
  assert all(0 < turn['tokens'] <= 2 * G * C for turn in side['turns'])
  rates = [turn['tokens'] / turn['seconds'] for turn in side['turns']]
  assert side['tokens_per_s']['max'] == pytest.approx(max(rates))
  # Eight rows share P = C slots that each would have: 2 against 1 + 1 / 8.
  assert sharing['cache_saved'] == pytest.approx(1 - (1 + 1 / 8) / 2)
  assert sharing['time_of_not_shared'] > 0
  assert 0 <= host['share']['median'] < 1
  assert versions['cores'] >= 1
  printed = capsys.readouterr().out
  assert 'dash_jax' in printed
  assert '44% less cache' in printed


def test_a_side_that_fails_is_named(tmp_path):
  path = tiny_workload.write(tmp_path)
  with pytest.raises(RuntimeError, match='tunix ended with 1'):
    sampler.compare(path, 8, 1, {'transformers': '', 'tunix': sys.executable})


def test_a_config_is_timed_against_the_machine(capsys):
  """By the published config, with a tiny model: shares of a floor that is
  counted from the lengths, for both kinds of weights."""
  name = 'experiments/benchmarks/llama3_8b_h200.py'
  call = sampler_parts.read_call(name, tiny=True)
  assert call.lengths.shape == (2, 8)
  assert call.lengths.max() <= 512
  call = dataclasses.replace(
    call,
    prompt_len=8,
    max_completion_len=32,
    lengths=np.minimum(call.lengths, 32),
  )
  rows = [
    row
    for row in sampler_parts.time_call(call, turns=1, tiny=True)
    if 'share_of_floor' in row
  ]
  assert ['int8' in row['measure'] for row in rows] == [False, True]
  for row in rows:
    assert row['batch_size'] == 16
    assert 0 < row['share_of_floor'] < 2
    assert row['median'] == pytest.approx(
      call.lengths.sum() / row['seconds'][0]
    )
  whole = sampler_parts.read_call(name, tiny=False)
  assert whole.lengths.shape == (128, 8)
  assert whole.lengths.mean() == pytest.approx(185, abs=10)  # cut off at 512
