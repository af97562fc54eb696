"""A run's checkpoint in the form that others read."""

import json

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import export, train
from dash_jax.data import tokenizer
from dash_jax.model import hf, llama, presets
from dash_jax.runs import checkpoint


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of one supervised step."""
  with pytest.MonkeyPatch.context() as patched:
    quickstart = presets.PRESETS['quickstart']
    patched.setitem(presets.PRESETS, 'quickstart', quickstart)
    patched.syspath_prepend(tiny_run.FOLDER)
    config = tiny_run.get_config()
    config.algorithm.name = 'sft'
    config.algorithm.sft_steps = 1
    folder = tmp_path_factory.mktemp('run')
    mesh = jax.make_mesh(
      (1, 1, 1), ('data', 'fsdp', 'tensor'), devices=jax.devices()[:1]
    )
    with jax.set_mesh(mesh):
      assert train.train(config, str(folder))
    yield folder


def test_the_checkpoint_goes_out_whole(workdir, tmp_path, mesh, capsys):
  """Weights bit for bit, the architecture, and a tokenizer with equal ids; read
  back, the logits are equal too."""
  out = tmp_path / 'out'
  assert export.main([f'--workdir={workdir}', f'--out={out}', '--check']) == 0
  text = capsys.readouterr().out
  assert f'step 1 of {workdir}' in text
  assert 'differ by at most 0\n' in text
  config = presets.PRESETS['quickstart']
  assert hf.read_config(out) == config
  params, _ = checkpoint.restore_params(
    workdir, llama.abstract_params(config, np.float32)
  )
  jax.tree.map(
    np.testing.assert_array_equal, hf.read_weights(out, config), params
  )
  ours = tokenizer.load('sentencepiece', str(workdir / 'tokenizer.model'))
  theirs = tokenizer.load('huggingface', str(out))
  text = '12 + 30 = 42\n  7 + é😀 '
  assert theirs.encode(text) == ours.encode(text)
  assert theirs.stop_ids == ours.stop_ids
  generation = json.loads((out / 'generation_config.json').read_text())
  assert generation['eos_token_id'] == list(ours.stop_ids)


def test_a_damaged_folder_fails_the_check(workdir, tmp_path, mesh):
  """Another rotary base in config.json: the weights are right, the model not."""
  out = tmp_path / 'out'
  export.main([f'--workdir={workdir}', f'--out={out}'])
  assert export.compare(workdir, out) == 0
  fields = json.loads((out / 'config.json').read_text())
  fields['rope_theta'] = 77.0
  (out / 'config.json').write_text(json.dumps(fields))
  assert export.compare(workdir, out) > 1e-6


def test_bad_folders_are_named(workdir, tmp_path, capsys):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').touch()
  (tmp_path / 'empty').mkdir()
  for folders, message in (
    ((workdir, tmp_path / 'full'), 'must be a new or an empty folder'),
    ((tmp_path / 'empty', tmp_path / 'out'), 'there is no config.json'),
  ):
    with pytest.raises(SystemExit, match='2'):
      export.main([f'--workdir={folders[0]}', f'--out={folders[1]}'])
    assert message in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
