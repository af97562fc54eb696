"""Compares our models and tokenizers with transformers on the same weights.

    pip install -e '.[parity]' && python -m experiments.parity

  1. SmolLM2-135M-Instruct: both sides read the GGUF file by themselves. Every
     weight must be equal, logits and next-token choices must agree.
  2. Small random models of each architecture that a Hugging Face folder may
     hold, saved by transformers, read by us: logits must agree. Written by us
     and read by transformers, they must be equal.
  3. SmolLM2's tokenizer against a plain BPE written here from the file's
     metadata, and against transformers': it drops the rule that digits stand
     alone, so only texts without neighbouring digits must agree with it.

Prints one line a check and exits with 1 if one fails. About a minute on two
cores, 3 GB of memory.
"""

import itertools
import json
import os
import pathlib
import random
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import regex
import tokenizers
import torch
import transformers

from dash_jax import sharding
from dash_jax.data import bpe, chat
from dash_jax.model import gguf, hf, hf_write, llama

# float32 sums in another order; logits are up to 40, and up to 10 in the small
# models.
_MAX_LOGIT_GAP = 1e-3
_MAX_SMALL_LOGIT_GAP = 2e-4
# The same weights and the same program.
_MAX_REWRITTEN_GAP = 1e-6

_TEXTS = (
  'What is 12 + 30? Think step by step.\n#### 42',
  '12 + 30 = 42\n5 + 6 = 11\n71 + 28 =',
  "def f(x):\n    return {'a': x**2}  # squares, don't ask",
  'Ünïcödé, 日本語 and 😀: 1,234.56 €\r\n\t end ',
)


class Report:
  """Prints checks as they end, and remembers whether all passed."""

  def __init__(self):
    self.num_failed = 0

  def add(self, name: str, passed: bool, detail: str) -> None:
    self.num_failed += not passed
    print(f'{"ok  " if passed else "FAIL"}  {name}: {detail}', flush=True)


def compute_logits(config, weights, tokens, lengths) -> np.ndarray:
  """Returns f32[B, T, V] of left-padded rows."""
  with jax.set_mesh(sharding.make_mesh(1, 1, 1)):
    params = jax.tree.map(
      lambda like, w: jax.device_put(w, like.sharding),
      llama.abstract_params(config, np.float32),
      weights,
    )
    model = llama.Llama(config)
    T = tokens.shape[1]
    mask = np.arange(T) >= T - np.asarray(lengths)[:, None]

    @jax.jit
    def run(params, tokens, mask):
      x = model.apply({'params': params}, tokens, mask)
      return model.apply({'params': params}, x, method=llama.Llama.logits)

    rows = sharding.SAMPLE.spec('batch', None)
    tokens, mask = (jax.device_put(x, rows) for x in (tokens, mask))
    return np.asarray(run(params, tokens, mask))


def compute_their_logits(model, ids: list[int]) -> np.ndarray:
  """Returns f32[T, V] of one row, without padding."""
  with torch.no_grad():
    return model(torch.tensor([ids])).logits[0].float().numpy()


def compare_logits(report, name, config, weights, model, rows, most) -> None:
  """Compares every position of `rows`, which we pad on the left."""
  lengths = [len(row) for row in rows]
  tokens = np.zeros((len(rows), max(lengths)), np.int32)
  for padded, row in zip(tokens, rows, strict=True):
    padded[-len(row) :] = row
  ours = compute_logits(config, weights, tokens, lengths)
  gap, largest, num_agreeing = 0.0, 0.0, 0
  for i, row in enumerate(rows):
    theirs = compute_their_logits(model, row)
    mine = ours[i, -len(row) :]
    gap = max(gap, float(np.abs(mine - theirs).max()))
    largest = max(largest, float(np.abs(theirs).max()))
    num_agreeing += int((mine.argmax(-1) == theirs.argmax(-1)).sum())
  total = sum(lengths)
  report.add(
    name,
    gap <= most and num_agreeing == total,
    f'logits differ by at most {gap:.2g} (allowed {most:g}, largest '
    f'{largest:.3g}); same first choice at {num_agreeing} of {total} positions',
  )


