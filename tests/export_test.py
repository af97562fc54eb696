"""A run's checkpoint in the form that others read."""

import json

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import export, tokenizing, train
from dash_jax.data import chat, tokenizer
from dash_jax.model import hf, llama, presets
from dash_jax.runs import checkpoint


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run of one supervised step."""
  with pytest.MonkeyPatch.context() as patched:
    config = tiny_run.borrow(patched)
    config.algorithm.name = 'sft'
    config.algorithm.sft_steps = 1
    config.data.stop_text = '\n'
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
  # Generation stops where the run's sampler did: at the stop text too.
  stops = [*ours.stop_ids, *ours.encode('\n')]
  assert theirs.stop_ids == tuple(stops)
  for file in ('config.json', 'generation_config.json'):
    fields = json.loads((out / file).read_text())
    assert fields['eos_token_id'] == stops
    assert fields['pad_token_id'] == theirs.pad_id == 0
    assert fields['bos_token_id'] is None


def test_a_damaged_folder_fails_the_check(workdir, tmp_path, mesh):
  """Another rotary base in config.json: the weights are right, the model not."""
  out = tmp_path / 'out'
  written = export.export(workdir, out)
  assert export.compare(written, out) == 0
  fields = json.loads((out / 'config.json').read_text())
  fields['rope_theta'] = 77.0
  (out / 'config.json').write_text(json.dumps(fields))
  assert export.compare(written, out) > 1e-6


@pytest.mark.parametrize('gap', [0.5, float('nan')])
def test_another_model_is_exit_code_1(workdir, tmp_path, monkeypatch, gap):
  monkeypatch.setattr(export, 'compare', lambda *_: gap)
  args = [f'--workdir={workdir}', f'--out={tmp_path / "out"}']
  assert export.main(args) == 0
  args[1] += '2'
  assert export.main([*args, '--check']) == 1


def test_a_run_on_a_folders_own_tokenizer_hands_its_files_on(workdir, tmp_path):
  """Byte for byte, with the template of the run's chats if they have none."""
  folder = tmp_path / 'from'
  folder.mkdir()
  tok = tokenizer.load('sentencepiece', str(workdir / 'tokenizer.model'))
  tok.save(folder)
  (folder / 'other.txt').touch()
  config = tiny_run.get_config()
  config.data.tokenizer = 'huggingface'
  for i, path in enumerate((folder, folder / 'tokenizer.json')):
    out = tmp_path / str(i)
    out.mkdir()
    config.data.tokenizer_path = str(path)
    export.write_tokenizer(config, tok, out)
    names = ['tokenizer.json', 'tokenizer_config.json']
    assert sorted(file.name for file in out.iterdir()) == names
    for name in names:
      assert (out / name).read_bytes() == (folder / name).read_bytes()
  # A chat without a template of the folder's is in the family's.
  config.data.template = 'chat'
  config.model.preset = 'llama2_7b'
  chatting = tokenizing.load_tokenizer(config, workdir)
  export.write_tokenizer(config, chatting, out)
  again = tokenizer.load('huggingface', str(out))
  assert again.chat_template == chat.FAMILIES['llama2_'].template
  # The folder's own stays.
  (folder / 'chat_template.jinja').write_text('{{ messages }}')
  export.write_tokenizer(
    config, tokenizing.load_tokenizer(config, workdir), out
  )
  again = tokenizer.load('huggingface', str(out))
  assert again.chat_template == '{{ messages }}'


def test_bad_folders_are_named(workdir, tmp_path, capsys):
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full' / 'file').touch()
  (tmp_path / 'empty').mkdir()
  for folders, message in (
    ((workdir, tmp_path / 'full'), 'must be a new or an empty folder'),
    ((tmp_path / 'empty', tmp_path / 'out'), 'config.json is not there'),
  ):
    with pytest.raises(SystemExit, match='2'):
      export.main([f'--workdir={folders[0]}', f'--out={folders[1]}'])
    assert message in capsys.readouterr().err
  for text, message in (
    ('{', 'config.json: not JSON'),
    ('[1]', 'config.json: not a JSON object'),
    ('{"x": 1}', 'config.json is not the config of a run'),
  ):
    (tmp_path / 'empty' / 'config.json').write_text(text)
    with pytest.raises(SystemExit, match='2'):
      export.main([f'--workdir={tmp_path / "empty"}', f'--out={tmp_path}/out'])
    assert message in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
