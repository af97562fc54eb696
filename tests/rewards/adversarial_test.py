"""Hostile answers are scored in bounded time and memory, and none that is wrong is
accepted."""

import resource
import time

import adversarial_answers
import pytest

from dash_jax.rewards import answers, workers

_NUM_CASES = 10_000
_CASES = adversarial_answers.generate(0, _NUM_CASES)
# Seconds of CPU time, and bytes. A row takes a tenth of the one at most, and all
# rows of a style some seconds; the rest is for slow machines.
_MAX_ROW_S = 1.0
_MAX_STYLE_S = 60.0
_MAX_GROWTH_BYTES = 300 * 1024**2


@pytest.mark.parametrize('style', answers.STYLES)
def test_hostile_answers_are_scored_in_bounded_time_and_memory(style):
  answers.prepare(style)
  used_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  start_s = time.process_time()
  num_right = 0
  for case in _CASES:
    completion = adversarial_answers.write(case, style)
    row_s = time.process_time()
    reward = answers.score_one(completion, case.gold, False, style)
    row_s = time.process_time() - row_s
    expected = adversarial_answers.find_reward(case, style)
    assert reward in (0.0, 1.0) if expected is None else reward == expected, (
      case
    )
    assert row_s < _MAX_ROW_S, case
    form = answers.score_format(completion, case.gold, False, style)
    assert form in (0.0, 1.0)
    assert form >= reward
    num_right += reward == 1.0
  assert time.process_time() - start_s < _MAX_STYLE_S
  growth_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  assert growth_bytes - used_bytes < _MAX_GROWTH_BYTES
  assert num_right > _NUM_CASES / 100  # It does not refuse all.


def test_workers_say_the_same_of_a_sample():
  cases = _CASES[::41]
  assert len({case.kind for case in cases}) > 15
  with workers.Pool(kwargs={'style': 'boxed'}, timeout_s=60.0) as pool:
    scores = pool.score(
      [adversarial_answers.write(case, 'boxed') for case in cases],
      [case.gold for case in cases],
      [False] * len(cases),
    )
  expected = [adversarial_answers.find_reward(case, 'boxed') for case in cases]
  assert scores.rewards.tolist() == expected
  assert (scores.timeouts, scores.errors) == (0, 0)


# What took seconds or minutes: (answer, gold).
@pytest.mark.parametrize(
  ('answer', 'gold'),
  [
    (r'\log_{100} 40', '7183293'),
    (r'\log_{5} 98765', '7183293'),
    (r'(9^{9999})^{9999}', '7'),
    (r'x^{9999} + (x+1)^{9999}', '7'),
    (r'(a+b+c+d+e+f)^{60}', 'x'),
    (r'\binom{10^9}{10^8}', '7'),
    (r'{10}^{{10}^{10}}', '7'),
    ('|' * 30 + 'x' + '|' * 30, '7'),
    (r'\sin ' * 13 + 'x', '7'),
    ('(' * 480 + '5' + ')' * 480, '7'),
    ('{' * 480 + '5' + '}' * 480, 'x'),
    ('1' + r'\cdot(2+x)' * 40, 'x'),
  ],
)
def test_what_once_took_long_takes_a_moment(answer, gold):
  answers.prepare('boxed')
  start_s = time.process_time()
  assert not answers.equal(answer, gold, 'boxed')
  assert time.process_time() - start_s < _MAX_ROW_S


@pytest.mark.parametrize(
  ('answer', 'gold'),
  [
    (r'(x+1)^{10}', r'(1+x)^{10}'),
    (r'2^{2007}', r'2 \cdot 2^{2006}'),
    (r'\left(\frac{1}{2}\right)^{100}', r'\frac{1}{2^{100}}'),
    (r'\frac{3^{1000} - 1}{2}', r'\frac{-1 + 3^{1000}}{2}'),
    (r'e^{x^2} + 1', r'1 + e^{x^2}'),
    (r'\log_2 1024', '10'),
    (r'\sin x + \cos x', r'\cos x + \sin x'),
    (r'|x - 1| + |y|', r'|y| + |x - 1|'),
    (r'\binom{10}{3}', '120'),
    (r'\sqrt{16}', '4'),
  ],
)
def test_what_people_write_is_still_computed(answer, gold):
  assert answers.equal(answer, gold, 'boxed')
