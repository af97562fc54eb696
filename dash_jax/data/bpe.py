"""Byte-level BPE tokenizers, from the files that models come with.

  1. `from_gguf` rebuilds the tokenizer from a GGUF file's metadata: tokens,
     merges, and the name of the rules that split text before merging.
  2. `from_hf_file` reads a tokenizer.json and its neighbours.
  3. `from_tiktoken` reads Llama 3's tokenizer.model and derives the merges from
     its ranks.

All become a `HuggingFace`. See `tokenizer.Tokenizer` for what it does.
"""

import base64
import binascii
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import tokenizers

from dash_jax.model import fields, gguf

# One id that is no token, and bytes that are no character, decode to this.
_REPLACEMENT = '\ufffd'

# GGUF's kinds of token.
_GGUF_CONTROL = 3
_GGUF_USER_DEFINED = 4

# Source: tokenizer.json of Qwen2 and of Llama 3. They differ in how many digits
# stay together.
_SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_SPLIT_QWEN2 = _SPLIT % r'\p{N}'
_SPLIT_LLAMA3 = _SPLIT % r'\p{N}{1,3}'

_LLAMA3_NUM_RANKS = 128_000
_LLAMA3_NUM_SPECIALS = 256
# Where they stand behind the ranks; the others are reserved, and numbered.
# Source: tokenizer.json of Llama 3.1, whose weights know no other names.
_LLAMA3_SPECIALS = {
  0: '<|begin_of_text|>',
  1: '<|end_of_text|>',
  4: '<|finetune_right_pad_id|>',
  6: '<|start_header_id|>',
  7: '<|end_header_id|>',
  8: '<|eom_id|>',
  9: '<|eot_id|>',
  10: '<|python_tag|>',
}

# Specials that no text holds, for files whose pad token ends a reply too: of
# Llama 3.1, Llama 3, SmolLM2, Qwen and the sentencepiece families.
_PADS = (
  '<|finetune_right_pad_id|>',
  '<|reserved_special_token_0|>',
  '<|endoftext|>',
  '<|vision_pad|>',
  '<unk>',
)


class HuggingFace:
  """A tokenizer of the `tokenizers` package, whose settings it changes."""

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    *,
    bos_id: int | None,
    stop_ids: Sequence[int],
    pad_id: int | None = None,
    adds_bos: bool = False,
    chat_template: str | None = None,
  ):
    tokenizer.encode_special_tokens = True  # as the letters that they are
    self._tokenizer = tokenizer
    self._given_pad_id = pad_id
    vocab = tokenizer.get_vocab()
    self.vocab_size = max(vocab.values()) + 1
    self._lost_bytes = frozenset()
    if isinstance(tokenizer.decoder, tokenizers.decoders.ByteLevel):
      # Some vocabularies lack rare bytes, which the package leaves out.
      self._lost_bytes = frozenset(
        byte for byte, letter in _name_bytes().items() if letter not in vocab
      )
    self.bos_id = bos_id
    self.stop_ids = tuple(stop_ids)
    self.adds_bos = adds_bos
    self.chat_template = chat_template
    self.specials = {
      token.content: i
      for i, token in tokenizer.get_added_tokens_decoder().items()
      if token.special
    }

  @property
  def pad_id(self) -> int | None:
    return choose_pad_id(self, self._given_pad_id)

  def encode(self, text: str, special: bool = False) -> list[int]:
    if special:
      return encode_specials(text, self.specials, self.encode)
    if not self._lost_bytes.isdisjoint(text.encode()):
      lost = next(c for c in text if self._lost_bytes & set(c.encode()))
      raise ValueError(
        f'the text {text[:40]!r}.. holds {lost!r}, for which the tokenizer has'
        ' no tokens: it would be lost'
      )
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    decode = functools.partial(
      self._tokenizer.decode, skip_special_tokens=False
    )
    return decode_ids(ids, self.vocab_size, self.specials, decode)

  def save(self, folder: pathlib.Path) -> None:
    saved = tokenizers.Tokenizer.from_str(self._tokenizer.to_str())
    bos, eos, pad = (
      None if i is None else saved.id_to_token(i)
      for i in (self.bos_id, self.stop_ids[0], self.pad_id)
    )
    begin = f'{bos} ' if self.adds_bos else ''
    saved.post_processor = tokenizers.processors.TemplateProcessing(
      single=f'{begin}$A',
      pair=f'{begin}$A {begin}$B',
      special_tokens=[(bos, self.bos_id)] if begin else [],
    )
    definition = saved.to_str(pretty=True)
    (folder / 'tokenizer.json').write_text(definition, encoding='utf-8')
    config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': bos,
      'eos_token': eos,
      'pad_token': pad,
      'clean_up_tokenization_spaces': False,
    }
    if self.chat_template:
      config['chat_template'] = self.chat_template
    path = folder / 'tokenizer_config.json'
    path.write_text(json.dumps(config, indent=2), encoding='utf-8')


