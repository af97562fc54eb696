"""Workloads that several RL programs run alike, and the least work they ask.

1. `read` takes one workload file: a model's shape, how many prompts and
   samples of which lengths, the objective and the optimizer. What we would
   do differently is refused, so that a comparison compares the same work.
2. `make_prompts` and `fraction_even` are the questions and the reward, the
   same numbers in every program; `write_model` writes the weights for others.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import batches
from dash_jax.learning import optim
from dash_jax.model import llama
from dash_jax.sampling import decoding

# What the step does; a file that asks for something else is refused.
_DONE_HERE = {
  'reward': 'even_fraction',
  'algo.name': 'grpo',
  'algo.loss': 'sequence-mean-token-mean',
  'algo.beta': 0.0,
  'algo.num_iterations': 1,
  'algo.advantage': 'group (r-mean)/(std+eps)',
  'optim.name': 'adamw',
  'optim.eps': 1e-8,
}


@dataclasses.dataclass(frozen=True)
class Workload:
  """One optimizer step's work; P and C are slots, Q questions, G samples."""

  name: str
  model: llama.Llama
  init_std: float
  seed: int
  decoding: decoding.Decoding
  clip: float
  optim: optim.OptimConfig
  first_prompt_id: int
  num_questions: int
  group_size: int
  prompt_len: int
  completion_len: int


def read(path: str) -> Workload:
  """Reads one workload file (JSON).

  Raises:
    ValueError: names the file and the field that is missing or that asks for
      something this benchmark does not do.
  """
  with open(path) as file:
    raw = json.load(file)

  def get(name):
    value = raw
    for part in name.split('.'):
      if not isinstance(value, dict) or part not in value:
        raise ValueError(f'{path}: field {name} is missing')
      value = value[part]
    return value

  for name, here in _DONE_HERE.items():
    if get(name) != here:
      raise ValueError(
        f'{path}: {name}={get(name)!r}, but this benchmark does {here!r}'
      )
  config = llama.LlamaConfig(
    vocab_size=get('model.vocab_size'),
    embed_dim=get('model.d_model'),
    num_layers=get('model.n_layers'),
    num_heads=get('model.n_heads'),
    num_kv_heads=get('model.n_kv_heads'),
    head_dim=get('model.head_dim'),
    ffw_dim=get('model.ffn'),
    rope_theta=get('model.rope_theta'),
    norm_eps=get('model.norm_eps'),
    tied=get('model.tie'),
  )
  return Workload(
    name=get('name'),
    model=llama.Llama(
      config,
      dtype=jnp.dtype(get('dtype')).type,
      remat='layer' if get('remat') else 'attention',
    ),
    init_std=get('init_std'),
    seed=get('seed'),
    decoding=decoding.make_decoding(
      get('temperature'),
      get('top_p'),
      get('top_k'),
      stop_ids=tuple(get('eos_ids')),
    ),
    clip=get('algo.clip'),
    optim=optim.OptimConfig(
      learning_rate=get('optim.lr'),
      schedule='constant',
      warmup_steps=0,
      total_steps=1,
      weight_decay=get('optim.weight_decay'),
      max_grad_norm=get('optim.grad_clip'),
      b1=get('optim.b1'),
      b2=get('optim.b2'),
    ),
    first_prompt_id=get('prompt_ids_from'),
    num_questions=get('num_prompts'),
    group_size=get('num_generations'),
    prompt_len=get('prompt_len'),
    completion_len=get('max_new_tokens'),
  )


def make_prompts(workload: Workload, num_steps: int) -> np.ndarray:
  """Returns i32[num_steps, Q, P], the same numbers in every program."""
  shape = (num_steps, workload.num_questions, workload.prompt_len)
  rng = np.random.default_rng(workload.seed)
  ids = rng.integers(
    workload.first_prompt_id,
    workload.model.config.vocab_size,
    shape,
    dtype=np.int64,
  )
  return ids.astype(np.int32)


def fill_prompts(tokens: np.ndarray) -> batches.PromptBatch:
  """Returns prompts i32[Q, P] that are all full, with uids in order."""
  Q, P = tokens.shape
  return batches.PromptBatch(
    tokens, np.full(Q, P, np.int32), np.arange(Q, dtype=np.int32)
  )


def fraction_even(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Returns f32[..], the share of even ids among each row's masked tokens."""
  even = ((tokens % 2 == 0) & mask).sum(axis=-1)
  return (even / np.maximum(mask.sum(axis=-1), 1)).astype(np.float32)


def make_params(workload: Workload) -> dict:
  """Returns random float32 weights in the TRAIN layout: matrices normal with
  deviation `init_std`, norms one."""
  config, rng = workload.model.config, np.random.default_rng(workload.seed)

  def make(weight, place):
    values = np.ones(weight.shape, np.float32)
    if weight.scale is not None:
      values = rng.standard_normal(weight.shape, np.float32)
      values *= workload.init_std
    return jax.device_put(values, place.sharding)

  return jax.tree.map(
    make,
    llama.weights(config),
    llama.abstract_params(config, jnp.float32),
    is_leaf=llama.is_weight,
  )
