"""Properties of finding and comparing answers."""

import itertools
import time

import pytest

from dash_jax.rewards import answers


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('6 * 3 = 18\n#### 18', '18'),
    ('####18', '18'),
    ('#### 15 ; 14 + 15 = 29 ; #### 29', '29'),  # the last, on one line too
    ('#### 3\nNo, wait.\n#### 4', '4'),
    ('#### 3\n#### That is all', '3'),
    ('#### $1,800.50 per day', '$1,800.50 per day'),
    ('#### \u22125', '\u22125'),
    ('the answer is 18', None),
    ('####\n18', None),
    ('', None),
  ],
)
def test_gsm8k_takes_the_last_number_after_hashes(text, expected):
  assert answers.extract(text, 'gsm8k') == expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    (r'so $\boxed{5}$.', '5'),
    (r'\boxed{5}, no, \boxed{6}', '6'),
    (r'\boxed{\frac{1}{\sqrt{2}}} as said', r'\frac{1}{\sqrt{2}}'),
    (r'\boxed{\left\{ 1 \right.}', r'\left\{ 1 \right.'),
    (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
    (r'\fbox{7}', '7'),
    (r'\boxed {5}', '5'),
    (r'$\boxed 5$', '5'),
    (r'\(\boxed -5\)', '-5'),
    (r'\boxed{(\fbox{1}, 2)}', r'(\fbox{1}, 2)'),
    (r'} and { then \boxed{5}', '5'),
    (r'\boxed{5} and then \boxed{6', None),
    (r'\boxed{5} and then \boxed{}', None),
    (r'\boxedness{5}', None),
    ('5', None),
  ],
)
def test_boxed_takes_the_last_outermost_box(text, expected):
  assert answers.extract(text, 'boxed') == expected


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('12 + 30 = 42', '42'),
    ('12 + 30 = 42.', '42'),
    ('42 it is, not 17... 42', '42'),
    ('so 10-3', '3'),
    ('so 10 - 3', '3'),
    ('it is -3', '-3'),
    ('it is \u22123', '\u22123'),
    ('it is -$5', '-$5'),
    ('about 160,000 people', '160,000'),
    ('1,2,3', '3'),
    ('half, or 1/2.', '1/2'),
    ('a rate of .5', '.5'),
    ('nearly 50% of them', '50%'),
    ('none at all', None),
  ],
)
def test_last_number_takes_the_last_number(text, expected):
  assert answers.extract(text, 'last_number') == expected


# One value a row, as people write it.
_SAME_NUMBERS = [
  ['18', '18.', '18.00', '$18', '18 dollars', '$18 per day', '+18', '**18**'],
  ['160,000', '160000', '160 000', '160000.0', '1.6e5', '160 thousand'],
  ['1/2', '0.5', '.5', '2/4', '$0.50', '.5 hours'],
  ['50', '50%', '50 %', '50 percent', '50 km/h', '50km', '50 cm^2', '50 m'],
  ['5000', '5,000', '5 thousand dollars'],
  ['-5', '\u22125', '-$5', '$-5', '-5.0', '- 5'],
  ['9/5', '1 4/5', '1.8'],
  ['1,234,567', '1234567'],
  ['0', '-0', '0.00', '0/7'],
  ['15'],
  ['1/3'],
  ['0.333333'],
  ['16,000'],
]


@pytest.mark.parametrize('style', ['gsm8k', 'last_number'])
def test_numbers_are_equal_within_a_row_and_across_none(style):
  # All pairs both ways: what is one value is not rejected, and no leniency
  # about units, percent or rounding joins two values (50, 0.5 and 5000).
  written = [(i, t) for i, row in enumerate(_SAME_NUMBERS) for t in row]
  for (i, given), (j, gold) in itertools.product(written, written):
    assert answers.equal(given, gold, style) == (i == j), (given, gold)


@pytest.mark.parametrize(
  'given',
  [
    '18 or 20',
    '18 and a half',
    '18 hundredths',
    '18 squared',
    '18 pi',
    '2*9',
    '18 hours 5 minutes',
    '1,8',
    '(1,8)',
    '--18',
    '18/0',
    '18!',
    'eighteen',
    '$',
    '-',
    '',
  ],
)
def test_what_is_not_one_number_equals_none(given):
  assert not answers.equal(given, '18', 'gsm8k')


