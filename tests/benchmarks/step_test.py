"""The step benchmark does the work that a workload file states."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_workload

from dash_jax import batches
from dash_jax.learning import learner, losses, packing
from dash_jax.model import llama
from dash_jax.planning import work
from dash_jax.sampling import decoding
from experiments.benchmarks import step, workloads


def test_a_step_is_the_workloads_and_nothing_compiles_while_timed(
  tmp_path, capsys
):
  """At the sampler's own weights every ratio is 1, so with each row's tokens
  counting 1 / len the loss is the mean advantage, 0; lengths vary here, so
  another normalizer, a lost row or other logprobs would show."""
  out = tmp_path / 'out.json'
  step.main(
    [
      tiny_workload.write(tmp_path),
      '--steps=3',
      '--minibatch_size=5',
      f'--out={out}',
    ]
  )
  (result,) = json.loads(out.read_text())
  assert result['compiles_while_timed'] == 0
  assert result['compile_s'] > 0
  assert result['peak_memory_bytes'] > 2**20
  assert result['settings']['minibatch_size'] == 5
  assert len(result['steps']) == 3
  for values in result['steps']:
    assert values['kept_rows'] == 12
    assert values['trained_tokens'] == values['sampled_tokens']
    assert 1 < values['completion_len_mean'] < 10
    assert abs(values['loss']) < 1e-5
    assert values['logprob_gap'] < 1e-5
    parts = values['sample_s'] + values['reward_s'] + values['learn_s']
    assert values['step_s'] == pytest.approx(parts)
  assert len({values['sampled_tokens'] for values in result['steps']}) > 1
  middle = result['summary']['step_s']
  assert middle['min'] <= middle['median'] <= middle['max']
  table = capsys.readouterr().out
  for line in 'sampling, tokens/s', 'compiling, s', '5 of 12 rows', 'jax ':
    assert line in table


def test_prompts_are_the_formats_own_stream(tmp_path):
  """Other programs draw them by this very call."""
  workload = workloads.read(tiny_workload.write(tmp_path))
  expected = np.random.default_rng(3).integers(
    16, 64, (4, 3, 6), dtype=np.int64
  )
  found = workloads.make_prompts(workload, 4)
  np.testing.assert_array_equal(found, expected)
  assert found.dtype == np.int32


def test_weights_have_the_stated_deviation(tmp_path, mesh):
  params = workloads.make_params(workloads.read(tiny_workload.write(tmp_path)))
  assert float(params['embed'].std()) == pytest.approx(0.02, rel=0.1)
  assert float(params['layers']['wo'].std()) == pytest.approx(0.02, rel=0.1)
  assert (np.asarray(params['final_norm']) == 1).all()


def test_reward_counts_even_ids_of_the_completion_alone():
  tokens = np.array([[2, 2, 3, 4, 6], [7, 9, 1, 1, 2]])
  mask = np.array([[False, True, True, True, False], [True] * 5])
  np.testing.assert_allclose(
    workloads.fraction_even(tokens, mask), [2 / 3, 1 / 5]
  )


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    ({'reward': 'length'}, "reward='length'"),
    ({'algo': tiny_workload.WORKLOAD['algo'] | {'beta': 0.1}}, 'algo.beta=0.1'),
    (
      {'algo': tiny_workload.WORKLOAD['algo'] | {'loss': 'token-mean'}},
      'algo.loss',
    ),
    (
      {'optim': tiny_workload.WORKLOAD['optim'] | {'name': 'sgd'}},
      'optim.name',
    ),
    ({'model': {'vocab_size': 64}}, 'model.d_model is missing'),
  ],
)
def test_work_that_is_not_ours_is_refused(tmp_path, changes, named):
  with pytest.raises(ValueError, match=named):
    workloads.read(tiny_workload.write(tmp_path, **changes))


def test_learn_flops_are_what_xla_counts(mesh):
  """XLA counts every operation of the program's gradient: matmuls rule, masked
  attention (ours counts half) and element-wise work make the difference."""
  config = llama.LlamaConfig(
    vocab_size=256,
    embed_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffw_dim=256,
  )
  rows, P, C = 4, 12, 20
  ones = np.ones((rows, 1), np.float32)
  lengths = np.full((rows, 1), C, np.int32)
  slots = np.zeros((rows, 1, C), np.int32)
  rollouts = batches.Rollouts(
    batches.PromptBatch(
      slots[:, 0, :P], np.full(rows, P, np.int32), np.arange(rows)
    ),
    slots, lengths, slots * 0.5, lengths > C, slots,
  )  # fmt: skip
  minibatch, *others = packing.make_minibatches(
    rollouts, ones, ones > 0, ones, packing.make_room(1, 1, P, C)
  )

  assert len(others) == rows - 1  # one row each

  def gradient(params, minibatch):
    return jax.grad(learner.minibatch_loss, has_aux=True)(
      params,
      llama.Llama(config),
      minibatch,
      None,
      decoding.make_decoding(1.0),
      losses.Objective(),
    )[0]

  params = llama.abstract_params(config, jnp.float32)
  counted = jax.jit(gradient).lower(params, minibatch).cost_analysis()['flops']
  found = work.learn_flops(config, 1, P, C)
  assert 0.75 < found / counted <= 1


def test_decode_floor_counts_weights_once_and_the_live_cache():
  """Two decode steps by hand: D=4, H=2, one query and one kv head, F=8, V=16,
  one layer, 3 questions x 2 samples, 5 prompt slots, 3 completion slots."""
  config = llama.LlamaConfig(16, 4, 1, 1, 1, 2, 8)
  floor = work.decode_floor(
    config, np.full((3, 2), 3), prompt_len=5, weight_bytes=2, cache_bytes=2
  )
  weights = 4 * 2 * 4 + 3 * 4 * 8 + 4 * 16  # projections, feed-forward, head
  a_token = 2 * 2 * 2  # key and value, two numbers each, two bytes
  np.testing.assert_allclose(
    floor.step_bytes,
    [2 * weights + a_token * (15 + 6 * own) for own in (1, 2)],
  )
  np.testing.assert_allclose(
    floor.step_flops,
    [6 * (2 * weights + 4 * 2 * (5 + own)) for own in (1, 2)],
  )
  # Of prompts 0 and 1 one row each goes on, of prompt 2 none: two steps, of two
  # rows and then of one.
  ragged = work.decode_floor(
    config, np.array([[3, 1], [1, 2], [1, 1]]),
    prompt_len=5, weight_bytes=1, cache_bytes=2,
  )  # fmt: skip
  np.testing.assert_allclose(
    ragged.step_bytes,
    [weights + a_token * (10 + 2), weights + a_token * (5 + 2)],
  )
  assert floor.bandwidth_seconds(10.0) == floor.step_bytes.sum() / 10
  assert floor.seconds(1e30, 10.0) == pytest.approx(floor.step_bytes.sum() / 10)
  assert floor.seconds(10.0, 1e30) == pytest.approx(
    (floor.step_flops.sum() + floor.prefill_flops) / 10
  )


@pytest.mark.parametrize(
  ('name', 'num_questions'), [('small', 16), ('w1', 8), ('w2', 8), ('w3', 4)]
)
def test_the_workloads_that_come_along_can_be_read(name, num_questions):
  path = pathlib.Path(step.__file__).parent / f'{name}.json'
  workload = workloads.read(str(path))
  assert (workload.name, workload.num_questions) == (name, num_questions)
  # What the sides of others read beside.
  assert set(tiny_workload.WORKLOAD) <= set(json.loads(path.read_text()))
