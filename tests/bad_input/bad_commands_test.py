"""The table of bad command lines: what is typed, and the one line that answers.

Every row is exit code 2, and says no more than that line, but for the usage that
argparse puts in front of it. ' ..' stands for what another package says.
"""

import re

import forks
import pytest

QUICKSTART = forks.TESTS.parent / 'experiments' / 'quickstart.py'

FILES = {
  'none.py': 'def get_config():\n  pass\n',
  'empty.py': 'def get_config():\n  return {}\n',
  'syntax.py': 'def get_config(:\n',
  'nothing.py': 'x = 1\n',
  'raises.py': 'def get_config():\n  raise KeyError("x")\n',
  'imports.py': 'import no_such_package\n',
  'binary.py': '\0',
  'ends.py': 'raise SystemExit(3)\n',
  'number.py': 'score = 3\n',
  'file': 'text',
  'folder/file': '',
  'torn/config.json': '{"seed": ',
  'list/config.json': '[]',
  'other/config.json': '{"seed": 1}',
  'begun/checkpoints': '',
  'report/metrics.jsonl': '{"step": 1, "phase": "rl"}\n',
  'few_train.jsonl': '{"question": "a", "answer": "b"}\n',
  'few_test.jsonl': '{"question": "a", "answer": "b"}\n',
}

MAIN = ('main', f'--config={QUICKSTART}', '--workdir=run')
TINY = (f'--config={forks.TESTS / "tiny_run.py"}', '--workdir=run')


