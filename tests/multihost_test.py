"""Runs over several devices and processes that find each other over loopback, as
hosts would. They sample a step ahead. launch/local_test.py has a run of four
processes, which sample in turn."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import tiny_run

from dash_jax import commands
from dash_jax.model import hf_write, llama, tensors
from dash_jax.runs import jsonl, signals, watch

# One supervised step and three of RL, with checkpoints behind the first and the
# last.
OPTIONS = (
  'algorithm.sft_steps=1',
  'optim.sft_batch_size=4',
  'algorithm.num_samples=96',
  'algorithm.max_staleness=1',
  'algorithm.importance_cap=2.0',
  'checkpoint.every_samples=96',
  'data.too_long=drop',  # each process looks at its share, and none is left out
)
STALENESS = [None, 0, 1, 1]


def start_job(workdir, num_processes, num_devices, *options, **env):
  """Starts the processes of a run, each with some devices of its own."""
  address = f'localhost:{tiny_run.find_port()}'
  return [
    tiny_run.start(
      workdir,
      *OPTIONS,
      *options,
      f'mesh.multi_host={num_processes > 1}',
      JAX_NUM_CPU_DEVICES=str(num_devices),
      COORDINATOR_ADDRESS=address,
      NUM_PROCESSES=str(num_processes),
      PROCESS_ID=str(i),
      **env,
    )
    for i in range(num_processes)
  ]


def start_pair(script, folder):
  """Starts a script in two processes of one device, which get a port, their number
  and the folder."""
  port = str(tiny_run.find_port())
  return [
    subprocess.Popen(
      [sys.executable, '-c', script, port, process, folder],
      env=os.environ | {'JAX_NUM_CPU_DEVICES': '1'},
      stdout=subprocess.PIPE,
      text=True,
    )
    for process in '01'
  ]


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """The run of one process with one device."""
  workdir = tmp_path_factory.mktemp('alone')
  (process,) = start_job(workdir, 1, 1)
  code, output = tiny_run.finish(process)
  assert code == 0, output
  return workdir


@pytest.mark.parametrize(
  ('num_processes', 'num_devices', 'options'),
  [
    (1, 8, ('data=2', 'fsdp=2', 'tensor=2')),
    (2, 4, ('fsdp=2', 'tensor=2', 'sampler_devices=2')),
  ],
)
def test_any_mesh_takes_the_steps_of_one_device(
  alone, tmp_path, num_processes, num_devices, options
):
  """Rewards, losses, gradients and token counts agree, so each process took its
  share of the prompts and no more, and sampled ahead as far, at a pace of its own.
  Process 0 alone writes the run's files."""
  options = [f'mesh.{option}' for option in options]
  started = start_job(tmp_path, num_processes, num_devices, *options)
  for i, process in enumerate(started):
    code, output = tiny_run.finish(process)
    assert code == 0, output
    assert ('Curves:' in output) == (i == 0)
  assert read_staleness(tmp_path) == STALENESS
  for name, num_rows in (('metrics.jsonl', 4), ('evals.jsonl', 3)):
    one, several = (tiny_run.read_numbers(w, name) for w in (alone, tmp_path))
    assert len(one) == len(several) == num_rows
    for a, b in zip(one, several, strict=True):
      assert b == pytest.approx(a, abs=1e-5)
  # Each process keeps the rollouts of its own prompts, its share of the whole.
  step = 'rollouts/step_000002.jsonl'
  shares = [tmp_path]
  if num_processes > 1:
    shares = [tmp_path / f'host_{i}' for i in range(num_processes)]
  whole = list(jsonl.read(alone / step))
  found = [row for share in shares for row in jsonl.read(share / step)]
  assert len(whole) == len(found) == 32
  for key in ('uid', 'sample', 'completion', 'reward'):
    assert [row[key] for row in whole] == [row[key] for row in found]


