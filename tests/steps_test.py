"""What a step makes of its config on the way from rewards to the learner."""

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, steps, weights
from dash_jax.learning import learner, packing
from dash_jax.model import presets

C = 6


@pytest.fixture
def config(mesh, monkeypatch):
  quickstart = presets.PRESETS['quickstart']
  monkeypatch.setitem(presets.PRESETS, 'quickstart', quickstart)
  monkeypatch.syspath_prepend(tiny_run.FOLDER)
  config = tiny_run.get_config()
  config.algorithm.sft_steps = 0
  return config


@pytest.mark.parametrize('normalize_std', [False, True])
@pytest.mark.parametrize(
  ('normalizer', 'denominator'),
  [
    ('constant', 'sampled'),
    ('constant', 'kept'),
    ('sequence', 'kept'),
    ('token', 'sampled'),
    ('token', 'kept'),
  ],
)
def test_weights_and_advantages_follow_the_config(
  config, tmp_path, monkeypatch, normalizer, denominator, normalize_std
):
  """Recomputed row by row from the rewards that the step saw: so every named
  variant reaches the learner, and a filtered row is dropped before it."""
  config.algorithm.normalizer = normalizer
  config.algorithm.denominator = denominator
  config.algorithm.normalize_std = normalize_std
  seen = {}
  make = packing.make_minibatches

  def record(rows, gain, keep, weight, room):
    seen.update(rows=rows, gain=gain, keep=keep, weight=weight)
    return make(rows, gain, keep, weight, room)

  monkeypatch.setattr(packing, 'make_minibatches', record)
  parts = assemble.build(config, str(tmp_path))
  (phase,) = steps.phases(config, parts.stop_ids)
  with parts.pool:
    params = weights.load_params(config, parts.model)
    state = learner.init_state(params, phase.optimizer)
    room = steps.make_ready(parts, phase, state, None)
    _, metrics = steps.take_step(
      parts, phase, room, state, 0, None, write_rollouts=False
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
    if normalize_std and group.std():
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


def test_auto_takes_the_most_rows_that_fit():
  """Of a device that has 1000 bytes, a row taking 70 beside 200 for all."""
  tried = []

  def measure(rows):
    tried.append(rows)
    if rows > 40:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return 200 + 70 * rows

  found = steps.find_minibatch_size(measure, 1000, most=64, unit=4)
  assert found == 8
  assert tried == [64, 32, 12, 8]
  assert steps.find_minibatch_size(measure, 1000, most=7, unit=4) == 8
  with pytest.raises(ValueError, match=r"'auto': .* set model\.remat=True"):
    steps.find_minibatch_size(measure, 100, most=64, unit=4)


def test_auto_learns_as_a_size_does(config, tmp_path):
  """On a machine that has room for the whole step, 'auto' takes all of it."""
  config.optim.minibatch_size = 'auto'
  parts = assemble.build(config, str(tmp_path))
  (phase,) = steps.phases(config, parts.stop_ids)
  with parts.pool:
    params = weights.load_params(config, parts.model)
    state = learner.init_state(params, phase.optimizer)
    room = steps.make_ready(parts, phase, state, None)
  assert room.shapes[0][0] == 32 // 4
