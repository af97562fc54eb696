"""How far the policy is from where RL began.

1. `begin` takes some rows that the first weights sampled, and what these give
   their tokens. All processes have the rows of all.
2. `measure` finds what other weights give the same tokens. The difference of the
   log-probabilities, averaged over tokens, estimates KL(first || other), in nats a
   token, of the distribution that is sampled from. It is a little off where the
   other weights have learned from these rows, and where `refill_rounds` has chosen
   them.

Nothing of the first weights is kept but these numbers.
"""

import dataclasses

import jax
import numpy as np

from dash_jax import assemble, batches, phases, sharding
from dash_jax.learning import reading
from dash_jax.model import lora

_NUM_ROWS = 32  # or one group, if it has more; or all of a step that has fewer


def begin(
  parts: assemble.Parts,
  phase: phases.Phase,
  state: batches.TrainState,
  rows: batches.Rollouts,
) -> batches.Rollouts:
  """Returns whole groups, the same in each process, whose `logprobs` are those
  that the learner finds; all processes must call it.

  Args:
    parts: of the run.
    phase: of RL.
    state: before the phase's first step.
    rows: of this step, NumPy; this process's share.
  """
  num = max(_NUM_ROWS // phase.group_size, 1)
  most = -(-num // jax.process_count())

  def share(x):
    found = sharding.gather_hosts(x[:most])
    return found.reshape(-1, *x.shape[1:])[:num]

  shared = jax.tree.map(share, rows)
  found = _find_logprobs(parts, phase, state, shared)
  return dataclasses.replace(shared, logprobs=found)


def measure(
  parts: assemble.Parts,
  phase: phases.Phase,
  state: batches.TrainState,
  first: batches.Rollouts,
) -> float:
  """Returns nats a token; all processes must call it.

  Args:
    parts, phase, state: as `begin`'s; any later state.
    first: of `begin`.
  """
  now = _find_logprobs(parts, phase, state, first)
  gone = np.subtract(first.logprobs, now, dtype=np.float64)
  return float(gone.sum() / first.lengths.sum())


def _find_logprobs(parts, phase, state, rows):
  """Returns f32[Q, G, C]; each process computes some questions."""
  num_questions, G = rows.lengths.shape
  owner = np.arange(num_questions) % jax.process_count()
  found = reading.completion_logprobs(
    parts.model,
    lora.join(state.params, state.frozen),
    rows,
    phase.decoding,
    keep=np.repeat((owner == jax.process_index())[:, None], G, axis=1),
  )
  # Others have 0 there.
  return sharding.gather_hosts(found).sum(axis=0)


def pack(first: batches.Rollouts) -> dict:
  """Returns rows as nested dicts of arrays, for a checkpoint."""
  return dataclasses.asdict(first)


def unpack(packed: dict) -> batches.Rollouts:
  """Returns what `pack` has packed."""
  prompts = batches.PromptBatch(**packed['prompts'])
  return batches.Rollouts(**packed | {'prompts': prompts})
