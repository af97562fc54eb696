"""GKE, Slurm and SkyPilot are asked for the right things, and what they run then
gets the words of the user. All shell scripts are clean."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from fakes import HOSTILE, LAUNCH, Fakes, read_commands

_MORE = ['--', '--config.optim.learning_rate=1e-6', HOSTILE]
_TRAIN = [
  *['-m', 'dash_jax.main', '--config=experiments/gsm8k.py'],
  '--workdir=/mnt/my runs/50% $HOME',
  '--config.mesh.multi_host=True',
  *_MORE[1:],
]
_RUN = ['--config=experiments/gsm8k.py', '--workdir=/mnt/my runs/50% $HOME']
_ROOT = str(LAUNCH.parent)

_FLAGS = {
  'gke.sh': [
    *['--name=my-run', '--cluster=my-cluster', '--zone=us-west4-a'],
    *['--project=my-project', '--type=v5litepod-16', *_RUN],
    '--secret=HF_TOKEN=hf-token',
  ],
  'slurm.sh': ['--nodes=2', '--gpus-per-node=8', '--time=1-0', *_RUN],
  'skypilot.sh': [
    *['--name=my-run', '--bucket=gs://my-bucket', '--gpus=H100:4', '--nodes=2'],
    *[*_RUN, '--secret=HF_TOKEN'],
  ],
}


@pytest.fixture
def cloud(tmp_path):
  """Each fake keeps the folder that it is called in."""
  pwd = 'pwd > "$FAKES/pwd"\n'
  return Fakes(
    tmp_path, xpk=pwd, sbatch=pwd, sky=pwd, mkdir='', pip='',
    python='exit "${CODE-0}"',
    # One task of the step, or the one that has most to say.
    srun='while [[ $1 == -* ]]; do shift; done; exec "$@"',
    scontrol='',
  )  # fmt: skip


def launch(cloud, script, *args):
  done = cloud.launch(script, *_FLAGS[script], *args, *_MORE, HF_TOKEN='value')
  assert done.returncode == 0, done.stderr
  return done


def test_gke_asks_xpk_for_a_workload(cloud):
  launch(cloud, 'gke.sh')
  (call,) = cloud.calls()
  assert call[:-1] == [
    *['xpk', 'workload', 'create', '--workload=my-run'],
    *['--cluster=my-cluster', '--zone=us-west4-a', '--project=my-project'],
    *['--tpu-type=v5litepod-16', '--base-docker-image=python:3.11'],
    *['--script-dir=.', '--max-restarts=100', '--restart-on-exit-codes=69,75'],
    '--termination-grace-period-seconds=600',
  ]
  # xpk writes the command into one line of a YAML block.
  assert call[-1].startswith('--command=')
  assert '\n' not in call[-1]
  assert (cloud.folder / 'pwd').read_text() == _ROOT + '\n'


def test_a_pod_of_gke_trains_with_the_words_it_was_given(cloud):
  """What Kubernetes and xpk's script make of the command."""
  launch(cloud, 'gke.sh')
  command = cloud.calls()[0][-1].removeprefix('--command=')
  script = f'({command.replace("$$", "$")}) & wait $!'
  env = {
    'PATH': f'{cloud.folder}/bin:/usr/bin:/bin',
    'FAKES': str(cloud.folder),
  }
  done = subprocess.run(
    ['bash', '-c', script],
    env=env | {'CODE': '75'},
    cwd=cloud.folder,
    check=False,
  )
  assert done.returncode == 75
  assert cloud.calls('pip', 'python') == [
    ['pip', 'install', '-q', '-e', '.[tpu,smollm2,hub]'],
    [
      *['python', 'launch/with_secrets.py'],
      'HF_TOKEN=projects/my-project/secrets/hf-token',
      *['--', 'python', *_TRAIN],
    ],
  ]
  assert not list(cloud.folder.rglob('gone'))


def test_slurm_asks_for_a_task_a_gpu_and_time_to_stop(cloud):
  launch(cloud, 'slurm.sh')
  folder, call = cloud.calls()
  assert folder == ['mkdir', '-p', '/mnt/my runs/50% $HOME']
  assert call == [
    *['sbatch', '--job-name=dash_jax', '--nodes=2', '--gpus-per-node=8'],
    *['--ntasks-per-node=8', '--time=1-0', '--signal=TERM@600', '--requeue'],
    *['--open-mode=append', '--output=/mnt/my runs/50%% $HOME/slurm-%j.log'],
    *['launch/slurm_job.sh', *_TRAIN[2:]],
  ]
  assert (cloud.folder / 'pwd').read_text() == _ROOT + '\n'


@pytest.mark.parametrize('code', [0, 1, 69, 75])
def test_a_job_of_slurm_goes_back_to_the_queue_to_go_on(cloud, code):
  """If it was stopped or lost a task, and only then."""
  done = cloud.launch(
    'slurm_job.sh', *_TRAIN[2:], CODE=str(code), SLURM_JOB_ID='17'
  )
  assert done.returncode == code
  step = ['srun', '--kill-on-bad-exit=0', '--wait=300', '--label']
  train = ['python', '-u', *_TRAIN]
  requeue = [['scontrol', 'requeue', '17']] if code in (69, 75) else []
  assert cloud.calls() == [step + train, train, *requeue]


