"""A run that is killed at random instants, again and again, is the run that never was:
the same lines, the same weights, none missing and none twice."""

import os
import random
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_run

from dash_jax.runs import checkpoint, jsonl

# Set it to 100 for a longer look.
NUM_KILLS = int(os.environ.get('KILLS', '10'))

# A supervised phase, rows ahead, a reference that moves; a checkpoint each second
# step and an evaluation each fourth.
OPTIONS = (
  'algorithm.sft_steps=2',
  'algorithm.num_samples=320',
  'algorithm.max_staleness=1',
  'algorithm.importance_cap=2.0',
  'algorithm.kl_coef=0.1',
  'algorithm.reference=ema',
  'algorithm.reference_decay=0.5',
  'optim.learning_rate=0.003',
  'eval.every_samples=128',
)
NUM_STEPS = 12


def read_state(workdir):
  with ocp.StandardCheckpointer() as reader:
    folder = workdir / 'checkpoints' / str(NUM_STEPS)
    return [reader.restore(folder / item) for item in ('params', 'rest')]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole')
  code, output = tiny_run.finish(tiny_run.start(workdir, *OPTIONS))
  assert code == 0, output
  return workdir


def test_no_kill_is_seen_in_what_a_run_leaves(whole, tmp_path):
  """Each process is killed at an instant of its own, in a step, a save, an
  evaluation or between, some as they begin or go on; the last goes on to
  the end. A run that is done begins anew in another folder."""
  rng = random.Random(0)
  num_killed, num_done, num_undone = 0, 0, 0
  while num_killed < NUM_KILLS or num_done == 0:
    workdir = tmp_path / str(num_done)
    last = num_killed >= NUM_KILLS
    # So slow that a run outlives some kills.
    slow = '0' if last else '0.03'
    process = tiny_run.start(workdir, *OPTIONS, SLOW=slow)
    if not last:
      num_killed += wait_and_kill(
        process, workdir, rng.uniform(0, 2.5), at_work=rng.random() < 0.8
      )
    code, output = tiny_run.finish(process)
    assert code in (0, -9), output
    if code == 0:
      compare(whole, workdir)
      num_done += 1
    else:
      saved = checkpoint.list_committed(workdir)
      num_undone += count_steps(workdir) > max(saved, default=0)
  assert num_killed == NUM_KILLS
  # Kills took steps away that were to be taken again.
  assert num_undone


def count_steps(workdir):
  path = workdir / 'metrics.jsonl'
  return path.read_bytes().count(b'\n') if path.exists() else 0


def wait_and_kill(process, workdir, delay_s, at_work):
  """Kills a process so long after its first step, or after it has opened its files;
  returns whether it was still there."""
  path = workdir / 'metrics.jsonl'
  before = path.stat().st_mtime_ns if path.exists() else 0
  least = count_steps(workdir)
  while process.poll() is None:
    time.sleep(0.02)
    # It cuts off what is done again, and is at work where steps grow from there.
    now = count_steps(workdir)
    least = min(least, now)
    if now > least or (
      not at_work and path.exists() and path.stat().st_mtime_ns != before
    ):
      break
  try:
    process.wait(delay_s)
  except subprocess.TimeoutExpired:
    process.kill()
    return True
  return False


def compare(whole, workdir):
  for name in ('metrics.jsonl', 'evals.jsonl'):
    assert tiny_run.read_numbers(workdir, name) == tiny_run.read_numbers(
      whole, name
    )
  steps = [row['step'] for row in jsonl.read(workdir / 'metrics.jsonl')]
  assert steps == list(range(1, NUM_STEPS + 1))
  jax.tree.map(
    np.testing.assert_array_equal, read_state(workdir), read_state(whole)
  )
  for path in (whole / 'rollouts').iterdir():
    assert path.read_text() == (workdir / 'rollouts' / path.name).read_text()
