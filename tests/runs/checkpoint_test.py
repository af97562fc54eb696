"""A run that stops, by request or by force, goes on where it was."""

import dataclasses
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tensorstore

from dash_jax import batches
from dash_jax.runs import checkpoint


def _state(scale=1.0):
  params = {
    'embed': jnp.arange(32, dtype=jnp.bfloat16).reshape(8, 4) * scale,
    'layers': {'w': jnp.full((2, 4), scale)},
  }
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)),
  )
  opt_state = optimizer.init(params)
  _, opt_state = optimizer.update(params, opt_state, params)
  return batches.TrainState(
    step=jnp.int32(3),
    params=params,
    opt_state=opt_state,
    kl_scale=jnp.float32(0.5),
  )


def _abstract(state):
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
  )


def _describe(unused_step):
  return _abstract(_state())


def _assert_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_the_latest_state_comes_back(tmp_path):
  """Bit for bit, with optax's own types, by another process's manager."""
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.restore(_describe) is None
    checkpoints.save(1, _state(1.0))
    checkpoints.save(2, _state(2.0))
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() == 2
    state, rows = checkpoints.restore(_describe)
  _assert_equal(state, _state(2.0))
  assert rows == {}


def test_reading_weights_leaves_what_a_run_is_writing(tmp_path):
  """Opened by the run itself, the folder of an unfinished save would be tidied
  away."""
  abstract = _abstract(_state()).params
  assert checkpoint.restore_params(tmp_path, abstract) is None
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(1, _state(1.0))
    checkpoints.wait()
    half = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp'
    half.mkdir()
    params, step = checkpoint.restore_params(tmp_path, abstract)
    assert half.exists()
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    # Orbax tidies in a thread, for which a save waits.
    checkpoints.save(3, _state())
  assert not half.exists()
  assert step == 1
  _assert_equal(params, _state(1.0).params)


def test_only_the_newest_stay(tmp_path):
  """The disk does not fill up with the length of a run."""
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2, 5):
      checkpoints.save(step, _state())
    checkpoints.wait()
  kept = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert kept == ['2', '5']


