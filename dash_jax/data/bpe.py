"""Byte-level BPE tokenizers, from the files that models come with.

  1. `from_gguf` rebuilds the tokenizer from a GGUF file's metadata: tokens,
     merges, and the name of the rules that split text before merging.
  2. `from_hf_file` reads a tokenizer.json and its neighbours.
  3. `from_tiktoken` reads Llama 3's tokenizer.model.

See `tokenizer.Tokenizer` for what they all do.
"""

import base64
import binascii
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import tokenizers

from dash_jax.model import gguf

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
_LLAMA3_SPECIALS = (
  '<|begin_of_text|>',
  '<|end_of_text|>',
  '<|reserved_special_token_0|>',
  '<|reserved_special_token_1|>',
  '<|finetune_right_pad_id|>',
  '<|step_id|>',
  '<|start_header_id|>',
  '<|end_header_id|>',
  '<|eom_id|>',
  '<|eot_id|>',
  '<|python_tag|>',
)


class HuggingFace:
  """A tokenizer of the `tokenizers` package."""

  def __init__(
    self,
    tokenizer: tokenizers.Tokenizer,
    *,
    bos_id: int | None,
    stop_ids: Sequence[int],
    chat_template: str | None,
  ):
    definition = tokenizer.to_str()
    self._special = _from_definition(definition)
    self._plain = _from_definition(definition)
    self._plain.encode_special_tokens = True
    self.vocab_size = max(self._plain.get_vocab().values()) + 1
    self.bos_id = bos_id
    self.stop_ids = tuple(stop_ids)
    self.chat_template = chat_template
    self.specials = {
      token.content: i
      for i, token in self._plain.get_added_tokens_decoder().items()
      if token.special
    }

  def encode(self, text: str, special: bool = False) -> list[int]:
    tokenizer = self._special if special else self._plain
    return tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Iterable[int]) -> str:
    decode = functools.partial(self._plain.decode, skip_special_tokens=False)
    return decode_ids(ids, self.vocab_size, self.specials, decode)

  def save(self, folder: pathlib.Path, *, add_bos: bool) -> None:
    saved = _from_definition(self._special.to_str())
    name = self._plain.id_to_token
    bos = None if self.bos_id is None else name(self.bos_id)
    if add_bos:
      saved.post_processor = tokenizers.processors.TemplateProcessing(
        single=f'{bos} $A',
        pair=f'{bos} $A {bos} $B',
        special_tokens=[(bos, self.bos_id)],
      )
    definition = saved.to_str(pretty=True)
    (folder / 'tokenizer.json').write_text(definition, encoding='utf-8')
    fields = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': bos,
      'eos_token': name(self.stop_ids[0]),
      'clean_up_tokenization_spaces': False,
    }
    if self.chat_template:
      fields['chat_template'] = self.chat_template
    path = folder / 'tokenizer_config.json'
    path.write_text(json.dumps(fields, indent=2), encoding='utf-8')


class TikToken:
  """A tokenizer of the `tiktoken` package."""

  chat_template = None

  def __init__(
    self, encoding, *, specials: Mapping[str, int], bos: str, stops: list[str]
  ):
    self._encoding = encoding
    self.vocab_size = encoding.n_vocab
    self.specials = dict(specials)
    self.bos_id = specials[bos]
    self.stop_ids = tuple(specials[stop] for stop in stops)

  def encode(self, text: str, special: bool = False) -> list[int]:
    allowed = set(self.specials) if special else set()
    return self._encoding.encode(
      text, allowed_special=allowed, disallowed_special=()
    )

  def decode(self, ids: Iterable[int]) -> str:
    return decode_ids(
      ids, self.vocab_size, self.specials, self._encoding.decode
    )

  def save(self, folder: pathlib.Path, *, add_bos: bool) -> None:
    del add_bos
    raise ValueError(
      f'{folder}: a tiktoken file has no Hugging Face form here; read the'
      " weights from the model's Hugging Face folder (model.weights=hf:FOLDER),"
      ' whose tokenizer.json is then copied'
    )