def from_gguf(path: str) -> HuggingFace:
  """Returns the tokenizer in a GGUF file of kind 'gpt2', byte-level BPE.

  Raises:
    ValueError: a key is missing, or it splits text by rules ('pre') that are
      not known here.
  """
  metadata = gguf.read_metadata(path)

  def get(key):
    return get_gguf_field(metadata, path, key)

  pre = get('pre')
  if pre not in _PRE_TOKENIZERS:
    raise ValueError(
      f'{path}: tokenizer.ggml.pre is {pre!r}, whose rules for splitting text '
      f'are not known here; known: {", ".join(_PRE_TOKENIZERS)}. The '
      "model's tokenizer.json can be read as kind 'huggingface'"
    )
  tokens = get('tokens')
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=[tuple(merge.split(' ', 1)) for merge in get('merges')],
      # Llama 3 takes a word that is a token whole, whatever its merges are.
      ignore_merges=pre == 'llama-bpe',
    )
  )
  if pre == 'qwen2':
    tokenizer.normalizer = tokenizers.normalizers.NFC()
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    _PRE_TOKENIZERS[pre]()
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  for token, kind in zip(tokens, get('token_type'), strict=True):
    # Their ids are in the vocabulary already, and adding keeps them.
    added = tokenizers.AddedToken(
      token, normalized=False, special=kind == _GGUF_CONTROL
    )
    if kind == _GGUF_CONTROL:
      tokenizer.add_special_tokens([added])
    elif kind == _GGUF_USER_DEFINED:
      tokenizer.add_tokens([added])
  stop_ids = [get('eos_token_id')]
  turn_end = metadata.get('tokenizer.ggml.eot_token_id')
  if turn_end is not None and turn_end not in stop_ids:
    stop_ids.append(turn_end)
  bos_id = metadata.get('tokenizer.ggml.bos_token_id')
  # Where a file says nothing, llama.cpp begins texts of Llama 3 alone with BOS.
  adds_bos = metadata.get('tokenizer.ggml.add_bos_token', pre == 'llama-bpe')
  return HuggingFace(
    tokenizer,
    bos_id=bos_id,
    stop_ids=stop_ids,
    pad_id=metadata.get('tokenizer.ggml.padding_token_id'),
    adds_bos=adds_bos and bos_id is not None,
    chat_template=metadata.get('tokenizer.chat_template'),
  )


def get_gguf_field(metadata: Mapping, path: str, key: str):
  """Returns what a GGUF file says of its tokenizer.

  Raises:
    ValueError: it says nothing under this key.
  """
  if f'tokenizer.ggml.{key}' not in metadata:
    raise ValueError(f'{path}: metadata key tokenizer.ggml.{key} is missing')
  return metadata[f'tokenizer.ggml.{key}']


