r"""Compares two LaTeX answers.

The life of a pair here:

  1. `rationals.tidy` removes what does not change a value.
  2. Numbers are compared as exact fractions, words as words.
  3. The rest is taken apart from the outside: a list, an assignment (x = 5), a
     set, tuple, interval, union or matrix. The parts come back to 2.
  4. What cannot be taken apart (\sqrt{20}, 2k+2, x > 2) goes to math-verify.

math-verify alone would accept more than is right. It reads 50\% as 0.5 and as
50, rounds to 6 digits, takes the set {1, 5} for the interval (1, 5), strips a
trailing variable that is also a unit (2t is 2), takes R for r, and works out a
sum or an integral that merely restates the question. So it sees scalars,
relations and unions only, without percent signs and units, with decimals as
fractions, and never a sum that is left to compute.
"""

import dataclasses
import logging
import re

import latex2sympy2_extended
import math_verify
import sympy

from dash_jax.rewards import rationals

# It warns when it is given no time-out. It gets none: a worker that hangs is
# killed from outside, where an alarm cannot interrupt a long multiplication.
logging.getLogger('math_verify').setLevel(logging.CRITICAL)

_EXTRACTION = (
  math_verify.LatexExtractionConfig(
    boxed_match_priority=0,
    normalization_config=latex2sympy2_extended.NormalizationConfig(
      basic_latex=True, units=False, malformed_operators=True, boxed='last'
    ),
  ),
)

_MAX_PARTS = 64
_MAX_ROUNDING = 1e-6  # math-verify calls equal what is closer.
_MAX_SYMBOLIC_LEN = 300
_MAX_DEPTH = 12
_TOKEN = re.compile(
  r'\\(?:begin|end) ?\{[^{}]*\}|\\[A-Za-z]+|\\.|[<>!:]=|.', re.DOTALL
)
_OPENING = frozenset(['{', '(', '[', r'\{', r'\lbrace', r'\langle'])
_CLOSING = frozenset(['}', ')', ']', r'\}', r'\rbrace', r'\rangle'])
_RELATIONS = frozenset(
  ['<', '>', '<=', '>=', '!=', r'\lt', r'\gt', r'\ne', r'\neq', r'\le', r'\ge']
  + [r'\leq', r'\geq', r'\leqslant', r'\geqslant']
)
_CONJUNCTION = re.compile(r',? ?(?:\\text\{ ?,? ?(?:and|or) ?\}| (?:and|or) )')
_NAME = re.compile(
  r'\\?[A-Za-z]+(?: ?_ ?(?:\w|\{[^{}]*\}))?(?: ?\([A-Za-z](?:, ?[A-Za-z])*\))?'
)
_MEMBER = re.compile(r'[A-Za-z] ?\\in(?![A-Za-z]) ?')
_MATRIX = re.compile(
  r'\\begin ?\{([pbB]?matrix|array)\}(?: ?\{[^{}]*\})?(.*)\\end ?\{\1\}'
)
_BASED = re.compile(r'([0-9A-Fa-f]+) ?_ ?\{? ?([0-9]{1,2}) ?\}?')
_TEXT = re.compile(r'\(? ?\\text\{([^{}]*)\} ?\)?')
_WORDS = re.compile(r'[ (\'"]*[A-Za-z][A-Za-z .,\'"()-]*')
_THOUSANDS = re.compile(r'(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])')
_DECIMAL = re.compile(r'(?<![0-9.])([0-9]*)\.([0-9]+)(?![0-9.])')
_NOT_VARIABLES = re.compile(r'\\[A-Za-z]+|[^A-Za-z]')
# Characters that LaTeX does not compute with; what is left to compute; and what
# takes long: numbers that explode (towers of powers, factorials and binomials of
# numbers with five digits, very long integers, logarithms of long ones), and what
# SymPy simplifies in ever more ways.
_REFUSED = re.compile(
  r'[^ -~]'
  r'|\\(?:sum|prod|i*nt|oint|lim|bigcup|bigcap)(?![A-Za-z])'
  r'|[0-9)}] ?\^ ?\{? ?[0-9]+ ?\}? ?\^|\^ ?\{? ?-? ?[0-9]{5}|\*\*'
  r'|\^ ?\{[^A-Za-z\\]*\^'
  r'|[0-9]{5} ?!|! ?[)}]* ?!|[0-9]{200}'
  r'|\\binom.{0,20}(?:[0-9]{5}|\^)'
  r'|\\(?:log|ln|lg)(?![A-Za-z]).*[0-9]{5}|[0-9]{5}.*\\(?:log|ln|lg)(?![A-Za-z])'
  r'|(?:[A-Za-z] ?){30}|(?:[-+] ?){4}|_ ?\{[^{}]*_'
  r'|\.[0-9]*\.|(?:[0-9]+ ){9}'
)
_MAX_POWER = 9999  # Of powers within powers, their product.
_MAX_SUM_POWER = 20  # Of a sum with variables, times its signs: it is expanded.
_MAX_SIGNS = 30
_MAX_BARS = 8
_MAX_FUNCTIONS = 4
_FUNCTION = re.compile(
  r'\\(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp)h?(?![A-Za-z])'
)
_EXPONENT = re.compile(r' ?\^ ?\{? ?-? ?([0-9]+)')


