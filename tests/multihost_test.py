"""Two processes that find each other over loopback, as two hosts would."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
import tiny_run

from dash_jax.model import hf_write, llama, tensors
from dash_jax.runs import jsonl

OPTIONS = (
  'mesh.fsdp=4', 'algorithm.sft_steps=1', 'algorithm.num_samples=64',
)  # fmt: skip
DEVICES = '--xla_force_host_platform_device_count='


def find_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return free.getsockname()[1]


def read_numbers(workdir, name):
  """Returns the rows of a file without what depends on the clock."""
  return [
    {
      k: v
      for k, v in row.items()
      if not k.endswith('_s') and k not in ('compiles', 'phase', 'split')
    }
    for row in jsonl.read(workdir / name)
  ]


def test_two_processes_take_the_steps_of_one(tmp_path):
  """The same mesh of four devices, in one process and two by two: rewards,
  losses, gradients and token counts agree, so each process took its share of
  the prompts and no more. Process 0 alone writes the run's files."""
  alone, together = tmp_path / 'alone', tmp_path / 'together'
  address = f'localhost:{find_port()}'
  started = [
    tiny_run.start(alone, *OPTIONS, XLA_FLAGS=DEVICES + '4'),
    *(
      tiny_run.start(
        together,
        *OPTIONS,
        'mesh.multi_host=True',
        XLA_FLAGS=DEVICES + '2',
        COORDINATOR_ADDRESS=address,
        NUM_PROCESSES='2',
        PROCESS_ID=str(i),
      )
      for i in range(2)
    ),
  ]
  results = [tiny_run.finish(process) for process in started]
  for code, output in results:
    assert code == 0, output
  assert 'Curves:' in results[1][1]
  assert 'Curves:' not in results[2][1]
  for name, num_rows in (('metrics.jsonl', 3), ('evals.jsonl', 2)):
    one, two = (read_numbers(w, name) for w in (alone, together))
    assert len(one) == len(two) == num_rows
    for a, b in zip(one, two, strict=True):
      assert b == pytest.approx(a, abs=1e-5)
  # Each process keeps the rollouts of its own prompts, half of the whole.
  step = 'rollouts/step_000002.jsonl'
  whole = list(jsonl.read(alone / step))
  shares = [list(jsonl.read(together / f'host_{i}' / step)) for i in (0, 1)]
  uids = [[row['uid'] for row in rows] for rows in (whole, *shares)]
  assert uids[0] == uids[1] + uids[2]
  texts = [[row['completion'] for row in rows] for rows in (whole, *shares)]
  assert texts[0] == texts[1] + texts[2]


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
  port = find_port()
  env = os.environ | {'XLA_FLAGS': DEVICES + '1'}
  started = [
    subprocess.Popen(
      [sys.executable, '-c', LOAD, str(port), str(i), tmp_path],
      env=env,
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  squares = sum(float((x**2).sum()) for x in made.values())
  for process in started:
    _, output = tiny_run.finish(process)
    num_read, found = json.loads(output.split('RESULT')[1])
    assert found == pytest.approx(squares, rel=1e-5)
    for name, x in made.items():
      assert num_read[name] == (x.size if x.ndim == 1 else x.size // 2), name
