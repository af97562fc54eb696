"""What a step makes of its config on the way from rewards to the learner."""

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import (
  assemble,
  batches,
  checks,
  feed,
  phases,
  scoring,
  steps,
  updates,
  weights,
)
from dash_jax.learning import learner, packing, reference
from dash_jax.rewards import workers
from dash_jax.runs import signals
from dash_jax.sampling import memory, sampler

C = 6
MAKE_SAMPLER = assemble.make_sampler


@pytest.fixture(scope='module')
def samplers():
  """Compiled samplers by their sizes: no field that varies here is part of
  their programs."""
  return {}


@pytest.fixture
def config(mesh, monkeypatch, samplers):
  config = tiny_run.borrow(monkeypatch)
  tiny_run.share_samplers(monkeypatch, samplers)
  config.algorithm.sft_steps = 0
  return config


@pytest.mark.parametrize(
  ('normalizer', 'denominator', 'scale'),
  [
    ('constant', 'sampled', 'std'),
    ('constant', 'kept', 'none'),
    ('sequence', 'kept', 'std'),
    ('token', 'sampled', 'none'),
    ('token', 'kept', 'std'),
  ],
)
def test_weights_and_advantages_follow_the_config(
  config, tmp_path, monkeypatch, normalizer, denominator, scale
):
  """Recomputed row by row from the rewards that the step saw: so every named
  variant reaches the learner, and a filtered row is dropped before it."""
  config.algorithm.normalizer = normalizer
  config.algorithm.denominator = denominator
  config.algorithm.scale = scale
  seen = {}
  make = packing.make_minibatches

  def record(rows, gain, **others):
    seen.update(rows=rows, gain=gain, **others)
    return make(rows, gain, **others)

  monkeypatch.setattr(packing, 'make_minibatches', record)
  parts = assemble.build(config, str(tmp_path))
  with parts.pool:
    phase, state, room = make_ready(parts, config)
    fed = feed.Feed(parts, phase, 0, signals.Stop(), {})
    _, metrics = steps.take_step(
      parts, phase, room, fed, state, 0, write_rollouts=False
    )
    rows = seen['rows']
    texts = [
      parts.encoding.decode(rows.tokens[at][: rows.lengths[at]])
      for at in np.ndindex(8, 4)
    ]
    # The reward ignores answers.
    cut = rows.truncated.reshape(-1).tolist()
    scores = parts.pool.score(texts, ['0'] * 32, cut)
  rewards = scores.rewards.reshape(8, 4)
  lengths = seen['rows'].lengths
  expected = np.zeros((8, 4))
  for group, gain in zip(rewards.astype(float), expected, strict=True):
    gain += group - group.mean()
    if scale == 'std' and group.std():
      gain /= group.std() * np.sqrt(4 / 3) + 1e-4
  np.testing.assert_allclose(seen['gain'], expected, atol=1e-6)
  keep = expected != 0
  assert 0 < keep.sum() < 32
  np.testing.assert_array_equal(seen['keep'], keep)
  counted = keep if denominator == 'kept' else np.ones((8, 4), bool)
  weight = {
    'token': np.ones((8, 4)) / lengths[counted].sum(),
    'sequence': 1 / lengths / counted.sum(),
    'constant': np.full((8, 4), 1 / C / counted.sum()),
  }[normalizer]
  np.testing.assert_allclose(seen['weight'], weight, rtol=1e-5)
  assert metrics['kept_rows'] == keep.sum()
  assert metrics['accuracy'] == rewards.mean()
  assert metrics['staleness'] == 0


def make_ready(parts, config):
  """Returns the RL phase, its first state, and room for its minibatches."""
  (phase,) = phases.phases(config, parts.stop_ids)
  params = weights.load_params(config, parts.model)
  state = learner.init_state(params, phase.optimizer)
  if phase.needs_reference:
    state = reference.begin(state)
  return phase, state, updates.make_ready(parts, phase, state)


def test_auto_takes_the_most_rows_that_fit():
  """Of a device that has 1000 bytes, a row taking 70 beside 200 for all."""
  tried = []

  def measure(rows):
    tried.append(rows)
    if rows > 40:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return 200 + 70 * rows

  found = updates.find_minibatch_size(measure, 1000, most=64, unit=4)
  assert found == 8
  assert tried == [64, 32, 12, 8]
  assert updates.find_minibatch_size(measure, 1000, most=7, unit=4) == 8
  with pytest.raises(ValueError, match=r"'auto': .* set model\.remat='layer'"):
    updates.find_minibatch_size(measure, 100, most=64, unit=4)
  # A device that is full.
  with pytest.raises(ValueError, match=r"'auto': .* room for 0\.0"):
    updates.find_minibatch_size(measure, 0, most=64, unit=4)


