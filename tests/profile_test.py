"""Steps are traced, and their seconds are told by part and by program."""

import types

import jax
import jax.numpy as jnp
import pytest

from dash_jax import profile

_VALUES = {'sample_s': 0.5, 'reward_s': 0.25, 'learn_s': 1.0, 'step_s': 2.0}


@jax.jit
def long(x):
  return jax.lax.fori_loop(0, 50, lambda _, x: jnp.sin(x) @ x, x)


@jax.jit
def short(x):
  return x + 1


def _take_steps(window, numbers):
  """Returns the steps behind which there is a table, and the tables."""
  shown = {}
  for step in numbers:
    window.begin(step)
    jax.block_until_ready((long(jnp.ones((100, 100))), short(1.0)))
    if table := window.end(step, _VALUES):
      shown[step] = table
  return shown


def test_the_last_step_tells_of_all_in_the_window(tmp_path):
  """Programs are there by their names, the longest first."""
  window = profile.Window('2:3', tmp_path, 9)
  shown = _take_steps(window, range(1, 6))
  (table,) = shown.values()
  assert list(shown) == [3]
  assert table.columns[0].header == 'profile of steps 2 to 3'
  cells = zip(*(column.cells for column in table.columns), strict=True)
  found = {name: (seconds, share) for name, seconds, share in cells}
  assert found['sampling'] == ('1.000', '25.0%')
  assert found['rest'] == ('0.500', '12.5%')
  (path,) = tmp_path.glob('profile/**/*.xplane.pb')
  programs = profile.find_programs(path)
  assert next(iter(programs)) == 'jit_long'
  assert 0 < programs['jit_short'] < programs['jit_long'] < 10
  assert found['program jit_long'][0] == f'{programs["jit_long"]:.3f}'


def test_what_the_host_begins_is_not_what_a_device_runs(monkeypatch):
  """On a GPU programs have no line of their own, and both name them."""

  def make(name, seconds):
    event = types.SimpleNamespace(
      name='fusion', start_ns=0, duration_ns=seconds * 1e9,
      stats=[(profile._PROGRAM_KEY, 'jit_long')],
    )  # fmt: skip
    line = types.SimpleNamespace(name='Stream #7', events=[event])
    return types.SimpleNamespace(name=name, lines=[line])

  planes = [make('/host:CPU', 1), make('/device:GPU:0', 3)]
  monkeypatch.setattr(
    jax.profiler.ProfileData,
    'from_file',
    lambda path: types.SimpleNamespace(planes=planes),
  )
  assert profile.find_programs('a.xplane.pb') == {'jit_long': 3.0}


def test_a_run_that_goes_on_traces_what_is_left(tmp_path):
  window = profile.Window('2:4', tmp_path, 9)
  (table,) = _take_steps(window, [4, 5]).values()
  assert table.columns[0].header == 'profile of steps 4 to 4'


def test_a_run_that_stops_ends_the_trace(tmp_path):
  """Else no other could begin in this process."""
  for name in ('a', 'b'):
    window = profile.Window('1:9', tmp_path / name, 9)
    assert not _take_steps(window, [1])
    window.close()
    assert list((tmp_path / name).glob('profile/**/*.xplane.pb'))


def test_no_window_traces_nothing(tmp_path):
  assert not _take_steps(profile.Window('', tmp_path, 9), [0, 1])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('text', ['3', '0:2', '3:2', '2:10', 'a:b', '-1:2'])
def test_what_is_no_window_is_refused(tmp_path, text):
  with pytest.raises(ValueError, match=r'wanted FIRST:LAST, steps of 1 to 9'):
    profile.Window(text, tmp_path, 9)


def test_a_supervised_step_samples_nothing():
  parts = profile.find_parts([{'learn_s': 1.0, 'step_s': 1.5}])
  assert parts == {'sampling': 0, 'reward': 0, 'learning': 1.0, 'rest': 0.5}


def test_spans_that_overlap_count_once():
  assert profile.measure([(0, 4e9), (1e9, 2e9), (3e9, 6e9), (8e9, 9e9)]) == 7
