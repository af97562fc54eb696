"""The values that cross rooms, and the letters for their dimensions.

Every einsum and every shape comment in the project uses these letters only:

  Q  questions            P  prompt slots         L  layers
  G  samples a question   C  completion slots     D  embed
  B  rows, Q * G          T  slots of a line      F  feed-forward
  M  minibatches          S  slots looked at      V  vocabulary
  b  lines a minibatch                            N  query heads
                                                  K  key/value heads
                                                  R  N / K
                          r  LoRA rank            H  head size

A row is one completion of a question's prompt. The G rows of a question share
the prompt: it is stored once, and what reads it computes it once. The sampler's
prompts are padded on the left, so that every completion follows slot P - 1, and
its completions on the right; the learner's rows are packed into lines of T slots.
Masks come from lengths and never from comparing tokens with a pad id: some models
have no pad token, some use EOS for it, and EOS is trained.
"""

import collections.abc
import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np


class WrongNumber(ValueError):
  """More questions are asked for than there are, or none."""


@dataclasses.dataclass(frozen=True)
class Question:
  """One question, on the host.

  Attributes:
    prompt: the question's own text, before any chat template.
    answer: the final answer that a reply is compared with.
    uid: an integer in [0, 2**31) that names the question within its source. It
      seeds the question's random keys, so it does not change between runs.
    solution: worked reasoning that ends in the answer, or '' if there is none.
      Supervised fine-tuning trains on it.
  """

  prompt: str
  answer: str
  uid: int
  solution: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Questions(collections.abc.Sequence):
  """Questions in order, each of which is read when it is looked at.

  A slice, or an array of places or of booleans, selects without reading. Several
  threads may read.

  Attributes:
    uids: i64[num], all different.
    read: returns the question of a uid.
  """

  uids: np.ndarray
  read: Callable[[int], Question]

  def __len__(self) -> int:
    return len(self.uids)

  def __getitem__(self, at):
    if isinstance(at, slice | np.ndarray):
      return Questions(self.uids[at], self.read)
    return self.read(int(self.uids[at]))


def hold(questions: Iterable[Question]) -> Questions:
  """Returns questions that are in memory already, as Questions."""
  by_uid = {question.uid: question for question in questions}
  return Questions(np.array([*by_uid], np.int64), by_uid.__getitem__)


def mask_left(num_slots: int, lengths):
  """Returns bool[.., P], True on the last `lengths` [..] of P slots."""
  return np.arange(num_slots) >= num_slots - lengths[..., None]


def pytree(cls):
  """Makes `cls` a frozen dataclass whose fields are pytree children, but for
  those that are int: these are static parts of a program."""
  cls = dataclasses.dataclass(frozen=True)(cls)
  fields = dataclasses.fields(cls)
  return jax.tree_util.register_dataclass(
    cls,
    data_fields=[f.name for f in fields if f.type is not int],
    meta_fields=[f.name for f in fields if f.type is int],
  )


@pytree
class PromptBatch:
  """Q encoded prompts, padded on the left.

  Attributes:
    tokens: i32[Q, P]; the last `lengths[q]` slots are the prompt.
    lengths: i32[Q], 1 <= lengths <= P.
    uids: i32[Q], `Question.uid`.
  """

  tokens: jax.Array | np.ndarray
  lengths: jax.Array | np.ndarray
  uids: jax.Array | np.ndarray

  @property
  def mask(self) -> jax.Array | np.ndarray:
    """bool[Q, P], True on the prompt's tokens."""
    return mask_left(self.tokens.shape[-1], self.lengths)


@pytree
class Rollouts:
  """Q questions with G sampled completions each.

  Attributes:
    prompts: of the Q questions.
    tokens: i32[Q, G, C], completion tokens.
    lengths: i32[Q, G], completion tokens of each row, the stop id included.
    logprobs: f32[Q, G, C], log-probability of each completion token under the
      distribution it was really sampled from (after temperature, top_p and
      top_k); 0 behind a row's end.
    truncated: bool[Q, G], True where the row ran out of slots before a stop id.
    policy_step: i32[Q, G], optimizer steps taken by the weights that sampled it.
  """

  prompts: PromptBatch
  tokens: jax.Array | np.ndarray
  lengths: jax.Array | np.ndarray
  logprobs: jax.Array | np.ndarray
  truncated: jax.Array | np.ndarray
  policy_step: jax.Array | np.ndarray

  @property
  def mask(self) -> jax.Array | np.ndarray:
    """bool[Q, G, C], True on completion tokens, the stop id included."""
    return np.arange(self.tokens.shape[-1]) < self.lengths[..., None]


@pytree
class Lines:
  """Rows packed into b lines of T slots, for the learner.

  A line holds the prompts of some questions, one behind the other, then their
  completions. The completions of a question share its prompt. Filler slots, the
  last of a line, belong to no prompt.

  Attributes:
    tokens: i32[b, T].
    positions: i32[b, T], of a token in its row: completions go on where their
      prompt ends.
    prompts: i32[b, T], which of the line's prompts a slot belongs to, with what
      completes it; -1 on filler.
    rows: i32[b, T], which of the line's completions a slot belongs to, from 1; 0
      on prompts and filler.
    sources: i32[b, T], the slot whose token comes before a completion's token
      in its row; a slot's own number elsewhere.
    prompt_slots: no prompt ends behind so many slots.
    completion_len: no completion has more tokens.
  """

  tokens: jax.Array | np.ndarray
  positions: jax.Array | np.ndarray
  prompts: jax.Array | np.ndarray
  rows: jax.Array | np.ndarray
  sources: jax.Array | np.ndarray
  prompt_slots: int
  completion_len: int

  @property
  def mask(self) -> jax.Array | np.ndarray:
    """bool[b, T], True on completion tokens: what is learned."""
    return self.rows > 0


@pytree
class Minibatch:
  """Lines to learn from. What is no completion token holds zeros.

  Attributes:
    lines: of b lines.
    slots: i32[b, T], the number of a token in its completion.
    logprobs: f32[b, T], as `Rollouts.logprobs`.
    old_logprobs: f32[b, T], that ratios are taken to.
    advantages: f32[b, T].
    weight: f32[b, T], what a token counts in the loss, its denominator included.
    returns: f32[b, T], what a critic is to say before each token.
  """

  lines: Lines
  slots: jax.Array | np.ndarray
  logprobs: jax.Array | np.ndarray
  old_logprobs: jax.Array | np.ndarray
  advantages: jax.Array | np.ndarray
  weight: jax.Array | np.ndarray
  returns: jax.Array | np.ndarray


@pytree
class TrainState:
  """What an optimizer step changes.

  Attributes:
    step: i32[], optimizer steps taken.
    params: the weights that are trained, one plain nested dict.
    opt_state: optax state for `params`.
    kl_scale: f32[], what the KL coefficient is multiplied by.
    reference: weights as `params`, of the policy that the KL is taken to; None
      if there is none.
    frozen: the model's other weights, which no step changes; {} unless only
      adapters are trained (model/lora.py joins the two).
  """

  step: jax.Array
  params: dict
  opt_state: tuple
  kl_scale: jax.Array
  reference: dict | None = None
  frozen: dict = dataclasses.field(default_factory=dict)
