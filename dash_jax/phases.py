"""The phases of a run: a supervised one, if asked for, and one of RL."""

import dataclasses

from dash_jax import assemble
from dash_jax import config as config_lib
from dash_jax.learning import losses
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
  updates_a_pass: int = 1
  kl_decays: bool = False
  reports_cosine: bool = False
  needs_reference_rows: bool = False  # their log-probabilities by the reference

  @property
  def last_step(self) -> int:
    return self.first_step + self.num_steps

  @property
  def needs_reference(self) -> bool:
    return self.needs_reference_rows or self.objective.kl_coef > 0

  def kl_scale(self, step: int) -> float:
    """Returns what the KL coefficient is multiplied by in a step."""
    if not self.kl_decays:
      return 1.0
    return 1 - (step - self.first_step) / self.num_steps

  def is_due(self, taken: int, every_samples: int) -> bool:
    """Returns whether the phase's step number `taken` took its rows across a
    multiple of `every_samples`."""
    rows = taken * self.rows_per_step
    return rows // every_samples > (rows - self.rows_per_step) // every_samples


def phases(config, stop_ids: tuple[int, ...]) -> tuple[Phase, ...]:
  """Returns the phases of a run, in order.

  Args:
    config: of the run.
    stop_ids: that end a reply.
  """
  sizes, algorithm = config_lib.sizes(config), config.algorithm
  in_reward = algorithm.kl_in == 'reward' and algorithm.kl_coef > 0
  sft = Phase(
    name='sft',
    title='SFT',
    first_step=0,
    num_steps=algorithm.sft_steps,
    rows_per_step=config.optim.sft_batch_size,
    group_size=1,
    minibatch_size=config.optim.sft_batch_size,
    updates=1,
    optimizer=assemble.make_optimizer(
      config,
      config.optim.sft_learning_rate,
      algorithm.sft_steps,
      config.optim.sft_warmup_steps,
    ),
    objective=losses.Objective(loss='supervised'),
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
    ),
    updates_a_pass=algorithm.num_updates,
    reports_cosine=algorithm.report_cosine,
    kl_decays=algorithm.kl_schedule == 'linear',
    needs_reference_rows=algorithm.loss == 'dpo' or in_reward,
    decoding=decoding.make_decoding(
      config.sampling.temperature,
      config.sampling.top_p,
      config.sampling.top_k,
      min_p=config.sampling.min_p,
      min_len=config.sampling.min_completion_len,
      stop_ids=stop_ids,
    ),
  )
  return tuple(phase for phase in (sft, rl) if phase.num_steps)
