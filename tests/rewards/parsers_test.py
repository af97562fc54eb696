"""Properties of the parsers of answers, on texts that hypothesis makes up."""

import string
from fractions import Fraction

import adversarial_answers
import hypothesis
from hypothesis import strategies as st

from dash_jax.rewards import answers, code, latex, rationals

# The same examples each time.
_few = hypothesis.settings(
  max_examples=60, derandomize=True, deadline=None, database=None
)
_pieces = st.sampled_from([*adversarial_answers.COMMANDS, *string.printable])
_latex_text = st.lists(_pieces, max_size=25).map(''.join)
_any_text = st.one_of(
  st.text(st.characters(), max_size=60),
  _latex_text,
  st.lists(
    st.sampled_from(
      ['####', r'\boxed', '{', '}', '\n', '7', '-', ',', '$', '/']
    ),
    max_size=40,
  ).map(''.join),
)
_styles = st.sampled_from(answers.STYLES)
_fractions = st.builds(
  Fraction, st.integers(-(10**12), 10**12), st.integers(1, 10**6)
)


def _write(value: Fraction, form: int) -> str:
  sign = '-' if value < 0 else ''
  top, bottom = abs(value.numerator), value.denominator
  return [
    f'{sign}{top}/{bottom}',
    rf'{sign}\frac{{{top}}}{{{bottom}}}',
    rf'${sign}\dfrac{{{top * 2}}}{{{bottom * 2}}}$',
    rf'{sign}{top // bottom} \frac{{{top % bottom}}}{{{bottom}}}',
  ][form]


@_few
@hypothesis.given(_any_text, _styles)
def test_extract_returns_a_part_of_any_text_or_none(text, style):
  found = answers.extract(text, style)
  assert found is None or found in text


@_few
@hypothesis.given(_any_text, st.integers(-(10**20), 10**20))
def test_the_last_answer_counts_whatever_stands_before_it(text, value):
  lead = text.replace('\\', '').replace('{', '').replace('}', '')
  written = {
    'gsm8k': f'{text}\n#### {value}',
    'boxed': rf'{lead} \boxed{{{value}}}',
    'last_number': f'{text} so it is {value}',
  }
  for style, completion in written.items():
    assert answers.score_one(completion, str(value), False, style) == 1.0
    assert answers.score_one(completion, str(value + 1), False, style) == 0.0
    assert answers.score_one(completion, str(value), True, style) == 0.0


@_few
@hypothesis.given(_fractions, st.integers(0, 3), st.integers(0, 3))
def test_a_number_is_itself_however_it_is_written(value, form, other):
  given, gold = _write(value, form), _write(value, other)
  assert answers.equal(given, gold, 'last_number')
  assert answers.equal(given, gold, 'boxed')


@_few
@hypothesis.given(_fractions, _fractions, st.integers(0, 3), st.integers(0, 3))
def test_numbers_that_differ_are_not_equal(value, other, form, other_form):
  hypothesis.assume(value != other)
  given, gold = _write(value, form), _write(other, other_form)
  assert not answers.equal(given, gold, 'last_number')
  assert not answers.equal(given, gold, 'boxed')


@_few
@hypothesis.given(st.integers(), st.integers(0, 30))
def test_decimals_are_exact(digits, places):
  text = f'{abs(digits):0{places + 1}}'
  written = f'{text[: len(text) - places]}.{text[len(text) - places :]}'
  value = Fraction(abs(digits), 10**places)
  assert rationals.read(rationals.tidy(written), plain_units=False) == value


@_few
@hypothesis.given(_any_text)
def test_any_text_is_read_as_a_number_or_not_at_all(text):
  value = rationals.read(rationals.tidy(text), plain_units=True)
  assert value is None or isinstance(value, Fraction)


@_few
@hypothesis.given(_latex_text)
def test_an_answer_is_equal_to_itself(text):
  hypothesis.assume(latex._unwrap(rationals.tidy(text)))
  assert latex.equal(text, text)


@_few
@hypothesis.given(_latex_text, _latex_text)
def test_any_two_texts_are_compared(given, gold):
  assert latex.equal(given, gold) in (True, False)


@_few
@hypothesis.given(
  st.lists(st.sampled_from(['```', 'python', '\n', ' ', 'x', '`']), max_size=30)
)
def test_code_is_a_part_of_any_text_or_none(parts):
  text = ''.join(parts)
  found = code.extract(text)
  assert found is None or found in text
