"""What weights say of rows, without changing them: log-probabilities and values.

`completion_logprobs` and `completion_values` take rows as they were sampled, and
pack them. The learner's loss reads a packed minibatch by `read`, and projects it
in chunks of `chunk_len`.
"""

import dataclasses
import functools

import jax
import numpy as np

from dash_jax import batches, sharding
from dash_jax.learning import packing, projection
from dash_jax.model import layers, llama
from dash_jax.sampling import decoding as decoding_lib


def completion_logprobs(
  model: llama.Llama,
  params: dict,
  rollouts: batches.Rollouts,
  decoding: decoding_lib.Decoding,
  *,
  room: packing.Room | None = None,
  keep: np.ndarray | None = None,
) -> np.ndarray:
  """Returns f32[Q, G, C], log-probabilities of the completions' tokens as the
  learner computes them, without dropout; 0 behind a row's end.

  Args:
    model: the architecture.
    params: its weights.
    rollouts: NumPy; this process's share.
    decoding: the distribution the rows were sampled from.
    room: of a minibatch, the learner's; None is the least, a full row a device.
    keep: bool[Q, G], rows to compute; others get 0. None is all.
  """
  if keep is None:
    keep = np.ones(rollouts.lengths.shape, bool)
  return _read_rows(
    lambda m: _logprobs(model, params, m, decoding), rollouts, room, keep
  )


def completion_values(
  model: llama.Llama,
  params: dict,
  rollouts: batches.Rollouts,
  room: packing.Room | None = None,
) -> np.ndarray:
  """Returns f32[Q, G, C], what the scalar head says before each token of the
  completions; 0 behind a row's end.

  Args: as `completion_logprobs`'s.
  """
  keep = np.ones(rollouts.lengths.shape, bool)
  return _read_rows(lambda m: _values(model, params, m), rollouts, room, keep)


def _read_rows(find, rollouts, room, keep):
  """Returns f32[Q, G, C] of what `find` finds in packed minibatches."""
  if room is None:
    _, G, C = rollouts.tokens.shape
    P = rollouts.prompts.tokens.shape[1]
    num_shards = sharding.num_batch_shards(jax.sharding.get_mesh())
    room = packing.make_room(num_shards, G, P, C)
  # One shape, so that nothing compiles after the first call.
  room = dataclasses.replace(room, shapes=room.shapes[:1])
  laid_out = packing.lay_out(rollouts, keep, room)
  packed = packing.pack(rollouts, laid_out, room, {})
  found = [sharding.local_rows(find(sharding.put_rows(m))) for m in packed]
  return packing.unpack(found, laid_out.lines, rollouts)


def minibatch_logprobs(model, params, minibatch, decoding):
  """Returns f32[b, T], log-probabilities of completion tokens, without dropout;
  other slots hold arbitrary finite values. It is not differentiated."""
  x, head = read(model, params, minibatch)

  def find(x, values):
    logits = layers.unembed(model.config, head, x)
    return decoding_lib.token_logprobs(
      logits, values['tokens'], values['slots'], decoding
    )

  return projection.map_over_slots(
    find,
    chunk_len(model, *minibatch.slots.shape),
    x,
    find_targets(minibatch),
  )


_logprobs = jax.jit(minibatch_logprobs, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)
def _values(model, params, minibatch):
  x, head = read(model, params, minibatch)
  return layers.read_score(head, x)


def read(
  model: llama.Llama,
  params: dict,
  minibatch: batches.Minibatch,
  dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, dict]:
  """Returns [b, T, D], what predicts each slot, and the weights of the last
  projection.

  Args:
    model: the architecture.
    params: its weights.
    minibatch: packed, on the mesh.
    dropout_key: noise of the adapters' dropout; None drops nothing.
  """
  apply = functools.partial(model.apply, {'params': params})
  x = apply(minibatch.lines, dropout_key, method=llama.Llama.read_lines)
  return x, apply(method=llama.Llama.head)


def find_targets(minibatch: batches.Minibatch) -> dict[str, jax.Array]:
  """Returns [b, T] arrays by name: `mask` of the slots that hold a reply's token,
  `tokens`, and their `slots` in the reply."""
  lines = minibatch.lines
  return {
    'mask': lines.mask,
    'tokens': lines.tokens,
    'slots': minibatch.slots,
  }


def chunk_len(model: llama.Llama, num_lines: int, num_slots: int) -> int:
  """Returns how many slots of each line are projected at once, of [num_lines,
  num_slots] on the mesh in use."""
  mesh = jax.sharding.get_abstract_mesh()
  return projection.chunk_len(
    -(-num_lines // sharding.num_batch_shards(mesh)),
    num_slots,
    model.config.vocab_size // mesh.shape['tensor'],
  )
