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
from tunix.generate import sampler

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import protocol
import tunix_model


def make(workload, num_prompts, **unused_options):
  with tunix_model.make_mesh():
    model = tunix_model.make_model(workload)
  shape = workload['model']
  P, C = workload['prompt_len'], workload['max_new_tokens']
  stops = tunix_model.stop_ids(workload)
  made = sampler.Sampler(
    model,
    tunix_model.Ids(stops[0], workload['pad_id']),
    sampler.CacheConfig(
      cache_size=P + C,
      num_layers=shape['n_layers'],
      num_kv_heads=shape['n_kv_heads'],
      head_dim=shape['head_dim'],
    ),
  )
  G = workload['num_generations']
  texts = [
    tunix_model.to_text(prompt)
    for prompt in protocol.draw_prompts(workload, num_prompts)
    for _ in range(G)
  ]

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
    return {'tokens': tunix_model.count_tokens(out.tokens, C)}

  about = f'{importlib.metadata.version("google-tunix")}, jax {jax.__version__}'
  return sample, {'tunix': about}


if __name__ == '__main__':
  protocol.serve(make)
