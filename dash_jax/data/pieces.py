"""Sentencepiece tokenizers: read, trained, and taken out of GGUF files.

  1. `from_file` reads a .model file; `train` makes one from texts.
  2. `from_gguf` rebuilds the model from a GGUF file's metadata: pieces, scores
     and kinds, as Llama 2's and Mistral's files have them.
  3. `SentencePiece.save` writes it as a tokenizer.json, by way of bpe.py.

See `tokenizer.Tokenizer` for what it does.
"""

import io
import pathlib
import re
from collections.abc import Iterable

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from dash_jax.data import bpe
from dash_jax.model import gguf

# SentencePiece writes spaces as this character, so it cannot be a piece.
_SPACE_MARK = '\u2581'
# The trainer skips sentences with these characters, without a word.
_TRAINER_RESERVED = re.compile('[\n\x00\u2585]')
# What models with other rules for text than ours read in another way.
_PROBES = ('a', ' a', 'a  b ', '\n', ' \u00bd \uff21', '\u00e9 e\u0301 12')


class SentencePiece:
  """A sentencepiece model."""

  def __init__(
    self,
    model: bytes,
    source: str = 'a sentencepiece model',
    *,
    adds_bos: bool = True,
    more_stop_ids: Iterable[int] = (),
    chat_template: str | None = None,
  ):
    self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    self._proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    self._adds_space = self._proto.normalizer_spec.add_dummy_prefix
    self.vocab_size = self._model.vocab_size()
    if self._model.eos_id() < 0:
      raise ValueError(f'{source}: it has no EOS piece, so no reply could end')
    self.stop_ids = tuple(dict.fromkeys([self._model.eos_id(), *more_stop_ids]))
    bos_id = self._model.bos_id()
    self.bos_id = bos_id if bos_id >= 0 else None
    self.adds_bos = adds_bos and self.bos_id is not None
    self.chat_template = chat_template
    self.specials = {
      self._model.id_to_piece(i): i
      for i in range(self.vocab_size)
      if self._model.is_control(i) or self._model.is_unknown(i)
    }
    self._space_mark_ids = [
      self._model.piece_to_id(f'<0x{byte:02X}>')
      for byte in _SPACE_MARK.encode()
    ]
    self._has_bytes = all(self._model.is_byte(i) for i in self._space_mark_ids)

  @property
  def pad_id(self) -> int | None:
    given = self._model.pad_id()
    return bpe.choose_pad_id(self, given if given >= 0 else None)

  def encode(self, text: str, special: bool = False) -> list[int]:
    if special:
      return bpe.encode_specials(text, self.specials, self.encode)
    # A model that puts a space in front of a text would do so at each part.
    if not self._has_bytes or self._adds_space or _SPACE_MARK not in text:
      return self._model.encode(text)
    # Spelled in bytes, the mark comes back as itself and not as a space.
    ids = []
    for part in re.split(f'({_SPACE_MARK})', text):
      is_mark = part == _SPACE_MARK
      ids += self._space_mark_ids if is_mark else self._model.encode(part)
    return ids

  def decode(self, ids: Iterable[int]) -> str:
    return bpe.decode_ids(
      ids, self.vocab_size, self.specials, self._model.decode
    )

  def save(self, folder: pathlib.Path) -> None:
    # As tokenizer.json: from a .model file transformers puts a space in front
    # of every text. There U+2581 in a text is read as a space.
    fast = bpe.HuggingFace(
      _to_fast(self._model, self._proto),
      bos_id=self.bos_id,
      stop_ids=self.stop_ids,
      pad_id=self.pad_id,
      adds_bos=self.adds_bos,
      chat_template=self.chat_template,
    )
    for text in _PROBES:
      if fast.encode(text) != self.encode(text):
        raise ValueError(
          f'{folder}: this sentencepiece model changes spaces or characters, as'
          f' of {text!r}, and has no Hugging Face form here; give the'
          " tokenizer.json of its model's folder (data.tokenizer='huggingface')"
        )
    fast.save(folder)


def _to_fast(model, proto) -> tokenizers.Tokenizer:
  """Returns a sentencepiece BPE model as one of the `tokenizers` package.

  Args:
    model: its processor.
    proto: the same model as data.

  Raises:
    ValueError: it is no BPE model with a piece for each byte.
  """
  ids = {model.id_to_piece(i): i for i in range(model.vocab_size())}
  normal = {
    piece
    for piece, i in ids.items()
    if not (model.is_control(i) or model.is_unknown(i) or model.is_byte(i))
  }
  # Sentencepiece joins the two neighbours that make the best piece first.
  merges = sorted(
    (
      (piece[:at], piece[at:])
      for piece in normal
      for at in range(1, len(piece))
      if piece[:at] in normal and piece[at:] in normal
    ),
    key=lambda pair: (-model.get_score(ids[''.join(pair)]), pair),
  )
  if not merges or not any(map(model.is_byte, ids.values())):
    raise ValueError(
      'only sentencepiece models of the kind BPE with byte fallback have a'
      ' Hugging Face form here'
    )
  fast = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab=ids,
      merges=merges,
      unk_token=model.id_to_piece(model.unk_id()),
      byte_fallback=True,
      fuse_unk=True,
    )
  )
  spaces = [tokenizers.normalizers.Replace(' ', _SPACE_MARK)]
  text = [
    tokenizers.decoders.Replace(_SPACE_MARK, ' '),
    tokenizers.decoders.ByteFallback(),
    tokenizers.decoders.Fuse(),
  ]
  if proto.normalizer_spec.add_dummy_prefix:
    spaces.insert(0, tokenizers.normalizers.Prepend(_SPACE_MARK))
    text.append(tokenizers.decoders.Strip(' ', left=1, right=0))
  fast.normalizer = tokenizers.normalizers.Sequence(spaces)
  fast.decoder = tokenizers.decoders.Sequence(text)
  special = [p for p, i in ids.items() if model.is_control(i)]
  fast.add_special_tokens(
    [tokenizers.AddedToken(p, normalized=False, special=True) for p in special]
  )
  given = [p.piece for p in proto.pieces if p.type == p.USER_DEFINED]
  fast.add_tokens(
    [tokenizers.AddedToken(p, normalized=False, special=False) for p in given]
  )
  return fast


