"""The launcher sends the right words to gcloud, and from there to the workers.

A fake gcloud runs an ssh command in a folder that stands for a worker's home, with
this project's own script for workers and a fake Python.
"""

import shutil

import pytest
from fakes import HOSTILE, LAUNCH, Fakes, read_commands

_FLAGS = {
  'name': 'my-tpu',
  'zone': 'us-west4-a',
  'project': 'my project',
  'type': 'v5litepod-16',
  'version': 'v2-alpha-tpuv5-lite',
  'repo': 'https://example.com/my repo.git',
  'branch': "it's new",
  'bucket': 'my-bucket',
  'config': 'experiments/gsm8k.py',
  'workdir': '/mnt/my-bucket/$HOME x',
}
_WHERE = ['--zone=us-west4-a', '--project=my project', '--quiet']
_QUEUED = ['gcloud', 'compute', 'tpus', 'queued-resources']
_CREATE = [
  *[*_QUEUED, 'create', 'my-tpu', '--node-id=my-tpu'],
  '--accelerator-type=v5litepod-16',
  '--runtime-version=v2-alpha-tpuv5-lite',
  *_WHERE,
]
_DELETE = [*_QUEUED, 'delete', 'my-tpu', '--force', *_WHERE]
_TRAIN = [
  *['python', '-m', 'dash_jax.main', '--config=experiments/gsm8k.py'],
  '--workdir=/mnt/my-bucket/$HOME x',
  '--config.mesh.multi_host=True',
]

# `state` holds a word for each time that it is asked, `code` likewise one for each
# time that training ends; the last one stays.
_NEXT = """
next() {
  head -n 1 "$FAKES/$1"
  if (($(wc -l < "$FAKES/$1") > 1)); then sed -i 1d "$FAKES/$1"; fi
}
"""
_GCLOUD = (
  _NEXT
  + """
if [[ " $* " == *"$FAILS"* ]]; then exit 3; fi
if [[ $4 == describe ]]; then next state; fi
for word in "$@"; do
  if [[ $word == --command=* ]]; then
    cd "$FAKES/worker home" || exit
    HOME=$PWD exec bash -c "${word#--command=}"
  fi
done
"""
)
_PYTHON = _NEXT + 'echo trained; exit "$(next code)"\n'


@pytest.fixture
def cloud(tmp_path):
  """Fakes whose worker was set up before."""
  cloud = Fakes(tmp_path, gcloud=_GCLOUD, git='', sleep='/bin/sleep 0.01')
  home = cloud.folder / 'worker home'
  cloud.add('worker home/.local/bin/uv')
  cloud.add('worker home/dash_jax/.venv/bin/python', _PYTHON)
  (home / 'dash_jax/launch').mkdir()
  shutil.copy(LAUNCH / 'tpu_worker.sh', home / 'dash_jax/launch')
  (home / 'dash_jax/launch/with_secrets.py').touch()
  cloud.add('bin/mountpoint')
  set_words(cloud, 'state', 'ACTIVE')
  set_words(cloud, 'code', 0)
  return cloud


def set_words(cloud, name, *words):
  (cloud.folder / name).write_text(''.join(f'{word}\n' for word in words))


def launch(cloud, *args, fails='nothing', **options):
  return cloud.launch('tpu_vm.sh', *args, FAILS=fails, **options)


def words(*names):
  return [f'--{name}={_FLAGS[name]}' for name in names]


def list_kinds(cloud):
  """Returns what was asked of gcloud in order, states apart."""
  kinds = []
  for call in cloud.calls('gcloud'):
    kind = call[4]
    if kind == 'ssh':
      kind = 'setup' if 'tpu_worker.sh setup' in call[-1] else 'run'
    if kind != 'describe':
      kinds.append(kind)
  return kinds


def test_create_asks_for_a_queued_resource_and_waits_for_it(cloud):
  """A question that is not answered ends no wait of hours."""
  set_words(
    cloud, 'state', 'ACCEPTED', 'WAITING_FOR_RESOURCES', 'ABSENT', 'ACTIVE'
  )
  flags = words('name', 'zone', 'project', 'type', 'version')
  done = launch(cloud, 'create', *flags, '--capacity=spot')
  assert done.returncode == 0, done.stderr
  create, *asked = cloud.calls('gcloud')
  assert create == _CREATE[:-3] + ['--spot'] + _WHERE
  assert [call[4] for call in asked] == ['describe'] * 4
  assert asked[0][5:] == ['my-tpu', *_WHERE[:2], '--format=value(state.state)']
  assert cloud.calls('sleep') == [['sleep', '30']] * 3


def test_create_ends_when_there_will_be_no_machine(cloud):
  set_words(cloud, 'state', 'ACCEPTED', 'FAILED')
  flags = words('name', 'zone', 'project', 'type', 'version')
  done = launch(cloud, 'create', *flags)
  assert done.returncode == 1
  assert 'my-tpu will not be there' in done.stderr


