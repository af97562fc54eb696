"""The experiment that compares algorithms: its fields and its arithmetic."""

import pathlib
import sys

import pytest
from absl import flags
from ml_collections import config_flags

from dash_jax import checks
from experiments import algorithms

_QUICKSTART = pathlib.Path(algorithms.__file__).parent / 'quickstart.py'


@pytest.mark.parametrize('name', algorithms.ALGORITHMS)
def test_every_entry_is_a_config(name, monkeypatch):
  fields = algorithms.make_options(algorithms.ALGORITHMS[name], 'runs/seed_0')
  argv = ['', f'--config={_QUICKSTART}', *fields]
  # ml_collections looks here for the fields that it is to know.
  monkeypatch.setattr(sys, 'argv', argv)
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values)
  values(argv)
  checks.check(values.config)


def test_the_table_has_gains_with_students_interval():
  """Of gains 10, 20 and 30 points the deviation is 10, so the interval is
  4.303 * 10 / sqrt(3); of one seed there is none."""
  starts = {0: 0.5, 1: 0.4, 2: 0.6}
  found = {'RLOO': {0: 0.6, 1: 0.6, 2: 0.9}, 'GSPO': {1: 0.35}}
  start, rloo, gspo = algorithms.make_table(starts, found).splitlines()[2:]
  assert start == '| start | | 50.0% | 40.0% | 60.0% | |'
  fields = '`algorithm.baseline=leave_one_out` `algorithm.scale=none`'
  assert rloo == f'| RLOO | {fields} | 60.0% | 60.0% | 90.0% | +20.0 ± 24.8 |'
  assert gspo.endswith('|  | 35.0% |  | -5.0 |')