def from_hf_file(path: str) -> HuggingFace:
  """Returns the tokenizer in a tokenizer.json.

  BOS, EOS, the pad token and the chat template are read from the files beside
  it: tokenizer_config.json, and generation_config.json and chat_template.jinja
  where they exist. A text begins with BOS if tokenizer_config.json says so or,
  where it says nothing, if tokenizer.json's post_processor puts it there.

  Args:
    path: the file, or its folder.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / 'tokenizer.json'
  text = _read_text(path)
  try:
    tokenizer = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The package raises no narrower type.
    raise ValueError(f'{path}: not a tokenizer.json: {error}') from error
  # It may ask for both, which would cut and fill texts unasked.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  config_path = path.parent / 'tokenizer_config.json'
  config = fields.read_json(config_path)

  def get_token(field):
    token = config.get(field)
    token = token.get('content') if isinstance(token, dict) else token
    if not isinstance(token, str | None):
      raise ValueError(f'{config_path}: {field} is {token!r}; wanted: a text')
    return token

  def find(field):
    token = get_token(field)
    if token is None:
      return None
    if tokenizer.token_to_id(token) is None:
      raise ValueError(
        f'{config_path}: {field} {token!r} is not a token of {path}'
      )
    return tokenizer.token_to_id(token)

  eos_id = find('eos_token')
  if eos_id is None:
    raise ValueError(
      f'{config_path}: eos_token is missing, so no reply could end'
    )
  stop_ids = [eos_id]
  generation_path = path.parent / 'generation_config.json'
  if generation_path.exists():
    more = fields.read_json(generation_path).get('eos_token_id') or []
    more = more if isinstance(more, list) else [more]
    if not all(type(i) is int and i >= 0 for i in more):
      raise ValueError(
        f'{generation_path}: eos_token_id is {more!r}; wanted: ids'
      )
    stop_ids += [i for i in more if i not in stop_ids]
  bos_id = find('bos_token')
  # Nothing here needs it, so one that is not in the vocabulary is no error.
  pad_id = tokenizer.token_to_id(get_token('pad_token') or '')
  adds_bos = config.get('add_bos_token')
  if adds_bos is None:
    adds_bos = tokenizer.encode('a').ids[:1] == [bos_id]
  return HuggingFace(
    tokenizer,
    bos_id=bos_id,
    stop_ids=stop_ids,
    pad_id=pad_id,
    adds_bos=adds_bos and bos_id is not None,
    chat_template=_read_chat_template(config, path.parent),
  )


def from_tiktoken(path: str) -> HuggingFace:
  """Returns Llama 3's tokenizer from its tokenizer.model, a tiktoken rank file.

  The file holds no chat template. The end of a text, of a message and of a turn
  stop a reply, so that it serves the base and the instruct models.

  Raises:
    ValueError: it is no rank file, or another model's.

  Source: llama-models, models/llama3/tokenizer.py.
  """
  ranks = {}
  for number, line in enumerate(read_bytes(path).splitlines(), start=1):
    try:
      token, rank = line.split()
      ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
      raise ValueError(
        f"{path}, line {number}: not a token in base64 and its rank; Llama 3's "
        'tokenizer.model is a tiktoken rank file'
      ) from error
  if len(ranks) != _LLAMA3_NUM_RANKS:
    raise ValueError(
      f"{path}: {len(ranks)} ranks; Llama 3's tokenizer.model has "
      f'{_LLAMA3_NUM_RANKS}, and how others split text is not known here'
    )
  if sorted(ranks.values()) != list(range(len(ranks))):
    raise ValueError(
      f'{path}: its ranks are not the numbers from 0 to {len(ranks) - 1}, each'
      ' once'
    )
  letters = _name_bytes()
  vocab = {
    token.decode('latin-1').translate(letters): rank
    for token, rank in ranks.items()
  }
  # tiktoken joins the neighbours whose sum has the lowest rank, whatever they
  # are, so each way to cut a token in two is a merge.
  merges = [
    (token[:at], token[at:])
    for token in sorted(vocab, key=vocab.get)
    for at in range(1, len(token))
    if token[:at] in vocab and token[at:] in vocab
  ]
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.BPE(vocab=vocab, merges=merges, ignore_merges=True)
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
    _split_then_bytes(_SPLIT_LLAMA3)
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  reserved = itertools.count()
  # They get the ids behind the vocabulary, in this order.
  tokenizer.add_special_tokens(
    [
      tokenizers.AddedToken(
        _LLAMA3_SPECIALS.get(i)
        or f'<|reserved_special_token_{next(reserved)}|>',
        normalized=False,
        special=True,
      )
      for i in range(_LLAMA3_NUM_SPECIALS)
    ]
  )
  stops = ('<|end_of_text|>', '<|eom_id|>', '<|eot_id|>')
  return HuggingFace(
    tokenizer,
    bos_id=tokenizer.token_to_id('<|begin_of_text|>'),
    stop_ids=[tokenizer.token_to_id(stop) for stop in stops],
    adds_bos=True,
  )


def _name_bytes() -> dict[int, str]:
  """Returns the letter of each byte in byte-level BPE.

  Source: encoder.py of the GPT-2 release.
  """
  printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [byte for byte in range(256) if byte not in printing]
  return {byte: chr(byte) for byte in printing} | {
    byte: chr(256 + i) for i, byte in enumerate(others)
  }


def choose_pad_id(tokenizer, given: int | None) -> int | None:
  """Returns `given`, or another special if that ends or begins texts.

  Args:
    tokenizer: its specials, bos_id and stop_ids are looked at.
    given: the file's own pad token, if it has one.
  """
  taken = {tokenizer.bos_id, *tokenizer.stop_ids, None}
  choices = (given, *map(tokenizer.specials.get, _PADS))
  return next((i for i in choices if i not in taken), None)


def encode_specials(
  text: str, specials: Mapping[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
  """Returns ids, where the names of specials become their ids."""
  ids = []
  for part in split_at_specials(text, specials):
    ids += [specials[part]] if part in specials else encode(part)
  return ids


def split_at_specials(text: str, specials: Mapping[str, int]) -> list[str]:
  """Returns the parts of `text`: the names of specials, and what is between
  them, at both ends too, where it may be ''."""
  return _compile_names(tuple(specials)).split(text) if specials else [text]


@functools.lru_cache(maxsize=8)
def _compile_names(names: tuple[str, ...]) -> re.Pattern:
  longest_first = sorted(names, key=len, reverse=True)
  return re.compile(f'({"|".join(map(re.escape, longest_first))})')


def decode_ids(
  ids: Iterable[int],
  vocab_size: int,
  specials: Mapping[str, int],
  decode: Callable[[list[int]], str],
) -> str:
  """Returns text without specials, U+FFFD for ids outside the vocabulary."""
  left_out = set(specials.values())
  kept = [i for i in map(int, ids) if i not in left_out]
  return ''.join(
    decode(list(run)) if valid else _REPLACEMENT * len(list(run))
    for valid, run in itertools.groupby(kept, lambda i: 0 <= i < vocab_size)
  )


def _digits_then_bytes() -> list:
  return [
    tokenizers.pre_tokenizers.Digits(individual_digits=True),
    tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
  ]


def _split_then_bytes(pattern: str) -> list:
  return [
    tokenizers.pre_tokenizers.Split(
      tokenizers.Regex(pattern), behavior='isolated'
    ),
    tokenizers.pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=False
    ),
  ]


# tokenizer.ggml.pre -> the steps before BPE.
# Source: tokenizer.json of SmolLM2, Qwen2.5 and Llama 3.
_PRE_TOKENIZERS = {
  'smollm': _digits_then_bytes,
  'qwen2': functools.partial(_split_then_bytes, _SPLIT_QWEN2),
  'llama-bpe': functools.partial(_split_then_bytes, _SPLIT_LLAMA3),
}


def _read_chat_template(config: dict, folder: pathlib.Path) -> str | None:
  file = folder / 'chat_template.jinja'
  if file.exists():
    return _read_text(file)
  template = config.get('chat_template')
  if isinstance(template, list):
    named = [x for x in template if isinstance(x, dict)]
    named = {x.get('name'): x.get('template') for x in named}
    template = named.get('default')
  if not isinstance(template, str | None):
    raise ValueError(
      f'{folder / "tokenizer_config.json"}: chat_template is {template!r}; '
      'wanted: a text, or a list of objects with name and template'
    )
  return template


def _read_text(path) -> str:
  try:
    return read_bytes(path).decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8: {error}') from error


def read_bytes(path) -> bytes:
  path = pathlib.Path(path)
  if not path.is_file():
    why = 'is a folder' if path.is_dir() else 'is not there'
    raise FileNotFoundError(f'the tokenizer file {path} {why}')
  return path.read_bytes()
