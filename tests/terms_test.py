"""Terms of a reward, and their sum."""

import dataclasses

import jax
import numpy as np

from dash_jax import batches, credit, scoring, terms
from dash_jax import config as config_lib
from dash_jax.rewards import workers


def weigh(**fields):
  section = config_lib.default().reward
  section.update(fields)
  return section


def test_the_sum_is_weighted_and_only_what_is_used_counts():
  """Each term has digits of its own, so that a swap of weights shows."""
  section = weigh(weight=2.0, format_weight=0.5, extra='a:f', extra_weight=10.0)
  values = {
    'verifier': np.float32([1, 0]),
    'format': np.float32([1, 1]),
    'extra': np.float32([3, -7]),
    'length': np.float32([-1, -1]),
  }
  assert terms.list_weights(section).keys() == {'verifier', 'format', 'extra'}
  assert terms.list_functions(section) == {
    'format': terms.FORMAT,
    'extra': 'a:f',
  }
  np.testing.assert_array_equal(
    terms.combine(section, values), [2 + 0.5 + 30, 0.5 - 70]
  )


def test_by_default_the_verifier_is_all():
  section = weigh()
  assert terms.is_plain(section)
  assert not terms.list_functions(section)
  for field in ('weight', 'format_weight', 'length_weight'):
    assert not terms.is_plain(weigh(**{field: 0.5}))


def test_length_is_the_share_of_the_room():
  found = terms.measure_length(np.array([1, 32, 64]), 64)
  np.testing.assert_array_equal(found, np.float32([-1 / 64, -0.5, -1]))


def make_rows(first):
  """Two groups of two rows, all of whose numbers are `first`."""
  slots = np.full((2, 2, 3), first, np.int32)
  prompts = batches.PromptBatch(slots[:, 0], slots[:, 0, 0], slots[:, 0, 0])
  return batches.Rollouts(
    prompts,
    tokens=slots,
    lengths=np.full((2, 2), 3, np.int32),
    logprobs=slots * 0.1,
    truncated=np.zeros((2, 2), bool),
    policy_step=slots[..., 0],
  )


def test_refilled_groups_are_chosen_by_the_sum_and_keep_their_terms():
  """The verifier sees no difference in the groups that carry signal, and one in
  the group that another term makes even."""

  def sampled(first, verified, extra):
    verified, extra = np.float32(verified), np.float32(extra)
    return scoring.Sampled(
      asked=[batches.Question(str(first + i), '', first + i) for i in range(2)],
      rows=make_rows(first),
      texts=list('abcd'),
      scores=workers.Scores(verified, 0, 0, {'extra': extra}),
      began_at=0.0,
      sample_s=1.0,
      reward_s=1.0,
      terms={'verifier': verified, 'extra': extra},
      weighted=verified + extra,
    )

  both = sampled(0, [1, 1, 0, 1], [0, 3, 1, 0]).join(
    sampled(10, [0, 0, 1, 1], [5, 5, 1, 2])
  )
  assert [q.uid for q in both.asked] == [0, 11]
  np.testing.assert_array_equal(both.rewards, [[1, 4], [2, 3]])
  np.testing.assert_array_equal(both.terms['extra'], [0, 3, 1, 2])
  np.testing.assert_array_equal(both.scores.rewards, [1, 1, 1, 1])


def test_rejection_sampling_asks_the_verifier():
  """Not the sum, which here is below 1 where it is right and above where not."""
  config = config_lib.default()
  config.algorithm.update(loss='supervised', batch_size=4, group_size=2)
  verified = np.float32([[1, 0], [0, 1]])
  found = credit.assign(config, 1.5 - verified, verified, make_rows(0))
  np.testing.assert_array_equal(found.keep, verified == 1)


def test_a_penalty_is_taken_from_the_tokens_that_cost_it():
  """Four rows of three tokens, 0.5 taken from the second token of the first.
  Against the group: 1 - 0.5 - 0.75 and so on. REINFORCE++ looks ahead: what is
  taken counts for the first two tokens of the row, and the gains are standardised
  over all twelve."""
  config = config_lib.default()
  config.algorithm.update(batch_size=4, group_size=2, scale='none')
  rewards = np.float32([[1, 1], [0, 1]])
  penalty = np.zeros((2, 2, 3))
  penalty[0, 0, 1] = 0.5
  found = credit.assign(config, rewards, rewards, make_rows(0), penalty)
  np.testing.assert_allclose(found.gain, [[-0.25, 0.25], [-0.5, 0.5]])
  assert found.by_token is None
  config.algorithm.update(baseline='none', scale='batch')
  found = credit.assign(config, rewards, rewards, make_rows(0), penalty)
  ahead = np.array([[[0.5, 0.5, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]])
  want = (ahead - ahead.mean()) / ahead.std()
  np.testing.assert_allclose(found.by_token, want, rtol=1e-3)
  np.testing.assert_allclose(found.gain, want.mean(-1), atol=1e-3)
  assert found.returns is None


def test_a_critic_is_told_the_penalty_too():
  """Its values are taken from what comes from each token on."""
  config = config_lib.default()
  config.algorithm.update(
    batch_size=4, group_size=2, scale='none', baseline='critic'
  )
  rewards = np.float32([[1, 1], [0, 1]])
  penalty, values = np.zeros((2, 2, 2, 3))
  penalty[0, 0, 1] = 0.5
  values[...] = [0.1, 0.2, 0.3]
  found = credit.assign(config, rewards, rewards, make_rows(0), penalty, values)
  ahead = np.array([[[0.5, 0.5, 1], [1, 1, 1]], [[0, 0, 0], [1, 1, 1]]])
  np.testing.assert_allclose(found.returns, ahead, atol=1e-6)
  np.testing.assert_allclose(found.by_token, ahead - values, atol=1e-6)


def test_the_gradient_of_all_rows_has_the_advantages_of_all():
  """PODS takes advantages among the rows that it chose; what the cosine compares
  with has those among the whole group."""
  config = config_lib.default()
  config.algorithm.update(
    batch_size=8, group_size=4, scale='none', filter='max_variance',
    filter_rows=4, report_cosine=True,
  )  # fmt: skip
  rewards = np.float32([[0, 1, 1, 1], [0, 0, 0, 1]])
  two = make_rows(0)
  rows = dataclasses.replace(
    jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), two),
    prompts=two.prompts,
    tokens=two.tokens.repeat(2, axis=1),
  )
  found = credit.assign(config, rewards, rewards, rows)
  assert found.keep.sum() == 4
  np.testing.assert_allclose(np.abs(found.gain[found.keep]), 0.5)
  np.testing.assert_allclose(
    found.of_all, rewards - rewards.mean(1, keepdims=True)
  )