def test_setup_fetches_the_branch_and_installs_on_all_workers(cloud):
  """Spaces and quotes in names arrive at git as one word each."""
  done = launch(
    cloud, 'setup', *words('name', 'zone', 'project', 'repo', 'branch')
  )
  assert done.returncode == 0, done.stderr
  (call,) = cloud.calls('gcloud')
  assert call[:-1] == [
    *['gcloud', 'compute', 'tpus', 'tpu-vm', 'ssh', 'my-tpu', *_WHERE],
    '--worker=all',
  ]
  assert cloud.calls('git') == [
    ['git', '-C', 'dash_jax', 'fetch', _FLAGS['repo'], _FLAGS['branch']],
    ['git', '-C', 'dash_jax', 'checkout', '-q', '--detach', 'FETCH_HEAD'],
  ]
  assert cloud.calls('uv') == [
    [
      *['uv', 'pip', 'install', '--python=.venv/bin/python'],
      '--editable=.[tpu,smollm2,hub]',
    ]
  ]


def test_run_starts_training_with_the_words_it_was_given(cloud):
  """No word is split or read by a shell on its way to the worker."""
  done = launch(
    cloud,
    'run',
    *words('name', 'zone', 'project', 'config', 'workdir'),
    '--',
    '--config.optim.learning_rate=1e-6',
    HOSTILE,
  )
  assert done.returncode == 0, done.stderr
  assert cloud.calls('python') == [
    [*_TRAIN, '--config.optim.learning_rate=1e-6', HOSTILE]
  ]
  assert '] trained\n' in done.stdout
  assert not list(cloud.folder.rglob('gone'))


def test_secrets_go_by_name(cloud):
  """The environment's token is on no command line, and not printed."""
  flags = words('name', 'zone', 'project', 'config', 'workdir')
  secrets = ['--secret=HF_TOKEN=hf-token', '--secret=MY_KEY=key']
  done = launch(cloud, 'run', *flags, *secrets, HF_TOKEN='hf_value')
  assert done.returncode == 0, done.stderr
  names = [
    'HF_TOKEN=projects/my project/secrets/hf-token',
    'MY_KEY=projects/my project/secrets/key',
  ]
  assert cloud.calls('python') == [
    ['python', 'launch/with_secrets.py', *names, '--', '.venv/bin/python']
    + _TRAIN[1:]
  ]
  assert 'hf_value' not in str(cloud.calls()) + done.stdout + done.stderr


@pytest.mark.parametrize('code', [1, 75])
def test_run_and_logs_exit_with_the_code_of_training(cloud, code):
  """75 says that the same command goes on."""
  set_words(cloud, 'code', code)
  flags = words('name', 'zone', 'project')
  done = launch(cloud, 'run', *flags, *words('config', 'workdir'))
  assert done.returncode == code
  done = launch(cloud, 'logs', *flags)
  assert done.returncode == code
  assert '] trained\n' in done.stdout


def test_stop_is_well_when_training_was_stopped(cloud):
  flags = words('name', 'zone', 'project')
  set_words(cloud, 'code', 75)
  launch(cloud, 'run', *flags, *words('config', 'workdir'))
  assert launch(cloud, 'stop', *flags).returncode == 0


def test_delete_asks_no_question(cloud):
  done = launch(cloud, 'delete', *words('name', 'zone', 'project'))
  assert done.returncode == 0, done.stderr
  assert cloud.calls('gcloud') == [_DELETE]


@pytest.mark.parametrize(
  ('states', 'codes', 'kinds', 'code'),
  [
    # There is one, and it is set up again in case it was not.
    (['ACTIVE'], [0], ['setup', 'run'], 0),
    (['PROVISIONING', 'ACTIVE'], [0], ['setup', 'run'], 0),
    # Preempted, before or while it runs.
    (
      ['SUSPENDED', 'ACTIVE'], [0],
      ['delete', 'create', 'setup', 'run'], 0,
    ),
    (
      ['ACTIVE', 'SUSPENDING', 'SUSPENDED', 'ACTIVE'], [75, 0],
      ['setup', 'run', 'delete', 'create', 'setup', 'run'], 0,
    ),
    (
      ['ACTIVE', 'SUSPENDED', 'SUSPENDED', 'ACTIVE'], [134, 0],
      ['setup', 'run', 'delete', 'create', 'setup', 'run'], 0,
    ),
    # Stopped or lost from sight on a machine that is still there.
    (['ACTIVE'], [75, 255, 0], ['setup', 'run', 'run', 'run'], 0),
    # A worker was lost; what is lost again and again has failed.
    (['ACTIVE'], [69, 69, 75, 69, 0], ['setup'] + ['run'] * 5, 0),
    (['ACTIVE'], [69], ['setup'] + ['run'] * 3, 69),
    # Failed.
    (['ACTIVE'], [1], ['setup', 'run'], 1),
    (['ACTIVE'], [2], ['setup', 'run'], 2),
    # A machine that is gone makes bad input no better.
    (['ACTIVE', 'SUSPENDED', 'ACTIVE'], [2], ['setup', 'run'], 2),
  ],
)  # fmt: skip
def test_resume_makes_what_is_missing_and_goes_on(
  cloud, states, codes, kinds, code
):
  set_words(cloud, 'state', *states)
  set_words(cloud, 'code', *codes)
  done = launch(cloud, 'resume', *words(*_FLAGS))
  assert done.returncode == code, done.stderr
  assert list_kinds(cloud) == kinds
  assert 'my-tpu may still run and cost money' in done.stderr