def test_what_is_worth_it_stays_longer(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in (1, 2, 5, 6):
      checkpoints.save(step, _state(), kept=frozenset({2, 4}))
    checkpoints.wait()
  kept = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert kept == ['2', '6']


def test_rows_come_back_with_their_state(tmp_path):
  rows = {'4': {'tokens': np.arange(6).reshape(2, 3), 'cut': np.array([True])}}
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(3, _state(), rows)
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    state, found = checkpoints.restore(_describe)
  _assert_equal(state, _state())
  _assert_equal(found, rows)


def _flip(path):
  """Changes one bit in the middle of a file."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 16
  path.write_bytes(data)


def _halve(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _find_files(folder):
  return sorted(
    (p for p in folder.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )


@pytest.mark.parametrize('damage', [_flip, _halve, pathlib.Path.unlink])
def test_what_is_torn_is_named_and_the_one_before_is_used(
  tmp_path, caplog, damage
):
  """The largest file of each item in turn: of the weights, of the optimizer, of the
  rows; and the checksums."""
  rows = {'0': {'tokens': np.arange(4096)}}
  for item in ('params', 'rest', 'rows', 'checksums'):
    workdir = tmp_path / item
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
      checkpoints.save(1, _state(1.0))
      checkpoints.save(2, _state(2.0), rows)
    damage(_find_files(workdir / 'checkpoints' / '2' / item)[-1])
    caplog.clear()
    read = checkpoint.restore_params(workdir, _abstract(_state()).params)
    with checkpoint.Checkpoints(workdir, keep=2) as checkpoints:
      state, found = checkpoints.restore(_describe)
      # Nothing stands in the way of the same step.
      checkpoints.save(2, _state(2.0), rows)
    assert 'checkpoints/2 is torn: ' in caplog.text, item
    assert 'went back to step 1' in caplog.text
    assert (workdir / checkpoint.TORN_NAME / '2').exists()
    _assert_equal(state, _state(1.0))
    assert found == {}
    assert item != 'params' or read[1] == 1


def test_a_bit_of_any_file_is_missed_or_does_not_matter(tmp_path):
  """Where it is missed, the step before is used."""
  with checkpoint.Checkpoints(tmp_path / 'whole', keep=2) as checkpoints:
    checkpoints.save(1, _state(1.0))
    checkpoints.save(2, _state(2.0))
  num_torn = 0
  for i, path in enumerate(
    _find_files(tmp_path / 'whole' / 'checkpoints' / '2')
  ):
    other = tmp_path / str(i)
    shutil.copytree(tmp_path / 'whole', other)
    _flip(other / path.relative_to(tmp_path / 'whole'))
    with checkpoint.Checkpoints(other, keep=2) as checkpoints:
      state, _ = checkpoints.restore(_describe)
      found = checkpoints.latest_step()
    _assert_equal(state, _state(float(found)))
    num_torn += found == 1
  assert num_torn > 5


def test_where_none_is_whole_nothing_is_changed(tmp_path):
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(1, _state())
  _halve(_find_files(tmp_path / 'checkpoints' / '1' / 'params')[-1])
  with (
    checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints,
    pytest.raises(ValueError, match='no checkpoint is whole'),
  ):
    checkpoints.restore(_describe)
  with pytest.raises(ValueError, match='checkpoints/1 is torn'):
    checkpoint.restore_params(tmp_path, _abstract(_state()).params)
  assert (tmp_path / 'checkpoints' / '1').exists()


def test_saves_ask_for_no_counts_which_stay_in_memory(tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    tensorstore, 'experimental_collect_matching_metrics', asked.append
  )
  with checkpoint.Checkpoints(tmp_path, keep=1) as saved:
    saved.save(3, _state())
  assert not asked


def test_saved_arrays_may_be_donated(tmp_path):
  """The next update overwrites the weights while Orbax still writes."""
  negate = jax.jit(lambda x: -x, donate_argnums=0)
  weight = jnp.arange(1 << 20)
  state = batches.TrainState(
    step=jnp.int32(0),
    params={'w': weight},
    opt_state=(),
    kl_scale=jnp.float32(1),
  )
  abstract = _abstract(state)
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, state)
    negate(weight).block_until_ready()
    restored, _ = checkpoints.restore(lambda step: abstract)
  np.testing.assert_array_equal(restored.params['w'], np.arange(1 << 20))


def test_bad_calls_are_refused(tmp_path):
  """Orbax alone skips an old step in silence."""
  with pytest.raises(ValueError, match='keep is 0'):
    checkpoint.Checkpoints(tmp_path, keep=0)
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(4, _state())
    with pytest.raises(ValueError, match='step 4 is not after step 4'):
      checkpoints.save(4, _state())
    assert checkpoints.latest_step() == 4


def test_a_checkpoint_of_another_layout_is_refused(tmp_path):
  """One item, as this project wrote once, instead of weights and the rest."""
  with ocp.CheckpointManager(tmp_path / 'checkpoints') as manager:
    state = {'step': jnp.int32(1)}
    save = ocp.args.Composite(state=ocp.args.StandardSave(state))
    manager.save(1, args=save)
  with pytest.raises(ValueError, match="has no 'params', or another version"):
    checkpoint.restore_params(tmp_path, _abstract(_state()).params)


def test_other_arrays_are_named(tmp_path):
  """Orbax alone would cast the dtype in silence."""
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, _state())
    wanted = _abstract(_state())
    sharding = wanted.step.sharding
    params = {
      'embed': jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=sharding),
      'layers': {'v': wanted.params['layers']['w']},
    }
    wanted = dataclasses.replace(wanted, params=params)
    with pytest.raises(ValueError, match='other arrays') as error:
      checkpoints.restore(lambda step: wanted)
  message = str(error.value)
  assert (
    'params.embed: bfloat16[8, 4] in the checkpoint, float32[8, 4] in this run'
  ) in message
  assert 'params.layers.v: absent in the checkpoint' in message
  assert 'params.layers.w: float32[2, 4] in the checkpoint, absent' in message
  assert 'opt_state' not in message


_KILLED = textwrap.dedent("""
  import os, pathlib, signal, sys, threading
  import jax, jax.numpy as jnp
  from dash_jax import batches
  from dash_jax.runs import checkpoint

  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 4)
  mesh = jax.make_mesh((2, 2), ('data', 'fsdp'))
  sharding = jax.NamedSharding(mesh, jax.P('fsdp', 'data'))

  def state(seed):
    w = jax.random.normal(jax.random.key(seed), (1024, 4096))
    return batches.TrainState(
      step=jnp.int32(seed), params={'w': jax.device_put(w, sharding)},
      opt_state=(), kl_scale=jnp.float32(1))

  folder = pathlib.Path(sys.argv[1]) / 'checkpoints'
  checkpoints = checkpoint.Checkpoints(sys.argv[1], keep=2)
  checkpoints.save(1, state(1))
  checkpoints.wait()
  second = state(2)

  def kill():
    while not list(folder.glob('2*')):
      pass
    os.kill(os.getpid(), signal.SIGKILL)

  threading.Thread(target=kill).start()
  checkpoints.save(2, second)
  checkpoints.wait()
""")


def test_kill_during_a_save_leaves_the_step_before(tmp_path):
  """kill -9 after step 2's folder appears; step 1 restores on another mesh.

  The killed process had its array on a 2x2 mesh and this one puts it on one
  device, so the checkpoint does not depend on the mesh either.
  """
  child = subprocess.run(
    [sys.executable, '-c', _KILLED, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert child.returncode == -signal.SIGKILL, child.stderr
  folder = tmp_path / 'checkpoints'
  assert any(p.name.startswith('2') for p in folder.iterdir())
  expected = jax.random.normal(jax.random.key(1), (1024, 4096))
  state = batches.TrainState(
    step=jnp.int32(1),
    params={'w': expected},
    opt_state=(),
    kl_scale=jnp.float32(1),
  )
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    assert checkpoints.latest_step() == 1
    found, _ = checkpoints.restore(lambda step: _abstract(state))
    _assert_equal(found, state)
    # What the killed save left behind does not stand in the way.
    checkpoints.save(2, state)
  assert sorted(p.name for p in folder.iterdir()) == ['1', '2']
