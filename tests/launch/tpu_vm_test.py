"""The launcher sends the right words to gcloud, and from there to the workers.

A fake gcloud logs what it was called with, and runs an ssh command in a folder
that stands for a worker's home, where git, uv and Python are fakes as well.
"""

import pathlib
import shlex
import shutil
import subprocess

import pytest

_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'tpu_vm.sh'
_BASH = shutil.which('bash')

_FLAGS = {
  'name': 'my-tpu',
  'zone': 'us-west4-a',
  'project': 'my project',
  'type': 'v5litepod-16',
  'version': 'v2-alpha-tpuv5-lite',
  'repo': 'https://example.com/my repo.git',
  'branch': "it's new",
  'config': 'experiments/gsm8k.py',
  'workdir': '/mnt/my runs/$HOME',
}
_WHERE = ['--zone=us-west4-a', '--project=my project', '--quiet']

# One line per call: the program's name and its words, each ended by a NUL.
_FAKE = """#!/bin/bash
{ printf '%s\\0' "${0##*/}" "$@"; echo; } >> "$FAKE_LOG"
"""
_FAKE_GCLOUD = (
  _FAKE
  + """
if [[ " $* " == *"$FAKE_FAILS"* ]]; then exit 3; fi
for word in "$@"; do
  if [[ $word == --command=* ]]; then
    HOME=$FAKE_HOME exec bash -c "${word#--command=}"
  fi
done
"""
)


def _write_fake(path, text=_FAKE):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


class _Cloud:
  """A folder with the fakes, and what was called so far."""

  def __init__(self, folder):
    self.home = folder / 'worker home'
    self.log = folder / 'log'
    self.log.touch()
    self._bin = folder / 'bin'
    _write_fake(self._bin / 'gcloud', _FAKE_GCLOUD)
    _write_fake(self._bin / 'git')
    _write_fake(self.home / '.local/bin/uv')
    _write_fake(self.home / 'dash_jax/.venv/bin/python')

  def launch(self, *args, fails='nothing', path=None, **environment):
    """Runs the script; returns the finished process."""
    path = f'{self._bin}:/usr/bin:/bin' if path is None else path
    return subprocess.run(
      [_BASH, str(_SCRIPT), *args],
      env={
        'PATH': path,
        'FAKE_LOG': str(self.log),
        'FAKE_HOME': str(self.home),
        'FAKE_FAILS': fails,
        **environment,
      },
      cwd=self._bin.parent,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      text=True,
      timeout=30,
      check=False,
    )

  def calls(self, program):
    """Returns the words of each call of `program`, in order."""
    calls = [line.split('\0')[:-1] for line in self.log.read_text().split('\n')]
    return [call[1:] for call in calls if call and call[0] == program]


@pytest.fixture
def cloud(tmp_path):
  return _Cloud(tmp_path)


def _words(*names):
  return [f'--{name}={_FLAGS[name]}' for name in names]


def test_create_asks_for_the_type_and_the_runtime(cloud):
  done = cloud.launch(
    'create', *_words('name', 'zone', 'project', 'type', 'version')
  )
  assert done.returncode == 0, done.stderr
  assert cloud.calls('gcloud') == [
    [
      *['compute', 'tpus', 'tpu-vm', 'create', 'my-tpu', *_WHERE],
      '--accelerator-type=v5litepod-16',
      '--version=v2-alpha-tpuv5-lite',
    ]
  ]


def test_setup_fetches_the_branch_and_installs_on_all_workers(cloud):
  """Spaces and quotes in names arrive at git as one word each."""
  done = cloud.launch(
    'setup', *_words('name', 'zone', 'project', 'repo', 'branch')
  )
  assert done.returncode == 0, done.stderr
  (call,) = cloud.calls('gcloud')
  assert call[:-1] == [
    *['compute', 'tpus', 'tpu-vm', 'ssh', 'my-tpu', *_WHERE],
    '--worker=all',
  ]
  assert cloud.calls('git') == [
    ['-C', 'dash_jax', 'fetch', _FLAGS['repo'], _FLAGS['branch']],
    ['-C', 'dash_jax', 'checkout', '-q', '--detach', 'FETCH_HEAD'],
  ]
  assert cloud.calls('uv') == [
    [
      *['pip', 'install', '--python=dash_jax/.venv/bin/python'],
      '--editable=./dash_jax[tpu,smollm2]',
    ]
  ]