def check_smollm2(report: Report, path: str, tokenizer) -> None:
  config = gguf.read_config(path)
  weights = gguf.read_weights(path, config)
  folder, name = os.path.split(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32
  ).eval()
  # Their tensors through our table: equal only if names, transpositions and
  # the order of q and k rows are all the same.
  theirs = {n: t.numpy() for n, t in model.state_dict().items()}
  places = hf.list_tensors(config)
  theirs = hf.fill_params(
    'transformers', config, places, list(places), theirs.get, np.float32
  )
  pairs = zip(jax.tree.leaves(weights), jax.tree.leaves(theirs), strict=True)
  equal = [np.array_equal(ours, other) for ours, other in pairs]
  report.add(
    'SmolLM2 weights',
    all(equal),
    f'{sum(equal)} of {len(equal)} stacked arrays are equal bit by bit',
  )
  rows = [tokenizer.encode(text) for text in _TEXTS]
  rows.append(chat.encode_prompt('What is 12 + 30?', tokenizer, 'chat'))
  compare_logits(
    report, 'SmolLM2 logits', config, weights, model, rows, _MAX_LOGIT_GAP
  )


def check_small_models(report: Report) -> None:
  """Compares random models whose sizes differ wherever they may."""
  sizes = {
    'vocab_size': 97,
    'hidden_size': 48,
    'intermediate_size': 80,
    'num_hidden_layers': 3,
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'initializer_range': 0.3,
  }
  scaling = {
    'rope_type': 'llama3',
    'rope_theta': 500.0,
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
  }
  cases = {
    'llama': transformers.LlamaConfig(
      **sizes, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=False
    ),
    'llama 3.1 (scaled rope)': transformers.LlamaConfig(
      **sizes, rope_parameters=scaling, tie_word_embeddings=True
    ),
    'qwen2': transformers.Qwen2Config(**sizes, tie_word_embeddings=False),
    'qwen2, tied': transformers.Qwen2Config(**sizes, tie_word_embeddings=True),
    'mistral': transformers.MistralConfig(**sizes, sliding_window=None),
    'qwen3': transformers.Qwen3Config(
      **sizes, head_dim=16, tie_word_embeddings=True
    ),
  }
  rng = np.random.default_rng(0)
  rows = [rng.integers(0, 97, length).tolist() for length in (5, 64, 31)]
  for name, case in cases.items():
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(case).eval()
    with torch.no_grad():
      for parameter_name, parameter in model.named_parameters():
        if 'norm' in parameter_name or 'bias' in parameter_name:
          parameter.normal_(1.0, 0.3)  # they start at one and zero
    with tempfile.TemporaryDirectory() as folder:
      model.save_pretrained(folder)
      config = hf.read_config(folder)
      weights = hf.read_weights(folder, config)
    check_written(report, name, config, weights, model, rows)
    compare_logits(
      report,
      f'random {name}',
      config,
      weights,
      model,
      rows,
      _MAX_SMALL_LOGIT_GAP,
    )


def check_written(report, name, config, weights, model, rows) -> None:
  """transformers computes the same from what we write as from its own."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder)
    fields = hf_write.make_config(
      config, dtype='float32', max_len=128, bos_id=None, stop_ids=(0,)
    )
    (path / 'config.json').write_text(json.dumps(fields))
    hf_write.write_weights(path, config, weights)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  gap = max(
    float(
      np.abs(
        compute_their_logits(again, row) - compute_their_logits(model, row)
      ).max()
    )
    for row in rows
  )
  report.add(
    f'random {name}, written by us',
    gap <= _MAX_REWRITTEN_GAP,
    f"transformers' logits differ by at most {gap:.2g}",
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
  root = pathlib.Path(__file__).resolve().parent.parent
  texts = list(_TEXTS)
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
  num_equal, questions = 0, [*_TEXTS[:3], '1 + 1? \n']
  for question in questions:
    for system in ('', 'Be brief.'):
      messages = [{'role': 'user', 'content': question}]
      if system:
        messages.insert(0, {'role': 'system', 'content': system})
      want = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
      )
      got = chat.encode_prompt(question, tokenizer, 'chat', system=system)
      num_equal += got == want
  report.add(
    'SmolLM2 chat prompts',
    num_equal == 2 * len(questions),
    f'{num_equal} of {2 * len(questions)} prompts have equal ids',
  )


def main() -> int:
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  torch.set_num_threads(2)
  report = Report()
  path = gguf.find_packaged()
  tokenizer = bpe.from_gguf(path)
  check_small_models(report)
  check_tokenizer(report, path, tokenizer)
  check_smollm2(report, path, tokenizer)
  print(f'{report.num_failed} checks failed')
  return 1 if report.num_failed else 0


if __name__ == '__main__':
  sys.exit(main())