def test_skypilot_asks_for_a_managed_job(cloud):
  """A secret goes by the name of a variable."""
  launch(cloud, 'skypilot.sh')
  (call,) = cloud.calls()
  flags = call.pop(call.index('BUCKET=gs://my-bucket') + 2)
  assert call == [
    *['sky', 'jobs', 'launch', '--yes', '--name', 'my-run'],
    *['--gpus', 'H100:4', '--num-nodes', '2', '--env', 'BUCKET=gs://my-bucket'],
    *['--env', '--secret', 'HF_TOKEN', 'launch/skypilot.yaml'],
  ]
  assert flags.startswith('FLAGS=')
  assert (cloud.folder / 'pwd').read_text() == _ROOT + '\n'


def test_a_node_of_skypilot_trains_with_the_words_it_was_given(cloud):
  """By the job's own script, as a part of a job of two."""
  launch(cloud, 'skypilot.sh')
  (flags,) = (w for w in cloud.calls()[0] if w.startswith('FLAGS='))
  job = yaml.safe_load((LAUNCH / 'skypilot.yaml').read_text())
  assert job['resources']['job_recovery'] == {'recover_on_exit_codes': [69, 75]}
  cloud.add(
    'dash_jax_venv/bin/python',
    'echo "$COORDINATOR_ADDRESS $NUM_PROCESSES $PROCESS_ID"; exit 75',
  )
  done = subprocess.run(
    ['bash', '-c', job['run']],
    env={
      'PATH': '/usr/bin:/bin',
      'FAKES': str(cloud.folder),
      'HOME': str(cloud.folder),
      'FLAGS': flags.removeprefix('FLAGS='),
      'SKYPILOT_NODE_IPS': '10.0.0.1\n10.0.0.2',
      'SKYPILOT_NUM_NODES': '2',
      'SKYPILOT_NODE_RANK': '1',
    },
    cwd=cloud.folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (75, '10.0.0.1:8476 2 1\n')
  assert cloud.calls('python') == [['python', '-u', *_TRAIN]]
  assert not list(cloud.folder.rglob('gone'))


@pytest.mark.parametrize('script', _FLAGS)
def test_dry_run_prints_the_calls_and_makes_none(cloud, script):
  """The printed lines, read by a shell, are the calls of the real thing; the
  environment's token is in neither."""
  rehearsal = launch(cloud, script, '--dry-run')
  assert cloud.calls() == []
  real = launch(cloud, script)
  assert read_commands(rehearsal.stdout) == cloud.calls()
  assert 'value' not in real.stdout + str(cloud.calls())


@pytest.mark.parametrize(
  ('script', 'message'),
  [
    ('gke.sh', 'xpk is not on PATH'),
    ('slurm.sh', 'sbatch is not on PATH'),
    ('skypilot.sh', 'sky is not on PATH'),
  ],
)
def test_a_missing_program_is_named(cloud, tmp_path, script, message):
  bare = tmp_path / 'bare'
  bare.mkdir()
  (bare / 'dirname').symlink_to(shutil.which('dirname'))
  done = cloud.launch(script, *_FLAGS[script], path=str(bare), HF_TOKEN='value')
  assert done.returncode == 2
  assert message in done.stderr


@pytest.mark.parametrize(
  ('script', 'args', 'message'),
  [
    ('gke.sh', (), 'needs --name --cluster --zone --project --type --config'),
    ('gke.sh', ('--workdir=w',), '--workdir=w must be an absolute path'),
    ('gke.sh', ('--secret=hf_value',), '--secret must be VARIABLE=SECRET'),
    ('slurm.sh', (), 'needs --nodes --gpus-per-node --config --workdir'),
    ('slurm.sh', ('--secret=HF_TOKEN',), '--secret is no flag here'),
    ('skypilot.sh', (), 'needs --name --bucket --config --workdir'),
    ('skypilot.sh', ('--secret=A=hf_value',), '--secret must be the name of'),
    (
      'skypilot.sh',
      ('--secret=GONE',),
      '--secret=GONE: the environment has no',
    ),
  ],
)
def test_bad_flags_are_named_and_nothing_runs(cloud, script, args, message):
  """A value that was given as a secret is not repeated."""
  flags = _FLAGS[script] if args else []
  done = cloud.launch(script, *flags, *args, HF_TOKEN='value')
  assert done.returncode == 2
  assert message in done.stderr
  assert 'hf_value' not in done.stderr
  assert cloud.calls() == []


def test_shell_scripts_are_clean():
  path = os.pathsep.join([os.path.dirname(sys.executable), os.environ['PATH']])
  shellcheck = shutil.which('shellcheck', path=path)
  assert shellcheck, "pip install -e '.[dev]' brings it"
  scripts = [*sorted(LAUNCH.glob('*.sh')), LAUNCH.parent / '.ci/run']
  done = subprocess.run(
    [shellcheck, '--external-sources', *scripts],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
