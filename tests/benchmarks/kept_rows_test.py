"""The benchmark of kept rows trains on the shares that it says."""

import json

import tiny_workload

from dash_jax.learning import learner
from experiments.benchmarks import kept_rows


def test_shares_keep_whole_groups_and_compile_once(
  tmp_path, capsys, monkeypatch
):
  """Of three groups of four rows in minibatches of four, each share runs as
  many minibatches as it keeps groups."""
  ran = []
  update = learner.update

  def record(state, minibatches, num_minibatches, *args, **kwargs):
    ran.append((int(num_minibatches), int((minibatches.weight > 0).sum())))
    return update(state, minibatches, num_minibatches, *args, **kwargs)

  monkeypatch.setattr(learner, 'update', record)
  out = tmp_path / 'out.json'
  kept_rows.main(
    [
      tiny_workload.write(tmp_path), '--steps=2', '--minibatch_size=4',
      f'--out={out}',
    ]
  )  # fmt: skip
  assert ran == [(3, 12), (2, 8), (2, 8), (1, 4), (0, 0)] * 3
  result = json.loads(out.read_text())
  assert result['compiles_while_timed'] == 0
  kept = [share['kept_rows'] for share in result['shares']]
  assert kept == [12, 8, 8, 4, 0]
  for share in result['shares']:
    s = share['learn_s']
    assert 0 < s['min'] <= s['median'] <= s['max']
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 6
  assert lines[1].split()[:3] == ['12', 'of', '12']
  assert lines[1].endswith('100%')