def test_a_run_of_two_goes_on_alone_when_one_is_killed(alone, tmp_path):
  """Whoever is left names the one that is gone and the stage."""
  options = ('mesh.data=2', 'mesh.silent_s=4')
  pair = start_job(tmp_path, 2, 1, *options, SLOW='0.1')
  wait_for(pair, lambda: list(tmp_path.glob('checkpoints/[0-9]*')))
  pair[1].kill()
  code, output = tiny_run.finish(pair[0])
  tiny_run.finish(pair[1])
  assert code == watch.LOST, output
  assert re.search(
    r'dash_jax: process 1 of 2 \(.+\) has not been heard of for 4 s; it was at'
    r' \w+.*step \d\. The same command',
    output,
  ), output
  go_on_alone(alone, tmp_path, 8, 'data=2', 'fsdp=2', 'tensor=2')


def test_a_run_of_two_goes_on_alone_when_one_is_asked_to_stop(alone, tmp_path):
  """Both stop, with the rows that they have ahead. One process takes the shares of
  both."""
  pair = start_job(tmp_path, 2, 1, 'mesh.data=2', SLOW='0.3')
  wait_for(pair, lambda: read_staleness(tmp_path)[:2] == STALENESS[:2])
  pair[1].terminate()
  for process in pair:
    code, output = tiny_run.finish(process)
    assert code == signals.STOPPED, output
  (sums,) = tmp_path.glob('checkpoints/[23]/checksums/metadata')
  assert 'rows.0.' in sums.read_text()
  go_on_alone(alone, tmp_path)


def test_a_row_is_checked_by_the_process_whose_share_it_is_in(alone, tmp_path):
  """The second of three rows is process 1's; process 0 does not read it."""
  row = '{"question": "1 + %d =", "answer": %d, "solution": "2"}\n'
  rows = row % (1, 2) + row[:20] + '\n' + row % (2, 3)
  for split in ('train', 'test'):
    (tmp_path / f'{split}.jsonl').write_text(rows)
  pair = start_job(
    tmp_path / 'run',
    2,
    1,
    'mesh.data=2',
    'mesh.silent_s=4',
    'data.source=jsonl',
    f'data.path={tmp_path}/{{split}}.jsonl',
    'data.solution_field=solution',
    'data.num_train=0',
    'eval.num_questions=3',
    'data.tokenizer=sentencepiece',
    f'data.tokenizer_path={alone}/tokenizer.model',
  )
  for process in pair:
    code, output = tiny_run.finish(process)
    assert code == commands.BAD_INPUT, output
    assert re.search(
      r'process 1 of 2 \(.+\) failed at checking the questions: ValueError:'
      rf' {tmp_path}/train\.jsonl:2: not JSON',
      output,
    ), output


def wait_for(pair, is_there):
  deadline = time.monotonic() + 200
  while not is_there():
    assert pair[0].poll() is None
    assert time.monotonic() < deadline
    time.sleep(0.05)


def read_staleness(workdir):
  path = workdir / 'metrics.jsonl'
  rows = jsonl.read(path) if path.exists() else []
  return [row.get('staleness') for row in rows]


def go_on_alone(alone, workdir, num_devices=1, *mesh):
  """One process, with other devices, comes to the end that the run would have come
  to."""
  options = [f'mesh.{option}' for option in mesh]
  (process,) = start_job(workdir, 1, num_devices, *options)
  code, output = tiny_run.finish(process)
  assert code == 0, output
  for name in ('metrics.jsonl', 'evals.jsonl'):
    one, both = (tiny_run.read_numbers(w, name) for w in (alone, workdir))
    assert len(one) == len(both)
    for a, b in zip(one, both, strict=True):
      assert b == pytest.approx(a, abs=1e-5)


