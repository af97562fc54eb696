"""A whole run in seconds: the config of the tests that train, its reward, and
the process that runs it. The file itself is what --config names.
"""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).parent


def get_config():
  from dash_jax import config as config_lib
  from dash_jax.model import presets

  # Size only costs time here, and so few texts fill a small vocabulary.
  presets.PRESETS['quickstart'] = dataclasses.replace(
    presets.PRESETS['quickstart'],
    vocab_size=304,
    embed_dim=32,
    num_layers=1,
    num_heads=4,
    head_dim=8,
    ffw_dim=64,
  )
  config = config_lib.default()
  config.mesh.fsdp = 1
  config.data.source = 'addition'
  config.data.template = '{question}'
  config.data.num_train = 100
  config.data.max_prompt_len = 64
  config.algorithm.batch_size = 32
  config.sampling.max_completion_len = 6
  config.reward.function = 'tiny_run:count_bytes'
  config.algorithm.group_size = 4
  config.algorithm.num_samples = 128
  config.algorithm.sft_steps = 2
  config.optim.minibatch_size = 4
  config.optim.sft_batch_size = 2
  config.optim.sft_warmup_steps = 0
  config.eval.num_questions = 6
  config.eval.every_samples = 64
  config.checkpoint.every_samples = 64
  config.log.rollouts_every_samples = 32
  return config


def borrow(patched):
  """Returns `get_config()`; what it changes elsewhere ends with `patched`.

  Args:
    patched: a pytest.MonkeyPatch.
  """
  from dash_jax.model import presets

  patched.setitem(presets.PRESETS, 'quickstart', presets.PRESETS['quickstart'])
  patched.syspath_prepend(FOLDER)
  return get_config()


def share_samplers(patched, samplers):
  """Makes runs take samplers of the same sizes from `samplers`, a dict: for tests
  that vary no field which is part of their programs."""
  from dash_jax import assemble

  make = assemble.make_sampler

  def make_once(config, model, mesh, **sizes):
    # 'auto' finds the same anew.
    sizes.pop('batch_size', None)
    key = (model.config, mesh, *sizes.items())
    if key not in samplers:
      samplers[key] = make(config, model, mesh, **sizes)
    return samplers[key]

  patched.setattr(assemble, 'make_sampler', make_once)


def read_numbers(workdir, name):
  """Returns the rows of a file of a run without what depends on the clock."""
  from dash_jax.runs import jsonl

  return [
    {key: value for key, value in row.items() if not key.endswith('_s')}
    for row in jsonl.read(workdir / name)
  ]


def find_port():
  """Returns a port of this machine that nobody uses."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def count_bytes(completion, answer, truncated, style):
  """A reward that a model of noise earns, so that there is something to learn:
  1 for an even number of bytes. With SLOW=seconds it takes its time, and with
  SLOW=seconds@i in process i alone; while there is a file HOLD it does not end."""
  del answer, truncated, style
  while os.path.exists(os.environ.get('HOLD', '')):
    time.sleep(0.01)
  seconds, _, process = os.environ.get('SLOW', '0').partition('@')
  if process in ('', os.environ.get('PROCESS_ID')):
    time.sleep(float(seconds))
  return float(len(completion.encode()) % 2 == 0)


def start(
  workdir, *options, module='dash_jax.main', config=__file__, flags=(),
  stdin=None, launcher=(), **env,
):  # fmt: skip
  """Starts a command in a process of its own with one CPU device.

  Args:
    workdir: of the run, None for a command without.
    *options: of its config, as 'section.field=value'.
    module: the command.
    config: the file.
    flags: of the command.
    stdin: text that it reads.
    launcher: arguments of Python that start the command.
    **env: more of its environment.
  """
  path = os.pathsep.join([str(FOLDER), str(FOLDER.parent)])
  process = subprocess.Popen(
    [
      sys.executable,
      *launcher,
      '-m',
      module,
      f'--config={config}',
      *([f'--workdir={workdir}'] if workdir else []),
      *(f'--config.{option}' for option in options),
      *flags,
    ],
    env=os.environ | {'PYTHONPATH': path, 'JAX_NUM_CPU_DEVICES': '1'} | env,
    stdin=subprocess.PIPE if stdin is not None else None,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  if stdin is not None:
    process.stdin.write(stdin)
    process.stdin.flush()
  return process


def finish(process, timeout_s=300):
  """Returns the exit code and what the process printed."""
  try:
    output, _ = process.communicate(timeout=timeout_s)
  finally:
    process.kill()
  return process.returncode, output
