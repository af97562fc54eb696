"""A policy as others ask it: texts in, texts or log-probabilities out.

1. A context goes into `data.template`, as a question does in training.
2. `complete` samples a continuation with the project's sampler; it ends at a
   stop token, at `data.stop_text`, or in front of the first text that the caller
   names.
3. `measure` runs contexts with their continuations whole, and says how likely
   these are: next to a context, a continuation is tokenized by itself, as the
   solutions of SFT are.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dash_jax import assemble, batches, sharding, tokenizing
from dash_jax.data import chat
from dash_jax.evaluating import replies
from dash_jax.learning import projection, reading, reward_model
from dash_jax.model import layers, llama
from dash_jax.sampling import decoding as decoding_lib

_MOST_AT_ONCE = 1_024  # contexts of one call, so that the host holds no more
# Rows have a multiple of it, so that few programs are compiled.
_SLOTS_UNIT = 64
_TOKENS_AT_ONCE = 8_192  # of one call, on each shard of rows


@dataclasses.dataclass(frozen=True)
class Prompt:
  """What is to be completed, and how.

  Attributes:
    context: the text.
    stops: texts that end the completion, and are no part of it.
    max_tokens: of the completion.
    temperature, top_p: how tokens are drawn.
  """

  context: str
  stops: tuple[str, ...]
  max_tokens: int
  temperature: float
  top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Policy:
  """Weights with what turns texts into their rows, on the mesh in use.

  Attributes:
    config: of the run.
    encoding: of the run.
    model: of the run.
    params: the whole model's weights.
  """

  config: ml_collections.ConfigDict
  encoding: tokenizing.Encoding
  model: llama.Llama
  params: dict

  def complete(self, prompts: Sequence[Prompt]) -> list[str]:
    """Returns the completions. A prompt's place among the others seeds its noise,
    and at temperature 0 nothing depends on them.

    Raises:
      ValueError: a context is longer than `data.max_prompt_len`, or `max_tokens`
        is above `sampling.max_completion_len`.
    """
    most = self.encoding.max_completion_len
    longest = max((prompt.max_tokens for prompt in prompts), default=0)
    if longest > most:
      raise ValueError(
        f'a completion of {longest} tokens is asked for, over'
        f' sampling.max_completion_len={most}; raise it'
      )
    alike = {}
    for i, prompt in enumerate(prompts):
      how = (prompt.stops, prompt.temperature, prompt.top_p)
      alike.setdefault(how, []).append(i)
    made = [''] * len(prompts)
    for how, numbers in alike.items():
      for first in range(0, len(numbers), _MOST_AT_ONCE):
        some = numbers[first : first + _MOST_AT_ONCE]
        texts = self._sample(prompts, some, *how)
        for i, text in zip(some, texts, strict=True):
          made[i] = text
    return made

  def _sample(self, prompts, some, stops, temperature, top_p):
    """Returns completions of some prompts that are drawn alike."""
    tok = self.encoding.tokenizer
    own_stop = self.config.data.stop_text
    texts = tuple(filter(None, (*stops, own_stop)))
    made = self._sampler.sample(
      self.params,
      self.encoding.encode(
        [batches.Question(prompts[i].context, answer='', uid=i) for i in some]
      ),
      replies.make_key(self.config.seed),
      decoding_lib.make_decoding(
        temperature,
        top_p,
        stop_ids=tokenizing.find_stop_ids(tok, own_stop),
      ),
      limits=np.array([[prompts[i].max_tokens] for i in some]),
      find_end=_make_find_end(tok, texts),
    )
    found = []
    for row, length in zip(made.tokens[:, 0], made.lengths[:, 0], strict=True):
      text = self.encoding.decode(row[:length])
      ends = [at for at in map(text.find, texts) if at >= 0]
      found.append(text[: min(ends, default=None)])
    return found

  @functools.cached_property
  def _sampler(self):
    return assemble.make_sampler(
      self.config,
      self.model,
      jax.sharding.get_mesh(),
      num_prompts=_MOST_AT_ONCE,
      group_size=1,
    )

  def measure(
    self, pairs: Sequence[tuple[str, str]], *, plain: bool = False
  ) -> list[tuple[float, bool]]:
    """Returns of each continuation its log-probability after its context, at
    temperature 1, and whether each of its tokens is the likeliest.

    Args:
      pairs: contexts with continuations.
      plain: leave out `data.template`; a context may be '' then, and BOS or, where
        there is none, the stop token stands in its place.
    """
    tok, rows, starts = self.encoding.tokenizer, [], []
    for context, continuation in pairs:
      template = '{question}' if plain else self.encoding.template
      system = '' if plain else self.encoding.system
      ids = chat.encode_prompt(context, tok, template, system=system)
      if not ids:
        ids = [tok.stop_ids[0] if tok.bos_id is None else tok.bos_id]
      starts.append(len(ids))
      rows.append(ids + tok.encode(continuation))
    found = [None] * len(rows)
    shards = sharding.num_batch_shards(jax.sharding.get_mesh())
    # Rows of about one length go together: those of a call are as long as its
    # longest.
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    while order:
      num_slots = -(-len(rows[order[0]]) // _SLOTS_UNIT) * _SLOTS_UNIT
      size = max(_TOKENS_AT_ONCE // num_slots, 1) * shards
      some, order = order[:size], order[size:]
      full = some + some[:1] * (size - len(some))
      put = sharding.put_rows(
        (
          reward_model.pad([rows[i] for i in full], num_slots),
          np.array([starts[i] for i in full], np.int32),
        )
      )
      sums = sharding.local_rows(_measure(self.model, self.params, *put))
      for i, logprob, greedy in zip(some, *sums, strict=False):
        found[i] = float(logprob), bool(greedy)
    return found


def _make_find_end(tok, texts):
  """Returns what finds the first end of a reply by any of the texts; see
  `tokenizing.make_find_end`."""
  finders = [tokenizing.make_find_end(tok, text) for text in texts]
  if not finders:
    return None

  def find_end(tokens, seen):
    ends = [end for end in (find(tokens, seen) for find in finders) if end]
    return min(ends, default=0)

  return find_end


@functools.partial(jax.jit, static_argnums=0)
def _measure(model, params, rows, starts):
  """Returns f32[B], the log-probability of each row from its slot `starts` on, and
  bool[B], whether all tokens there are the likeliest."""
  apply = functools.partial(model.apply, {'params': params})
  slots = jnp.arange(rows.tokens.shape[1])
  x = apply(rows.tokens, slots < rows.lengths[:, None])
  head = apply(method=llama.Llama.head)
  plain = decoding_lib.make_decoding(1.0)
  values = {
    'mask': (slots >= starts[:, None] - 1)
    & (slots < rows.lengths[:, None] - 1),
    'tokens': jnp.roll(rows.tokens, -1, axis=1),
  }

  def look(x, values):
    logits = layers.unembed(model.config, head, x)
    logprobs = decoding_lib.token_logprobs(logits, values['tokens'], 0, plain)
    at = jnp.arange(logits.shape[-1]) == values['tokens'][..., None]
    chosen = jnp.max(jnp.where(at, logits, -jnp.inf), axis=-1)
    likeliest = chosen >= jnp.max(logits, axis=-1)
    return logprobs, likeliest.astype(jnp.float32)

  size = reading.chunk_len(model, *rows.tokens.shape)
  logprobs, likeliest = projection.map_over_slots(look, size, x, values)
  mask = values['mask']
  return (
    jnp.sum(jnp.where(mask, logprobs, 0.0), axis=1),
    jnp.all(jnp.where(mask, likeliest > 0, True), axis=1),
  )
