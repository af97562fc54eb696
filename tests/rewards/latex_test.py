"""Properties of comparing LaTeX answers."""

import itertools

import pytest

from dash_jax.rewards import answers

# One value a row. Between rows lie the readings that a lenient judge mixes up.
_SAME = [
  ['50', r'50\%', '50%', r'\$50', r'50^\circ', r'50\text{ cm}^2', r'50\mbox{ m}'],
  ['0.5', r'\frac12', r'\frac{1}{2}', r'\dfrac{1}{2}', '1/2', r'.5', 'x=0.5'],
  ['5000', '5,000', r'5,\!000', '5{,}000', r'5 \cdot 10^3', r'5\times10^{3}'],
  [r'\frac13', r'0.\overline{3}'],
  ['0.333333'],
  ['3.14159265358979'],
  [r'\pi', '\u03c0'],
  [r'1\frac{4}{5}', r'\frac95', '1.8'],
  [r'\text{C}', r'\text{(C)}', r'\mathrm{C}', r'\textbf{(C)}', r'(\text{C})'],
  [r'\text{east}', r'\text{East}', r'\text{ east. }'],
  [r'\text{seat}'],
  ['15'],
  ['(1,5)', r'\left( 1, 5 \right)', r'(1,\,\frac{10}{2})'],
  ['(5,1)'],
  ['[1,5]', r'1 \le x \le 5', r'x \in [1,5]'],
  ['[1,5)', r'\left[1,5\right)', r'\{x \mid 1 \le x < 5\}'],
  [r'\{1,5\}', r'\{5,1\}', '1,5', '5, 1', r'1 \text{ and } 5', 'x=1, x=5'],
  ['1'],
  [r'(-\infty,2)\cup(3,\infty)', r'(3,\infty) \cup (-\infty, 2)'],
  [r'(-\infty,1)\cup(3,\infty)', r'x<1 \text{ or } x>3'],
  [r'(-\infty,2]\cup(3,\infty)'],
  ['(2,\\infty)', 'x>2', '2<x', r'\{x : x > 2\}'],
  [
    r'\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}',
    r'\begin{bmatrix}1&2\\3&\frac82\\\end{bmatrix}',
  ],
  [r'\begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}'],
  [r'\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}'],
  [r'2\sqrt{5}', r'\sqrt{20}', '2 \\sqrt5', '2\u221a5', r'2\sqrt{5}\text{ cm}'],
  [r'1 \pm \sqrt{5}', r'1+\sqrt5, 1-\sqrt5', r'\{1-\sqrt{5}, 1+\sqrt{5}\}'],
  [r'1+\sqrt5', r'\sqrt{5}+1'],
  ['2t', 't+t', r't \cdot 2', '2.0t'],
  ['2'],
  ['x^2+2x+1', '(x+1)^2'],
  ['3R^2', 'R^2+2R^2'],
  ['3r^2'],
  ['5x - 7y + 4 = 0', '7y - 5x - 4 = 0'],
  ['5x - 7y + 5 = 0'],
  ['y = 2x + 3', 'y=3+2x', '2x+3'],
  ['x = 2y + 3'],
  ['52_8', '52_{8}'],
  ['52_9'],
  ['6-5i', '-5i+6'],
  ['3:2'],
  ['6:4'],
]  # fmt: skip


def test_answers_are_equal_within_a_row():
  for row in _SAME:
    for given, gold in itertools.product(row, row):
      assert answers.equal(given, gold, 'boxed'), (given, gold)


def test_values_of_different_rows_are_not_equal():
  # The first of each row against every other row's first, both ways, so that
  # each leniency that would join two values has a pair to show itself on.
  firsts = [row[0] for row in _SAME]
  for given, gold in itertools.permutations(firsts, 2):
    assert not answers.equal(given, gold, 'boxed'), (given, gold)


@pytest.mark.parametrize(
  ('given', 'gold'),
  [
    ('18 dollars', '18'),
    ('864 inches^2', r'864 \mbox{ inches}^2'),
    ('C', r'\text{(C)}'),
    ('east', r'\text{east}'),
    (r'\boxed{6}', '6'),
    ('52', '52_8'),
    ('5', 'x=5'),
    ('(x,y)=(3,4)', '(3,4)'),
    ('a = b = 5', '5'),
    ('100, 200', '100,200'),
    ('7!', '5040'),
    ('2^{2024} - 1', '-1 + 2^{2024}'),
    ('3/2', '3:2'),
    ('5\\text{ million}', '5,\\!000,\\!000'),
  ],
)
def test_answers_may_be_written_as_people_write(given, gold):
  assert answers.equal(given, gold, 'boxed')


@pytest.mark.parametrize(
  ('given', 'gold'),
  [
    ('0.5', r'50\%'),
    (r'(50\%, 25\%)', '(0.5, 0.25)'),
    ('1,234', '(1,234)'),
    ('1,000', '1,0'),
    ('1,5', '(1,5)'),
    ('west', r'\text{east}'),
    ('seat', r'\text{east}'),
    ('42', '52_8'),
    ('2', '2t'),
    ('2t', '2'),
    ('y=5', 'x=5'),
    ('5', '5, 7'),
    ('5, 5', '5, 7'),
    (r'\frac{1}{0}', r'\infty'),
    (r'3\text{ hours and }20\text{ minutes}', '3'),
    ('garbage \\frac{1}{2} @@', r'\frac{1}{2}'),
    ('5}', '5'),
    (r'-\frac{\pi}{6}', r'-30^\circ'),
    (r'9^{9^{9^9}}', r'\sqrt{2}'),
    ('99999999999!', r'\sqrt{2}'),
  ],
)
def test_no_leniency_of_a_parser_leaks_in(given, gold):
  assert not answers.equal(given, gold, 'boxed')


@pytest.mark.parametrize(
  'given', [r'\sum_{n=1}^{10} n', r'\int_0^{10} x\,dx + 5', r'\lim_{x\to55} x']
)
def test_restating_the_question_is_no_answer(given):
  # math-verify would work these out; each is 55.
  assert not answers.equal(given, '55', 'boxed')