def test_setup_of_a_new_worker_makes_its_folders(cloud):
  """What the second setup leaves alone, the first one makes."""
  shutil.rmtree(cloud.home / 'dash_jax')
  done = cloud.launch('setup', *_words('name', 'zone', 'project', 'repo'))
  assert done.returncode == 0, done.stderr
  git = cloud.calls('git')
  assert git[0] == ['init', '-q', 'dash_jax']
  assert git[1] == ['-C', 'dash_jax', 'fetch', _FLAGS['repo'], 'main']
  assert cloud.calls('uv')[0] == [
    'venv',
    '--python=3.11',
    'dash_jax/.venv',
  ]


def test_run_starts_training_with_the_words_it_was_given(cloud):
  """No word is split, and no '$' is replaced, on its way to the worker."""
  done = cloud.launch(
    'run',
    *_words('name', 'zone', 'project', 'config', 'workdir'),
    '--',
    '--config.optim.learning_rate=1e-6',
    '--config.data.path=/a b/*',
  )
  assert done.returncode == 0, done.stderr
  assert cloud.calls('python') == [
    [
      *['-m', 'dash_jax.main', '--config=experiments/gsm8k.py'],
      '--workdir=/mnt/my runs/$HOME',
      '--config.mesh.multi_host=True',
      '--config.optim.learning_rate=1e-6',
      '--config.data.path=/a b/*',
    ]
  ]
  (call,) = cloud.calls('gcloud')
  assert '--worker=all' in call


def test_delete_asks_no_question(cloud):
  done = cloud.launch('delete', *_words('name', 'zone', 'project'))
  assert done.returncode == 0, done.stderr
  assert cloud.calls('gcloud') == [
    ['compute', 'tpus', 'tpu-vm', 'delete', 'my-tpu', *_WHERE]
  ]


def test_dry_run_prints_what_all_would_run_and_runs_nothing(cloud):
  """The printed lines, read by a shell, are the calls of the real thing."""
  rehearsal = cloud.launch('all', *_words(*_FLAGS), '--dry-run')
  assert rehearsal.returncode == 0, rehearsal.stderr
  assert cloud.log.read_text() == ''
  done = cloud.launch('all', *_words(*_FLAGS))
  assert done.returncode == 0, done.stderr
  calls = cloud.calls('gcloud')
  assert [call[3] for call in calls] == ['create', 'ssh', 'ssh', 'delete']
  printed = [shlex.split(line) for line in rehearsal.stdout.splitlines()]
  assert printed == [['gcloud', *call] for call in calls]


def test_dry_run_needs_no_gcloud_and_a_real_run_says_so(cloud):
  flags = _words('name', 'zone', 'project')
  assert cloud.launch('delete', *flags, '--dry-run', path='').returncode == 0
  done = cloud.launch('delete', *flags, path='')
  assert done.returncode == 2
  assert 'gcloud is not on PATH' in done.stderr


def test_a_failed_run_keeps_the_machine_and_says_so(cloud):
  """Deleting it would lose what could be looked at or gone on with."""
  done = cloud.launch('all', *_words(*_FLAGS), fails='dash_jax.main')
  assert done.returncode == 3
  assert 'my-tpu may still run and cost money' in done.stderr
  assert [call[3] for call in cloud.calls('gcloud')] == ['create', 'ssh', 'ssh']


def test_the_environment_may_name_the_machine(cloud):
  done = cloud.launch(
    'delete',
    '--name=other',
    TPU_NAME='my-tpu',
    TPU_ZONE='z',
    TPU_PROJECT='p',
  )
  assert done.returncode == 0, done.stderr
  assert cloud.calls('gcloud') == [
    [
      *['compute', 'tpus', 'tpu-vm', 'delete', 'other'],
      *['--zone=z', '--project=p', '--quiet'],
    ]
  ]


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['create', '--zone=z'], 'create needs --name --project --type --version'),
    (['setup', *_words('name', 'zone', 'project')], 'setup needs --repo'),
    (
      ['run', *_words('name', 'zone', 'project')],
      'run needs --config --workdir',
    ),
    (['delete'], 'delete needs --name --zone --project'),
    (['all'], 'all needs --name --zone --project --type --version --repo '),
    (['start'], "'start' is no command; valid: create, setup, run, delete"),
    ([], "'' is no command"),
    (['delete', '--nmae=x'], "'--nmae=x' is no flag"),
    (
      [
        'run',
        *_words('name', 'zone', 'project', 'config'),
        '--workdir=gs://bucket/run',
      ],
      '--workdir=gs://bucket/run must be an absolute path',
    ),
  ],
)
def test_bad_flags_are_named_and_nothing_runs(cloud, args, message):
  done = cloud.launch(*args)
  assert done.returncode == 2
  assert message in done.stderr
  assert cloud.log.read_text() == ''
