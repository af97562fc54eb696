"""Two processes that find each other over loopback, as two hosts would."""

import socket

import pytest
import tiny_run

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
