"""The rows of each optimizer step, sampled when they are asked for, or before.

1. `Feed.take` asks for the rows of a step and of up to `max_staleness` steps
   behind it, to be sampled by the weights as they are; then it waits for those
   of the step.
2. Where sampling has devices of its own, it goes on while others learn. Where
   all are shared, the rows' scores alone are waited for later.
3. What follows a checkpoint is sampled by its weights. So the weights that
   sample a step's rows are the same whether a run was killed before it or not,
   and however fast either side is.
"""

import collections
import functools
import time

import jax

from dash_jax import assemble, batches, phases, sharding
from dash_jax import config as config_lib
from dash_jax.data import questions
from dash_jax.model import lora
from dash_jax.runs import watch


class Feed:
  """Samples the rows of a phase's steps, in order."""

  def __init__(self, parts: assemble.Parts, phase: phases.Phase, step: int):
    """
    Args:
      parts: of the run.
      phase: of RL.
      step: the next to be taken.
    """
    self._parts = parts
    self._phase = phase
    self._next = step
    self._waiting = collections.deque()
    self.began_at = time.perf_counter()

  def take(
    self, state: batches.TrainState, step: int
  ) -> tuple[assemble.Sampled, int]:
    """Returns the rows of a step, with their scores, and how often was sampled
    for them.

    Args:
      state: before the step.
      step: its number; each is taken once.
    """
    self._ask(state, step)
    return self._waiting.popleft()()

  def _ask(self, state, step):
    parts, phase = self._parts, self._phase
    last = min(
      step + parts.config.algorithm.max_staleness,
      phase.last_step - 1,
      self._find_checkpoint(step) - 1,
    )
    if self._next > last:
      return
    prepared = parts.train_sampler.prepare(
      lora.join(state.params, state.frozen)
    )
    while self._next <= last:
      begin = functools.partial(
        _begin, parts, phase, prepared, self._next, step
      )
      self._waiting.append(parts.on_sampler(begin))
      self._next += 1

  def _find_checkpoint(self, step):
    """Returns the first step whose weights are kept, from the one behind `step`
    on."""
    every = self._parts.config.checkpoint.every_samples
    taken = step + 1 - self._phase.first_step
    while not self._phase.is_due(taken, every):
      taken += 1
    return self._phase.first_step + taken


def draw(
  parts: assemble.Parts, step: int, num: int, round_: int = 0
) -> list[batches.Question]:
  """Returns this process's share of the questions of a step, other ones in each
  round of sampling. A function of the seed and of these numbers."""
  seed = parts.config.seed + 2**31 * round_
  return sharding.host_share(
    questions.draw(parts.train_questions, step, num, seed)
  )


def _begin(parts, phase, prepared, step, policy_step):
  """Samples a step's rows; returns what waits for their scores and returns
  them, and how often was sampled.

  Where the rewards of a group all agree, other questions are asked, up to
  `refill_rounds` times, until there are as many groups as the step has questions;
  of those that agree only what is still missing is kept. A round draws among all
  questions, with noise of its own; each process takes the rounds that it needs.

  Source: DAPO, arXiv 2503.14476, dynamic sampling; it has no bound of rounds.
  """
  config, num = parts.config, config_lib.sizes(parts.config).num_questions
  key = jax.random.fold_in(jax.random.key(config.seed), step)

  def sample(round_):
    watch.mark(f'sampling for step {step + 1}')
    return parts.sample_and_score(
      parts.train_sampler,
      prepared,
      # Each round has questions and noise of its own, functions of the seed.
      draw(parts, step, num, round_),
      jax.random.fold_in(key, round_) if round_ else key,
      phase.decoding,
      policy_step=policy_step,
    )

  finish = sample(0)
  if not config.algorithm.refill_rounds:
    return lambda: (parts.weigh(finish()), 1)
  found, num_rounds = parts.weigh(finish()), 1
  while num_rounds <= config.algorithm.refill_rounds:
    if found.find_mixed().all():
      break
    found = found.join(parts.weigh(sample(num_rounds)()))
    num_rounds += 1
  return lambda: (found, num_rounds)
