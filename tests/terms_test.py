"""Terms of a reward, and their sum."""

import numpy as np

from dash_jax import assemble, batches, credit, terms
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
    return assemble.Sampled(
      asked=[batches.Question(str(first + i), '', first + i) for i in range(2)],
      rows=make_rows(first),
      texts=list('abcd'),
      scores=workers.Scores(verified, 0, 0, {'extra': extra}),
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
  found = credit.assign(config, 1.5 - verified, make_rows(0), verified=verified)
  np.testing.assert_array_equal(found.keep, verified == 1)