@pytest.mark.parametrize(
  ('gold', 'style', 'message'),
  [
    ('eighteen', 'gsm8k', "gold is 'eighteen', which is not a number"),
    (r'\frac{x}{2}', 'last_number', 'which is not a number'),
    (' ', 'boxed', 'gold is empty'),
    ('18', 'latex', "style is 'latex'; it must be one of"),
  ],
)
def test_a_gold_answer_that_cannot_be_compared_is_an_error(
  gold, style, message
):
  # Else a fault in the data would look like a model that is always wrong.
  with pytest.raises(ValueError, match=message):
    answers.equal('18', gold, style)


@pytest.mark.parametrize(
  ('completion', 'answer', 'style', 'expected'),
  [
    ('#### 3\n#### 18 dollars', '18', 'gsm8k', 1.0),
    ('#### 18\n#### 3', '18', 'gsm8k', 0.0),
    ('it is 18', '18', 'gsm8k', 0.0),
    (r'\boxed{3} \boxed{\frac{1}{2}}', '0.5', 'boxed', 1.0),
    (r'\boxed{(1,5)}', '15', 'boxed', 0.0),
    (' 42', '42', 'last_number', 1.0),
    ('', '42', 'last_number', 0.0),
  ],
)
def test_only_a_completion_that_stopped_scores(
  completion, answer, style, expected
):
  assert answers.score_one(completion, answer, False, style) == expected
  assert answers.score_one(completion, answer, True, style) == 0.0


def test_an_answer_buried_under_text_is_not_final():
  # Also a number that the cut goes through may not be read as a shorter one.
  rambling = 'x' * answers.MAX_TAIL_LEN
  for style, answer in [
    ('gsm8k', '#### 5\n'),
    ('boxed', r'\boxed{5}'),
    ('last_number', '5'),
  ]:
    assert answers.extract(answer + rambling[:-20], style)
    assert answers.extract(answer + rambling, style) is None
  assert answers.extract('12' + rambling[1:], 'last_number') is None


@pytest.mark.parametrize('style', answers.STYLES)
def test_hostile_text_takes_bounded_time(style):
  # Repetitions that make a regular expression or a parser go back over and
  # over: quadratic time would take minutes at these lengths.
  answers.prepare(style)
  gold = r'\sqrt{2}' if style == 'boxed' else '5'
  start_s = time.process_time()
  pieces = ['####', '1', '1,', '111,', '1/', '-', '$', '{', '\\', ' ', '1 ']
  pieces += ['#### ', r'\boxed{', r'\boxed', r'\boxed{}', '1e', '.', '1 cm ']
  for piece in pieces:
    answers.score_one(piece * 200_000, gold, False, style)
  pieces = [
    '(',
    '{',
    '-',
    'a',
    '1\\pm ',
    '1=',
    '\\frac{1}',
    '\\sqrt{',
    ' ',
    '^',
  ]
  pieces += ['9^', 'x+', '\\{x|', '\\text{ }', '!', ',']
  for piece in pieces:
    inside = piece * (900 // len(piece))
    for text in (inside, inside + '1', '1' + inside + 'x'):
      answers.equal(text, gold, style)
  assert time.process_time() - start_s < 20.0


@pytest.mark.parametrize(
  ('completion', 'style', 'expected'),
  [
    ('so it is\n#### 7', 'gsm8k', 1.0),
    ('so it is 7', 'gsm8k', 0.0),
    (r'\boxed{x}', 'boxed', 1.0),
    (r'\boxed{x', 'boxed', 0.0),
    ('so it is 7', 'last_number', 1.0),
    ('so it is', 'last_number', 0.0),
  ],
)
def test_the_form_counts_whatever_the_answer_is(completion, style, expected):
  for answer in ('7', 'another'):
    found = answers.score_format(completion, answer, False, style)
    assert found == expected
  assert answers.score_format(completion, '7', True, style) == 0.0
