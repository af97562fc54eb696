r"""Reads a written number as an exact fraction.

The life of an answer here:

  1. `tidy` removes what people write around a value and what does not change
     it: `$`, `%`, degree signs, LaTeX spacing, `\left`, a full stop.
  2. `read` takes the units off the end.
  3. One of a few patterns (a decimal, a/b, \frac, a power of ten) matches the
     whole rest, or the text is not a number.

A percent sign is a unit like any other: 50% is 50, and never 0.5. Each text
has one reading, so equality stays transitive: if 50% were also 0.5, then 0.5
would have to be 50.
"""

import re
from fractions import Fraction

MAX_ANSWER_LEN = 1000  # Characters. Longer is not an answer, and costs time.

_MINUS_SIGNS = dict.fromkeys(
  map(ord, '\u2212\u2010\u2011\u2012\u2013\uff0d'), '-'
)
_SYMBOLS = _MINUS_SIGNS | {
  ord(symbol): latex
  for symbol, latex in {
    '\u00a0': ' ',
    '\u2009': ' ',
    '\u202f': ' ',
    '\u03c0': r'\pi ',
    '\u221e': r'\infty ',
    '\u00d7': r'\times ',
    '\u00b7': r'\cdot ',
    '\u00b1': r'\pm ',
    '\u2264': r'\le ',
    '\u2265': r'\ge ',
    '\u222a': r'\cup ',
    '\u2208': r'\in ',
    '\u00b2': '^2',
    '\u00b3': '^3',
  }.items()
}

_UPRIGHT = 'mbox|hbox|mathrm|mathbf|operatorname|text(?:rm|bf|it|normal)'
# (pattern, replacement), in this order. `(?<!\\)` keeps a matrix's `\\ ` whole.
_TIDY = [
  (re.compile(pattern), replacement)
  for pattern, replacement in [
    # Separators that can only mean thousands: 10,\!080  10{,}080  10\,080
    (r'(?<=[0-9]),\\!\s*(?=[0-9]{3})', ''),
    (r'(?<=[0-9])(?:\{,\}|\\[,;:])(?=[0-9]{3}(?![0-9]))', ''),
    (r'\{,\}', ','),
    (r'(?<!\\)\\!', ''),
    (r'(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s', ' '),
    (r'\\(?:left|right|[bB]igg?[lr]?)(?![A-Za-z])\.?', ''),
    (r'\\(?:displaystyle|textstyle|limits)(?![A-Za-z])', ''),
    (r'\\[dtc]frac(?![A-Za-z])', r'\\frac'),
    (r'\u221a ?([0-9]+|[A-Za-z])', r'\\sqrt{\1}'),
    (r'\\(?:boxed|fbox)(?![A-Za-z])', ''),
    (rf'\\(?:{_UPRIGHT})\s*\{{', r'\\text{'),
    (r'\\text\s+\{', r'\\text{'),
    (r'\^\{? ?\\circ ?\}?|\\degree(?![A-Za-z])|\u00b0', ''),
    (r'\\text\{ ?per ?cent(?:age)? ?\}|(?<![A-Za-z])per ?cent(?![A-Za-z])', ''),
    (r'\\?[%$]|[\u20ac\u00a3\u00a5\u20b9]|\\(?:pounds|euro)(?![A-Za-z])', ''),
    (r' {2,}', ' '),
  ]
]

_PLAIN = r'(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+'
_SPACED = r'[0-9]{1,3}(?: [0-9]{3})+(?:\.[0-9]+)?'
_TERM = rf'[0-9]|\{{ ?[-+]? ?(?:{_PLAIN}) ?\}}'
_DECIMAL = re.compile(
  rf'(?P<number>{_PLAIN}|{_SPACED})(?:[eE](?P<exponent>[-+]?[0-9]{{1,3}}))?'
)
_REPEATING = re.compile(
  r'(?P<number>[0-9]*\.[0-9]*) ?\\overline ?\{ ?(?P<period>[0-9]+) ?\}'
)
_POWER_OF_TEN = re.compile(
  rf'(?:(?P<number>{_PLAIN}) ?(?:\\times|\\cdot|\*|x) ?)?'
  r'10 ?(?:\^|\*\*) ?'
  r'(?:\{ ?(?P<braced>[-+]?[0-9]{1,3}) ?\}|(?P<bare>[-+]?[0-9]{1,3}))'
)
_RATIO = re.compile(
  rf'(?:(?P<whole>[0-9]+) )?(?P<top>{_PLAIN}) ?/ ?(?P<bottom>[-+]?(?:{_PLAIN}))'
)
_FRAC = re.compile(
  rf'(?:(?P<whole>[0-9]+) ?)?\\frac ?(?P<top>{_TERM}) ?(?P<bottom>{_TERM})'
)

