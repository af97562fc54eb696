"""The learner's benchmark compares and counts what it says."""

import json
import sys

import numpy as np
import pytest
import tiny_workload

from dash_jax.learning import learner as dash_learner
from experiments.benchmarks import (
  gpu_parts,
  learner,
  learner_parts,
  workloads,
)
from experiments.benchmarks import turns as turns_lib

# A program of a loop of its own, as other libraries' trainers are.
_FAKE = """
import pathlib, sys, time
sys.path.insert(0, {folder!r})
import protocol
turns = protocol.Turns()
turns.about = {{'fake': '1'}}
for i in range(turns.options['warmup'] + turns.options['turns']):
  turn = turns.begin()
  assert turn == i - turns.options['warmup']
  with turns.sampling():
    time.sleep(0.05)
  time.sleep(0.1)
  print('not an answer')
  turns.end({{
    'sampled_tokens': 70, 'trained_tokens': 60, 'computed_tokens': 4096
  }})
turns.begin()
"""


def test_sides_take_turns_and_sampling_is_told_from_learning(
  tmp_path, monkeypatch, capsys
):
  """Our side and one that sleeps for known times, each a process."""
  sides = tmp_path / 'sides'
  sides.mkdir()
  (sides / 'tunix_step.py').write_text(
    _FAKE.format(folder=str(turns_lib.SIDES))
  )
  monkeypatch.setattr(turns_lib, 'SIDES', sides)
  monkeypatch.setattr(learner_parts, 'VOCAB_SIZES', (64, 2**15))
  monkeypatch.setattr(learner_parts, 'MODEL', gpu_parts.TINY)
  out = tmp_path / 'out.json'
  learner.main(
    [
      tiny_workload.write(tmp_path), '--turns=2', '--minibatch_size=8',
      f'--tunix={sys.executable}', f'--out={out}',
    ]
  )  # fmt: skip
  compared, sharing, filtering, memory, versions = json.loads(out.read_text())
  ours, fake = compared['sides']
  assert (ours['side'], fake['side']) == ('dash_jax', 'tunix')
  assert fake['about'] == {'fake': '1'}
  assert 2 <= len(fake['turns']) == len(ours['turns']) <= 4
  assert not any(turn['compiles'] for turn in ours['turns'])
  assert fake['sample_s']['min'] >= 0.05
  assert fake['learn_s']['min'] >= 0.1
  assert fake['cpu_s']['max'] < 0.1
  step_s = ours['step_s']['median']
  assert fake['of_ours']['step_s'] == pytest.approx(
    fake['step_s']['median'] / step_s
  )
  assert fake['computed_tokens']['median'] == 4096
  assert ours['computed_tokens']['min'] >= ours['trained_tokens']['min'] > 0
  # P = C = 10: eight rows and a prompt in a line of 96, or four of each in 80.
  computed = {k: s['computed_tokens'] for k, s in sharing['sides'].items()}
  assert computed == {'shared': 3 * 96, 'apart': 6 * 80}
  assert sharing['apart_of_shared'] > 0
  assert sharing['compiles_while_timed'] == 0
  assert [s['kept_rows'] for s in filtering['shares']] == [12, 8, 8, 4, 0]
  assert filtering['compiles_while_timed'] == 0
  small, _, large, _ = memory['memory']
  assert large['logit_weight_bytes'] == 2**15 * 32 * 4
  assert large['weight_bytes'] > 2 * large['logit_weight_bytes']
  assert large['temporary_bytes'] > small['temporary_bytes'] > 0
  assert versions['cores'] >= 1
  printed = capsys.readouterr().out
  for text in 'clean turns', 'apart / shared', '12 of   12', 'V =  32768':
    assert text in printed


def test_shares_keep_whole_groups_and_sharing_keeps_rows(tmp_path, monkeypatch):
  """Of three groups of four rows, each share learns from all rows of as many
  groups as it says; rows apart are those that share, with as many tokens."""
  learned, trained = [], []
  update = dash_learner.update

  def record(state, minibatches, *args, **kwargs):
    masks = [m.lines.mask for m in minibatches]
    gains = [m.advantages for m in minibatches]
    found = {
      float(x)
      for gain, mask in zip(gains, masks, strict=True)
      for x in np.asarray(gain)[np.asarray(mask)]
    }
    learned.append(found)
    trained.append(sum(int(mask.sum()) for mask in masks))
    return update(state, minibatches, *args, **kwargs)

  monkeypatch.setattr(dash_learner, 'update', record)
  workload = workloads.read(tiny_workload.write(tmp_path))
  learner_parts.measure_filtering(workload, 1, 4)
  sizes = [len(found) for found in learned]
  assert sizes == sizes[:5] * 3
  assert sizes[0] > sizes[1] == sizes[2] > sizes[3] > sizes[4] == 0
  learned.clear()
  trained.clear()
  learner_parts.measure_sharing(workload, 1, 8)
  assert learned[0] == learned[1]
  assert trained == [3 * 8 * 10] * 6
