"""One optimizer step: each line of `rl_step` is one arrow of the design.

  questions -> prompts -> rollouts -> rewards -> advantages -> the rows worth
  learning from, in minibatches -> one update.

Everything that a step draws (questions, noise) is a function of the seed and of
its number, so a run resumes from any step.
"""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np
from absl import logging

from dash_jax import assemble, batches, sharding
from dash_jax import config as config_lib
from dash_jax.data import questions
from dash_jax.learning import advantages, filtering, learner, losses, packing
from dash_jax.model import lora
from dash_jax.runs import rollouts
from dash_jax.sampling import decoding, memory

# No step has this number, nor has an evaluation: no noise is used twice.
_DROPOUT = 2**31 - 2


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
  optimizer: object
  objective: losses.Objective
  decoding: decoding.Decoding

  @property
  def last_step(self) -> int:
    return self.first_step + self.num_steps

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
  sft = Phase(
    name='sft',
    title='SFT',
    first_step=0,
    num_steps=algorithm.sft_steps,
    rows_per_step=config.optim.sft_batch_size,
    group_size=1,
    minibatch_size=config.optim.sft_batch_size,
    optimizer=assemble.make_optimizer(
      config,
      config.optim.sft_learning_rate,
      algorithm.sft_steps,
      config.optim.sft_warmup_steps,
    ),
    objective=losses.Objective(supervised=True),
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
    optimizer=assemble.make_optimizer(
      config, sizes.learning_rate, sizes.rl_steps, config.optim.warmup_steps
    ),
    objective=losses.Objective(
      clip_low=algorithm.clip_low,
      clip_high=algorithm.clip_high,
      kl_coef=algorithm.kl_coef,
    ),
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


def take_step(
  parts: assemble.Parts,
  phase: Phase,
  room: packing.Room,
  state: batches.TrainState,
  step: int,
  ref_params: dict | None,
  *,
  write_rollouts: bool,
) -> tuple[batches.TrainState, dict]:
  """Takes one optimizer step of a phase.

  Args:
    parts: of the run.
    phase: what to do.
    room: of its minibatches, `make_ready`'s.
    state: donated.
    step: its number, over all phases.
    ref_params: the reference policy, if the loss has a KL term; its adapters,
      if only these are trained.
    write_rollouts: whether to write what was sampled to the workdir.

  Returns:
    The new state and the step's metrics, as metrics.jsonl has them.
  """
  if phase.name == 'sft':
    return sft_step(parts, phase, room, state, step)
  return rl_step(parts, phase, room, state, step, ref_params, write_rollouts)


def sft_step(
  parts: assemble.Parts,
  phase: Phase,
  room: packing.Room,
  state: batches.TrainState,
  step: int,
) -> tuple[batches.TrainState, dict]:
  """Takes one supervised step on worked solutions."""
  start = time.perf_counter()
  asked = _draw(parts, step, phase.rows_per_step)
  rows = parts.encoding.encode_solutions(asked)
  weight, counted = losses.row_weights(
    'token', rows.lengths, parts.encoding.max_completion_len
  )
  total = sharding.sum_over_hosts({'tokens': float(counted.sum())})['tokens']
  state, values = _learn(
    parts, phase, room, state, rows,
    gain=np.ones(weight.shape, np.float32),
    keep=np.ones(weight.shape, bool),
    weight=weight / total,
  )  # fmt: skip
  end = time.perf_counter()
  return state, values | {
    'learn_s': end - start,
    'step_s': end - start,
    'trained_tokens': round(total),
  }


def rl_step(
  parts: assemble.Parts,
  phase: Phase,
  room: packing.Room,
  state: batches.TrainState,
  step: int,
  ref_params: dict | None,
  write_rollouts: bool,
) -> tuple[batches.TrainState, dict]:
  """Takes one on-policy step: sample, score, filter, learn."""
  config, sizes = parts.config, config_lib.sizes(parts.config)
  start = time.perf_counter()
  asked = _draw(parts, step, sizes.num_questions)
  sampled = parts.sample_and_score(
    parts.train_sampler,
    lora.join(state.params, state.frozen),
    asked,
    jax.random.fold_in(jax.random.key(config.seed), step),
    phase.decoding,
    policy_step=step,
  )
  rows, scores = sampled.rows, sampled.scores
  rewards = scores.rewards.reshape(rows.lengths.shape)
  scored_at = time.perf_counter()

  gain = advantages.group_advantages(
    rewards, normalize_std=config.algorithm.normalize_std
  )
  keep = filtering.select(gain, sizes.filter_threshold)
  weight, counted = losses.row_weights(
    config.algorithm.normalizer, rows.lengths, parts.encoding.max_completion_len
  )
  if config.algorithm.denominator == 'kept':
    counted = counted * keep
  sums = sharding.sum_over_hosts(
    {
      'denominator': counted.sum(),
      'rows': keep.size,
      'kept_rows': keep.sum(),
      'reward': rewards.sum(),
      'right': (rewards == 1).sum(),
      'tokens': rows.lengths.sum(),
      'trained_tokens': rows.lengths[keep].sum(),
      'truncated': rows.truncated.sum(),
      'no_signal': (gain == 0).sum(),
      'timeouts': scores.timeouts,
      'errors': scores.errors,
      'staleness': (step - rows.policy_step).sum(),
    }
  )
  weight = weight / max(sums['denominator'], 1.0)
  state, values = _learn(
    parts, phase, room, state, rows, gain, keep, weight, ref_params
  )
  learned_at = time.perf_counter()
  if write_rollouts:
    rollouts.write(
      parts.own_folder, step + 1, asked, sampled.texts, rows,
      rewards=rewards, advantages=gain, kept=keep,
    )  # fmt: skip
  seconds = {
    'sample_s': sampled.sample_s,
    'reward_s': sampled.reward_s,
    'learn_s': learned_at - scored_at,
    'step_s': learned_at - start,
  }
  return state, values | seconds | _summarize(sums, seconds)


def _draw(parts, step, num):
  """Returns this process's share of the questions of a step."""
  return sharding.host_share(
    questions.draw(parts.train_questions, step, num, parts.config.seed)
  )


def _learn(
  parts, phase, room, state, rows, gain, keep, weight, ref_params=None
):
  """Takes the optimizer step on the kept rows and returns host metrics."""
  minibatches = packing.make_minibatches(rows, gain, keep, weight, room)
  state, values = learner.update(
    state,
    minibatches,
    ref_params,
    phase.decoding,
    _dropout_key(parts),
    model=parts.model,
    optimizer=phase.optimizer,
    objective=phase.objective,
  )
  return state, {name: float(x) for name, x in jax.device_get(values).items()}


def make_ready(
  parts: assemble.Parts,
  phase: Phase,
  state: batches.TrainState,
  ref_params: dict | None,
) -> packing.Room:
  """Compiles the learner of a phase for every shape of its minibatches, and
  returns these; 'auto' takes the largest that fit."""
  arguments = (ref_params, phase.decoding, _dropout_key(parts))
  program = {'model': parts.model, 'objective': phase.objective}

  def make_room(minibatch_size):
    return packing.make_room(
      minibatch_size,
      phase.group_size,
      parts.encoding.max_prompt_len,
      parts.encoding.max_completion_len,
    )

  def measure(minibatch_size):
    first, *_ = packing.make_empty(make_room(minibatch_size))
    return learner.measure(state, first, *arguments, **program)

  size = phase.minibatch_size
  if size == config_lib.AUTO:
    size = find_minibatch_size(
      measure,
      memory.find_room(),
      phase.rows_per_step,
      sharding.num_batch_shards(jax.sharding.get_mesh()),
    )
    logging.info('%s: minibatches of %d full rows', phase.title, size)
  room = make_room(size)
  empty = packing.make_empty(room)
  learner.sum_gradients(state, empty, *arguments, **program)
  return room


def find_minibatch_size(
  measure: Callable[[int], int], room: float, most: int, unit: int
) -> int:
  """Returns the most rows of a minibatch, a multiple of `unit`, that fit.

  Args:
    measure: from rows to the bytes that they need on a device.
    room: bytes that a device has.
    most: rows that there are to learn from.
    unit: of which rows are a multiple.

  Raises:
    ValueError: not even `unit` rows fit.
  """
  size = -(-most // unit) * unit
  while True:
    try:
      need = measure(size)
    except jax.errors.JaxRuntimeError as error:
      if not memory.is_exhausted(error):
        raise
      need = 2 * room  # that much is not known
    if need <= room:
      return size
    if size == unit:
      raise ValueError(
        "optim.minibatch_size='auto': a minibatch of one row a device needs"
        f' {need / 2**30:.1f} GiB, and there is room for {room / 2**30:.1f}:'
        ' set model.remat=True, take fewer slots, or split over more devices'
      )
    # Not all of it grows with rows, so this may still be too many.
    size = max(int(size * room / need) // unit * unit, unit)


def _dropout_key(parts):
  return jax.random.fold_in(jax.random.key(parts.config.seed), _DROPOUT)


def _summarize(sums, seconds):
  """Returns the metrics of an RL step that are sums over its rows."""
  num_rows = sums['rows']
  return {
    'reward_mean': sums['reward'] / num_rows,
    'accuracy': sums['right'] / num_rows,
    'sampled_tokens': int(sums['tokens']),
    'trained_tokens': int(sums['trained_tokens']),
    'sampled_tokens_per_s': sums['tokens'] / seconds['sample_s'],
    'sampled_rows': int(num_rows),
    'kept_rows': int(sums['kept_rows']),
    'zero_signal_fraction': sums['no_signal'] / num_rows,
    'completion_len_mean': sums['tokens'] / num_rows,
    'truncated_fraction': sums['truncated'] / num_rows,
    'reward_timeouts': int(sums['timeouts']),
    'reward_errors': int(sums['errors']),
    'staleness': sums['staleness'] / num_rows,
  }
