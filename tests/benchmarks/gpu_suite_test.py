"""The GPU suite's logic, on CPU."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dash_jax.model import cache
from experiments.benchmarks import gpu_checks, gpu_parts, gpu_suite, gpu_timings

ROOT = pathlib.Path(__file__).parents[2]
_GIB = 2**30

# Python runs this before any module of a program.
GUARD = """
import builtins, sys
allowed = {'jax', 'flax', 'optax', 'orbax', 'numpy', 'dash_jax', 'experiments'}
ours = ('dash_jax', 'experiments', '__main__')
plain = builtins.__import__
def guarded(name, globals=None, *rest, **named):
  top = name.split('.')[0]
  importer = (globals or {}).get('__name__', '').split('.')[0]
  if importer in ours and top not in allowed | set(sys.stdlib_module_names):
    raise ImportError(f'{top} is not in a bare image')
  return plain(name, globals, *rest, **named)
builtins.__import__ = guarded
"""


def run_bare(folder, *command):
  """Runs a module of the project where only the five packages can be had."""
  (folder / 'sitecustomize.py').write_text(GUARD)
  path = os.pathsep.join([str(folder), str(ROOT)])
  return subprocess.run(
    [sys.executable, '-m', *command],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': path},
    capture_output=True,
    text=True,
  )


def test_the_suite_runs_with_jax_flax_optax_orbax_and_numpy_alone(tmp_path):
  """Every part's process inherits the guard, which stops the main program."""
  stopped = run_bare(tmp_path, 'dash_jax.main')
  assert 'is not in a bare image' in stopped.stderr
  done = run_bare(
    tmp_path,
    'experiments.benchmarks.gpu_suite',
    '--tiny',
    '--parts=correctness,sampler,llama3_8b_learner',
    f'--out={tmp_path / "out"}',
  )
  log = (tmp_path / 'out' / 'gpu_suite.log').read_text()
  assert done.returncode == 0, done.stdout + done.stderr + log
  result = json.loads((tmp_path / 'out' / 'gpu_suite.json').read_text())
  assert result['environment']['jax'] == jax.__version__
  parts = result['parts']
  assert list(parts) == [
    'ceilings', 'correctness', 'llama3_8b_learner', 'sampler',
  ]  # fmt: skip
  assert all(part['status'] == 'ok' for part in parts.values())
  checks = parts['correctness']['rows']
  assert len(checks) == 5
  assert all(0 <= check['value'] <= check['limit'] for check in checks)
  compiled, full, geometric = parts['sampler']['rows']
  assert 'compiled in' in compiled['message']
  assert 0 < full['shares']['bandwidth floor'] < 1
  assert geometric['median'] > 0
  learned, half = parts['llama3_8b_learner']['rows']
  assert 0 < learned['shares']['measured matmul (MFU)'] < 1
  assert half['measure'].startswith('the same, 50%')
  last = done.stdout.splitlines()[-8:]
  assert any('MFU' in line for line in last)


def test_a_machine_without_an_accelerator_is_told_so(tmp_path):
  done = run_bare(
    tmp_path,
    'experiments.benchmarks.gpu_suite',
    '--parts=ceilings',
    f'--out={tmp_path / "out"}',
  )
  assert done.returncode == 1
  assert 'ceilings: failed' in done.stdout
  assert 'jax sees no accelerator here' in done.stdout


# What a part's process does: adds rows, and ends as it likes.
ROW = 'print(json.dumps({"part": part} | %s), file=rows, flush=True)'
SCRIPTS = {
  'ceilings': ROW % '{"measure": "kept", "ceilings": {"flops_per_s": 1}}'
  + '; subprocess.run(["sleep", "60"])',
  'correctness': ROW % '{"measure": "wrong", "passed": False}'
  + '; sys.exit(1)',
  'sampler': 'os.kill(os.getpid(), 9)',
  # Passes only if the file on disk already holds the parts before.
  'learner': 'done = json.load(open(folder + "/gpu_suite.json"))["parts"];'
  + ROW % '{"measure": "seen", "seen": list(done)}',
}


