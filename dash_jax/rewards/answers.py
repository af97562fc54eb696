r"""Takes the final answer out of a completion and compares it.

The life of a completion here:

  1. A completion that never stopped scores 0: what looks like an answer in it
     is where the sampler happened to cut.
  2. `extract` finds the last answer in the style that the task asks for.
  3. `equal` compares it with the gold answer: numbers as exact fractions
     (rationals.py), LaTeX through latex.py.

Styles: 'gsm8k' is the last `#### n`, 'boxed' the last \boxed{...}, and
'last_number' the last number in the text.
"""

import collections
import re

from dash_jax.rewards import rationals

STYLES = ('gsm8k', 'boxed', 'last_number')

# An answer is looked for in this many characters at the end. What is followed
# by more text than that is not a final answer, and the search takes bounded
# time on any text.
MAX_TAIL_LEN = 20_000

_GSM8K = re.compile(r'####((?:(?!####)[^\n])*)')
_STARTS_AS_NUMBER = re.compile(r'[^0-9A-Za-z]{0,8}[0-9]')
_BOX_TOKEN = re.compile(r'\\(?:boxed|fbox)(?![A-Za-z])\s*|\\.|[{}]', re.DOTALL)
_UNBRACED = re.compile(r'(?:(?!\\[)\]])[^\s${}]){1,100}')
_NUMBER = re.compile(
  r'(?:(?<![\w)\]}])[-\u2212][$\u20ac\u00a3]?|[$\u20ac\u00a3][-\u2212]?)?'
  r'(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?'
  r'|[0-9]+(?:\.[0-9]+)?'
  r'(?:/[0-9]+(?![0-9/]|\.[0-9])|[eE][-+]?[0-9]{1,3}(?!\w))?'
  r'|\.[0-9]+)%?'
)


def extract(text: str, style: str) -> str | None:
  r"""Finds the last answer in a text.

  Args:
    text: a completion or a worked solution.
    style: one of `STYLES`.

  Returns:
    The answer as written, with its unit, or None if there is none in the last
    `MAX_TAIL_LEN` characters. 'gsm8k': the rest of the line behind the last
    `####` that a number follows. 'boxed': the inside of the last outermost \boxed{} or
    \fbox{}; None if that box is empty or never closed.

  Raises:
    ValueError: `style` is unknown.
  """
  _check(style)
  tail = text[-MAX_TAIL_LEN:]
  if style == 'gsm8k':
    rests = [m[1].strip() for m in _GSM8K.finditer(tail)]
    return next((r for r in rests[::-1] if _STARTS_AS_NUMBER.match(r)), None)
  if style == 'boxed':
    return _last_box(tail)
  last = collections.deque(_NUMBER.finditer(tail), maxlen=1)
  # A number at the cut may be the end of a longer one.
  if not last or (last[0].start() == 0 and len(text) > len(tail)):
    return None
  return last[0][0]


def equal(given: str, gold: str, style: str) -> bool:
  """Says whether an answer has the value of the gold answer.

  Args:
    given: the answer to judge, as `extract` returns it.
    gold: the right answer.
    style: one of `STYLES`. 'boxed' compares LaTeX, the others numbers.

  Returns:
    True if the values are the same. Numbers are exact: 1/2 = 0.5, and 0.333 is
    not 1/3. Thousands separators, `$`, `%` and units do not count, so 50% is
    50, and 0.5 is neither.

  Raises:
    ValueError: `style` is unknown, `gold` is empty, or `gold` is not a number
      where the style asks for one.
  """
  _check(style)
  if not gold.strip():
    raise ValueError('gold is empty; it must be the right answer')
  if (
    len(given) > rationals.MAX_ANSWER_LEN
    or len(gold) > rationals.MAX_ANSWER_LEN
  ):
    return given.strip() == gold.strip()
  if style == 'boxed':
    # Imported here: SymPy takes half a second, and numbers need none of it.
    from dash_jax.rewards import latex

    return latex.equal(given, gold)
  gold_value = rationals.read(rationals.tidy(gold), plain_units=True)
  if gold_value is None:
    raise ValueError(
      f'gold is {gold!r}, which is not a number; style {style!r} compares'
      " numbers, style 'boxed' anything that LaTeX can write"
    )
  return rationals.read(rationals.tidy(given), plain_units=True) == gold_value


def score_one(
  completion: str, answer: str, truncated: bool, style: str
) -> float:
  """Scores one completion.

  Args:
    completion: the sampled text.
    answer: the right final answer.
    truncated: whether the completion ran out of room before it stopped.
    style: one of `STYLES`.

  Returns:
    1.0 if the completion stopped and its last answer is right, else 0.0.

  Raises:
    ValueError: as `equal` does.
  """
  _check(style)
  if truncated:
    return 0.0
  given = extract(completion, style)
  return float(given is not None and equal(given, answer, style))


def score_format(
  completion: str, answer: str, truncated: bool, style: str
) -> float:
  """Scores the form of one completion.

  Returns:
    1.0 if the completion stopped and states a final answer in the style, right
    or wrong, else 0.0.

  Raises:
    ValueError: `style` is unknown.
  """
  del answer
  return float(not truncated and extract(completion, style) is not None)


def score_equal(
  completion: str, answer: str, truncated: bool, style: str
) -> float:
  """Scores an answer that stands alone, as `extract` returns it.

  Returns:
    1.0 if it has the value of `answer`, else 0.0.

  Raises:
    ValueError: as `equal` does.
  """
  del truncated
  return float(equal(completion, answer, style))


def prepare(style: str) -> None:
  """Imports what a style needs, so that no answer's time-out pays for it."""
  _check(style)
  if style == 'boxed':
    from dash_jax.rewards import latex

    latex.equal('B = r - 3', '1')  # SymPy imports more as it first works.
    latex.equal('x + 1', '1 + x')


# Called once by a worker: see workers.Pool.
score_one.prepare = score_equal.prepare = prepare


def _check(style: str) -> None:
  if style not in STYLES:
    raise ValueError(f'style is {style!r}; it must be one of {STYLES}')


def _last_box(text: str) -> str | None:
  """Reads the last outermost box in one pass, brackets counted by a stack."""
  content = None
  stack = []  # Where each open brace's content starts; None if it is no box.
  box_at = None  # Where the brace of a box that was just named should be.
  outer = None  # Height of `stack` at the outermost open box.
  for token in _BOX_TOKEN.finditer(text):
    if token[0].startswith(('\\boxed', '\\fbox')):
      box_at = token.end()
      if text[box_at : box_at + 1] != '{' and outer is None:
        found = _UNBRACED.match(text, box_at)
        content = found[0] if found else None
    elif token[0] == '{':
      if token.start() == box_at and outer is None:
        outer, content = len(stack), None
      stack.append(token.end())
    elif token[0] == '}' and stack:
      start = stack.pop()
      if outer == len(stack):
        outer = None
        content = text[start : token.start()].strip() or None
  return content
