"""SmolLM2's tokenizer, and its chat prompts.

Against a plain BPE written here from the file's metadata, and against
transformers', which drops the rule that digits stand alone: without it only
texts that hold no digits must agree, with the rule put back all must.
"""

import itertools
import os
import pathlib
import random

import regex
import tokenizers
import transformers

from dash_jax.data import chat
from dash_jax.model import gguf
from experiments.parity import chats
from experiments.parity.report import Report

TEXTS = (
  'What is 12 + 30? Think step by step.\n#### 42',
  '12 + 30 = 42\n5 + 6 = 11\n71 + 28 =',
  "def f(x):\n    return {'a': x**2}  # squares, don't ask",
  'Ünïcödé, 日本語 and 😀: 1,234.56 €\r\n\t end ',
)


class PlainBpe:
  """GPT-2's byte-level BPE with single digits, as slow and plain as it is.

  Source: Radford et al. 2019, encoder.py of the GPT-2 release.
  """

  _WORDS = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
    r'|\s+(?!\S)|\s+'
  )

  def __init__(self, path: str):
    metadata = gguf.read_metadata(path)
    tokens = metadata['tokenizer.ggml.tokens']
    self._ids = {token: i for i, token in enumerate(tokens)}
    merges = metadata['tokenizer.ggml.merges']
    self._ranks = {tuple(m.split(' ')): i for i, m in enumerate(merges)}
    # Bytes that print are themselves, the others follow from 256 on.
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printing]
    self._letters = {b: chr(b) for b in printing}
    self._letters |= {b: chr(256 + i) for i, b in enumerate(others)}

  def encode(self, text: str) -> list[int]:
    ids = []
    for part in regex.findall(r'\p{N}|\P{N}+', text):
      for word in self._WORDS.findall(part):
        ids += [self._ids[p] for p in self._merge(word)]
    return ids

  def _merge(self, word: str) -> list[str]:
    parts = [self._letters[b] for b in word.encode()]
    while len(parts) > 1:
      pairs = list(itertools.pairwise(parts))
      best = min(pairs, key=lambda pair: self._ranks.get(pair, 1 << 30))
      if best not in self._ranks:
        break
      merged, i = [], 0
      while i < len(parts):
        if tuple(parts[i : i + 2]) == best:
          merged.append(parts[i] + parts[i + 1])
          i += 2
        else:
          merged.append(parts[i])
          i += 1
      parts = merged
    return parts


def make_texts() -> list[str]:
  """Returns lines of this project's sources, and random hard ones."""
  root = pathlib.Path(__file__).resolve().parents[2]
  texts = list(TEXTS)
  for file in sorted(root.glob('dash_jax/**/*.py')):
    lines = file.read_text(encoding='utf-8').splitlines(keepends=True)
    texts += [''.join(lines[i : i + 5]) for i in range(0, len(lines), 5)]
  rng = random.Random(0)
  alphabet = "aZ 12 \n\t\r's'tTé日😀\u200d\u0301.,!?▁½"
  texts += [
    ''.join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1000)
  ]
  return texts


def check_tokenizer(report: Report, path: str, tokenizer) -> None:
  texts = make_texts()
  # transformers always reads special tokens written out in a text as such.
  encoded = [tokenizer.encode(text, special=True) for text in texts]
  plain = PlainBpe(path)
  num_equal = sum(
    plain.encode(text) == tokenizer.encode(text) for text in texts
  )
  report.add(
    'SmolLM2 ids, plain BPE',
    num_equal == len(texts),
    f'{num_equal} of {len(texts)} texts have equal ids',
  )
  num_back = sum(
    tokenizer.decode(tokenizer.encode(text)) == text for text in texts
  )
  report.add(
    'SmolLM2 text, there and back',
    num_back == len(texts),
    f'{num_back} of {len(texts)} texts come back unchanged',
  )
  folder, name = os.path.split(path)
  theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
  differing = [
    text
    for text, ids in zip(texts, encoded, strict=True)
    if theirs(text, add_special_tokens=False)['input_ids'] != ids
  ]
  unexplained = [t for t in differing if not regex.search(r'\p{N}', t)]
  report.add(
    'SmolLM2 ids, transformers',
    not unexplained,
    f'{len(texts) - len(differing)} of {len(texts)} texts have equal ids; '
    f'{len(unexplained)} of the others have no digits',
  )
  # With the digit rule put back, all must agree.
  theirs.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    [
      tokenizers.pre_tokenizers.Digits(individual_digits=True),
      tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  num_equal = sum(
    theirs(text, add_special_tokens=False)['input_ids'] == ids
    for text, ids in zip(texts, encoded, strict=True)
  )
  report.add(
    'SmolLM2 ids, transformers with single digits',
    num_equal == len(texts),
    f'{num_equal} of {len(texts)} texts have equal ids',
  )
  num_equal, questions = 0, [*TEXTS[:3], '1 + 1? \n']
  for question in questions:
    for system in ('', 'Be brief.'):
      want = chats.ask(theirs, question, system)
      got = chat.encode_prompt(question, tokenizer, 'chat', system=system)
      num_equal += got == want
  report.add(
    'SmolLM2 chat prompts',
    num_equal == 2 * len(questions),
    f'{num_equal} of {2 * len(questions)} prompts have equal ids',
  )