def test_auto_takes_what_fits_and_when_it_goes_on_the_same(
  config, tmp_path, monkeypatch
):
  """A process that has less room, or more, takes the same again where nothing else
  has changed. Nothing is compiled here."""
  config.optim.minibatch_size = 'auto'
  monkeypatch.setattr(assemble, 'make_sampler', MAKE_SAMPLER)
  monkeypatch.setattr(learner, 'sum_gradients', lambda *args, **program: None)
  monkeypatch.setattr(memory, 'find_room', lambda: 1000)

  def fit(most):
    """Returns the rows of minibatch and sampler where so many fit."""

    class Fitting:
      def __init__(self, *args, batch_size, **options):
        self.batch_size = most if batch_size == 'auto' else batch_size

    def measure(state, minibatch, *args, **program):
      return 999 * minibatch.slots.shape[0] * 4 // most

    monkeypatch.setattr(sampler, 'Sampler', Fitting)
    monkeypatch.setattr(learner, 'measure', measure)
    parts = assemble.build(config, str(tmp_path))
    with parts.pool:
      *_, room = make_ready(parts, config)
    rows = parts.train_sampler.batch_size
    parts.sizes.write()
    return room.shapes[0][0] * 4, rows

  assert fit(32) == (32, 32)
  assert fit(8) == (32, 32)
  config.model.remat = 'layer'
  assert fit(8) == (8, 8)
  assert fit(32) == (8, 8)
  (tmp_path / 'sizes.json').write_text('{"here": {"optim.minibatch_size": 0}}')
  with pytest.raises(ValueError, match=r'sizes\.json: .*: remove the file'):
    fit(32)


