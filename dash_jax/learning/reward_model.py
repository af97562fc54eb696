"""A reward model: whole rows to one score each, learned from pairs.

The model is a Llama with a scalar head. A row's score is the head's at its last
token, the stop token of a reply that ended, as Hugging Face's models that
classify sequences have it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dash_jax import batches
from dash_jax.learning import learner
from dash_jax.model import layers, llama


@batches.pytree
class Rows:
  """Prompts with their replies, padded on the right.

  Attributes:
    tokens: i32[B, T].
    lengths: i32[B], tokens of each row.
  """

  tokens: jax.Array | np.ndarray
  lengths: jax.Array | np.ndarray


def pad(rows: list[list[int]], num_slots: int) -> Rows:
  """Returns rows of ids as `Rows` of NumPy arrays with `num_slots` slots."""
  tokens = np.zeros((len(rows), num_slots), np.int32)
  for slots, row in zip(tokens, rows, strict=True):
    slots[: len(row)] = row
  return Rows(tokens, np.array(list(map(len, rows)), np.int32))


def pair_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
  """Returns f32[B], the loss of each pair.

      -log sigmoid(chosen - rejected)

  Source: Bradley and Terry, "Rank analysis of incomplete block designs",
    Biometrika 39 (1952); as a reward model's loss, arXiv 2203.02155, equation 1.

  Args:
    chosen: f32[B], scores of the better replies.
    rejected: f32[B], scores of the worse ones.
  """
  return -jax.nn.log_sigmoid(chosen - rejected)


def score_rows(model: llama.Llama, params: dict, rows: Rows) -> jax.Array:
  """Returns f32[B], the score of each row."""
  apply = functools.partial(model.apply, {'params': params})
  x = apply(
    rows.tokens, jnp.arange(rows.tokens.shape[1]) < rows.lengths[:, None]
  )
  last = jnp.take_along_axis(x, rows.lengths[:, None, None] - 1, axis=1)[:, 0]
  return layers.read_score(apply(method=llama.Llama.head), last)


score = jax.jit(score_rows, static_argnums=0)


@functools.partial(
  jax.jit, static_argnames=('model', 'optimizer'), donate_argnames=('state',)
)
def update(
  state: batches.TrainState,
  chosen: Rows,
  rejected: Rows,
  *,
  model: llama.Llama,
  optimizer: optax.GradientTransformation,
) -> tuple[batches.TrainState, dict]:
  """Changes the weights once.

  Args:
    state: donated.
    chosen, rejected: B pairs, on the mesh.
    model, optimizer: parts of the program.

  Returns:
    The new state, and f32[] metrics: loss, the mean over pairs; accuracy, the
    share of pairs whose chosen reply scored above the other; grad_norm.
  """

  def find_loss(params):
    better = score_rows(model, params, chosen)
    worse = score_rows(model, params, rejected)
    return pair_loss(better, worse).mean(), (better > worse).mean()

  (loss, accuracy), grads = jax.value_and_grad(find_loss, has_aux=True)(
    state.params
  )
  new_state = learner.follow_gradient(state, loss, grads, optimizer)
  norm = optax.tree.norm(grads)
  return new_state, {'loss': loss, 'accuracy': accuracy, 'grad_norm': norm}
