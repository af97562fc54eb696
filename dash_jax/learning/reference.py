"""The policy that the KL term is taken to: where it goes, and how it pulls.

It begins as the policy that RL starts from. Both it and what the KL coefficient
is multiplied by are parts of the state, so that checkpoints have them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import batches
from dash_jax.learning import optim

MOVES = ('frozen', 'periodic', 'ema')
SCHEDULES = ('constant', 'linear', 'adaptive')

# Of the coefficient, in one step of 'adaptive'; the source's values.
_GAIN = 0.1
_MOST_ERROR = 0.2


@dataclasses.dataclass(frozen=True)
class Rule:
  """What `follow` does after each step.

  Attributes:
    moves: of MOVES.
    every: steps between two moves of 'periodic'.
    decay: of 'ema'.
    schedule: of SCHEDULES.
    target: nats a token, of 'adaptive'.
  """

  moves: str = 'frozen'
  every: int = 0
  decay: float = 0.0
  schedule: str = 'constant'
  target: float = 0.0


def begin(state: batches.TrainState) -> batches.TrainState:
  """Returns the state with a reference: a copy of its weights."""
  return dataclasses.replace(state, reference=_copy(state.params))


@jax.jit
def _copy(params):
  # The update donates the state's own weights.
  return jax.tree.map(jnp.copy, params)


def follow(
  rule: Rule,
  state: batches.TrainState,
  *,
  taken: int,
  num_steps: int,
  kl: float | None,
) -> batches.TrainState:
  """Returns the state as the next step is to find it.

  The reference:

      frozen    stays
      periodic  becomes the policy, each time `every` steps were taken
      ema       becomes decay * reference + (1 - decay) * policy

  What the KL coefficient is multiplied by, 1 at first:

      constant  stays
      linear    1 - taken / num_steps
      adaptive  times 1 + 0.1 clip(kl / target - 1, -0.2, 0.2)

  Source: periodic, ProRL, arXiv 2505.24864, reference policy reset; ema, WARP,
    arXiv 2406.16768, the anchor; adaptive, arXiv 1909.08593, section 2.2.

  Args:
    rule: what to do.
    state: donated, with a reference.
    taken: steps of the phase, the last included.
    num_steps: of the phase.
    kl: of the last step, nats a token it was measured on: with the KL in the
      loss those that were learned from. None if there were none.
  """
  share = 1 - rule.decay
  if rule.moves == 'periodic':
    share = float(taken % rule.every == 0)
  error = 0.0
  # What is measured in a step that is not finite says nothing.
  if rule.schedule == 'adaptive' and kl is not None and np.isfinite(kl):
    error = np.clip(kl / rule.target - 1, -_MOST_ERROR, _MOST_ERROR)
  left = 1 - taken / num_steps
  return _follow(
    state, *map(np.float32, (share, left, 1 + _GAIN * error)), rule=rule
  )


@functools.partial(
  jax.jit, static_argnames=('rule',), donate_argnames=('state',)
)
def _follow(state, share, left, factor, *, rule):
  reference, scale = state.reference, state.kl_scale
  if rule.moves != 'frozen':
    steps = jax.tree.map(
      lambda to, at: share * (to.astype(jnp.float32) - at.astype(jnp.float32)),
      state.params,
      reference,
    )
    key = jax.random.fold_in(jax.random.key(2), state.step)
    moved = optim.add_updates(reference, steps, key)
    reference = jax.tree.map(
      lambda to, near: jnp.where(share == 1, to, near), state.params, moved
    )
  if rule.schedule == 'linear':
    scale = left
  elif rule.schedule == 'adaptive':
    scale = scale * factor
  return dataclasses.replace(state, reference=reference, kl_scale=scale)