def test_sft_adds_minibatches_up(config, tmp_path):
  """What is no room for at once is the same step in parts."""
  config.algorithm.name = 'sft'
  config.algorithm.sft_steps = 1
  config.optim.sft_batch_size = 8
  config.data.max_prompt_len = 40
  found = []
  for size in (8, 2):
    config.optim.minibatch_size = size
    parts = assemble.build(config, str(tmp_path))
    with parts.pool:
      phase, state, room = make_ready(parts, config)
      assert phase.minibatch_size == size
      # Lines of two rows of 40 + 6 slots.
      assert room.shapes[0] == (size // 2, 96)
      _, metrics = steps.sft_step(parts, phase, room, state, 0)
      found.append([metrics[name] for name in ('loss', 'grad_norm', 'entropy')])
  assert found[1] == pytest.approx(found[0], rel=1e-4)


VARIANTS = {
  'kl': {'kl_coef': 0.1, 'kl_schedule': 'linear', 'kl_estimator': 'k2'},
  'kl_in_reward': {'kl_coef': 0.5, 'kl_in': 'reward', 'kl_estimator': 'k1'},
  'gspo': {'loss': 'gspo', 'num_epochs': 2},
  'dpo': {'loss': 'dpo', 'num_updates': 2},
  'ppo_mini': {'num_updates': 4, 'num_epochs': 2, 'importance_cap': 2.0},
  'rejection': {'loss': 'supervised'},
  'masked': {'mask_truncated': True, 'overlong_len': 3},
  'pods': {
    'filter': 'max_variance',
    'filter_rows': 16,
    'report_cosine': True,
  },
  'largest': {'filter': 'largest', 'filter_rows': 5, 'report_cosine': True},
  'refill': {'refill_rounds': 3, 'entropy_coef': 0.01},
  'critic': {'baseline': 'critic', 'scale': 'batch'},
  'moving': {
    'kl_coef': 0.1,
    'kl_schedule': 'adaptive',
    'kl_target': 1.0,
    'reference': 'periodic',
    'reference_every': 3,
  },
}


@pytest.mark.parametrize('name', VARIANTS)
def test_every_variant_takes_a_step(config, tmp_path, monkeypatch, name):
  """Each through the fields of the config, with what it alone does: how often
  weights change, on which rows, and what it reports."""
  for field, value in VARIANTS[name].items():
    config.algorithm[field] = value
  checks.check(config)
  updates_taken, learned, seen = [], [], []
  update = learner.update

  def record(state, minibatches, *args, **options):
    updates_taken.append(options['is_last'])
    learned.append(sum((m.weight > 0).sum() for m in minibatches))
    seen.extend(jax.device_get(minibatches))
    return update(state, minibatches, *args, **options)

  monkeypatch.setattr(learner, 'update', record)
  parts = assemble.build(config, str(tmp_path))
  with parts.pool:
    phase, state, room = make_ready(parts, config)
    if name == 'kl_in_reward':
      state.reference['embed'] *= 1.5
    fed = feed.Feed(parts, phase, 2, signals.Stop(), {})
    state, metrics = steps.take_step(
      parts, phase, room, fed, state, 2, write_rollouts=False
    )
  algorithm = config.algorithm
  num = algorithm.num_epochs * algorithm.num_updates
  assert updates_taken == [False] * (num - 1) + [True]
  assert int(state.step) == 1
  assert all(np.isfinite(x) for x in metrics.values())
  assert metrics['grad_norm'] > 0
  kept, truncated = metrics['kept_rows'], metrics['truncated_fraction']
  if name == 'kl':
    # The weights were the reference, and of the run's 4 steps 3 are taken.
    assert metrics['kl_scale'] == 1
    assert state.kl_scale == 0.25
    assert metrics['kl'] < 1e-9
  elif name == 'kl_in_reward':
    assert abs(metrics['kl']) > 1e-3
    assert kept == 32  # no two rows are as far from the reference
  elif name == 'critic':
    # Nothing is expected yet, so what is missing is the reward.
    assert metrics['value_loss'] == pytest.approx(
      np.mean(learned_returns(seen) ** 2) / 2, rel=1e-4
    )
    assert np.abs(state.params['score']).max() > 0
  elif name == 'moving':
    for after, at in zip(
      *(jax.tree.leaves(x) for x in (state.params, state.reference)),
      strict=True,
    ):
      np.testing.assert_array_equal(after, at)
    # The policy was the reference, of which nothing is wanted but 1 nat.
    assert state.kl_scale == np.float32(1 - 0.1 * 0.2)
  elif name == 'masked':
    assert metrics['masked_rows'] > 0
    assert kept <= 32 * (1 - truncated)
  elif name == 'dpo':
    assert kept in range(2, 17, 2)  # pairs of at most eight groups
    assert metrics['zero_signal_fraction'] == 1 - kept / 16
  elif name == 'pods':
    assert kept <= 16
    # Two rows are taken of each group, and both learned from if any differ.
    assert metrics['zero_signal_fraction'] == 1 - kept / 16
    assert 0.1 < metrics['gradient_cosine'] < 0.999
  elif name == 'largest':
    assert kept == 5
    assert 0.1 < metrics['gradient_cosine'] < 0.999
  elif name == 'rejection':
    assert kept == round(metrics['accuracy'] * 32)
    assert 0 < metrics['logprob_gap'] < 1e-5
  elif name == 'refill':
    assert 1 <= metrics['sampling_rounds'] <= 4
    assert metrics['sampled_rows'] == 32 * metrics['sampling_rounds']
    if metrics['sampling_rounds'] < 4:
      assert metrics['zero_signal_fraction'] == 0
  elif name == 'ppo_mini':
    # Each pass learns from every kept row once.
    assert sum(learned[:4]) == sum(learned[4:])


def test_a_change_without_rows_says_nothing_of_tokens():
  taken = [
    {'tokens': 3.0, 'kl': 0.5, 'loss': 1.0, 'grad_norm': 3.0},
    {'tokens': 0.0, 'kl': 0.0, 'loss': 0.0, 'grad_norm': 0.0},
    {'tokens': 1.0, 'kl': 0.1, 'loss': 2.0, 'grad_norm': 2.0},
  ]
  for values, cosine in zip(taken, (0.5, 0.0, 0.7), strict=True):
    values['gradient_cosine'] = cosine
  found = updates.average(taken)
  assert found == pytest.approx(
    {'kl': 0.4, 'loss': 1.0, 'grad_norm': 2.5, 'gradient_cosine': 0.6}
  )
  nothing = updates.average([{'tokens': 0.0, 'kl': 0.0, 'loss': 0.0}])
  assert nothing == {'kl': 0.0, 'loss': 0.0}


def learned_returns(minibatches):
  """Returns f32[tokens], what a critic was to expect."""
  return np.concatenate([m.returns[m.lines.mask] for m in minibatches])


def test_refilled_groups_take_the_places_of_those_that_agree():
  """Two of the first three agree, one of the second: of them the first stays."""

  def sampled(first, rewards):
    slots = np.full((3, 2, C), first, np.int32)
    rows = batches.Rollouts(
      batches.PromptBatch(slots[:, 0] + 1, slots[:, 0, 0], slots[:, 0, 0]),
      slots, slots[..., 0], slots * 0.1, slots[..., 0] > 99, slots[..., 0],
    )  # fmt: skip
    questions = [
      batches.Question(str(first + i), '', first + i) for i in range(3)
    ]
    return scoring.Sampled(
      asked=questions, rows=rows,
      texts=[f'{q.prompt}/{g}' for q in questions for g in range(2)],
      scores=workers.Scores(np.float32(rewards).reshape(-1), 1, 2),
      began_at=0.0, sample_s=1.0, reward_s=2.0,
    )  # fmt: skip

  a = sampled(0, [[1, 1], [0, 1], [0, 0]])
  b = sampled(10, [[1, 1], [1, 1], [1, 0]])
  both = a.join(b)
  assert [q.uid for q in both.asked] == [0, 1, 12]
  assert both.texts == ['0/0', '0/1', '1/0', '1/1', '12/0', '12/1']
  np.testing.assert_array_equal(both.scores.rewards, [1, 1, 0, 1, 1, 0])
  np.testing.assert_array_equal(both.find_mixed(), [False, True, True])
  np.testing.assert_array_equal(both.rows.tokens[2], b.rows.tokens[2])
  np.testing.assert_array_equal(
    both.rows.prompts.tokens[:2], a.rows.prompts.tokens[:2]
  )
  assert (both.sample_s, both.reward_s) == (2.0, 4.0)
  # Lengths are 0 in the first and 10 in the second.
  assert (both.replaced_rows, both.replaced_tokens) == (6, 40)
  assert (both.scores.timeouts, both.scores.errors) == (2, 4)