def test_all_makes_trains_and_deletes(cloud):
  """One that was never made cannot be described."""
  set_words(cloud, 'state', 'ABSENT', 'ACTIVE')
  done = launch(cloud, 'all', *words(*_FLAGS))
  assert done.returncode == 0, done.stderr
  assert list_kinds(cloud) == ['create', 'setup', 'run', 'delete']
  assert 'cost money' not in done.stderr


def test_a_failed_run_keeps_the_machine_and_says_so(cloud):
  """Deleting it would lose what could be looked at or gone on with."""
  set_words(cloud, 'code', 1)
  done = launch(cloud, 'all', *words(*_FLAGS))
  assert done.returncode == 1
  assert 'my-tpu may still run and cost money' in done.stderr
  assert list_kinds(cloud) == ['setup', 'run']


def test_dry_run_prints_what_all_would_run_and_runs_nothing(cloud):
  """The printed lines, read by a shell, are the calls of the real thing."""
  args = ['all', *words(*_FLAGS), '--secret=HF_TOKEN=hf-token']
  rehearsal = launch(cloud, *args, '--dry-run', '--', HOSTILE)
  assert rehearsal.returncode == 0, rehearsal.stderr
  assert cloud.calls() == []
  set_words(cloud, 'state', 'ABSENT', 'ACTIVE')
  done = launch(cloud, *args, '--', HOSTILE)
  assert done.returncode == 0, done.stderr
  calls = [call for call in cloud.calls('gcloud') if call[4] != 'describe']
  assert read_commands(rehearsal.stdout) == calls


def test_dry_run_needs_no_gcloud_and_a_real_run_says_so(cloud):
  flags = words('name', 'zone', 'project')
  bare = cloud.folder / 'bare'
  bare.mkdir()
  (bare / 'dirname').symlink_to(shutil.which('dirname'))
  done = launch(cloud, 'delete', *flags, '--dry-run', path=str(bare))
  assert done.returncode == 0, done.stderr
  done = launch(cloud, 'delete', *flags, path=str(bare))
  assert done.returncode == 2
  assert 'gcloud is not on PATH' in done.stderr


def test_what_gcloud_refuses_ends_the_launch(cloud):
  done = launch(cloud, 'all', *words(*_FLAGS), fails=' ssh ')
  assert done.returncode == 3
  assert 'my-tpu may still run and cost money' in done.stderr


def test_the_environment_may_name_the_machine(cloud):
  done = launch(
    cloud,
    'delete',
    '--name=other',
    TPU_NAME='my-tpu',
    TPU_ZONE='z',
    TPU_PROJECT='p',
  )
  assert done.returncode == 0, done.stderr
  assert cloud.calls('gcloud') == [
    [*_QUEUED, 'delete', 'other', '--force']
    + ['--zone=z', '--project=p', '--quiet']
  ]


_PLACE = words('name', 'zone', 'project')


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['create', '--zone=z'], 'needs --name --project --type --version'),
    (['setup', *_PLACE], 'needs --repo'),
    (['run', *_PLACE], 'needs --config --workdir'),
    (['delete'], 'needs --name --zone --project'),
    (['all'], 'needs --name --zone --project --type --version --repo '),
    (['start'], "'start' is no command; valid: create, setup, run, logs"),
    ([], "'' is no command"),
    (['delete', '--nmae=x'], '--nmae is no flag here; valid: name zone'),
    (['delete', '--repo=x'], '--repo is no flag here'),
    (['delete', '--name zone=x'], '--name zone is no flag here'),
    (['delete', 'my-tpu'], "'my-tpu' is no flag"),
    (
      ['create', *_PLACE, *words('type', 'version'), '--capacity=cheap'],
      '--capacity=cheap must be spot, reserved or guaranteed',
    ),
    (
      ['setup', *_PLACE, '--repo=r', '--bucket=gs://b'],
      '--bucket=gs://b must be the name of a bucket',
    ),
    (
      ['run', *_PLACE, '--config=c', '--workdir=gs://bucket/run'],
      '--workdir=gs://bucket/run must be an absolute path',
    ),
    (
      ['run', *_PLACE, '--config=c', '--workdir=/w', '--secret=HF_TOKEN'],
      '--secret must be VARIABLE=SECRET, with the name of a secret',
    ),
  ],
)
def test_bad_flags_are_named_and_nothing_runs(cloud, args, message):
  done = launch(cloud, *args)
  assert done.returncode == 2
  assert message in done.stderr
  assert cloud.calls() == []
