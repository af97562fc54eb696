"""A reward model as a run asks it: questions and replies in, scores out.

1. `load` reads a Hugging Face folder: weights with a scalar head, and the
   tokenizer that belongs to them, which need not be the policy's.
2. Each reply follows its question in the run's `data.template`, with the stop
   token if it ended, and the rows run whole, some at a time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dash_jax import checks, refusals, sharding
from dash_jax.data import chat, tokenizer
from dash_jax.learning import reward_model
from dash_jax.model import hf, hub, llama

# Rows have a multiple of it, so that few programs are compiled.
_SLOTS_UNIT = 32
_TOKENS_AT_ONCE = 8_192  # of one call, on each shard of rows


@dataclasses.dataclass(frozen=True)
class Judge:
  """A reward model, with what turns texts into its rows.

  Attributes:
    model: with a scalar head.
    params: its weights, TRAIN layout.
    tokenizer: its own.
    template: of prompts; see `chat.encode_prompt`.
    system: see `chat.encode_prompt`.
    min_slots: tokens that rows have room for; longer ones get more.
  """

  model: llama.Llama
  params: dict
  tokenizer: tokenizer.Tokenizer
  template: str
  system: str
  min_slots: int

  def encode(
    self, prompts: list[str], replies: list[str], truncated: list[bool]
  ) -> list[list[int]]:
    """Returns the ids of B prompts with their replies."""
    known = {
      prompt: chat.encode_prompt(
        prompt, self.tokenizer, self.template, system=self.system
      )
      for prompt in dict.fromkeys(prompts)
    }
    stop = [self.tokenizer.stop_ids[0]]
    return [
      known[prompt] + self.tokenizer.encode(reply) + (stop if not cut else [])
      for prompt, reply, cut in zip(prompts, replies, truncated, strict=True)
    ]

  def find_slots(self, rows: list[list[int]]) -> int:
    """Returns T, in which rows fit."""
    longest = max([self.min_slots, *map(len, rows)])
    return -(-longest // _SLOTS_UNIT) * _SLOTS_UNIT

  def score(
    self, prompts: list[str], replies: list[str], truncated: list[bool]
  ) -> np.ndarray:
    """Returns f32[B], the scores of this process's replies.

    Args:
      prompts: B questions.
      replies: B texts.
      truncated: of the B replies, whether they ran out of room.
    """
    rows = self.encode(prompts, replies, truncated)
    num_slots = self.find_slots(rows)
    shards = sharding.num_batch_shards(jax.sharding.get_mesh())
    most = max(_TOKENS_AT_ONCE // num_slots, 1)
    size = shards * min(most, -(-len(rows) // shards))
    scores = []
    for first in range(0, len(rows), size):
      some = rows[first : first + size]
      full = some + some[:1] * (size - len(some))
      put = sharding.put_rows(reward_model.pad(full, num_slots))
      found = reward_model.score(self.model, self.params, put)
      scores.append(sharding.local_rows(found)[: len(some)])
    return np.concatenate(scores)


def load(config: ml_collections.ConfigDict) -> Judge:
  """Returns the reward model of a config, `reward.model`.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  name = config.reward.model
  kind, _, path = name.partition(':')
  folder = hub.find(name) if kind == 'hub' else path
  refusals.check_file('reward.model', folder)
  architecture = hf.read_config(folder)
  if not architecture.scalar_head:
    raise ValueError(
      f'reward.model={name!r}: its config.json names no model that classifies'
      ' sequences, as LlamaForSequenceClassification is one:'
      ' python -m dash_jax.reward_model trains one'
    )
  checks.check_model_on_mesh(
    architecture, jax.sharding.get_mesh().shape['tensor']
  )
  tok = tokenizer.load('huggingface', folder)
  if config.data.template == chat.CHAT:
    chat.complete(tok, config.model.preset)
  if tok.vocab_size > architecture.vocab_size:
    raise ValueError(
      f'reward.model={name!r}: its tokenizer has {tok.vocab_size} ids, but its'
      f' embedding {architecture.vocab_size} rows'
    )
  dtype = jnp.dtype(config.model.dtype)
  return Judge(
    model=llama.Llama(architecture, dtype=dtype),
    params=hf.read_weights(folder, architecture, dtype),
    tokenizer=tok,
    template=config.data.template,
    system=config.data.system,
    min_slots=config.data.max_prompt_len + config.sampling.max_completion_len,
  )
