"""Properties of the addition questions."""

import pytest

from dash_jax.data import addition


def _parse(question):
  *shots, asked = question.prompt.split('\n')
  shots = [tuple(int(x) for x in s.split() if x.isdigit()) for s in shots]
  a, plus, b, equals = asked.split()
  assert (plus, equals) == ('+', '=')
  return shots, (int(a), int(b))


def test_splits_cover_all_pairs_and_share_none_in_either_order():
  # 90 * 90 pairs in all, so nothing is lost; and because the mirrored pairs are
  # disjoint too, a held-out sum cannot be answered by turning a train one over.
  train, test = map(set, (addition.pairs('train'), addition.pairs('test')))
  assert len(train) + len(test) == 8100
  assert not train & test
  assert not train & {(b, a) for a, b in test}
  assert 0.08 < len(test) / 8100 < 0.12


@pytest.mark.parametrize('split', ['train', 'test'])
def test_every_sum_is_right_and_every_shot_is_a_train_sum(split):
  # All questions of the split are read back from their text, so no other
  # question can break the format, show its own answer, or leak a held-out sum.
  train = set(addition.pairs('train'))
  asked_pairs = set()
  everything = addition.generate(len(addition.pairs(split)), split, 0)
  for question in everything:
    shots, (a, b) = _parse(question)
    asked_pairs.add((a, b))
    assert len({(x, y) for x, y, _ in shots}) == 3
    for x, y, total in shots:
      assert x + y == total
      assert (x, y) in train
      assert sorted((x, y)) != sorted((a, b))
    assert question.answer == str(a + b)
    assert question.solution == f' {a + b}'
    assert question.uid == 100 * a + b
  assert asked_pairs == set(addition.pairs(split))


def test_seed_orders_the_split_and_a_longer_list_extends_a_shorter_one():
  # The text of a question does not change with the seed: only its place does.
  ten, twenty = (addition.generate(n, 'test', 1) for n in (10, 20))
  assert twenty[:10] == ten
  size = len(addition.pairs('test'))
  other = addition.generate(size, 'test', 2)
  assert other[:10] != ten
  assert set(ten) < set(other)


def test_questions_are_these_on_every_machine():
  # A literal, so that a change of hash or generator cannot move the held-out
  # split or the shots under a stored run unseen.
  (question,) = addition.generate(1, 'test', 0)
  assert question.prompt == (
    '98 + 58 = 156\n82 + 10 = 92\n51 + 27 = 78\n75 + 55 ='
  )


def test_bad_arguments_say_what_is_valid():
  with pytest.raises(
    ValueError, match=r"split 'dev' must be .*'train', 'test'"
  ):
    addition.generate(1, 'dev', 0)
  with pytest.raises(ValueError, match=r'num=8101 must be from 1 to 7,'):
    addition.generate(8101, 'train', 0)
  with pytest.raises(ValueError, match='num=0 must be from 1'):
    addition.generate(0, 'train', 0)