# The command and its arguments, and the line.
BAD = [
  (
    ('main',),
    'flag --config=None: must name a file with get_config(), as '
    "experiments/quickstart.py; flag --workdir=None: must name the run's "
    'folder, as runs/mine',
  ),
  (
    ('main', '--config=gone.py', '--workdir=run'),
    "--config='gone.py': no such file or folder (looked from  ..)",
  ),
  (
    ('main', '--config=', '--workdir=run'),
    "--config='': no such file or folder (looked from  ..)",
  ),
  (
    ('main', '--config=folder', '--workdir=run'),
    "--config='folder': must be a Python file",
  ),
  (
    ('main', '--config=none.py', '--workdir=run'),
    'flag --config=None: must name a file with get_config(), as '
    'experiments/quickstart.py',
  ),
  (
    ('main', '--config=empty.py', '--workdir=run'),
    'flag --config={}: must name a file with get_config(), as '
    'experiments/quickstart.py',
  ),
  (
    ('main', '--config=syntax.py', '--workdir=run'),
    "--config=syntax.py: get_config() fails: SyntaxError('invalid syntax', "
    "('syntax.py', 1, 16, 'def get_config(:\\n', 1, 17))",
  ),
  (
    ('main', '--config=nothing.py', '--workdir=run'),
    '--config=nothing.py: get_config() fails: AttributeError("module '
    "'config_config' has no attribute 'get_config'\")",
  ),
  (
    ('main', '--config=raises.py', '--workdir=run'),
    "--config=raises.py: get_config() fails at line 2: KeyError('x')",
  ),
  (
    ('main', '--config=imports.py', '--workdir=run'),
    '--config=imports.py: get_config() fails at line 1: '
    'ModuleNotFoundError("No module named \'no_such_package\'")',
  ),
  (
    ('main', '--config=binary.py', '--workdir=run'),
    "--config=binary.py: get_config() fails: SyntaxError('source code "
    "string cannot contain null bytes')",
  ),
  (
    ('main', f'--config={QUICKSTART}:large', '--workdir=run'),
    'flag --config= ..:large: Error whilst parsing config file:; '
    'TypeError: get_config() takes 0 positional arguments but 1 was given',
  ),
  (
    ('main', f'--config={QUICKSTART}', '--workdir='),
    "flag --workdir=: must name the run's folder, as runs/mine",
  ),
  (
    ('main', f'--config={QUICKSTART}', '--workdir', ''),
    "flag --workdir=: must name the run's folder, as runs/mine",
  ),
  (
    ('main', f'--config={QUICKSTART}', '--workdir=file'),
    "--workdir='file':  ../file is a file, and no folder",
  ),
  (
    ('main', f'--config={QUICKSTART}', '--workdir=file/run'),
    "--workdir='file/run':  ../file is a file, and no folder",
  ),
  (
    (*MAIN, 'more'),
    "unexpected argument 'more': write --config.section.field=value",
  ),
  (
    (*MAIN, '--confg.seed=1'),
    "Unknown command line flag 'confg.seed'",
  ),
  (
    (*MAIN, '--flagfile=gone'),
    'ERROR:: Unable to open flagfile: [Errno 2] No such file or directory: '
    "'gone'",
  ),
  (
    (*MAIN, '--config.seed'),
    'Missing value for flag --config.seed',
  ),
  (
    (*MAIN, '--config.seed=one'),
    'flag --config.seed=one: ..',
  ),
  (
    (*MAIN, '--config.seed.x=1'),
    '--config.seed.x: seed has no fields: write --config.seed=0',
  ),
  (
    (*MAIN, '--config.sampling=1'),
    '--config.sampling: fields of sampling are ..',
  ),
  (
    (*MAIN, '--config..x=1'),
    '--config..x: sections of a config are ..',
  ),
  (
    (*MAIN, '--config.optim.lr=1'),
    '--config.optim.lr: fields of optim are ..',
  ),
  (
    (*MAIN, '--config.algorithm.batch_size=1e3'),
    'flag --config.algorithm.batch_size=1e3: ..',
  ),
  (
    (*MAIN, '--config.sampling.temperature=hot'),
    'flag --config.sampling.temperature=hot: ..',
  ),
  (
    (*MAIN, '--config.sampling.temperature=inf'),
    'sampling.temperature=inf: must be of type finite float',
  ),
  (
    (*MAIN, '--config.mesh.multi_host=maybe'),
    "flag --config.mesh.multi_host=maybe: ('Non-boolean argument to "
    "boolean flag', 'maybe')",
  ),
  (
    (*MAIN, '--config.optim.minibatch_size=1.5'),
    "optim.minibatch_size=1.5: must be an int or 'auto'",
  ),
  (
    (*MAIN, '--config.mesh.tensor=7'),
    'mesh.data=1, mesh.fsdp=-1, mesh.tensor=7 do not fit 1 devices: each '
    'is at least 1, at most one is -1, and their product divides 1',
  ),
  (
    (*MAIN, '--config.mesh.sampler_devices=1'),
    'mesh.sampler_devices=1: a process has 1 devices, of which one at '
    'least must learn: take fewer, or 0 to share them all',
  ),
  (
    ('main', *TINY, '--config.data.num_train=10_000'),
    'data.num_train=10000: addition: num=10000 must be from 1 to 7,240 for '
    "split 'train'",
  ),
  (
    ('main', *TINY, '--config.data.num_train=1'),
    "data.tokenizer='trained': vocab_size 304 is too large for these "
    "texts; valid: 273 to 303. The vocab_size is model.preset's, the texts "
    'are data.num_train questions',
  ),
  (
    (
      'main',
      *TINY,
      '--config.data.source=jsonl',
      '--config.data.path=few_{split}.jsonl',
    ),
    'data.num_train=100: jsonl: num=100 must be from 1 to 1, the number of '
    "questions of split 'train'",
  ),
  (
    ('main', *TINY, '--config.data.source=gsm8k', '--config.data.path=folder'),
    'folder/train.jsonl: no such file; the folder must hold train.jsonl '
    'and test.jsonl from https://github.com/openai/grade-school-math',
  ),
  (
    ('main', *TINY, '--config.data.max_prompt_len=9'),
    'the prompt of question 9447 has 33 tokens, over data.max_prompt_len 9 '
    '(100 of 100 are over); data.max_prompt_len=33 would fit all',
  ),
  (
    ('main', *TINY, '--config.data.template=chat'),
    "the template is 'chat', but the tokenizer brings no chat template; "
    "write one with '{question}' in it",
  ),
  (
    (
      'main',
      *TINY,
      '--config.model.preset=auto',
      '--config.model.weights=hf:folder',
    ),
    'folder/config.json is not there; a Hugging Face folder holds '
    'config.json and safetensors files',
  ),
  (
    ('main', *TINY, '--workdir=torn'),
    'torn/config.json: not JSON: Expecting value: line 1 column 10 (char 9)',
  ),
  (
    ('main', *TINY, '--workdir=list'),
    'list/config.json: not a JSON object',
  ),
  (
    ('main', *TINY, '--workdir=begun'),
    ' ../begun/checkpoints: must be a folder, and is a file',
  ),
  (
    ('evaluate', *TINY, '--workdir=torn'),
    'torn/config.json: not JSON: Expecting value: line 1 column 10 (char 9)',
  ),
  (
    ('evaluate', *TINY, '--workdir=begun'),
    ' ../begun/checkpoints: must be a folder, and is a file',
  ),
  (
    ('evaluate', *TINY, '--num_samples=2'),
    '--num_samples=2 with eval.temperature=0.0: the replies to a question '
    'would all be alike; set --config.eval.temperature=1.0, or --num_samples=1',
  ),
  (
    ('evaluate', *TINY, '--against=gone.jsonl'),
    "--against='gone.jsonl': no such file or folder (looked from  ..)",
  ),
  (
    ('evaluate', *TINY, '--questions=gone.jsonl'),
    "--questions='gone.jsonl': no such file or folder (looked from  ..)",
  ),
  (
    ('evaluate', *TINY, '--questions=few_test.jsonl'),
    "data.tokenizer='trained': the run in run has not begun, so it has "
    'trained none; train first',
  ),
  (
    ('evaluate', *TINY, '--step=-1'),
    'flag --step=-1: -1 is not a non-negative integer',
  ),
  (
    ('generate', *TINY),
    "data.tokenizer='trained': the run in run has not begun, so it has "
    'trained none; train first',
  ),
  (
    ('generate', *TINY, '--out=folder'),
    '--out=folder: must be a file, and is a folder',
  ),
  (
    ('generate', *TINY, '--num_samples=0'),
    'flag --num_samples=0: 0 is not a positive integer',
  ),
  (
    ('generate', *TINY, '--temperature=-1'),
    'flag --temperature=-1: -1.0 is not a non-negative number',
  ),
  (
    ('generate', *TINY, '--config.mesh.multi_host=True'),
    'mesh.multi_host=True: generate runs in one process; set it to False',
  ),
  (
    ('traces', *TINY),
    'flag --out=None: Flag --out must have a value other than None.',
  ),
  (
    ('traces', *TINY, '--out=file'),
    '--out=file: must be a folder, and is a file',
  ),
  (
    ('traces', *TINY, '--out=new', '--replies=0'),
    'flag --replies=0: 0 is not a positive integer',
  ),
  (
    ('reward_model', *TINY, '--out=new'),
    'flag --pairs=None: Flag --pairs must have a value other than None.',
  ),
  (
    ('reward_model', *TINY, '--pairs=gone', '--out=new'),
    "--pairs='gone': no such file or folder (looked from  ..)",
  ),
  (
    ('reward_model', *TINY, '--pairs=file', '--out=new'),
    'file:1: not JSON (Expecting value at column 1); each line must be one '
    'JSON object',
  ),
  (
    ('reward_model', *TINY, '--pairs=file', '--out=new', '--held_out=2'),
    'flag --held_out=2: 2.0 is not a number in the range [0.0, 1.0]',
  ),
  (
    ('plan', f'--config={QUICKSTART}', '--topology=v9:4'),
    "--topology='v9:4': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    ('plan', f'--config={QUICKSTART}', '--topology=v5e:4x4,v5e'),
    "--topology='v5e': must be a kind of device, one of v4, v5e, v5p, v6e, "
    'tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they are '
    'connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    ('plan', f'--config={QUICKSTART}', '--topology=h200:1', '--compile'),
    '--compile: there is no compiler for h200 here; for TPUs pip install '
    "-e '.[tpu]' brings it, and others compile where they are",
  ),
  (
    ('plan', f'--config={QUICKSTART}', '--workdir=run'),
    "Unknown command line flag 'workdir'. ..",
  ),
  (
    ('export', '--workdir=torn'),
    'the following arguments are required: --out',
  ),
  (
    ('export', '--workdir=folder', '--out=new'),
    'folder/config.json is not there; give the --workdir of a run that has '
    'begun',
  ),
  (
    ('export', '--workdir=torn', '--out=new'),
    'torn/config.json: not JSON: Expecting value: line 1 column 10 (char 9)',
  ),
  (
    ('export', '--workdir=other', '--out=new'),
    'other/config.json is not the config of a run: config has no section '
    "'algorithm'",
  ),
  (
    ('export', '--workdir=other', '--out=folder'),
    '--out=folder: must be a new or an empty folder',
  ),
  (
    ('export', '--workdir=other', '--out=new', '--step=last'),
    "argument --step: invalid int value: 'last'",
  ),
  (
    ('report', '--out=new'),
    'the following arguments are required: DIR',
  ),
  (
    ('report', 'folder', '--out=new'),
    'folder holds no metrics.jsonl: give the --workdir of a run that has '
    'taken a step',
  ),
  (
    ('report', 'report', '--out=new'),
    'report/metrics.jsonl:1: no step_s, which dash_jax writes',
  ),
  (
    ('rewards.selftest', 'gone', '--style=gsm8k', '--solution_field=answer'),
    "[Errno 2] No such file or directory: 'gone'",
  ),
  (
    ('rewards.selftest', 'file', '--style=gsm8k', '--solution_field=answer'),
    'file:1: not JSON (Expecting value at column 1); each line must be one '
    'JSON object',
  ),
  (
    ('rewards.selftest', 'file', '--style=gsm9k', '--solution_field=answer'),
    "argument --style: invalid choice: 'gsm9k' (choose from 'gsm8k', "
    "'boxed', 'last_number')",
  ),
]


