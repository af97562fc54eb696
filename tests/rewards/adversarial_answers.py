r"""Replies that are made to stall, crash or mislead a verifier.

`generate` makes any number of them, the same ones for the same seed, and `write`
writes one in a style. Each has a gold answer, and is wrong by construction unless
`is_right` says otherwise: the numbers that hostile text is made of never have the
value of a gold answer, which is odd, of seven digits and begins with 7.
"""

import dataclasses
import random
import re
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Case:
  """An answer, what stands before it, the gold answer, and whether they agree."""

  kind: str
  lead: str
  answer: str
  gold: str
  is_right: bool


def generate(seed: int, num_cases: int) -> list[Case]:
  """Returns cases of all kinds in turn."""
  rng = random.Random(seed)
  # What is computed with takes milliseconds, and the rest next to nothing.
  kinds = [kind for kind in _KINDS for _ in range(1 if kind in _SLOW else 4)]
  return [_make(rng, kinds[i % len(kinds)]) for i in range(num_cases)]


def write(case: Case, style: str) -> str:
  """Returns a completion that states the answer in a style."""
  frame = {'gsm8k': '#### {}', 'boxed': r'\boxed{{{}}}', 'last_number': '{}'}
  return case.lead + frame[style].format(case.answer)


def find_reward(case: Case, style: str) -> float | None:
  """Returns the reward that the case has to get, or None where the style may find
  the gold number as a part of the answer."""
  if style == 'last_number' and case.kind in _AROUND_GOLD:
    return None
  if style == 'gsm8k' and case.is_right and case.answer.startswith('\\'):
    return None  # Its answers begin with a digit, or with little before it.
  return float(case.is_right)


def _make(rng: random.Random, kind: str) -> Case:
  gold = 7_000_001 + 2 * rng.randrange(450_000)
  lead = rng.choice(['', 'So it is. ', '\x00', '\ud800 ', '#### 5\n', '\u202e'])
  answer = _KINDS[kind](rng, gold)
  return Case(kind, lead, answer, str(gold), kind == _RIGHT)


def _nest(rng: random.Random, opening: str, inner: str, closing: str) -> str:
  depth = rng.choice([3, 13, 30, 100, 300, 3000])
  return opening * depth + inner + closing * depth


def _number(rng: random.Random) -> str:
  """Even, or of few digits: no gold answer."""
  return str(
    rng.choice([0, 1, 2, 5, 12, 40, 99, 100, 98_765, 99_999, 123_456_788])
  )


_LETTERS = 'abckmnrstxyzABR'
COMMANDS = tuple(
  re.findall(
    r'\S+',
    r"""
\frac \dfrac \tfrac \sqrt \left( \right) \left[ \right] \{ \} \begin{pmatrix}
\end{pmatrix} \begin{array}{cc} \end{array} \\ & \pm \cup \cap \infty \pi \text{
\mathrm{ \boxed{ \fbox{ \over \cdot \times \le < > = \in \mid | : ; , ! ^ _ { } ( )
[ ] \log \sin \ln \binom \overline \circ \% $ \$ \( \) \[ \] \sum \int \lim \prod
\mathbb{R} \emptyset \setminus \ldots \dots \cdots \approx \neq \, \! \quad ~ '
\operatorname \mod \bmod \gcd \lfloor \rceil \vec \hat \bar \det i e
""",
  )
)


def _soup(rng: random.Random) -> str:
  parts = [*COMMANDS, *'0123456789', *_LETTERS]
  num_parts = rng.choice([2, 5, 10, 30, 100])
  return rng.choice(['', ' ']).join(rng.choices(parts, k=num_parts))


def _noise(rng: random.Random) -> str:
  top = rng.choice([0x80, 0x800, 0x10000, 0x110000])
  num = rng.choice([1, 10, 100, 1000])
  return ''.join(chr(rng.randrange(top)) for _ in range(num))


def _off_by_little(rng: random.Random, gold: int) -> str:
  value = gold + rng.choice([-1, 1, 2, 10, -gold - gold])
  zeros = rng.choice([0, 8, 300])
  return rng.choice(
    [
      str(value),
      f'{value:,}',
      f'{gold}.{"0" * zeros}1',
      f'{gold - 1}.{"9" * (zeros + 20)}',
      f'\\frac{{{value}}}{{1}}',
      f'\\frac{{{gold * 3 + 1}}}{{3}}',
      f'-{gold}',
      f'{gold}{rng.randrange(10)}',
      f'{gold}e1',
      f'{gold} \\cdot 2',
      f'{gold}x',
      f'\\sqrt{{{gold}}}',
      f'{gold}!',
      f'{gold}^2',
      f'x < {gold}',
      f'[{gold}, {gold + 1}]',
    ]
  )