def from_gguf(path: str) -> HuggingFace:
  """Returns the byte-level BPE tokenizer in a GGUF file's metadata.

  Raises:
    ValueError: it is not a BPE tokenizer, or it splits text by rules ('pre')
      that are not known here.
  """
  metadata = gguf.read_metadata(path)

  def get(key):
    if f'tokenizer.ggml.{key}' not in metadata:
      raise ValueError(f'{path}: metadata key tokenizer.ggml.{key} is missing')
    return metadata[f'tokenizer.ggml.{key}']

  if get('model') != 'gpt2':
    raise ValueError(
      f'{path}: tokenizer.ggml.model is {get("model")!r}; can be read: gpt2 '
      '(byte-level BPE)'
    )
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
  return HuggingFace(
    tokenizer,
    bos_id=metadata.get('tokenizer.ggml.bos_token_id'),
    stop_ids=stop_ids,
    chat_template=metadata.get('tokenizer.chat_template'),
  )


def from_hf_file(path: str) -> HuggingFace:
  """Returns the tokenizer in a tokenizer.json.

  BOS, EOS and the chat template are read from the files beside it:
  tokenizer_config.json, and generation_config.json and chat_template.jinja
  where they exist.

  Args:
    path: the file, or its folder.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    path = path / 'tokenizer.json'
  text = read_bytes(path).decode('utf-8')
  try:
    tokenizer = tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The package raises no narrower type.
    raise ValueError(f'{path}: not a tokenizer.json: {error}') from error
  config_path = path.parent / 'tokenizer_config.json'
  config = json.loads(read_bytes(config_path))

  def find(field):
    token = config.get(field)
    if isinstance(token, dict):
      token = token['content']
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
    more = json.loads(read_bytes(generation_path)).get('eos_token_id') or []
    more = more if isinstance(more, list) else [more]
    stop_ids += [i for i in more if i not in stop_ids]
  return HuggingFace(
    tokenizer,
    bos_id=find('bos_token'),
    stop_ids=stop_ids,
    chat_template=_read_chat_template(config, path.parent),
  )


def from_tiktoken(path: str) -> TikToken:
  """Returns Llama 3's tokenizer from its tokenizer.model, a tiktoken rank file.

  The file holds no chat template. Both the end of a text and the end of a turn
  stop a reply, so that it serves the base and the instruct models.

  Source: llama-models, models/llama3/tokenizer.py.
  """
  try:
    import tiktoken
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "Llama 3's tokenizer.model is read with the package tiktoken: "
      "pip install -e '.[llama3]'"
    ) from error
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
  names = list(_LLAMA3_SPECIALS)
  num_reserved = itertools.count(2)
  while len(names) < _LLAMA3_NUM_SPECIALS:
    names.append(f'<|reserved_special_token_{next(num_reserved)}|>')
  specials = {name: len(ranks) + i for i, name in enumerate(names)}
  encoding = tiktoken.Encoding(
    name='llama3',
    pat_str=_SPLIT_LLAMA3,
    mergeable_ranks=ranks,
    special_tokens=specials,
  )
  return TikToken(
    encoding,
    specials=specials,
    bos='<|begin_of_text|>',
    stops=['<|end_of_text|>', '<|eot_id|>'],
  )


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


def _from_definition(definition: str) -> tokenizers.Tokenizer:
  tokenizer = tokenizers.Tokenizer.from_str(definition)
  # A file may ask for both, which would cut and fill texts unasked.
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _read_chat_template(config: dict, folder: pathlib.Path) -> str | None:
  file = folder / 'chat_template.jinja'
  if file.exists():
    return read_bytes(file).decode('utf-8')
  template = config.get('chat_template')
  if isinstance(template, list):
    named = {entry['name']: entry['template'] for entry in template}
    return named.get('default')
  return template


def read_bytes(path) -> bytes:
  path = pathlib.Path(path)
  if not path.is_file():
    raise FileNotFoundError(f'the tokenizer file {path} is not there')
  return path.read_bytes()
