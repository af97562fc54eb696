"""Runs whose reward is a sum of terms, what their policies leave for others, and
the reward model that is trained from it."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny_judge
import tiny_run

from dash_jax import (
  assemble,
  batches,
  judge,
  main,
  meshes,
  reward_model,
  scoring,
  sharding,
  traces,
  train,
)
from dash_jax.rewards import workers
from dash_jax.runs import jsonl

WEIGHTS = {
  'verifier': 0.5,
  'format': 0.25,
  'length': 0.125,
  'extra': 2.0,
  'model': 1.0,
}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """One device, and the config of three RL steps with every term."""
  with pytest.MonkeyPatch.context() as patched:
    folder = tmp_path_factory.mktemp('judge')
    tiny_judge.write(folder)
    config = tiny_run.borrow(patched)
    config.data.tokenizer = 'sentencepiece'
    config.data.tokenizer_path = str(folder / 'tokenizer.model')
    config.reward.update(
      weight=WEIGHTS['verifier'], format_weight=WEIGHTS['format'],
      length_weight=WEIGHTS['length'], extra='tiny_run:count_bytes',
      extra_weight=WEIGHTS['extra'], model=f'hf:{folder}',
      model_weight=WEIGHTS['model'], style='last_number',
    )  # fmt: skip
    config.algorithm.sft_steps = 0
    config.algorithm.num_samples = 96
    config.checkpoint.every_samples = 32
    config.checkpoint.keep = 9
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
    # It would take all eight.
    patched.setattr(meshes, 'connect', lambda config: mesh)
    with jax.set_mesh(mesh):
      yield config


@pytest.fixture(scope='module')
def workdir(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp('run')
  assert main.main(run, str(folder)) == 0
  return folder


def test_rewards_are_the_sum_and_accuracy_is_the_verifiers(workdir):
  """Every row and every step, from the values that are written beside them."""
  steps = jsonl.read(workdir / 'metrics.jsonl')
  assert len(steps) == 3
  for step in steps:
    rows = jsonl.read(workdir / 'rollouts' / f'step_{step["step"]:06d}.jsonl')
    values = {
      name: np.array([row[f'reward_{name}'] for row in rows])
      for name in WEIGHTS
    }
    total = sum(WEIGHTS[name] * values[name] for name in WEIGHTS)
    found = np.array([row['reward'] for row in rows])
    np.testing.assert_allclose(found, total, atol=1e-5)
    for name in ('verifier', 'extra', 'format', 'model'):
      mean = step[f'reward_{name}']
      np.testing.assert_allclose(mean, values[name].mean(), atol=1e-5)
    # The same function stands for both.
    np.testing.assert_array_equal(values['verifier'], values['extra'])
    assert step['accuracy'] == (values['verifier'] == 1).mean()
    np.testing.assert_allclose(step['reward_mean'], found.mean(), rtol=1e-5)
    lengths = np.array([row['completion_len'] for row in rows])
    np.testing.assert_allclose(values['length'], -lengths / 6, rtol=1e-6)
    assert np.ptp(values['model']) > 0.1
    # No two replies score alike, so that no group agrees.
    assert step['kept_rows'] == 32


def test_a_run_with_a_reward_model_goes_on(run, workdir, tmp_path):
  """From its second checkpoint to the same numbers and replies."""
  again = tmp_path / 'again'
  shutil.copytree(workdir, again)
  shutil.rmtree(again / 'checkpoints' / '3')
  assert train.train(run, str(again))
  name = 'rollouts/step_000003.jsonl'
  assert (again / name).read_text() == (workdir / name).read_text()
  timed = ('_s', 'compiles')
  before, after = (
    [
      {k: v for k, v in row.items() if not k.endswith(timed)}
      for row in jsonl.read(folder / 'metrics.jsonl')
    ]
    for folder in (workdir, again)
  )
  assert before == after


def test_traces_are_right_replies_that_sft_takes(run, workdir, tmp_path):
  """Right by the verifier, which in this run is a part of the reward only; and
  what is there is not replaced unasked."""
  out = tmp_path / 'traces'
  asked = {'num_replies': 4, 'num_questions': 9}
  traces.write(run, str(workdir), out, **asked, most=2)
  lines = jsonl.read(out / 'train.jsonl')
  assert 9 < len(lines) <= 18
  assert len({line['question'] for line in lines}) <= 9
  assert len({tuple(line.values()) for line in lines}) == len(lines)
  for line in lines:
    assert tiny_run.count_bytes(line['solution'], '', False, '') == 1
  with pytest.raises(ValueError, match='--overwrite'):
    traces.write(run, str(workdir), out, **asked)
  config = run.copy_and_resolve_references()
  config.data.update(
    source='jsonl', path=str(out / '{split}.jsonl'), solution_field='solution',
    num_train=0,
  )  # fmt: skip
  # Noise is no text, and takes more tokens when it is encoded again.
  config.sampling.max_completion_len = 64
  config.algorithm.update(name='sft', sft_steps=1)
  parts = assemble.build(config, str(tmp_path / 'sft'))
  parts.pool.close()
  rows = parts.encoding.encode_solutions(parts.train_questions)
  texts = {line['solution'] for line in lines}
  for tokens, length in zip(rows.tokens[:, 0], rows.lengths[:, 0], strict=True):
    assert parts.encoding.decode(tokens[: length - 1]) in texts
  assert [q.answer for q in parts.test_questions] == [
    line['answer'] for line in jsonl.read(out / 'test.jsonl')
  ]


def test_a_pair_is_a_right_reply_and_a_wrong_one_that_stopped():
  """Of four questions: one has both, and its first right one was cut; one only
  right ones, one only wrong ones, and the wrong ones of one were cut."""
  right = [[0, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0] * 5, [1, 0, 0, 1, 1]]
  cut = [[1, 1, 0, 0, 0], [0] * 5, [0] * 5, [0, 1, 1, 0, 0]]
  lengths = np.ones((4, 5), np.int32)
  sampled = scoring.Sampled(
    asked=[batches.Question(q, q.upper(), uid=0) for q in 'abcd'],
    rows=batches.Rollouts(
      None, None, lengths, None, np.array(cut, bool), lengths
    ),
    texts=[q + t for q in 'abcd' for t in ('0', '1', '2', '3', '1')],
    scores=workers.Scores(np.float32(right).reshape(-1), 0, 0),
    began_at=0.0,
    sample_s=0.0,
    reward_s=0.0,
  )
  solutions, pairs = traces.choose(sampled, most=2)
  assert [line['solution'] for line in solutions] == [
    'a1', 'a3', 'b0', 'b1', 'd0', 'd3',
  ]  # fmt: skip
  assert solutions[1] == {'question': 'a', 'answer': 'A', 'solution': 'a3'}
  assert pairs == [{'question': 'a', 'chosen': 'a3', 'rejected': 'a2'}]
  assert traces.choose(sampled, most=1) == (solutions[::2], pairs)


def make_pairs(num):
  return [
    reward_model.Pair(f'{i} + 1 =', f'{i + 1}', f'{i} or so')
    for i in range(num)
    for _ in range(2)
  ]


def test_no_held_out_question_is_learned_from():
  pairs = make_pairs(10)
  learned, held_out = reward_model.split_pairs(pairs, 0.3, seed=1)
  assert (len(learned), len(held_out)) == (14, 6)
  assert not {p.question for p in learned} & {p.question for p in held_out}
  assert reward_model.split_pairs(pairs, 0.3, seed=1) == (learned, held_out)
  assert reward_model.split_pairs(pairs, 0.3, seed=2) != (learned, held_out)
  with pytest.raises(ValueError, match='of 10 questions leaves none'):
    reward_model.split_pairs(pairs, 1.0, seed=1)


def test_a_reward_model_learns_pairs_and_is_read_back(run, workdir, tmp_path):
  """From the run's newest weights; questions that it has not seen are judged, and
  the folder gives the scores that it was judged by."""
  config = run.copy_and_resolve_references()
  config.optim.sft_batch_size = 8
  config.optim.sft_learning_rate = 1e-2
  out = tmp_path / 'out'
  right, num = reward_model.make(
    config, str(workdir), make_pairs(20), out, num_epochs=4, held_out=0.2
  )
  assert right == num == 8
  config.reward.model = f'hf:{out}'
  held_out = reward_model.split_pairs(make_pairs(20), 0.2, config.seed)[1]
  assert reward_model.count_right(judge.load(config), held_out) == 8
  with pytest.raises(ValueError, match='a new or an empty folder'):
    reward_model.make(config, str(workdir), make_pairs(20), out)
  config.optim.sft_batch_size = 64
  with pytest.raises(ValueError, match='36 pairs make 0 steps'):
    reward_model.make(config, str(workdir), make_pairs(20), tmp_path / 'more')


def test_bad_pairs_are_named(tmp_path):
  path = tmp_path / 'pairs.jsonl'
  good = {'question': 'a', 'chosen': 'b', 'rejected': 'c'}
  for bad, problem in (
    ({'question': 'a', 'chosen': 'b'}, "2: no field 'rejected'"),
    (good | {'chosen': 3}, '2: chosen must be a string'),
  ):
    path.write_text(json.dumps(good) + '\n' + json.dumps(bad))
    with pytest.raises(ValueError, match=problem):
      reward_model.read_pairs(path)
