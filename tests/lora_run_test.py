"""Runs that train adapters alone, and what they leave."""

import dataclasses
import json
import os
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run
from safetensors import numpy as safetensors

from dash_jax import export, sharding, train, weights
from dash_jax.model import hf, hf_write, lora
from dash_jax.runs import jsonl


@pytest.fixture(scope='module')
def run():
  """One device, and the config of a run with adapters on all linear layers, a
  critic, a KL term and dropout: two supervised steps and three of RL."""
  with pytest.MonkeyPatch.context() as patched:
    config = tiny_run.borrow(patched)
    config.lora.rank = 2
    config.lora.alpha = 8.0
    config.lora.dropout = 0.1
    config.optim.learning_rate = 1e-2
    config.optim.sft_learning_rate = 1e-2
    config.algorithm.kl_coef = 0.1
    config.algorithm.baseline = 'critic'
    config.algorithm.scale = 'none'
    config.algorithm.num_samples = 96
    config.checkpoint.every_samples = 32
    config.checkpoint.keep = 9
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
      yield config


@pytest.fixture(scope='module')
def workdir(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  assert train.train(run, str(folder))
  return folder


def restore(config, workdir, step=None):
  model = weights.make_model(config)
  return jax.device_get(weights.restore_params(config, model, workdir, step)[0])


def test_adapters_learn_and_the_rest_stays(run, workdir):
  """The rest is what the seed makes, after any number of steps; every adapter
  moves at every step, the critic's head once RL has begun, and the KL term sees
  how far from the reference."""
  adapters = weights.make_model(run).config.lora
  start = jax.device_get(weights.load_params(run, weights.make_model(run)))
  trained, frozen = lora.split(adapters, start)
  last = trained
  for step in (2, 3, 5):
    now, rest = lora.split(adapters, restore(run, workdir, step))
    jax.tree.map(np.testing.assert_array_equal, rest, frozen)
    moved = jax.tree.map(lambda x, y: (x != y).any(), now, last)
    assert moved.pop('score') == (step > 2)
    assert all(jax.tree.leaves(moved))
    last = now
  rows = list(jsonl.read(workdir / 'metrics.jsonl'))
  assert [row['kl'] for row in rows[:3]] == pytest.approx([0, 0, 0], abs=0.01)
  assert rows[-1]['kl'] > 0


def test_a_checkpoint_holds_the_adapters_alone(run, workdir):
  """Of weights and of moments; all weights would be five times as many."""
  handler = ocp.StandardCheckpointHandler()
  shapes = [
    x.shape
    for item in ('params', 'rest')
    for x in jax.tree.leaves(
      handler.metadata(workdir / 'checkpoints' / '5' / item).tree
    )
    if x.shape
  ]
  model = weights.make_model(run).config
  trained, _ = lora.split(model.lora, restore(run, workdir))
  once = sorted(x.shape for x in jax.tree.leaves(trained))
  # The weights, two moments of each, and the reference's.
  assert sorted(shapes) == sorted(4 * once)


def test_a_resumed_run_ends_the_same(run, workdir, tmp_path):
  """Frozen weights are made again, the reference's adapters are read again, and
  the dropout of a step is its own: the weights are equal bit for bit."""
  again = tmp_path / 'again'
  shutil.copytree(workdir, again)
  for step in ('4', '5'):
    shutil.rmtree(again / 'checkpoints' / step)
  assert train.train(run, str(again))
  jax.tree.map(
    np.testing.assert_array_equal, restore(run, again), restore(run, workdir)
  )


def test_export_merged_of_any_step(run, workdir, tmp_path, capsys):
  out = tmp_path / 'out'
  args = [f'--workdir={workdir}', f'--out={out}', '--step=3', '--check']
  assert export.main(args) == 0
  text = capsys.readouterr().out
  assert f'step 3 of {workdir}' in text
  assert 'differ by at most 0\n' in text
  params = jax.device_get(hf.read_weights(out, hf.read_config(out)))
  held = restore(run, workdir, 3)['layers']
  added = np.einsum('LDr,LrF->LDF', held['w_up_a'], held['w_up_b']) * 8 / 2
  assert np.abs(added).max() > 1e-4
  np.testing.assert_allclose(
    params['layers']['w_up'], held['w_up'] + added, atol=1e-6
  )
  with pytest.raises(SystemExit):
    export.main([*args[:1], f'--out={tmp_path / "other"}', '--step=77'])
  message = 'has no checkpoint of step 77; it has 2, 3, 4, 5'
  assert message in capsys.readouterr().err


def test_export_of_the_adapters_alone(run, workdir, tmp_path, capsys):
  """[r, in] and [out, r] under the names that peft looks for."""
  out = tmp_path / 'out'
  args = [f'--workdir={workdir}', f'--out={out}', '--adapters', '--check']
  assert export.main(args) == 0
  assert 'differ by at most 0\n' in capsys.readouterr().out
  assert {file.name for file in out.iterdir()} == {
    'adapter_config.json', 'adapter_model.safetensors',
  }  # fmt: skip
  fields = json.loads((out / 'adapter_config.json').read_text())
  assert (fields['r'], fields['lora_alpha']) == (2, 8)
  assert fields['target_modules'] == run.lora.targets.split(',')
  found = safetensors.load_file(out / 'adapter_model.safetensors')
  prefix = 'base_model.model.model.layers.0.'
  held = restore(run, workdir)['layers']
  assert len(found) == 2 * 7
  np.testing.assert_array_equal(
    found[f'{prefix}mlp.down_proj.lora_A.weight'], held['w_down_a'][0].T
  )
  np.testing.assert_array_equal(
    found[f'{prefix}self_attn.o_proj.lora_A.weight'],
    held['wo_a'][0].reshape(32, 2).T,
  )
  np.testing.assert_array_equal(
    found[f'{prefix}self_attn.q_proj.lora_B.weight'],
    held['wq_b'][0].reshape(2, 32).T,
  )


def test_adapters_are_asked_for_where_there_are_some(tmp_path, capsys, run):
  """A run that trains all weights has none to write."""
  config = run.copy_and_resolve_references()
  config.lora.rank = 0
  config.algorithm.name = 'sft'
  config.algorithm.sft_steps = 1
  workdir = tmp_path / 'run'
  assert train.train(config, str(workdir))
  args = [f'--workdir={workdir}', f'--out={tmp_path / "out"}', '--adapters']
  with pytest.raises(SystemExit):
    export.main(args)
  assert 'trained all weights (lora.rank=0)' in capsys.readouterr().err


def test_a_tied_model_has_no_lm_head_to_adapt(run):
  config = run.copy_and_resolve_references()
  config.lora.targets = 'q_proj,lm_head'
  with pytest.raises(ValueError, match=r'lora\.targets=.*embedding is tied'):
    weights.model_config(config)


@pytest.fixture(scope='module')
def on_a_folder(run, tmp_path_factory):
  """A run of adapters on a Hugging Face folder; returns config, workdir and the
  folder."""
  folder, workdir = (tmp_path_factory.mktemp(n) for n in ('base', 'on_base'))
  config = run.copy_and_resolve_references()
  config.lora.rank = 0
  config.algorithm.baseline = 'group_mean'
  model = weights.make_model(config)
  params = weights.load_params(config, model)
  fields = hf_write.make_config(
    model.config, dtype='float32', max_len=99, bos_id=None, stop_ids=(2,)
  )
  (folder / 'config.json').write_text(json.dumps(fields))
  hf_write.write_weights(folder, model.config, params)
  config.lora.rank = 2
  config.model.preset = 'auto'
  config.model.weights = f'hf:{folder}'
  config.algorithm.name = 'sft'
  config.algorithm.sft_steps = 1
  assert train.train(config, str(workdir))
  return config, workdir, folder


def test_another_base_is_refused(on_a_folder, tmp_path, capsys):
  """No checkpoint holds the frozen weights: where they were changed, the
  adapters would be joined with what they never saw."""
  config, workdir, folder = on_a_folder
  args = [f'--workdir={workdir}', f'--out={tmp_path / "a"}', '--check']
  assert export.main(args) == 0
  base = json.loads((tmp_path / 'a' / 'config.json').read_text())
  assert base['max_position_embeddings'] == 99
  file = folder / 'model.safetensors'
  whole = file.read_bytes()
  found = safetensors.load_file(file)
  found['model.layers.0.mlp.up_proj.weight'][3, 1] *= 1.001
  safetensors.save_file(found, file, metadata={'format': 'pt'})
  message = 'is not what the adapters .* trained beside: layers.w_up differ'
  with pytest.raises(ValueError, match=message):
    train.train(config, str(workdir))
  args[1] = f'--out={tmp_path / "b"}'
  with pytest.raises(SystemExit):
    export.main(args)
  assert 'layers.w_up differ' in capsys.readouterr().err
  file.write_bytes(whole)
  assert export.main(args) == 0
  (workdir / weights.FROZEN_NAME).unlink()
  args[1] = f'--out={tmp_path / "c"}'
  with pytest.raises(SystemExit):
    export.main(args)
  assert 'frozen.json must say what' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('named', 'base', 'revision'),
  [
    ('hub:org/name@v2', 'org/name', 'v2'),
    ('hub:org/name', 'org/name', None),
    ('hf:some/folder', 'CWD/some/folder', None),
    ('gguf:some.gguf', None, None),
    ('', None, None),
  ],
)
def test_adapters_say_their_base_as_others_find_it(
  run, named, base, revision, capsys
):
  config = run.copy_and_resolve_references()
  config.model.weights = named
  found = export._find_base(config)
  base = base and base.replace('CWD', os.getcwd())
  assert found == {'base': base, 'revision': revision}
  assert ('names no base' in capsys.readouterr().out) == (base is None)


def test_a_wrong_merge_fails_the_check(run, workdir, tmp_path, monkeypatch):
  """The folder holds what was merged, so reading it back shows nothing."""
  merge = lora.merge

  def merge_too_much(config, params, dtype):
    alpha = config.alpha * 1.5
    return merge(dataclasses.replace(config, alpha=alpha), params, dtype)

  monkeypatch.setattr(lora, 'merge', merge_too_much)
  args = [f'--workdir={workdir}', f'--out={tmp_path / "out"}', '--check']
  assert export.main(args) == 1


def test_a_rank_above_the_layers_is_refused(run):
  config = run.copy_and_resolve_references()
  config.lora.rank = 33
  with pytest.raises(ValueError, match=r'lora\.rank=33: must be at most 32'):
    weights.model_config(config)
