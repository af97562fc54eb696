"""A workload's model and tokens, as Tunix takes them; for sides that run it.

Weights are drawn by Tunix's own order, with the workload's deviation.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.models.llama3 import model as llama3


def to_text(ids) -> str:
  return ' '.join(map(str, ids))


class Ids:
  """A tokenizer of texts that are numbers, the cheapest there is."""

  def __init__(self, stop_id, pad_id):
    self._stop_id, self._pad_id = stop_id, pad_id

  def encode(self, text, **unused_options):
    return [int(x) for x in text.split()]

  def decode(self, ids, **unused_options):
    return to_text(ids)

  def bos_id(self):
    return None

  def eos_id(self):
    return self._stop_id

  def pad_id(self):
    return self._pad_id


def stop_ids(workload: dict) -> list[int]:
  """Returns the ids that end a reply. Tunix insists on one: where the workload
  has none, one that no token has."""
  return workload['eos_ids'] or [workload['model']['vocab_size']]


def count_tokens(replies, completion_len: int) -> int:
  """Returns how many tokens were sampled; Tunix leaves a stop id out of what it
  returns, and it counts here."""
  return sum(min(len(tokens) + 1, completion_len) for tokens in replies)


def make_mesh() -> jax.sharding.Mesh:
  auto = (jax.sharding.AxisType.Auto,) * 2
  return jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=auto)


def make_model(workload: dict) -> llama3.Llama3:
  """Returns the model; call it under the mesh."""
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
  model = llama3.Llama3(config, rngs=nnx.Rngs(workload['seed']))
  rng = np.random.default_rng(workload['seed'])

  def draw(x):
    if x.ndim == 1:
      return jnp.ones(x.shape, jnp.float32)
    return jnp.asarray(
      rng.standard_normal(x.shape, np.float32) * workload['init_std']
    )

  nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
  return model
