"""Llama 3's real tokenizer.model against Meta's own reading of it.

The file and the reference are those of the package llama-models.
"""

import importlib.util
import pathlib
import random

import pytest
from llama_models import datatypes
from llama_models.llama3 import chat_format
from llama_models.llama3 import tokenizer as reference

from dash_jax.data import chat, tokenizer, word_problems

HARD = [
  '',
  ' ',
  'e\u0301 é ﬁ ½ ① Å a\u0300\u0301\u0302 \u0345',
  '👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇧🇷🇯🇵 \U0010ffff',
  '日本語の文章。 中文\uff0c標點\uff01 한국어 문장 ภาษาไทย',
  'العربية עברית \u202eright to left\u202c हिन्दी',
  'a\u00a0b\u2003c\u3000d\u2028e\x85f\u200bg\ufeffh',
  'nul \x00 bell \x07 escape \x1b[0m \x1c\x1f delete \x7f',
  'x' + ' ' * 300 + 'y' + '\n' * 120 + 'z' + '\t \t \n ' * 40,
  '0 1 12 123 1234 12345 3.14159 1,000,000 -7 5e-6',
  '٣٤٥٦ १२३ ๑๒๓ \uff14\uff12 \U0001d7d8\U0001d7d9\U0001d7da Ⅷ ² ₃ 五',
  "don't DON'T We'Ve i'LL o'clock '\u017f 'S",
  # Tokens that no merges lead to.
  'Tôi hiểu việc nhiều người Việt. değiş geliştirmektedir .:.:.:.:.:.:.:.:',
  '<|eot_id|> <|start_header_id|>system<|end_header_id|> <|begin_of_text|>',
  '<|reserved_special_token_9|><|image|><|step_id|><|python_tag|',
]
MATHS = [
  r'Let $f(x) = \frac{x^{2} - 1}{\sqrt{x + 1}}$. Find $f(3)$.',
  r'\begin{align*} a_{n+1} &= 2a_n + 1, \\ a_0 &= 0 \end{align*}',
  r'$$\int_0^\infty e^{-x^2}\,dx = \frac{\sqrt{\pi}}{2} \approx 0.886227$$',
  r'If $\log_{10} 2 = 0.3010$, then $\lfloor \log_{10} 2^{100} \rfloor = 30$.',
  r'The answer is $\boxed{\dfrac{3\sqrt{3}}{4}}$, not $\boxed{-1}$.',
  r'$\binom{10}{3} \cdot 7! \equiv 0 \pmod{11}$ iff \(11 \mid 120\cdot 5040\)',
]


def make_texts():
  """Returns what users ask, and what they should not."""
  rng = random.Random(0)
  alphabet = " \n\t\r\x00'sS\u017faZ 129.,!?-=#*é日😀\u200d\u0301\u00a0\u3000"
  texts = HARD + MATHS
  for q in word_problems.generate(300, 'train', seed=0):
    texts += [q.prompt, q.solution]
  texts += [
    ''.join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(2000)
  ]
  # Surrogates are no characters.
  points = [*range(0xD800), *range(0xE000, 0x110000)]
  texts += [''.join(map(chr, rng.choices(points, k=12))) for _ in range(2000)]
  texts += [
    ''.join(rng.choice(' \n\ta=') * rng.randint(1, 60) for _ in range(8))
    for _ in range(500)
  ]
  return texts


def find_file():
  spec = importlib.util.find_spec('llama_models')
  folder = pathlib.Path(spec.submodule_search_locations[0])
  return folder / 'llama3' / 'tokenizer.model'


@pytest.fixture(scope='module')
def theirs():
  return reference.Tokenizer(find_file())


@pytest.fixture(scope='module')
def ours():
  return tokenizer.load('tiktoken', find_file())


@pytest.fixture(scope='module')
def chatting():
  model = tokenizer.load('tiktoken', find_file())
  chat.complete(model, 'llama3_8b')
  return model


@pytest.fixture(scope='module')
def saved(ours, tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  ours.save(folder)
  return tokenizer.load('huggingface', folder)


def test_ids_are_those_the_weights_were_trained_on(ours, saved, theirs):
  """As read and as saved; and each text comes back."""
  for text in make_texts():
    want = theirs.encode(text, bos=False, eos=False)
    assert ours.encode(text) == want, ascii(text)
    assert saved.encode(text) == want, ascii(text)
    assert ours.decode(want) == text
    assert saved.decode(want) == text
    assert max(want, default=0) < 128_000  # no special token


def test_special_tokens_have_their_ids(ours, saved, theirs):
  """All that this file's models were trained on. The package's names for images
  and steps came later, for other models: here they are reserved, as in Llama
  3.1's published tokenizer.json."""
  assert saved.specials == ours.specials
  assert set(ours.specials.values()) == set(theirs.special_tokens.values())
  for name, id_ in theirs.special_tokens.items():
    if 'reserved' not in name and name not in ('<|image|>', '<|step_id|>'):
      assert ours.specials[name] == id_
      assert ours.encode(f'a{name}b', special=True) == theirs.encode(
        f'a{name}b', bos=False, eos=False, allowed_special='all'
      )
  for number, id_ in ((0, 128_002), (2, 128_005), (3, 128_011), (247, 128_255)):
    assert ours.specials[f'<|reserved_special_token_{number}|>'] == id_
  for model in (ours, saved):
    assert (model.bos_id, model.pad_id) == (theirs.bos_id, theirs.pad_id)
    assert model.adds_bos
  assert sorted(ours.stop_ids) == sorted(theirs.stop_tokens)


@pytest.mark.parametrize('system', ['', 'Think in steps.'])
def test_chat_prompts_are_metas_own(chatting, theirs, system):
  """Llama 3's format as Meta's code writes it; the questions end in no space,
  which the published template strips and this code does not."""
  form = chat_format.ChatFormat(theirs)
  for question in [t for t in HARD + MATHS if t.strip()]:
    messages = [
      datatypes.RawMessage(role=role, content=text)
      for role, text in (('system', system), ('user', question.strip()))
      if text
    ]
    want = form.encode_dialog_prompt(messages).tokens
    got = chat.encode_prompt(question, chatting, 'chat', system=system)
    assert got == want, ascii(question)
