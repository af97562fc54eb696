"""The notebook's cells run from top to bottom and show what they promise."""

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import types

import nbclient
import nbformat
import pytest

_PATH = (
  pathlib.Path(__file__).parent.parent / 'experiments' / 'gsm8k_colab.ipynb'
)

# The quickstart, two steps of each phase.
_PARAMETERS = """
EXPERIMENT = 'quickstart'
WORKDIR = 'runs/notebook'
FLAGS = [
  '--config.data.num_train=2000',
  '--config.algorithm.sft_steps=2',
  '--config.optim.sft_warmup_steps=0',
  '--config.optim.warmup_steps=0',
  '--config.algorithm.num_samples=16',
  '--config.algorithm.batch_size=8',
  '--config.optim.minibatch_size=8',
  '--config.optim.sft_batch_size=2',
  '--config.eval.num_questions=8',
  '--config.log.rollouts_every_samples=8',
]
REPOSITORY = ACCELERATOR = ''
"""


def _read():
  return nbformat.read(_PATH, as_version=4)


def _text(cell):
  """Returns all that a cell printed."""
  return ''.join(o.text for o in cell.outputs if o.output_type == 'stream')


def _shown(cell, kind):
  """Returns the values of one MIME type that a cell displayed."""
  return [o.data[kind] for o in cell.outputs if kind in o.get('data', {})]


@pytest.fixture(scope='module')
def executed(tmp_path_factory):
  """The notebook's cells by id, after they ran at tiny sizes."""
  notebook = _read()
  for cell in notebook.cells:
    if 'parameters' in cell.metadata.get('tags', ()):
      cell.source = _PARAMETERS
  folder = tmp_path_factory.mktemp('notebook')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_NUM_CPU_DEVICES', '1')  # as a notebook has
    # Training and both evaluations share a program, compiled once here.
    patch.setenv('JAX_COMPILATION_CACHE_DIR', str(folder / 'cache'))
    patch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
    nbclient.NotebookClient(
      notebook,
      timeout=120,
      kernel_name='python3',
      resources={'metadata': {'path': str(folder)}},
    ).execute()
  return folder, {cell.id: cell for cell in notebook.cells}


def test_it_is_committed_without_outputs():
  """What a reader sees in it is of their own run."""
  code = [cell for cell in _read().cells if cell.cell_type == 'code']
  assert all(not c.outputs and c.execution_count is None for c in code)
  assert sum('parameters' in c.metadata.get('tags', ()) for c in code) == 1


def test_parameters_replaced_here_are_the_notebooks():
  """The cells below the parameters see the names that a user would set."""
  cells = {cell.id: cell for cell in _read().cells}
  names = re.compile(r'^([A-Z]+) =', re.MULTILINE)
  source = cells['parameters'].source
  assert set(names.findall(source)) == {
    *names.findall(_PARAMETERS),
    'ACCELERATOR',
  }


@pytest.mark.parametrize(
  ('experiment', 'accelerator', 'extras'),
  [
    ('quickstart', '', set()),
    ('smollm2_gsm8k', 'cuda12', {'cuda12', 'smollm2'}),
    ('qwen2_5_1_5b_gsm8k', 'tpu', {'tpu', 'hub'}),
    ('llama3_8b_gsm8k', 'cuda', {'cuda'}),
  ],
)
def test_it_installs_what_the_experiment_needs(
  monkeypatch, experiment, accelerator, extras
):
  """Where nothing is installed, from the copy that the notebook lies in."""
  cells = {cell.id: cell for cell in _read().cells}
  commands, sees = [], {'': 'cpu', 'tpu': 'tpu'}.get(accelerator, 'gpu')

  def run(command, **options):
    commands.append(command)
    return types.SimpleNamespace(stdout=f'{sees}\n')

  monkeypatch.chdir(_PATH.parent)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(subprocess, 'run', run)
  names = {'EXPERIMENT': experiment, 'ACCELERATOR': accelerator}
  exec(cells['install'].source, names | {'REPOSITORY': ''})
  (*_, wanted), _ = commands
  found, source = wanted.removeprefix('dash_jax').split(' @ ')
  assert set(filter(None, found.strip('[]').split(','))) == extras
  assert source == _PATH.parents[1].as_uri()
  known = importlib.metadata.metadata('dash_jax').get_all('Provides-Extra')
  assert extras <= set(known)
  assert (_PATH.parent / f'{experiment}.py').exists()
  sees = 'other'
  with pytest.raises(RuntimeError, match='jax runs on the other'):
    exec(cells['install'].source, names | {'REPOSITORY': ''})
  with pytest.raises(ValueError, match='set REPOSITORY above'):
    exec(cells['install'].source, names | {'REPOSITORY': '/'})


def test_accuracies_before_and_after(executed):
  """Both evaluations judge the step they claim: none, and the last of four."""
  _, cells = executed
  wanted = r'(.*): accuracy [\d.]+% .* on 8 questions'
  before = re.search(wanted, _text(cells['before']))
  after = re.search(wanted, _text(cells['after']))
  assert before[1] == 'the weights that the run starts from'
  assert after[1] == 'step 4'
  assert 'against runs/notebook/before.jsonl: pass@1' in _text(cells['after'])


def test_what_it_exports_gives_the_same_logits(executed):
  folder, cells = executed
  assert 'differ by at most' in _text(cells['export'])
  assert list((folder / 'runs/notebook/exported').glob('*.safetensors'))


def test_training_is_shown_live(executed):
  _, cells = executed
  assert 'SFT 2/2' in _text(cells['train'])
  assert 'DASH 2/2' in _text(cells['train'])


def test_curves_are_shown(executed):
  folder, cells = executed
  assert _shown(cells['curves'], 'image/png')
  assert (folder / 'runs/notebook/curves.png').stat().st_size > 10_000


def test_tables_hold_the_runs_rows(executed):
  """One line per evaluation and per sampled row, below the line of names."""
  folder, cells = executed
  (evals,) = _shown(cells['evals'], 'text/html')
  lines = (folder / 'runs/notebook/evals.jsonl').read_text().splitlines()
  assert evals.count('<tr>') == 1 + len(lines) == 3
  (rollouts,) = _shown(cells['rollouts'], 'text/html')
  assert rollouts.count('<tr>') == 1 + 8
  assert 'step_000004.jsonl' in _text(cells['rollouts'])