_LATEX_UNITS = re.compile(
  r'(?: ?(?:/|\\cdot|\\times)? ?\\text\{[^{}0-9]*\}'
  r'(?: ?\^ ?\{? ?[0-9] ?\}?)?)+$'
)
# With a space before it any word of three letters is a unit; without one only
# these are, since 2xy is a product.
_ABBREVIATIONS = (
  'km/h|m/s|mph|kph|cm|mm|km|ft|in|yd|mi|kg|mg|lbs?|oz|ml|mL|hrs?|mins?|secs?'
)
_PLAIN_UNITS = re.compile(
  rf'(?:(?: ?(?:{_ABBREVIATIONS})| (?:[A-Za-z]{{3,}}|[mgshlL]))(?![A-Za-z]))'
  r"[A-Za-z.,'/() -]*(?: ?\^ ?\{?[0-9]\}?)?$"
)
# No dozen here: asked for how many dozen, people write 3 dozen for 3.
_SCALES = {
  'hundred': 100,
  'thousand': 10**3,
  'million': 10**6,
  'billion': 10**9,
  'trillion': 10**12,
}
_SCALE_WORD = re.compile(rf'(?<=[ {{])({"|".join(_SCALES)})s?(?![A-Za-z])')
# What follows the number changes it, so it is not a unit.
_NOT_UNITS = re.compile(
  r'\b(?:pi|sqrt|sin|cos|tan|log|ln|mod|base|or|and|not|plus|minus|over|divided'
  r'|multiplied|squared|cubed|half|halves'
  r'|(?:third|fourth|fifth|sixth|eighth|tenth|hundredth|thousandth|millionth)s?'
  r')\b',
  re.IGNORECASE,
)


def tidy(text: str) -> str:
  """Removes what does not change a value.

  Args:
    text: an answer as written.

  Returns:
    It with single spaces and ASCII minus signs, `\\text` for every upright
    font, and without currency and percent signs, degrees, sizing commands,
    LaTeX spacing, math delimiters, markdown emphasis and a final full stop.
  """
  text = text.translate(_SYMBOLS)
  for pattern, replacement in _TIDY:
    text = pattern.sub(replacement, text)
  text = text.strip(' *`')
  for opening, closing in ((r'\(', r'\)'), (r'\[', r'\]')):
    if text.startswith(opening) and text.endswith(closing):
      text = text[2:-2]
  return text.strip(' *`').rstrip('.,; ')


def take_latex_units(text: str) -> str:
  r"""Returns tidied text without `\text{...}` units after a value."""
  found = _LATEX_UNITS.search(text)
  if found and re.search(r'[0-9]|\\pi', text[: found.start()]):
    return text[: found.start()].rstrip()
  return text


def read(text: str, *, plain_units: bool) -> Fraction | None:
  r"""Reads tidied text as one number.

  Args:
    text: the output of `tidy`.
    plain_units: whether words in plain letters after the number are units, as
      in '18 dollars'. False where letters may be variables.

  Returns:
    The exact value, or None if the text as a whole is not a number. Thousands
    separators, mixed numbers (1 4/5, 1\frac{4}{5}), periods (0.\overline{3}),
    powers of ten, and words for scales (5 million) are read.
  """
  if len(text) > MAX_ANSWER_LEN:
    return None
  scale = 1
  for word in _SCALE_WORD.findall(text):
    scale *= _SCALES[word]
  text = take_latex_units(' '.join(_SCALE_WORD.sub(' ', text).split()))
  unit = _PLAIN_UNITS.search(text) if plain_units else None
  if unit and not _NOT_UNITS.search(unit[0]):
    text = text[: unit.start()]
  value = _read_signed(text.strip())
  return None if value is None else value * scale


def _read_signed(text: str) -> Fraction | None:
  """Reads an optional sign, then a number, within any number of brackets."""
  sign = 1
  while text:
    if text[0] in '+-':
      if sign < 0 or text[1:2] in ('+', '-'):
        return None
      sign = -1 if text[0] == '-' else 1
      text = text[1:].lstrip()
    elif text[0] + text[-1] in ('()', '{}') and not re.search(
      r'[(){}]|,', text[1:-1]
    ):
      text = text[1:-1].strip()
    else:
      break
  value = _read_unsigned(text)
  return None if value is None else sign * value


def _read_unsigned(text: str) -> Fraction | None:
  if found := _DECIMAL.fullmatch(text):
    return _decimal(found['number']) * _ten_to(found['exponent'])
  if found := _REPEATING.fullmatch(text):
    number, period = found['number'], found['period']
    digits = len(number) - number.index('.') - 1
    repeated = Fraction(int(period), 10 ** len(period) - 1) / 10**digits
    return _decimal('0' + number) + repeated
  if found := _POWER_OF_TEN.fullmatch(text):
    exponent = found['braced'] or found['bare']
    return _decimal(found['number'] or '1') * _ten_to(exponent)
  if found := _RATIO.fullmatch(text) or _FRAC.fullmatch(text):
    top, bottom = _decimal(found['top']), _decimal(found['bottom'])
    if bottom == 0 or (found['whole'] and (top < 0 or bottom < 0)):
      return None
    return int(found['whole'] or 0) + top / bottom
  return None


def _decimal(text: str) -> Fraction:
  return Fraction(re.sub(r'[{}, ]', '', text).removesuffix('.'))


def _ten_to(exponent: str | None) -> Fraction:
  return Fraction(10) ** int(exponent or 0)
