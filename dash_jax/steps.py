"""One optimizer step, in the design's order.

  questions -> prompts -> rollouts -> rewards -> advantages -> the rows worth
  learning from, in minibatches -> one update.

`rl_step` takes scored rollouts (feed.py), gives each row what it counts and drops
those that say nothing (credit.py), and learns from the rest (updates.py).

Everything that a step draws (questions, noise) is a function of the seed and of
its number, so a run resumes from any step.
"""

import time

import numpy as np

from dash_jax import assemble, batches, feed, phases, sharding, updates
from dash_jax import credit as credit_lib
from dash_jax.learning import losses, packing, reading
from dash_jax.learning import reference as reference_lib
from dash_jax.model import lora
from dash_jax.runs import rollouts, watch


def take_step(
  parts: assemble.Parts,
  phase: phases.Phase,
  room: packing.Room,
  fed: feed.Feed,
  state: batches.TrainState,
  step: int,
  *,
  write_rollouts: bool,
) -> tuple[batches.TrainState, dict]:
  """Takes one optimizer step of a phase.

  Args:
    parts: of the run.
    phase: what to do.
    room: of its minibatches, `make_ready`'s.
    fed: what an RL step's rows come from.
    state: donated.
    step: its number, over all phases.
    write_rollouts: whether to write what was sampled to the workdir.

  Returns:
    The new state and the step's metrics, as metrics.jsonl has them.
  """
  if phase.name == 'sft':
    return sft_step(parts, phase, room, state, step)
  return rl_step(parts, phase, room, fed, state, step, write_rollouts)


def sft_step(
  parts: assemble.Parts,
  phase: phases.Phase,
  room: packing.Room,
  state: batches.TrainState,
  step: int,
) -> tuple[batches.TrainState, dict]:
  """Takes one supervised step on worked solutions."""
  watch.mark(f'learning in step {step + 1}')
  start = time.perf_counter()
  asked = feed.draw(parts, step, phase.rows_per_step)
  rows = parts.encoding.encode_solutions(asked)
  weight, counted = losses.row_weights(
    'token', rows.lengths, parts.encoding.max_completion_len
  )
  total = sharding.sum_over_hosts({'tokens': float(counted.sum())})['tokens']
  ones = np.ones(weight.shape, np.float32)
  credit = credit_lib.Credit(ones, ones > 0, weight / total, masked=0)
  state, values = updates.learn(parts, phase, room, state, rows, credit)
  end = time.perf_counter()
  return state, values | {
    'learn_s': end - start,
    'step_s': end - start,
    'trained_tokens': round(total),
  }


