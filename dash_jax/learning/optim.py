"""The optimizer, from optax."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ('constant', 'linear', 'cosine')


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW and its schedule.

  Attributes:
    learning_rate: the peak.
    schedule: constant, or linear or cosine decay to 0 over `total_steps`.
    warmup_steps: steps of linear rise before the schedule begins; step i of
      them has (i + 1) / (warmup_steps + 1) of the peak.
    total_steps: optimizer steps of the phase, warm-up included.
    weight_decay: decoupled, on matrices only: not on norms and biases.
    max_grad_norm: global-norm clip; 0 clips nothing.
  """

  learning_rate: float
  schedule: str
  warmup_steps: int
  total_steps: int
  weight_decay: float = 0.0
  max_grad_norm: float = 1.0
  b1: float = 0.9
  b2: float = 0.999


def make_schedule(config: OptimConfig) -> optax.Schedule:
  """Returns the learning rate as a function of the steps taken."""
  rest = max(config.total_steps - config.warmup_steps, 1)
  after = {
    'constant': optax.constant_schedule(config.learning_rate),
    'linear': optax.linear_schedule(config.learning_rate, 0.0, rest),
    'cosine': optax.cosine_decay_schedule(config.learning_rate, rest),
  }[config.schedule]
  # From above 0: a step of rate 0 would sample a batch for nothing.
  first = config.learning_rate / (config.warmup_steps + 1)
  rise = optax.linear_schedule(first, config.learning_rate, config.warmup_steps)
  return optax.join_schedules([rise, after], [config.warmup_steps])


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """Returns AdamW with a global-norm clip in front, if asked for."""
  adamw = optax.adamw(
    make_schedule(config),
    b1=config.b1,
    b2=config.b2,
    weight_decay=config.weight_decay,
    mask=_select_matrices,
  )
  if config.max_grad_norm:
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    adamw = optax.chain(clip, adamw)
  return _in_float32(adamw)


def _in_float32(inner) -> optax.GradientTransformation:
  """Keeps moments in float32 whatever the weights are in: in bfloat16 a
  second moment would not move by 1 - b2 of itself."""

  def widen(params):
    return jax.tree.map(lambda x: x.astype(jnp.float32), params)

  return optax.GradientTransformation(
    init=lambda params: inner.init(widen(params)),
    update=lambda grads, state, params: inner.update(
      grads, state, widen(params)
    ),
  )


def _select_matrices(params: dict) -> dict:
  # By name: stacked over layers, norms and biases have two axes or more too.
  def is_matrix(path, _):
    name = path[-1].key
    return not (name.endswith('norm') or name in ('bq', 'bk', 'bv'))

  return jax.tree_util.tree_map_with_path(is_matrix, params)