@dataclasses.dataclass(frozen=True)
class _Form:
  """An answer taken apart.

  Attributes:
    kind: 'list' (sets too), 'union', 'equation', 'relation', 'ratio', 'scalar',
      the brackets of a tuple or interval ('()', '[)', ..), or a matrix's shape.
    parts: what `kind` holds together.
    text: the whole.
  """

  kind: str
  parts: list[str]
  text: str

  @property
  def is_points(self) -> bool:
    """Whether it may be a set of real numbers other than a finite one."""
    is_interval = self.kind[0] in '([' and len(self.parts) == 2
    return is_interval or self.kind in ('union', 'relation')


def equal(given: str, gold: str) -> bool:
  """Says whether two LaTeX answers have the same value.

  Args:
    given: the answer to judge.
    gold: the right answer.

  Returns:
    True if they are equal. Lists and sets may be in any order; tuples,
    intervals and matrices may not. An answer may carry or leave out its name
    (x = 5), its unit, and the base of its digits (52_8).
  """
  return _equal(rationals.tidy(given), rationals.tidy(gold), 0)


def _equal(given: str, gold: str, depth: int) -> bool:
  given, gold = _unwrap(given), _unwrap(gold)
  if not given or not gold or depth > _MAX_DEPTH:
    return False
  if _squeeze(given) == _squeeze(gold):
    return True
  for text in (given, gold):
    if _TEXT.fullmatch(text) and _words(text):
      return _words(given) == _words(gold)
  given, gold = (
    _TEXT.sub(_only_if_whole, given),
    _TEXT.sub(_only_if_whole, gold),
  )
  numbers = (
    rationals.read(given, plain_units=True),
    rationals.read(gold, plain_units=False),
  )
  if None not in numbers:
    return numbers[0] == numbers[1]
  bases = _BASED.fullmatch(given), _BASED.fullmatch(gold)
  if any(bases):
    return _equal_based(given, gold, bases)
  return _equal_forms(_take_apart(given), _take_apart(gold), depth)


def _equal_forms(given: _Form, gold: _Form, depth: int) -> bool:
  kinds = given.kind, gold.kind
  if 'list' in kinds:
    return _equal_unordered(_members(given), _members(gold), depth)
  if 'equation' in kinds:
    return _equal_equations(given, gold, depth)
  if kinds == ('union', 'union'):
    return _equal_unordered(given.parts, gold.parts, depth) or _equal_symbolic(
      given, gold
    )
  if given.is_points and gold.is_points and given.kind != gold.kind:
    # Of two different pairs of brackets one has an end that the other lacks.
    is_bracketed = given.kind[0] in '([' and gold.kind[0] in '(['
    return not is_bracketed and _equal_symbolic(given, gold)
  if given.kind == gold.kind and given.kind not in ('scalar', 'relation'):
    return len(given.parts) == len(gold.parts) and all(
      _equal(part, gold_part, depth + 1)
      for part, gold_part in zip(given.parts, gold.parts, strict=True)
    )
  if given.kind == gold.kind or set(kinds) == {'scalar', 'ratio'}:
    return _equal_symbolic(given, gold)
  return False


def _equal_unordered(given: list[str], gold: list[str], depth: int) -> bool:
  """Finds for every part of `gold` another part of `given`."""
  if len(given) != len(gold) or len(gold) > _MAX_PARTS:
    return False
  left = list(given)
  for part in gold:
    match = next((g for g in left if _equal(g, part, depth + 1)), None)
    if match is None:
      return False
    left.remove(match)
  return True


