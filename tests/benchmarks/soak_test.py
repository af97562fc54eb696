"""The soak in small: it goes through a kill, and its verdicts can fail."""

import numpy as np
import pytest

from dash_jax.runs import jsonl
from experiments.benchmarks import soak


def make_samples(num_steps, growth, noise=0.0):
  """Two processes with levels of their own, after a warm-up that shrinks."""
  random = np.random.default_rng(0)
  return [
    soak.Sample(
      process=process,
      step=step,
      num_bytes=int(
        1e8 * (process + 1)
        - 1e6 * min(step, 80)
        + growth * step
        + noise * random.standard_normal()
      ),
      num_files=9,
    )
    for process in (0, 1)
    for step in range(1, num_steps + 1)
  ]


def test_growth_is_found_in_noise_beside_levels_and_warm_up():
  slope = soak.find_slope(make_samples(1_100, 5_000, noise=1e5), 'num_bytes')
  assert abs(slope.mean - 5_000) < 2 * slope.half < 1_000
  slope = soak.find_slope(make_samples(1_100, 0, noise=1e5), 'num_bytes')
  assert abs(slope.mean) < 2 * slope.half < 1_000
  flat = soak.find_slope(make_samples(1_100, 0), 'num_files')
  assert (flat.mean, flat.half) == (0, 0)


def test_few_steps_tell_nothing():
  assert soak.find_slope(make_samples(815, 0), 'num_bytes').judge(1) is None
  # From no growth to three times the limit.
  assert soak.Slope(1.0, 2.0).judge(1) is None
  assert soak.Slope(0.5, 0.4).judge(1) is True
  assert soak.Slope(2.0, 1.5).judge(1) is False


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """For the processes that are started."""
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '1')


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('soak') / 'run'


def test_a_run_goes_through_a_kill(workdir, capsys):
  assert soak.main([f'--workdir={workdir}', '--steps=8', '--kills=1']) == 0
  printed = capsys.readouterr().out
  assert '8 steps, 1 kills' in printed
  assert printed.count('| holds |') == 5
  with pytest.raises(SystemExit):
    soak.main([f'--workdir={workdir}'])
  assert 'holds a run' in capsys.readouterr().err


def test_what_does_not_hold_is_seen(mesh, workdir):
  path = workdir / 'metrics.jsonl'
  rows = jsonl.read(path)
  rows[3]['compiles'] = 2
  jsonl.write(path, rows[:2] + rows[3:])
  found = soak.judge(workdir, 8, make_samples(1_100, 50_000))
  assert [holds for *_, holds in found] == [False, False, False, True, False]
  assert 'has step 4 behind step 2' in found[0][1]
