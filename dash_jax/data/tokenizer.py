"""Text to token ids and back: one small protocol, four kinds of file.

  1. `load` opens a tokenizer file of one of `KINDS`; `pieces.train` makes one
     from texts.
  2. `encode` turns text into ids. Special tokens that are written out in the
     text are plain text, unless the caller says that it wrote them itself: a
     question that contains '<|im_end|>' must not end its own turn.
  3. `decode` turns ids into text, without special tokens.

None of these adds BOS or EOS: prompts say where those belong, by `adds_bos`.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from dash_jax.data import bpe, pieces
from dash_jax.model import gguf


class Tokenizer(Protocol):
  """What the rest of the project knows of a tokenizer.

  Attributes:
    vocab_size: ids are in [0, vocab_size).
    bos_id: the id that begins a text, None if there is none.
    adds_bos: whether a plain text of this model begins with BOS.
    stop_ids: the ids that end a reply; the first is trained as EOS.
    pad_id: a special that neither begins nor ends a text, for others who fill
      rows; None if there is none. Here masks come from lengths.
    chat_template: a Jinja template of the model's chat format, or None.
    specials: ids of special tokens by their text.
  """

  vocab_size: int
  bos_id: int | None
  adds_bos: bool
  stop_ids: tuple[int, ...]
  pad_id: int | None
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

  def save(self, folder: pathlib.Path) -> None:
    """Writes the files that transformers reads a tokenizer from.

    Args:
      folder: exists.

    Raises:
      ValueError: it has no such form.
    """


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


def _from_gguf(path: str) -> Tokenizer:
  kind = bpe.get_gguf_field(gguf.read_metadata(path), path, 'model')
  if kind not in _GGUF_KINDS:
    raise ValueError(
      f'{path}: tokenizer.ggml.model is {kind!r}; can be read: '
      f'{", ".join(_GGUF_KINDS)}'
    )
  return _GGUF_KINDS[kind](path)


_GGUF_KINDS = {'gpt2': bpe.from_gguf, 'llama': pieces.from_gguf}

# What `load` can open.
KINDS: dict[str, Callable[[str], Tokenizer]] = {
  'sentencepiece': pieces.from_file,
  'gguf': _from_gguf,
  'huggingface': bpe.from_hf_file,
  'tiktoken': bpe.from_tiktoken,
}