_POWERS = [
  '10^{10^{10}}',
  '9^{9^{9^{9}}}',
  '9**9**9**9',
  '2^{99999999}',
  '10^{999999999}',
  '(10^{99})^{9999}',
  '((((9^9)^9)^9)^9)^9',
  r'(9^{9999})^{9999}',
  r'\left(9999^{9999}\right)^{9999}',
  r'9999^{9999} \cdot 9999^{9999} \cdot 9999^{9999}',
  r'2^{2^{2^{2^{2^2}}}}',
  r'{10}^{{10}^{10}}',
  r'e^{e^{e^{e^{9}}}}',
  r'x^{9999} + (x+1)^{9999}',
  r'(x+y+z)^{999}',
  r'(a+b+c+d+e+f)^{60}',
  '99999!',
  '9999!!',
  '(9999!)!',
  '9999! + 9998!',
  r'\frac{9999!}{9998!}',
  r'\binom{99999}{50000}',
  r'\binom{9999}{4999}',
  r'\binom{10^9}{10^8}',
  r'\log_{2}(2^{9999})',
  r'\sqrt[9999]{9999}',
  r'\sqrt{\sqrt{\sqrt{\sqrt{\sqrt{2}}}}}',
  r'\sum_{k=1}^{10^{10}} k',
  r'\prod_{k=1}^{99999} k^k',
  r'\int_0^1 x^x^x dx',
  '1e999999999',
  '1e999',
  '10^999',
  '10^{-999}',
  r'\sin(10^{999})',
  r'\tan(10^{9999})',
  r'\cos(\cos(\cos(\cos(\cos(9)))))',
  r'7^{7777} \mod 13',
  r'|{{{x}}}| + |y| \le 10^{99}',
  r'0^{-1}',
  r'\frac{0}{0}',
  r'\frac{1}{0}',
  r'1/0',
  r'\infty - \infty',
  r'0^0',
  r'i^{i^{i}}',
]

_DIGITS = [0x660, 0x6F0, 0x966, 0x9E6, 0xFF10, 0x1D7CE, 0x2080, 0x1D7D8]


def _write_in_digits(rng: random.Random, value: int) -> str:
  """Writes a number in the digits of another script, or in some of them."""
  zero, share = rng.choice(_DIGITS), rng.choice([0.3, 1.0])
  digits = list(str(value))
  is_other = [rng.random() < share for _ in digits]
  is_other[0] = True
  return ''.join(
    chr(zero + int(digit)) if other else digit
    for digit, other in zip(digits, is_other, strict=True)
  )


_INVISIBLE = ['\x00', '\x08', '\x1b[31m', '\x7f', '\ud800', '\udc00', '\ufeff']