def rl_step(
  parts: assemble.Parts,
  phase: phases.Phase,
  room: packing.Room,
  fed: feed.Feed,
  state: batches.TrainState,
  step: int,
  write_rollouts: bool,
) -> tuple[batches.TrainState, dict]:
  """Takes one step of RL: sample, score, filter, learn."""
  config = parts.config
  start = time.perf_counter()
  watch.mark(f'waiting for the rows of step {step + 1}')
  sampled, num_rounds = fed.take(state, step)
  # None learns before the last has its rows.
  slowest = sharding.max_over_hosts(
    {
      'sample_s': sampled.sample_s,
      'reward_s': sampled.reward_s,
      'rounds': num_rounds,
    }
  )
  rows, scores = sampled.rows, sampled.scores
  rewards = sampled.rewards
  verified = scores.rewards.reshape(rewards.shape)
  watch.mark(f'learning in step {step + 1}')
  scored_at = time.perf_counter()
  expected = penalty = kl = None
  if phase.kl_in_reward:
    reference = reading.completion_logprobs(
      parts.model,
      lora.join(state.reference, state.frozen),
      rows,
      phase.decoding,
      room=room,
    )
    kl = credit_lib.find_kl(config, rows, reference)
    penalty = float(state.kl_scale) * config.algorithm.kl_coef * kl
  if phase.objective.value_coef:
    expected = reading.completion_values(
      parts.model, lora.join(state.params, state.frozen), rows, room
    )
  shaped = credit_lib.shape_rewards(config, rewards, rows)
  credit = credit_lib.assign(config, shaped, verified, rows, penalty, expected)
  keep = credit.keep
  sums = sharding.sum_over_hosts(
    {
      'rows': keep.size,
      'replaced_rows': sampled.replaced_rows,
      'replaced_tokens': sampled.replaced_tokens,
      'kept_rows': keep.sum(),
      'masked_rows': credit.masked,
      'kl': 0.0 if kl is None else kl.sum(),
      'reward': rewards.sum(),
      'right': (verified == 1).sum(),
      'tokens': rows.lengths.sum(),
      'trained_tokens': rows.lengths[keep].sum(),
      'truncated': rows.truncated.sum(),
      'no_signal': (credit.gain == 0).all(axis=1).sum() * keep.shape[1],
      'timeouts': scores.timeouts,
      'errors': scores.errors,
      'staleness': (step - rows.policy_step).sum(),
    }
    | {f'reward_{name}': x.sum() for name, x in sampled.terms.items()}
  )
  state, values = updates.learn(parts, phase, room, state, rows, credit)
  measured = sums['trained_tokens']
  if phase.kl_in_reward:
    measured = sums['tokens']
    values['kl'] = sums['kl'] / max(measured, 1.0)
  state, more = _move_reference(
    phase, state, step, values['kl'] if measured else None
  )
  learned_at = time.perf_counter()
  if write_rollouts or values['skipped_updates']:
    rollouts.write(
      parts.own_folder, step + 1, sampled.asked, sampled.texts, rows,
      parts.encoding.decode,
      rewards=rewards, advantages=credit.gain, kept=keep, terms=sampled.terms,
    )  # fmt: skip
  seconds = {
    'sample_s': slowest['sample_s'],
    'reward_s': slowest['reward_s'],
    'learn_s': learned_at - scored_at,
    'step_s': learned_at - start,
  }
  if config.algorithm.refill_rounds:
    values['sampling_rounds'] = slowest['rounds']
  if config.algorithm.max_staleness:
    values |= {
      'wait_s': scored_at - start,
      'sampling_at_s': sampled.began_at - fed.began_at,
      'learning_at_s': scored_at - fed.began_at,
    }
  return state, values | more | seconds | _summarize(sums, seconds)


def _move_reference(phase, state, step, kl):
  """Returns the state as the next step is to find it, and metrics."""
  if phase.rule == reference_lib.Rule():
    return state, {}
  scale = float(state.kl_scale)
  state = reference_lib.follow(
    phase.rule, state,
    taken=step + 1 - phase.first_step, num_steps=phase.num_steps, kl=kl,
  )  # fmt: skip
  return state, {'kl_scale': scale}


def _summarize(sums, seconds):
  """Returns the metrics of an RL step that are sums over its rows."""
  num_rows = sums['rows']
  return {
    'reward_mean': sums['reward'] / num_rows,
    'accuracy': sums['right'] / num_rows,
    'sampled_tokens': int(sums['tokens'] + sums['replaced_tokens']),
    'trained_tokens': int(sums['trained_tokens']),
    'sampled_tokens_per_s': (
      (sums['tokens'] + sums['replaced_tokens']) / seconds['sample_s']
    ),
    'sampled_rows': int(num_rows + sums['replaced_rows']),
    'kept_rows': int(sums['kept_rows']),
    'masked_rows': int(sums['masked_rows']),
    'zero_signal_fraction': sums['no_signal'] / num_rows,
    'completion_len_mean': sums['tokens'] / num_rows,
    'truncated_fraction': sums['truncated'] / num_rows,
    'reward_timeouts': int(sums['timeouts']),
    'reward_errors': int(sums['errors']),
    'staleness': sums['staleness'] / num_rows,
  } | {
    name: total / num_rows
    for name, total in sums.items()
    if name.startswith('reward_')
  }