def _equal_equations(given: _Form, gold: _Form, depth: int) -> bool:
  """Compares where at least one is an equation; gold's form decides."""
  if gold.kind != 'equation':
    return _equal(given.parts[-1], gold.text, depth + 1)
  is_assignment = bool(_NAME.fullmatch(gold.parts[0]))
  if given.kind != 'equation':
    return is_assignment and _equal(given.text, gold.parts[-1], depth + 1)
  if _squeeze(given.parts[0]) == _squeeze(gold.parts[0]):
    return _equal(given.parts[-1], gold.parts[-1], depth + 1)
  return _equal_symbolic(given, gold)


def _equal_based(given, gold, bases) -> bool:
  """Compares digits such as 52_8; the base may be left to the question."""
  if all(bases):
    return bases[0].groups() == bases[1].groups()
  digits = bases[0][1] if bases[0] else bases[1][1]
  return digits == (gold if bases[0] else given)


def _equal_symbolic(given: _Form, gold: _Form) -> bool:
  if max(len(given.text), len(gold.text)) > _MAX_SYMBOLIC_LEN:
    return False
  texts = [_DECIMAL.sub(_as_fraction, form.text) for form in (given, gold)]
  if any(_is_costly(text) or _is_tangled(text) for text in texts):
    return False
  # math-verify lowers every letter, but R and r are two variables.
  mine, golds = (set(_NOT_VARIABLES.sub('', text)) for text in texts)
  if {letter.swapcase() for letter in mine - golds} & (golds - mine):
    return False
  given_value, gold_value = (
    math_verify.parse(
      rf'\boxed{{{rationals.take_latex_units(text)}}}',
      _EXTRACTION,
      fallback_mode='no_fallback',
      extraction_mode='first_match',
      parsing_timeout=None,
    )
    for text in texts
  )
  if _differ(given_value, gold_value):
    return False
  return math_verify.verify(
    gold_value,
    given_value,
    allow_set_relation_comp=True,
    timeout_seconds=None,
  )


def _differ(given: list, gold: list) -> bool:
  """Says whether two parsed numbers differ by their digits.

  Their difference in symbols can take for ever: of log_100(40) and 7183293 it has
  a power of the one to the other.
  """
  pair = [values[0] for values in (given, gold) if values]
  if len(pair) < 2 or not all(
    isinstance(value, sympy.Expr) and value.is_number for value in pair
  ):
    return False
  try:
    first, second = (complex(value.evalf(20)) for value in pair)
    scale = max(1.0, abs(first), abs(second))
    return abs(first - second) > _MAX_ROUNDING * scale
  except (OverflowError, TypeError, ValueError):
    return False


def _take_apart(text: str) -> _Form:
  """Names the outermost structure of tidied text and splits it there."""
  text = _MEMBER.sub('', _unwrap(text), count=1)
  is_bracketed = text[:1] in '([' or text.startswith((r'\{', r'\lbrace'))
  listed = text if is_bracketed else _THOUSANDS.sub(_without_commas, text)
  parts = _split(_CONJUNCTION.sub(',', listed), (',', ';'))
  if len(parts) > 1:
    return _Form('list', [p for part in parts for p in _signs(part)], text)
  parts = _split(text, ('=',))
  if len(parts) > 1:
    return _Form('equation', parts, text)
  parts = _split(text, (r'\cup',))
  if len(parts) > 1:
    return _Form('union', parts, text)
  if found := _MATRIX.fullmatch(text):
    rows = [_split(row, ('&',)) for row in _split(found[2], (r'\\',))]
    rows = [row for row in rows if row != ['']]  # After a final \\.
    shape = 'x'.join(str(len(row)) for row in rows)
    return _Form(f'matrix {shape}', [p for row in rows for p in row], text)
  if outer := _outer_brackets(text):
    brackets, inner = outer
    if brackets == '{}':
      condition = _split(inner, (r'\mid', '|', ':'))
      if len(condition) == 2:  # {x : x > 2}
        return _take_apart(condition[1])
      parts = [p for part in _split(inner, (',', ';')) for p in _signs(part)]
      return _Form('list', [] if parts == [''] else parts, text)
    parts = _split(inner, (',', ';'))
    if len(parts) > 1:
      return _Form(brackets, parts, text)
    if brackets == '()':
      return _take_apart(inner)
  if len(_signs(text)) > 1:
    return _Form('list', _signs(text), text)
  if len(_split(text, _RELATIONS)) > 1:
    return _Form('relation', [text], text)
  parts = _split(text, (':',))
  return _Form('ratio' if len(parts) > 1 else 'scalar', parts, text)


def _members(form: _Form) -> list[str]:
  """Returns what to compare with the parts of a list."""
  if form.kind in ('list', 'union'):
    return form.parts
  if re.fullmatch(r'[0-9]{1,3}(?:,[1-9][0-9]{2})+', form.text):
    return form.text.split(',')  # Next to a list, 100,200 is one too.
  return [form.text]


