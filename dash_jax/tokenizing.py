"""How questions become tokens, and where replies end, as a run's config has it.

1. The tokenizer is read, or trained on the training questions.
2. `Encoding` makes prompts and solutions of questions, and text of replies.
3. A reply ends with a stop token, or with `data.stop_text`.
"""

import bisect
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterable

import jax
import ml_collections
import numpy as np

from dash_jax import batches, refusals, sharding, weights
from dash_jax.data import chat, pieces, prompts, tokenizer
from dash_jax.model import gguf, hub
from dash_jax.runs import ownership, watch

TOKENIZER_NAME = 'tokenizer.model'

# Of tokens from the middle of a text, so many letters at both ends may be others: a
# space that is left out, and bytes of a letter of which the rest is elsewhere.
_CUT = 8


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How questions become tokens, and replies text.

  Attributes:
    tokenizer: the model's, or the run's own.
    template, system: see `chat.encode_prompt`.
    max_prompt_len: P.
    max_completion_len: C.
  """

  tokenizer: tokenizer.Tokenizer
  template: str
  system: str
  max_prompt_len: int
  max_completion_len: int

  def _options(self):
    return {
      'template': self.template,
      'system': self.system,
      'max_prompt_len': self.max_prompt_len,
    }

  def encode(self, asked: list[batches.Question]) -> batches.PromptBatch:
    """Returns the prompts of questions; see `prompts.encode`."""
    return prompts.encode(asked, self.tokenizer, **self._options())

  def encode_solutions(self, asked: list[batches.Question]) -> batches.Rollouts:
    """Returns their worked solutions as replies; see `prompts.encode_solutions`."""
    return prompts.encode_solutions(
      asked,
      self.tokenizer,
      **self._options(),
      max_completion_len=self.max_completion_len,
    )

  def measure(
    self, asked: Iterable[batches.Question], *, with_solutions: bool
  ) -> prompts.Lengths:
    """Returns how many tokens questions have; see `prompts.measure`."""
    return prompts.measure(
      asked,
      self.tokenizer,
      template=self.template,
      system=self.system,
      with_solutions=with_solutions,
    )

  def decode(self, tokens: np.ndarray) -> str:
    """Returns a completion as text, special tokens left out."""
    return self.tokenizer.decode(tokens.tolist())


def make_encoding(
  config: ml_collections.ConfigDict, tok: tokenizer.Tokenizer
) -> Encoding:
  """Returns a run's encoding with its tokenizer."""
  return Encoding(
    tokenizer=tok,
    template=config.data.template,
    system=config.data.system,
    max_prompt_len=config.data.max_prompt_len,
    max_completion_len=config.sampling.max_completion_len,
  )


def load_tokenizer(
  config: ml_collections.ConfigDict, folder: pathlib.Path
) -> tokenizer.Tokenizer | None:
  """Returns the tokenizer that the config names or the run has trained; None
  if it is yet to be trained."""
  if config.data.tokenizer != 'trained':
    tok = tokenizer.load(config.data.tokenizer, find_tokenizer(config))
    if config.data.template == chat.CHAT:
      chat.complete(tok, config.model.preset)
    return tok
  path = folder / TOKENIZER_NAME
  # One that a refused start left behind may be of other texts. Nobody looks for
  # one that process 0 is yet to train: NFS remembers for a while what is not there.
  if ownership.has_begun(folder) and path.exists():
    return tokenizer.load('sentencepiece', str(path))
  return None


def find_tokenizer(config: ml_collections.ConfigDict) -> str:
  """Returns the file or folder of a tokenizer that is not trained."""
  path = gguf.resolve(hub.find(config.data.tokenizer_path))
  refusals.check_file('data.tokenizer_path', path)
  return path


def train_tokenizer(
  config: ml_collections.ConfigDict,
  folder: pathlib.Path,
  train: batches.Questions,
) -> tokenizer.Tokenizer:
  """Trains it on questions and solutions, in process 0, which alone reads all, for
  all, and keeps it in the folder.

  Raises:
    ValueError: the texts are too few for the model's vocabulary; names the field.
  """
  watch.mark('training the tokenizer')
  path = folder / TOKENIZER_NAME
  if jax.process_index() == 0:
    _write_tokenizer(config, path, train)
  sharding.wait_for_all()
  return tokenizer.load('sentencepiece', str(path))


def _write_tokenizer(config, path, train):
  vocab_size = weights.model_config(config).vocab_size
  texts = [
    config.data.template.format(question=q.prompt) + q.solution for q in train
  ]
  # Whole or not at all.
  with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
    made = pathlib.Path(scratch) / TOKENIZER_NAME
    try:
      pieces.train(texts, vocab_size, str(made))
    except ValueError as error:
      raise ValueError(
        f'data.tokenizer={config.data.tokenizer!r}: {error}. The vocab_size is'
        " model.preset's, the texts are data.num_train questions"
      ) from error
    made.rename(path)


def find_stop_ids(tok: tokenizer.Tokenizer, stop_text: str) -> tuple[int, ...]:
  """Returns the ids that end a reply; of `stop_text` too if it is one token."""
  extra = tok.encode(stop_text) if stop_text else []
  return (*tok.stop_ids, *(extra if len(extra) == 1 else ()))


def make_find_end(
  tok: tokenizer.Tokenizer, stop_text: str
) -> Callable[[np.ndarray, int], int] | None:
  """Returns what finds the end of a reply that holds `stop_text`, as
  `Sampler.stream` asks for it: behind the token that completes the text. None
  without a text."""
  if not stop_text:
    return None

  def find_end(tokens, seen):
    # A reply is read once, and not anew at each look: a text that is complete by
    # now has begun at most its own length before what is new.
    begin = seen
    while begin and _count_letters(tok, tokens[begin:seen]) < len(stop_text):
      begin = max(begin - len(stop_text) - _CUT, 0)

    def holds(length):
      return stop_text in tok.decode(tokens[begin:length].tolist())

    if not holds(len(tokens)):
      return 0
    return bisect.bisect_left(range(len(tokens)), True, lo=seen + 1, key=holds)

  return find_end


def _count_letters(tok, tokens):
  """Returns how many letters some tokens surely have in the middle of a text."""
  return len(tok.decode(tokens.tolist())) - _CUT
