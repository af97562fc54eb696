"""Text to token ids and back: one small protocol, four kinds of file.

  1. `load` opens a tokenizer file of one of `KINDS`, or `train_sentencepiece`
     makes one from texts.
  2. `encode` turns text into ids. Special tokens that are written out in the
     text are plain text, unless the caller says that it wrote them itself: a
     question that contains '<|im_end|>' must not end its own turn.
  3. `decode` turns ids into text, without special tokens.

No tokenizer here adds BOS or EOS: prompts say where those belong.
"""

import io
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import sentencepiece
import tokenizers

from dash_jax.data import bpe

# SentencePiece writes spaces as this character, so it cannot be a piece.
_SPACE_MARK = '\u2581'
# The trainer skips sentences with these characters, without a word.
_TRAINER_RESERVED = re.compile('[\n\x00\u2585]')
# What models with other rules for text than ours read in another way.
_PROBES = ('a', ' a', 'a  b ', '\n', ' \u00bd \uff21', '\u00e9 e\u0301 12')


class Tokenizer(Protocol):
  """What the rest of the project knows of a tokenizer.

  Attributes:
    vocab_size: ids are in [0, vocab_size).
    bos_id: the id that begins a text, None if there is none.
    stop_ids: the ids that end a reply; the first is trained as EOS.
    chat_template: a Jinja template of the model's chat format, or None.
    specials: ids of special tokens by their text.
  """

  vocab_size: int
  bos_id: int | None
  stop_ids: tuple[int, ...]
  chat_template: str | None
  specials: Mapping[str, int]

  def encode(self, text: str, special: bool = False) -> list[int]:
    """Returns ids, without BOS and EOS.

    Args:
      text: any text.
      special: whether special tokens written out in `text` become their ids.
    """

  def decode(self, ids: Iterable[int]) -> str:
    """Returns text; special tokens are left out.

    Ids outside the vocabulary (a model's embedding may be larger than it) and
    bytes that are no UTF-8 become U+FFFD.
    """

  def save(self, folder: pathlib.Path, *, add_bos: bool) -> None:
    """Writes the files that transformers reads a tokenizer from.

    Args:
      folder: exists.
      add_bos: whether it puts BOS in front of a text by itself there.

    Raises:
      ValueError: it has no such form.
    """


class SentencePiece:
  """A sentencepiece model."""

  chat_template = None

  def __init__(self, model: bytes, source: str = 'a sentencepiece model'):
    self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab_size = self._model.vocab_size()
    if self._model.eos_id() < 0:
      raise ValueError(f'{source}: it has no EOS piece, so no reply could end')
    self.stop_ids = (self._model.eos_id(),)
    bos_id = self._model.bos_id()
    self.bos_id = bos_id if bos_id >= 0 else None
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

  def encode(self, text: str, special: bool = False) -> list[int]:
    if special:
      return _encode_specials(text, self.specials, self._encode_plain)
    return self._encode_plain(text)

  def _encode_plain(self, text: str) -> list[int]:
    if not self._has_bytes or _SPACE_MARK not in text:
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

  def save(self, folder: pathlib.Path, *, add_bos: bool) -> None:
    # As tokenizer.json: from a .model file transformers puts a space in front
    # of every text. There U+2581 in a text is read as a space.
    fast = bpe.HuggingFace(
      _to_fast(self._model),
      bos_id=self.bos_id,
      stop_ids=self.stop_ids,
      chat_template=None,
    )
    for text in _PROBES:
      if fast.encode(text) != self.encode(text):
        raise ValueError(
          f'{folder}: this sentencepiece model changes spaces or characters, as'
          f' of {text!r}, and has no Hugging Face form here; give the'
          " tokenizer.json of its model's folder (data.tokenizer='huggingface')"
        )
    fast.save(folder, add_bos=add_bos)


def _to_fast(model) -> tokenizers.Tokenizer:
  """Returns a sentencepiece BPE model as one of the `tokenizers` package.

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
  fast.normalizer = tokenizers.normalizers.Replace(' ', _SPACE_MARK)
  fast.decoder = tokenizers.decoders.Sequence(
    [
      tokenizers.decoders.Replace(_SPACE_MARK, ' '),
      tokenizers.decoders.ByteFallback(),
      tokenizers.decoders.Fuse(),
    ]
  )
  special = [p for p, i in ids.items() if model.is_control(i)]
  fast.add_special_tokens(
    [tokenizers.AddedToken(p, normalized=False, special=True) for p in special]
  )
  # A piece that is no sum of others was given by the user, as newline is.
  joined = {''.join(pair) for pair in merges}
  given = [
    piece for piece in normal
    if piece not in joined and (len(piece) > 1 or piece == '\n')
  ]  # fmt: skip
  fast.add_tokens(
    [tokenizers.AddedToken(p, normalized=False, special=False) for p in given]
  )
  return fast


def load(kind: str, path: str) -> Tokenizer:
  """Returns the tokenizer in a file.

  Args:
    kind: 'sentencepiece' (a .model file), 'gguf' (the file of the weights, or
      'package:NAME'), 'huggingface' (a folder, or the tokenizer.json in it) or
      'tiktoken' (Llama 3's tokenizer.model).
    path: the file.

  Raises:
    ValueError: `kind` is another, or the file is not of that kind.
    FileNotFoundError: the file is not there.
  """
  if kind not in KINDS:
    raise ValueError(
      f'unknown kind of tokenizer {kind!r}; valid: {", ".join(KINDS)}'
    )
  return KINDS[kind](path)


def from_sentencepiece(path: str) -> SentencePiece:
  """Returns the tokenizer in a sentencepiece .model file."""
  try:
    return SentencePiece(bpe.read_bytes(path), str(path))
  except RuntimeError as error:
    raise ValueError(f'{path}: not a sentencepiece model: {error}') from error


def train_sentencepiece(
  texts: Iterable[str], vocab_size: int, path: str
) -> SentencePiece:
  """Trains a BPE tokenizer, writes it to `path` and returns it.

  The same texts give the same file. `decode(encode(x)) == x` for every text:
  nothing is normalised, spaces are kept, characters that the texts lack are
  spelled in bytes. Newlines are tokens of their own; a number that is common enough is one token.

  Args:
    texts: what to learn pieces from.
    vocab_size: number of ids, with <unk>, <s>, </s>, newline and 256 bytes.
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
      bos_id=1,
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


# What `load` can open.
KINDS: dict[str, Callable[[str], Tokenizer]] = {
  'sentencepiece': from_sentencepiece,
  'gguf': bpe.from_gguf,
  'huggingface': bpe.from_hf_file,
  'tiktoken': bpe.from_tiktoken,
}


def _encode_specials(
  text: str, specials: Mapping[str, int], encode: Callable[[str], list[int]]
) -> list[int]:
  """Returns ids, where the names of specials become their ids."""
  names = sorted(specials, key=len, reverse=True)
  ids = []
  for part in re.split(f'({"|".join(map(re.escape, names))})', text):
    ids += [specials[part]] if part in specials else encode(part)
  return ids