def _signs(text: str) -> list[str]:
  r"""Returns both values of a \pm b, or the text alone."""
  parts = re.split(r'\\pm(?![A-Za-z])', text)
  return [sign.join(parts) for sign in '+-'] if len(parts) == 2 else [text]


def _split(text: str, separators) -> list[str]:
  """Splits where no bracket is open."""
  parts, start, depth = [], 0, 0
  for found in _TOKEN.finditer(text):
    token = found[0]
    if token in _OPENING or token.startswith(r'\begin'):
      depth += 1
    elif token in _CLOSING or token.startswith(r'\end'):
      depth -= 1
    elif depth == 0 and token in separators:
      parts.append(text[start : found.start()].strip())
      start = found.end()
  return [*parts, text[start:].strip()]


def _outer_brackets(text: str) -> tuple[str, str] | None:
  """Returns the brackets around all of the text, as '[)', and the inside."""
  tokens = list(_TOKEN.finditer(text))
  if len(tokens) < 2 or tokens[0][0] not in _OPENING:
    return None
  depth = 0
  for found in tokens:
    depth += (found[0] in _OPENING) - (found[0] in _CLOSING)
    if depth == 0:
      break
  if found is not tokens[-1]:
    return None
  first, last = tokens[0][0], tokens[-1][0]
  names = {r'\lbrace': '{', r'\rbrace': '}', r'\langle': '<', r'\rangle': '>'}
  brackets = ''.join(names.get(t, t.removeprefix('\\')) for t in (first, last))
  return brackets, text[tokens[0].end() : tokens[-1].start()].strip()


def _is_costly(text: str) -> bool:
  """Says whether to compute with it may take more than a fraction of a second."""
  signs = text.count('+') + text.count('-')
  if (
    _REFUSED.search(text)
    or signs > _MAX_SIGNS
    or text.count('|') > _MAX_BARS
    or len(_FUNCTION.findall(text)) > _MAX_FUNCTIONS
  ):
    return True
  # Of each bracket that is open: its start, and the highest power in it.
  starts, powers, power = [], [1], 1
  for found in _TOKEN.finditer(text):
    token, power_before, power = found[0], power, 1
    if token in _OPENING:
      starts.append(found.end())
      powers.append(1)
      continue
    inside = ''
    if token in _CLOSING and starts:
      inside = text[starts.pop() : found.start()]
      power = powers.pop()
    elif token.isspace():
      power = power_before
    if exponent := _EXPONENT.match(text, found.end()):
      number = int(exponent[1])
      terms = inside.count('+') + inside.count('-')
      is_sum = terms and _NOT_VARIABLES.sub('', inside)
      if number * power > _MAX_POWER or (
        is_sum and number * terms > _MAX_SUM_POWER
      ):
        return True
      power *= max(number, 1)
    powers[-1] = max(powers[-1], power)
  return False


def _is_tangled(text: str) -> bool:
  """Says whether brackets do not match or nest deeper than people write."""
  depth = 0
  for found in _TOKEN.finditer(text):
    depth += (found[0] in _OPENING) - (found[0] in _CLOSING)
    if not 0 <= depth <= _MAX_DEPTH:
      return True
  return depth != 0


def _unwrap(text: str) -> str:
  """Removes spaces and LaTeX group braces around the whole text."""
  text = text.strip()
  for _ in range(_MAX_DEPTH):
    if text[:1] != '{' or not (outer := _outer_brackets(text)):
      break
    text = outer[1]
  return text


def _squeeze(text: str) -> str:
  """Removes spaces, except between digits, where they separate numbers."""
  return re.sub(r'(?<![0-9]) | (?![0-9])', '', text)


def _words(text: str) -> str | None:
  """Returns letters only, in lower case unless it is one letter, or None."""
  whole = _TEXT.fullmatch(text)
  content = whole[1] if whole else text
  if not _WORDS.fullmatch(content):
    return None
  letters = re.sub(r'[^A-Za-z]', '', content)
  return letters.lower() if len(letters) > 1 else letters


def _only_if_whole(found: re.Match) -> str:
  return found[1] if found[0] == found.string else found[0]


def _without_commas(found: re.Match) -> str:
  return found[0].replace(',', '')


def _as_fraction(found: re.Match) -> str:
  digits = (found[1] + found[2]).lstrip('0') or '0'
  return rf'{{\frac{{{digits}}}{{1{"0" * len(found[2])}}}}}'