def from_file(path: str) -> SentencePiece:
  """Returns the tokenizer in a sentencepiece .model file.

  A text begins with BOS if the file has a piece for it, as Llama 2's has.
  """
  content = bpe.read_bytes(path)
  if not content:  # which would be a model without pieces
    raise ValueError(f'{path}: not a sentencepiece model, but an empty file')
  try:
    return SentencePiece(content, str(path))
  except RuntimeError as error:
    raise ValueError(f'{path}: not a sentencepiece model: {error}') from error


def from_gguf(path: str) -> SentencePiece:
  """Returns the tokenizer in a GGUF file of kind 'llama'.

  Where the file is silent, llama.cpp's defaults hold: a space in front of each
  text, BOS in front of that, and <unk>, BOS and EOS at ids 0, 1 and 2.

  Raises:
    ValueError: a key is missing, or EOS is no control token.
  """
  metadata = gguf.read_metadata(path)

  def get(key, *default):
    if default and f'tokenizer.ggml.{key}' not in metadata:
      return default[0]
    return bpe.get_gguf_field(metadata, path, key)

  pieces, kinds = get('tokens'), get('token_type')
  model = sentencepiece_model_pb2.ModelProto()
  for piece, score, kind in zip(pieces, get('scores'), kinds, strict=True):
    # The numbers of the kinds are sentencepiece's own.
    model.pieces.add(piece=piece, score=score, type=kind)
  spec = model.trainer_spec
  spec.model_type = spec.BPE
  spec.vocab_size = len(pieces)
  spec.byte_fallback = model.SentencePiece.BYTE in kinds
  spec.unk_piece = pieces[get('unknown_token_id', 0)]
  spec.bos_piece = pieces[get('bos_token_id', 1)]
  spec.eos_piece = pieces[get('eos_token_id', 2)]
  if 'tokenizer.ggml.padding_token_id' in metadata:
    spec.pad_piece = pieces[get('padding_token_id')]
  model.normalizer_spec.name = 'identity'
  model.normalizer_spec.add_dummy_prefix = get('add_space_prefix', True)
  model.normalizer_spec.remove_extra_whitespaces = get(
    'remove_extra_whitespaces', False
  )
  turn_end = get('eot_token_id', None)
  try:
    return SentencePiece(
      model.SerializeToString(),
      str(path),
      adds_bos=get('add_bos_token', True),
      more_stop_ids=[] if turn_end is None else [turn_end],
      chat_template=metadata.get('tokenizer.chat_template'),
    )
  except RuntimeError as error:
    raise ValueError(
      f'{path}: its tokenizer.ggml.tokens are no sentencepiece model: {error}'
    ) from error


def train(texts: Iterable[str], vocab_size: int, path: str) -> SentencePiece:
  """Trains a BPE tokenizer, writes it to `path` and returns it.

  The same texts give the same file. `decode(encode(x)) == x` for every text:
  nothing is normalised, spaces are kept, characters that the texts lack are
  spelled in bytes. Newlines are tokens of their own; a number that is common
  enough is one token. There is no BOS: a model trained from nothing needs none.

  Args:
    texts: what to learn pieces from.
    vocab_size: number of ids, with <unk>, one reserved, </s>, newline and 256
      bytes.
    path: a .model file, written.

  Raises:
    ValueError: the texts are empty, or they ask for more ids than
      `vocab_size`, or cannot fill it.
  """
  lines = [
    line.rstrip('\r')
    for text in texts
    for line in _TRAINER_RESERVED.split(text)
  ]
  lines = [line for line in lines if line]
  if not lines:
    raise ValueError('a tokenizer cannot be trained on empty texts')
  letters = {c for line in lines for c in line.replace(' ', _SPACE_MARK)}
  min_vocab_size = 4 + 256 + len(letters)
  if vocab_size < min_vocab_size:
    raise ValueError(
      f'vocab_size {vocab_size} is too small for these texts: 4 special '
      f'tokens, 256 bytes and {len(letters)} characters ask for at least '
      f'{min_vocab_size}'
    )
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      split_digits=False,
      byte_fallback=True,
      character_coverage=1.0,
      user_defined_symbols=['\n'],
      unk_id=0,
      # No BOS; another keeps its id, so that the ids of published runs stay.
      bos_id=-1,
      control_symbols=['<reserved>'],
      eos_id=2,
      pad_id=-1,
      # The most there can be: longer lines would be skipped.
      max_sentence_length=1 << 30,
      shuffle_input_sentence=False,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    most = re.search(r'Vocabulary size too high.*<= (\d+)', str(error))
    if not most:
      raise
    raise ValueError(
      f'vocab_size {vocab_size} is too large for these texts; '
      f'valid: {min_vocab_size} to {most[1]}'
    ) from error
  pathlib.Path(path).write_bytes(model.getvalue())
  return SentencePiece(model.getvalue(), str(path))
