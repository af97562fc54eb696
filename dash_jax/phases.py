"""The phases of a run: a supervised one, if asked for, and one of RL."""

import dataclasses

from dash_jax import assemble
from dash_jax import config as config_lib
from dash_jax.learning import losses, reference
from dash_jax.sampling import decoding


@dataclasses.dataclass(frozen=True)
class Phase:
  """What the steps of one phase share."""

  name: str  # 'sft' or 'rl', as in metrics.jsonl
  title: str
  first_step: int
  num_steps: int
  rows_per_step: int
  group_size: int
  minibatch_size: int | str  # of full rows, or 'auto'
  updates: int  # changes of the weights in one step
  optimizer: object
  objective: losses.Objective
  decoding: decoding.Decoding
  rule: reference.Rule
  updates_a_pass: int = 1
  reports_cosine: bool = False
  kl_in_reward: bool = False

  @property
  def last_step(self) -> int:
    """The number of the first step behind the phase, over all phases."""
    return self.first_step + self.num_steps

  @property
  def needs_reference(self) -> bool:
    """Whether the weights that the phase starts from are kept to compare with."""
    return (
      self.kl_in_reward
      or self.objective.loss == 'dpo'
      or self.objective.kl_coef > 0
    )

  def is_due(self, taken: int, every_samples: int) -> bool:
    """Returns whether the phase's step number `taken` took its rows across a
    multiple of `every_samples`."""
    rows = taken * self.rows_per_step
    return rows // every_samples > (rows - self.rows_per_step) // every_samples

  def find_due(self, taken: int, every_samples: int) -> int:
    """Returns the first of the phase's steps, from number `taken` on, that
    `is_due`."""
    next_multiple = (taken - 1) * self.rows_per_step // every_samples + 1
    return -(-next_multiple * every_samples // self.rows_per_step)


def phases(config, stop_ids: tuple[int, ...]) -> tuple[Phase, ...]:
  """Returns the phases of a run, in order.

  Args:
    config: of the run.
    stop_ids: that end a reply.
  """
  sizes, algorithm = config_lib.sizes(config), config.algorithm
  in_reward = algorithm.kl_in == 'reward' and algorithm.kl_coef > 0
  sft_rows, in_minibatch = config.optim.sft_batch_size, config_lib.AUTO
  if config.optim.minibatch_size != config_lib.AUTO:
    in_minibatch = min(config.optim.minibatch_size, sft_rows)
  sft = Phase(
    name='sft',
    title='SFT',
    first_step=0,
    num_steps=algorithm.sft_steps,
    rows_per_step=sft_rows,
    group_size=1,
    minibatch_size=in_minibatch,
    updates=1,
    optimizer=assemble.make_optimizer(
      config,
      config.optim.sft_learning_rate,
      algorithm.sft_steps,
      config.optim.sft_warmup_steps,
    ),
    objective=losses.Objective(loss='supervised', is_sampled=False),
    rule=reference.Rule(),
    decoding=decoding.make_decoding(1.0),
  )
  rl = Phase(
    name='rl',
    title=algorithm.name.upper(),
    first_step=algorithm.sft_steps,
    num_steps=sizes.rl_steps,
    rows_per_step=sizes.batch_size,
    group_size=algorithm.group_size,
    minibatch_size=sizes.minibatch_size,
    updates=sizes.updates,
    optimizer=assemble.make_optimizer(
      config,
      sizes.learning_rate,
      sizes.rl_steps * sizes.updates,
      config.optim.warmup_steps,
    ),
    objective=losses.Objective(
      loss=algorithm.loss,
      clip_low=algorithm.clip_low,
      clip_high=algorithm.clip_high,
      clip_dual=algorithm.clip_dual,
      importance_cap=algorithm.importance_cap,
      kl_coef=0.0 if in_reward else algorithm.kl_coef,
      kl_estimator=algorithm.kl_estimator,
      entropy_coef=algorithm.entropy_coef,
      value_coef=(
        algorithm.value_coef if algorithm.baseline == 'critic' else 0.0
      ),
    ),
    updates_a_pass=algorithm.num_updates,
    reports_cosine=algorithm.report_cosine,
    rule=reference.Rule(
      moves=algorithm.reference,
      every=algorithm.reference_every,
      decay=algorithm.reference_decay,
      schedule=algorithm.kl_schedule,
      target=algorithm.kl_target,
    ),
    kl_in_reward=in_reward,
    decoding=assemble.make_decoding(config, stop_ids),
  )
  return tuple(phase for phase in (sft, rl) if phase.num_steps)