def test_a_part_that_hangs_or_dies_costs_the_others_nothing(
  tmp_path, monkeypatch
):
  """One hangs, one finds a fault, one is killed, and the last still runs; what
  each had before is kept. Ceilings of a failed part are passed to no other."""
  monkeypatch.setattr(gpu_suite, '_LEAST_S', 0.0)
  monkeypatch.setitem(gpu_suite.PARTS, 'ceilings', 0.7)
  passed_on = []

  def command_for(part, limit_s, ceilings):
    passed_on.append(dict(ceilings))
    head = (
      f'import json, os, subprocess, sys; part = {part!r};'
      f' folder = {str(tmp_path)!r}; rows = open(folder + "/rows.jsonl", "a");'
    )
    return [sys.executable, '-c', head + SCRIPTS[part]]

  result = gpu_suite.run_suite(list(SCRIPTS), tmp_path, 60.0, command_for)
  parts = result['parts']
  assert [part['status'] for part in parts.values()] == ['failed'] * 3 + ['ok']
  assert 'killed after its limit' in parts['ceilings']['error']
  assert parts['ceilings']['seconds'] < 10
  assert parts['ceilings']['rows'][0]['measure'] == 'kept'
  assert parts['correctness']['error'].startswith('wrong')
  assert parts['sampler']['error'] == 'exit code -9'
  (seen,) = parts['learner']['rows']
  assert seen['seen'] == ['ceilings', 'correctness', 'sampler']
  assert passed_on == [{}] * 4
  assert json.loads((tmp_path / 'gpu_suite.json').read_text()) == result


def test_parts_past_the_whole_limit_are_failures_and_start_nothing(tmp_path):
  result = gpu_suite.run_suite(['ceilings', 'learner'], tmp_path, 0.0, None)
  for part in result['parts'].values():
    assert part['status'] == 'failed'
    assert 'no time left' in part['error']
  assert 'no time left' in gpu_suite.make_table(result)


def test_parts_are_chosen_by_their_beginnings():
  assert gpu_suite.choose('correctness') == ['correctness']
  assert gpu_suite.choose('llama3_8b') == [
    'ceilings', 'llama3_8b_sampler', 'llama3_8b_learner',
  ]  # fmt: skip
  assert gpu_suite.choose(gpu_suite._DEFAULT) == list(gpu_suite.PARTS)
  with pytest.raises(ValueError, match="'trainer'"):
    gpu_suite.choose('sampler,trainer')


def test_sizes_step_down_when_memory_runs_out():
  """The error is the one that the runtime really raises."""

  class Case:
    def __init__(self, num_bytes):
      self.num_bytes = num_bytes

    def least_bytes(self):
      return self.num_bytes

  def attempt(case):
    yield {'size': jnp.zeros(case.num_bytes, jnp.int8).nbytes}

  huge, small = Case(2**58), Case(8)
  rows = list(gpu_parts.step_down([huge, small], attempt))
  assert 'out of memory' in rows[0]['message']
  assert rows[1:] == [{'size': 8}]
  with pytest.raises(MemoryError):
    list(gpu_parts.step_down([huge], attempt))

  def shrink(case):
    if case is huge:
      raise gpu_timings.FewerRowsError('there is room for 8 rows at once')
    yield from attempt(case)

  rows = list(gpu_parts.step_down([huge, small], shrink))
  assert 'room for 8 rows' in rows[0]['message']
  assert rows[1:] == [{'size': 8}]

  def broken(case):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')
    yield

  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    list(gpu_parts.step_down([huge, small], broken))


@pytest.mark.parametrize(
  ('capacity_gib', 'questions', 'optimizer', 'minibatch_size', 'num_layers'),
  [(129, 128, 'adam', 8, 32), (73, 64, 'sgd', 4, 32), (37, 8, 'sgd', 4, 16)],
)
def test_llama3_8b_begins_with_a_size_that_can_fit(
  monkeypatch, capacity_gib, questions, optimizer, minibatch_size, num_layers
):
  """For devices of 141, 80 and 40 GB, by arithmetic: nothing is allocated."""
  monkeypatch.setattr(
    gpu_timings, 'device_memory', lambda name: capacity_gib * _GIB
  )

  def first(part):
    cases = gpu_parts.cases(part, tiny=False)
    *skipped, case = gpu_parts.step_down(cases, lambda case: iter([case]))
    assert len(skipped) == cases.index(case)
    assert all('skipped' in row['message'] for row in skipped)
    return case

  assert first('llama3_8b_sampler').num_questions == questions
  case = first('llama3_8b_learner')
  assert case.optimizer == optimizer
  assert case.minibatch_size == minibatch_size
  assert case.config.num_layers == num_layers


def test_the_checks_see_a_cache_that_misses_the_newest_token(monkeypatch, mesh):
  """A decode that is off by one slot fails both checks of it."""
  right = cache.seen_slots

  def wrong(lengths, slot, num_slots):
    is_newest = np.arange(num_slots) == slot % num_slots
    return right(lengths, slot, num_slots) & ~is_newest

  monkeypatch.setattr(cache, 'seen_slots', wrong)
  rows = itertools.islice(gpu_checks.check_all(gpu_parts.TINY, 2), 2)
  assert [row['passed'] for row in rows] == [False, False]