# Saves two steps, reads the newest where process 1 finds its part damaged, and
# prints what it goes on from.
READ_TORN = """
import sys
import jax, jax.numpy as jnp
port, process, folder = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))
import orbax.checkpoint as ocp
from jax.sharding import PartitionSpec
from dash_jax import batches, sharding
from dash_jax.runs import checkpoint

def make(step):
  w = jax.jit(lambda: jnp.full(8, step, jnp.float32), out_shardings=split)()
  one = jax.jit(lambda: (jnp.int32(step), jnp.float32(1)))()
  return batches.TrainState(
    step=one[0], params={'w': w}, opt_state=(), kl_scale=one[1]
  )

def describe(step):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    make(step),
  )

read = ocp.StandardCheckpointHandler.restore
def fail(self, directory, *args, **options):
  if process == '1' and directory.parent.name == '2':
    raise OSError('damaged')
  return read(self, directory, *args, **options)

with jax.set_mesh(sharding.make_mesh(1, 2, 1)) as mesh:
  split = jax.sharding.NamedSharding(jax.sharding.get_mesh(), PartitionSpec('fsdp'))
  with checkpoint.Checkpoints(folder, keep=2) as saved:
    for step in (1, 2):
      saved.save(step, make(step))
    saved.wait()
    ocp.StandardCheckpointHandler.restore = fail
    state, _ = saved.restore(describe)
    print('RESULT', int(state.step), saved.list_steps())
"""


def test_what_one_process_cannot_read_no_process_goes_on_from(tmp_path):
  started = start_pair(READ_TORN, tmp_path)
  try:
    for process in started:
      _, output = tiny_run.finish(process, 120)
      assert 'RESULT 1 [1]' in output, output
  finally:
    for process in started:
      process.kill()


# Loads the folder named in argv on a mesh over two processes, and prints how
# many elements of each tensor this process read.
LOAD = """
import json, sys
import jax, numpy as np
port, process, folder = sys.argv[1:]
jax.distributed.initialize(f'localhost:{port}', 2, int(process))
from dash_jax import sharding
from dash_jax.model import hf, tensors
config, num_read = hf.read_config(folder), {}

def wrap(tensor):
  def read(index):
    size = int(np.prod([at.stop - at.start for at in index]))
    num_read[tensor.name] = num_read.get(tensor.name, 0) + size
    return tensor.read(index)
  return tensors.Tensor(tensor.name, tensor.file, tensor.shape, read)

with jax.set_mesh(sharding.make_mesh(1, 2, 1)):
  found = {n: wrap(t) for n, t in hf.open_tensors(folder).items()}
  params = tensors.load(folder, config, found, np.float32)
  total = jax.jit(lambda p: jax.tree.map(lambda x: (x**2).sum(), p))(params)
  squares = sum(float(x) for x in jax.tree.leaves(total))
print('RESULT', json.dumps([num_read, squares]))
"""


def test_each_process_reads_of_a_checkpoint_what_it_holds(tmp_path):
  """Half of every tensor that is split over the two, and what it read makes
  the whole model: the sum of its squares is that of the files."""
  config = llama.LlamaConfig(
    vocab_size=8, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=2,
    head_dim=4, ffw_dim=8,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  made = {
    name: rng.normal(size=place.disk_shape).astype(np.float32)
    for name, place in tensors.list_places(config).items()
  }
  safetensors.numpy.save_file(made, tmp_path / 'model.safetensors')
  fields = hf_write.make_config(
    config, dtype='float32', max_len=8, bos_id=None, stop_ids=(0,)
  )
  (tmp_path / 'config.json').write_text(json.dumps(fields))
  started = start_pair(LOAD, tmp_path)
  squares = sum(float((x**2).sum()) for x in made.values())
  for process in started:
    _, output = tiny_run.finish(process)
    num_read, found = json.loads(output.split('RESULT')[1])
    assert found == pytest.approx(squares, rel=1e-5)
    for name, x in made.items():
      assert num_read[name] == (x.size if x.ndim == 1 else x.size // 2), name
