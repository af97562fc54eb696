"""The benchmark of kept rows trains on the shares that it says."""

import json

import tiny_workload

from dash_jax.learning import learner
from experiments.benchmarks import kept_rows


def test_shares_keep_whole_groups_and_compile_once(
  tmp_path, capsys, monkeypatch
):
  """Of three groups of four rows, each share learns from all rows of as many
  groups as it says, and fewer rows fill fewer slots."""
  learned, filled = [], []
  update = learner.update

  def record(state, minibatches, *args, **kwargs):
    learned.append(
      len({float(x) for m in minibatches for x in m.advantages[m.lines.mask]})
    )
    filled.append(sum(m.slots.size for m in minibatches))
    return update(state, minibatches, *args, **kwargs)

  monkeypatch.setattr(learner, 'update', record)
  out = tmp_path / 'out.json'
  kept_rows.main(
    [
      tiny_workload.write(tmp_path), '--steps=2', '--minibatch_size=4',
      f'--out={out}',
    ]
  )  # fmt: skip
  assert learned == learned[:5] * 3
  assert filled == filled[:5] * 3
  assert filled[0] > filled[1] == filled[2] > filled[3] > filled[4] == 0
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