# More of the environment, of a run of one process (the first) and of several.
BAD_ENVIRONMENT = [
  (
    {'JAX_PLATFORMS': 'abacus'},
    "JAX_PLATFORMS='abacus': jax finds no devices: ..",
  ),
  (
    {'COORDINATOR_ADDRESS': 'nowhere'},
    "COORDINATOR_ADDRESS='nowhere': must be a host and a port, as"
    ' localhost:1234',
  ),
  (
    {'COORDINATOR_ADDRESS': 'localhost:1', 'NUM_PROCESSES': '2'},
    "PROCESS_ID='' beside COORDINATOR_ADDRESS='localhost:1': must be a number",
  ),
  (
    {},
    'mesh.multi_host=True: .. No launcher that jax knows says which processes'
    ' there are: set COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID, or'
    ' mesh.multi_host=False',
  ),
]


@pytest.fixture(scope='module')
def commands(tmp_path_factory):
  """Returns what runs a command in a folder with FILES."""
  folder = tmp_path_factory.mktemp('commands')
  for name, text in FILES.items():
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  with forks.Commands() as started:
    yield lambda module, *argv, **more: started.run(
      f'dash_jax.{module}', *argv, folder=folder, **more
    )


def _match(output, error):
  before, _, line = output.strip().rpartition('\n')
  wanted = '.*'.join(re.escape(part) for part in error.split(' ..'))
  assert re.fullmatch(f'(dash_jax|python -m .*: error): {wanted}', line), output
  # What argparse says of the usage, and absl of a file without a config.
  assert not before or before.startswith(('usage: ', 'WARNING: ')), output


@pytest.mark.parametrize(('argv', 'error'), BAD)
def test_a_bad_command_line_is_answered_by_one_line(commands, argv, error):
  code, output = commands(*argv)
  assert code == 2, output
  _match(output, error)


@pytest.mark.parametrize(('env', 'error'), BAD_ENVIRONMENT)
def test_a_bad_environment_is_answered_by_one_line(commands, env, error):
  code, output = commands(
    'main',
    *TINY,
    f'--config.mesh.multi_host={"JAX_PLATFORMS" not in env}',
    env=env,
  )
  assert code == 2, output
  _match(output, error)
