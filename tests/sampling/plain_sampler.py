"""A sampler in plain NumPy: one row at a time, no cache, float64.

It shares with the project only what a seed means: which random numbers a row's
token gets, and that the first inverts the distribution over blocks of 256 ids
and the second within a block.
"""

import dataclasses

import jax
import numpy as np
import plain_llama


@dataclasses.dataclass(frozen=True)
class Settings:
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  min_p: float = 0.0
  min_len: int = 0
  stop_ids: tuple[int, ...] = ()


def find_distribution(logits, slot, settings):
  """Returns f64[V], the probabilities of the next token."""
  logits = logits.copy()
  if slot < settings.min_len:
    logits[list(settings.stop_ids)] = -np.inf
  p = np.exp((logits - logits.max()) / settings.temperature)
  order = np.argsort(-p, kind='stable')
  if settings.top_k:
    p[order[settings.top_k :]] = 0
  p /= p.sum()
  before = np.cumsum(p[order]) - p[order]
  p[order[before >= settings.top_p]] = 0
  p[p < settings.min_p * p.max()] = 0
  return p / p.sum()


@jax.jit
def draw_uniforms(key, uid, sample, slot):
  for number in (uid, sample, slot):
    key = jax.random.fold_in(key, number)
  return jax.random.uniform(key, (2,))


def sample_row(params, config, prompt, key, uid, sample, limit, settings):
  """Returns a row's tokens, and their log-probabilities."""
  tokens, logprobs = [], []
  while len(tokens) < limit:
    logits = plain_llama.forward(params, config, [*prompt, *tokens])[-1]
    slot = len(tokens)
    if settings.temperature == 0:
      greedy = dataclasses.replace(settings, temperature=1.0)
      token = int(find_distribution(logits, slot, greedy).argmax())
      logprobs.append(0.0)
    else:
      p = find_distribution(logits, slot, settings)
      uniforms = draw_uniforms(key, uid, sample, slot)
      first, second = np.asarray(uniforms, np.float64)
      blocks = np.cumsum([p[i : i + 256].sum() for i in range(0, len(p), 256)])
      block = int((blocks <= first * blocks[-1]).sum())
      within = np.cumsum(p[block * 256 : (block + 1) * 256])
      token = block * 256 + int((within <= second * within[-1]).sum())
      logprobs.append(np.log(p[token]))
    tokens.append(token)
    if token in settings.stop_ids:
      break
  return tokens, logprobs
