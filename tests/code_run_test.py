"""A run whose reward is code run by its tests, on a file as MBPP's."""

import json

import jax
import pytest
import tiny_run

from dash_jax import meshes, sharding, train
from dash_jax.rewards import code
from dash_jax.runs import jsonl

try:
  code.prepare()
except OSError as error:
  pytest.skip(f'code is not run here: {error}', allow_module_level=True)

# What each function has to do, and its body; all are of a few characters, so that
# a model of noise can learn to write them in some dozen steps.
TASKS = [
  (-2, 2, 'abs'),
  ([3, 1], 1, 'min'),
  ([3, 5], 5, 'max'),
  ('#### 3', 6, 'len'),
]


def write_mbpp(path):
  rows = [
    {
      'text': f'Write a function, number {n}.',
      'code': f'f={name}',
      'task_id': n,
      'test_setup_code': '',
      'test_list': [f'assert f({x!r}) == {y!r}', f'assert f({x!r}) != 9'],
      'challenge_test_list': [],
    }
    for n, (x, y, name) in enumerate(TASKS * 2)
  ]
  path.write_text('\n'.join(map(json.dumps, rows)))


def test_a_policy_is_rewarded_by_tests_of_its_code(tmp_path, monkeypatch):
  """Every reward of two steps is what its code earns once more, by itself; among
  them are right and wrong ones."""
  write_mbpp(tmp_path / 'mbpp.jsonl')
  config = tiny_run.borrow(monkeypatch)
  config.data.update(
    source='jsonl', path=str(tmp_path / 'mbpp.jsonl'), num_train=0,
    prompt_field='text', answer_field='test_list', solution_field='code',
  )  # fmt: skip
  config.reward.function = 'dash_jax.rewards.code:score_one'
  config.algorithm.update(
    batch_size=16, group_size=4, num_samples=32, sft_steps=30
  )
  config.optim.sft_batch_size = 8
  config.optim.sft_learning_rate = 1e-2
  config.optim.minibatch_size = 4
  config.eval.num_questions = 4
  config.log.rollouts_every_samples = 16
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  monkeypatch.setattr(meshes, 'connect', lambda config: mesh)
  with jax.set_mesh(mesh):
    assert train.train(config, str(tmp_path / 'run'))
  steps = jsonl.read(tmp_path / 'run' / 'metrics.jsonl')[30:]
  assert [step['sampled_rows'] for step in steps] == [16, 16]
  earned = {}
  for step in steps:
    assert (step['reward_timeouts'], step['reward_errors']) == (0, 0)
    name = f'step_{step["step"]:06d}.jsonl'
    rows = jsonl.read(tmp_path / 'run' / 'rollouts' / name)
    for row in rows:
      reply = row['completion'], row['answer'], row['truncated']
      if reply not in earned:
        earned[reply] = code.score_one(*reply)
      assert row['reward'] == earned[reply], reply
    assert step['accuracy'] == sum(row['reward'] for row in rows) / 16
  assert {*earned.values()} == {0.0, 1.0}
