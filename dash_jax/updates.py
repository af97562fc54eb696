"""The learner's side of a step: how often weights change, and on which rows.

1. `make_ready` compiles what a phase learns with.
2. `learn` changes the weights once; or, for PPO-Multi, in each of several
   passes over the rows; or, for PPO-Mini, on each part of a pass in turn.
3. A change whose loss or gradient is not finite is skipped, and the minibatches
   that are to blame are kept in the folder NONFINITE_NAME.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from dash_jax import assemble, batches, phases, sharding
from dash_jax import config as config_lib
from dash_jax import credit as credit_lib
from dash_jax.learning import learner, losses, packing, reading
from dash_jax.model import lora
from dash_jax.sampling import memory

NONFINITE_NAME = 'nonfinite'

# No step has this number, nor has an evaluation: no noise is used twice.
_DROPOUT = 2**31 - 2
# Metrics that are means over tokens.
_OF_TOKENS = ('kl', 'entropy', 'clip_fraction', 'logprob_gap', 'value_loss')


def make_ready(
  parts: assemble.Parts,
  phase: phases.Phase,
  state: batches.TrainState,
) -> packing.Room:
  """Compiles the learner of a phase for every shape of its minibatches.

  Args:
    parts: of the run.
    phase: of SFT or RL.
    state: before its first step; read, not donated.

  Returns:
    What a minibatch has room for: `phase.minibatch_size` full rows, or where that
    is 'auto', as many as it was before in this workdir, or as fit.
  """
  arguments = (phase.decoding, _dropout_key(parts))
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
    name = 'optim.minibatch_size'
    if phase.name == 'sft':  # whose lines are others
      name += ', SFT'
    known = parts.sizes.recall(name) or 0
    # 0 if any process has none.
    size = -int(sharding.max_over_hosts({'size': -known})['size'])
    size = size or find_minibatch_size(
      measure,
      -sharding.max_over_hosts({'room': -memory.find_room()})['room'],
      phase.rows_per_step,
      sharding.num_batch_shards(jax.sharding.get_mesh()),
    )
    parts.sizes.note(name, size)
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
      need = 2 * max(room, 1)  # that much is not known
    if need <= room:
      return size
    if size == unit:
      raise ValueError(
        "optim.minibatch_size='auto': a minibatch of one row a device needs"
        f' {need / 2**30:.1f} GiB, and there is room for {room / 2**30:.1f}:'
        " set model.remat='layer', take fewer slots, or split over more devices"
      )
    # Not all of it grows with rows, so this may still be too many.
    size = max(int(size * room / need) // unit * unit, unit)


def learn(
  parts: assemble.Parts,
  phase: phases.Phase,
  room: packing.Room,
  state: batches.TrainState,
  rows: batches.Rollouts,
  credit: credit_lib.Credit,
) -> tuple[batches.TrainState, dict]:
  """Changes the weights as often as the phase says.

  Args:
    parts: of the run.
    phase: what to do.
    room: of a minibatch, `make_ready`'s.
    state: donated.
    rows: Q questions with G rows each, NumPy.
    credit: what they count.

  Returns:
    The new state, and the learner's metrics on the host: means over the changes,
    or over the tokens of all, and how many were skipped.
  """
  program = {'model': parts.model, 'objective': phase.objective}
  old, reference = rows.logprobs, None
  if phase.objective.importance_cap:
    old = _find_logprobs(parts, phase, room, state, state.params, rows, credit)
  elif phase.objective.loss == 'dpo':
    reference = _find_logprobs(
      parts, phase, room, state, state.reference, rows, credit
    )
  by_part = np.array_split(np.arange(len(rows.lengths)), phase.updates_a_pass)
  taken, skipped = [], 0
  step = int(state.step) + 1
  for i in range(phase.updates):
    part = functools.partial(np.take, indices=by_part[i % len(by_part)], axis=0)
    of_part = jax.tree.map(part, (rows, credit, old, reference))
    pack, gain = _prepare(parts, phase, room, state, *of_part)
    keep = part(credit.keep)
    minibatches = pack(gain, keep=keep)
    key = _dropout_key(parts)
    arguments = (phase.decoding, jax.random.fold_in(key, i) if i else key)
    more = {}
    if phase.reports_cosine:
      _, ours = learner.sum_gradients(state, minibatches, *arguments, **program)
      if credit.of_all is not None:
        gain = part(credit.of_all)
      everything = pack(gain, keep=np.ones_like(keep))
      _, full = learner.sum_gradients(state, everything, *arguments, **program)
      more = {'gradient_cosine': learner.compare_gradients(ours, full)}
    state, values = learner.update(
      state, minibatches, *arguments, **program,
      optimizer=phase.optimizer, change=i, is_last=i + 1 == phase.updates,
    )  # fmt: skip
    values = jax.device_get(values)
    if not np.isfinite(values['loss'] + values['grad_norm']):
      skipped += 1
      _keep_nonfinite(
        parts.own_folder / NONFINITE_NAME / f'step_{step:06d}_change_{i}',
        minibatches,
        # Of the weights as they were, and still are.
        functools.partial(
          learner.sum_gradients,
          dataclasses.replace(state, step=jnp.int32(step - 1)),
          decoding=phase.decoding, dropout_key=arguments[1], **program,
        ),
      )  # fmt: skip
    taken.append(values | more)
  means = average(taken) | {'skipped_updates': skipped}
  if not phase.objective.value_coef:
    del means['value_loss']
  return state, means


def _keep_nonfinite(folder, minibatches, sum_gradients):
  """Writes the minibatches whose loss or gradient is not finite: all, if each
  alone has finite ones."""

  def is_finite(minibatch):
    (loss, _), grads = sum_gradients(minibatches=[minibatch])
    return bool(jnp.isfinite(loss + optax.tree.norm(grads)))

  bad = [i for i, m in enumerate(minibatches) if not is_finite(m)]
  folder.mkdir(parents=True, exist_ok=True)
  for i in bad or range(len(minibatches)):
    held = sharding.local_rows(minibatches[i])
    found, _ = jax.tree_util.tree_flatten_with_path(held)
    np.savez(
      folder / f'minibatch_{i}.npz',
      **{
        jax.tree_util.keystr(p, simple=True, separator='.'): x for p, x in found
      },
    )


def average(taken: list[dict]) -> dict[str, float]:
  """Returns the metrics of several changes as those of one; a change without rows
  says nothing of tokens and gradients.

  Args:
    taken: of each change, what `learner.update` returns, on the host.
  """
  tokens = [values['tokens'] for values in taken]
  some = max(sum(tokens), 1)
  means = {}
  for name in [name for name in taken[0] if name != 'tokens']:
    weights = None
    if name in _OF_TOKENS:
      weights = np.divide(tokens, some)
    elif name in ('gradient_cosine', 'grad_norm'):
      weights = np.sign(tokens) / max(np.sign(tokens).sum(), 1)
    found = np.array([values[name] for values in taken])
    means[name] = float(found.mean() if weights is None else weights @ found)
  return means


def _prepare(parts, phase, room, state, rows, credit, old, reference):
  """Returns what packs some questions' rows for one change of the weights, given
  their advantages and which to keep; and their advantages."""
  gain = credit.gain if credit.by_token is None else credit.by_token
  if phase.objective.loss == 'gspo':
    now = _find_logprobs(parts, phase, room, state, state.params, rows, credit)
    old = losses.gspo_old_logprobs(now, old, rows.lengths)
  elif phase.objective.loss == 'dpo':
    now = _find_logprobs(parts, phase, room, state, state.params, rows, credit)
    beta = parts.config.algorithm.dpo_beta
    gain = losses.dpo_advantages(gain, now, reference, beta)
  pack = functools.partial(
    packing.make_minibatches,
    rows,
    # Each part is a batch of its own, with its share of the denominator.
    weight=credit.weight * phase.updates_a_pass,
    room=room,
    old_logprobs=old,
    returns=credit.returns,
  )
  return pack, gain


def _find_logprobs(parts, phase, room, state, trained, rows, credit):
  """Returns f32[Q, G, C] of the rows that are learned from, under the policy as
  it is or the reference."""
  return reading.completion_logprobs(
    parts.model,
    lora.join(trained, state.frozen),
    rows,
    phase.decoding,
    room=room,
    keep=None if phase.reports_cosine else credit.keep,
  )


def _dropout_key(parts):
  return jax.random.fold_in(jax.random.key(parts.config.seed), _DROPOUT)