# Each takes a source of chance and the gold answer, and returns an answer.
_KINDS: dict[str, Callable[[random.Random, int], str]] = {
  'nested brackets': lambda rng, _: _nest(
    rng,
    *rng.choice(
      [
        ('(', '5', ')'),
        ('{', '5', '}'),
        ('[', '5, 6', ']'),
        (r'\{', '1', r'\}'),
        (r'\left(', '2', r'\right)'),
        ('(', '1', ''),
        ('', '1', '}'),
        ('{', '1', ''),
      ]
    ),
  ),
  'nested commands': lambda rng, _: _nest(
    rng,
    *rng.choice(
      [
        (r'\frac{1}{', '2', '}'),
        (r'\frac', '12', ''),
        (r'\sqrt{', '2', '}'),
        (r'\sqrt', '2', ''),
        (r'\boxed{', '3', '}'),
        (r'\text{', 'a', '}'),
        (r'2^{', '3', '}'),
        ('2^', '3', ''),
        ('x_{', '3', '}'),
        (r'\begin{pmatrix}', '1', r'\end{pmatrix}'),
        ('x = (', '1', ')'),
        ('-', '1', ''),
        (r'\overline{', '1', '}'),
        (r'\{x : ', '1', r'\}'),
        (r'x \in [', '1', ']'),
        (r'1 \pm (', '1', ')'),
        (r'|', 'x', '|'),
        (r'\sin ', 'x', ''),
      ]
    ),
  ),
  'powers': lambda rng, _: rng.choice(_POWERS),
  'powers of an operand': lambda rng, _: rng.choice(
    [
      '{}^{{{}}}',
      '({}^{{{}}})^{{999}}',
      '{}^{}',
      r'\left({}\right)^{{-{}}}',
      '{}! - {}!',
      r'\binom{{{}}}{{{}}}',
      r'{} \times 10^{{{}}}',
      '{}e{}',
      r'\sqrt[{}]{{{}}}',
      r'\log_{{{}}} {}',
    ]
  ).format(_number(rng), _number(rng)),
  'unbalanced LaTeX': lambda rng, _: _soup(rng),
  'symbols': lambda rng, _: rng.choice(
    [
      r'\frac{{{0}+{1}}}{{{2}}}',
      r'{0}{1} + {2}^2',
      r'\sqrt{{{0}+{1}\sqrt{{{2}}}}}',
      r'\{{{0}, {1}, {2}\}}',
      r'({0}, {1}] \cup [{2}, \infty)',
      r'{0} < {1} \le {2}',
      r'{0} = {1} - {2}',
    ]
  ).format(*rng.choices([*_LETTERS, '3', '17', '0.25', r'\pi'], k=3)),
  'megabytes in a line': lambda rng, _: (
    rng.choice(['9', '(', '1,', '\\', '{', '####', r'\boxed{', '1/', '-', ' '])
    * rng.choice([3_000, 30_000, 300_000])
  ),
  'long': lambda rng, _: (
    rng.choice(['5', '1,', '1, ', '0.', r'\frac12', '1+', 'x', '1 ', '\\,'])
    * rng.choice([50, 150, 330, 490])
  ),
  'lists': lambda rng, _: ','.join(
    [rng.choice([_number(rng), 'x', r'\frac{1}{x}', 'x+1', r'\sqrt 2'])]
    * rng.choice([2, 20, 64, 65, 100])
  ),
  'control characters': lambda rng, gold: (
    rng.choice(_INVISIBLE).join(str(gold + 1)) + rng.choice(_INVISIBLE)
  ),
  'noise': lambda rng, _: _noise(rng),
  'digits of other scripts': lambda rng, gold: _write_in_digits(
    rng, gold + rng.choice([1, 2, 10])
  ),
  'marks of direction': lambda rng, gold: (
    rng.choice('\u202e\u200f\u2067\u061c') + str(gold + 1)[::-1] + '\u202c'
  ),
  'other encodings': lambda rng, gold: (
    (rng.choice('\u221a\xe9\xbd\uff11\u0663\u2167\u96f6') + str(gold))
    .encode()
    .decode(
      rng.choice(['latin-1', 'cp1252', 'utf-16-le', 'ascii']), errors='replace'
    )
  ),
  'nested boxes': lambda rng, gold: (
    f'{gold}'
    + r'}\boxed{' * rng.choice([1, 10, 500])
    + _nest(rng, r'\boxed{', _number(rng), '}')
  ),
  'long decimals': lambda rng, gold: rng.choice(
    [
      f'{gold}.{"0" * rng.choice([20, 500, 980])}1',
      f'{gold - 1}.{"9" * rng.choice([20, 500, 980])}',
      f'0.{"0" * rng.choice([20, 500])}{gold}',
      rf'{gold - 1}.9\overline{{8}}',
      rf'{gold}.\overline{{{"01" * rng.choice([1, 90, 400])}}}',
    ]
  ),
  'huge exponents': lambda rng, gold: (
    f'{gold}'
    + rng.choice(['e', 'E+', 'e-', r' \times 10^{', '*10^', r'\cdot 10^{-'])
    + rng.choice(['9', '99', '999', '9999', '99999999999', '10^10^10'])
  ),
  'fractions of fractions': lambda rng, _: rng.choice(
    [
      '1/2' + '/3' * rng.choice([1, 10, 200]),
      r'\frac{1}{2}' * rng.choice([2, 10, 90]),
      '1 ' * rng.choice([2, 10]) + '1/2',
      r'\frac{\frac{1}{2}}{\frac{3}{' + '4' * 300 + '}}',
      '+'.join(f'\\frac{{1}}{{{n}}}' for n in range(1, rng.choice([3, 30]))),
    ]
  ),
  'almost': _off_by_little,
  # Here the rest are right.
  'written out': lambda rng, gold: rng.choice(
    [
      str(gold),
      f'{gold:,}',
      f'\\${gold}',
      f'{gold}.{"0" * rng.choice([1, 20, 400])}',
      f'+{gold}',
      f'{gold}\\%',
      f'{gold} \\text{{ cm}}',
      f'\\frac{{{gold * 3}}}{{3}}',
      f'\\dfrac{{{gold * 12}}}{{12}}',
      f'{gold * 10}/10',
      f'{gold}e0',
      f'{gold * 10}e-1',
      f'{gold} \\times 10^{{0}}',
      f'{gold - 1}.\\overline{{9}}',
      f'({gold})',
      f'{{{gold}}}',
    ]
  ),
}
_SLOW = (
  'powers',
  'powers of an operand',
  'symbols',
  'long',
  'nested brackets',
  'fractions of fractions',
)
_RIGHT = 'written out'
_AROUND_GOLD = (_RIGHT, 'almost', 'other encodings', 'nested boxes')
