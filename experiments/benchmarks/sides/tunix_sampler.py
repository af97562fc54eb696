"""Tunix's plain sampler, as a side of experiments/benchmarks/sampler.py. It
needs google-tunix and what that needs.

Its weights are drawn by their own order, with the workload's deviation, so
replies may end earlier or later than those of the other sides: compare tokens a
second. It leaves the stop id out of what it returns; here it is counted.
"""

import importlib.metadata
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.generate import sampler
from tunix.models.llama3 import model as llama3

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import protocol


class _Ids:
  """A tokenizer of texts that are numbers, the cheapest there is."""

  def __init__(self, stop_id, pad_id):
    self._stop_id, self._pad_id = stop_id, pad_id

  def encode(self, text, **unused_options):
    return [int(x) for x in text.split()]

  def decode(self, ids, **unused_options):
    return ' '.join(map(str, ids))

  def bos_id(self):
    return None

  def eos_id(self):
    return self._stop_id

  def pad_id(self):
    return self._pad_id


def make(workload, num_prompts, **unused_options):
  shape = workload['model']
  config = llama3.ModelConfig(
    num_layers=shape['n_layers'],
    vocab_size=shape['vocab_size'],
    embed_dim=shape['d_model'],
    hidden_dim=shape['ffn'],
    num_heads=shape['n_heads'],
    head_dim=shape['head_dim'],
    num_kv_heads=shape['n_kv_heads'],
    rope_theta=int(shape['rope_theta']),
    norm_eps=shape['norm_eps'],
    weight_tying=shape['tie'],
  )
  # It insists on a stop id: one that no token has.
  stops = workload['eos_ids'] or [shape['vocab_size']]
  auto = (jax.sharding.AxisType.Auto,) * 2
  with jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=auto):
    model = llama3.Llama3(config, rngs=nnx.Rngs(workload['seed']))
    rng = np.random.default_rng(workload['seed'])

    def draw(x):
      if x.ndim == 1:
        return jnp.ones(x.shape, jnp.float32)
      return jnp.asarray(
        rng.standard_normal(x.shape, np.float32) * workload['init_std']
      )

    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
  P, C = workload['prompt_len'], workload['max_new_tokens']
  made = sampler.Sampler(
    model,
    _Ids(stops[0], workload['pad_id']),
    sampler.CacheConfig(
      cache_size=P + C,
      num_layers=config.num_layers,
      num_kv_heads=config.num_kv_heads,
      head_dim=config.head_dim,
    ),
  )
  G = workload['num_generations']
  prompts = protocol.draw_prompts(workload, num_prompts)
  texts = [' '.join(map(str, prompt)) for prompt in prompts for _ in range(G)]

  def sample(turn):
    out = made(
      texts,
      max_generation_steps=C,
      max_prompt_length=P,
      temperature=workload['temperature'],
      top_p=workload['top_p'],
      top_k=workload['top_k'] or None,
      eos_tokens=stops,
      seed=turn + 100,
    )
    return sum(min(len(tokens) + 1, C) for tokens in out.tokens)

  about = f'{importlib.metadata.version("google-tunix")}, jax {jax.__version__}'
  return sample, {'tunix': about}


if __name__ == '__main__':
  protocol.serve(make)
