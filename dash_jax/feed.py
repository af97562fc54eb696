"""The rows of each optimizer step, sampled when they are asked for, or before.

1. `Feed.take` asks for the rows of a step and of up to `max_staleness` steps
   behind it, to be sampled by the weights as they are; then it waits for those
   of the step.
2. Where sampling has devices of its own, it goes on while others learn. Where
   all are shared, the rows' scores alone are waited for later.
3. What follows a checkpoint is sampled by its weights. So the weights that
   sample a step's rows are the same whether a run was killed before it or not,
   and however fast either side is.
4. A signal asks for a checkpoint in between. What is ahead then is kept with it,
   as are the rows that drift is measured by.
"""

import collections
import contextlib
import dataclasses
import functools
import time

import jax
import numpy as np

from dash_jax import assemble, batches, drift, phases, scoring, sharding
from dash_jax import config as config_lib
from dash_jax.data import questions
from dash_jax.model import lora
from dash_jax.rewards import workers
from dash_jax.runs import signals, watch

_FIRST = 'first'  # what a checkpoint has beside the rows ahead


class Feed:
  """Samples the rows of a phase's steps, in order.

  Attributes:
    first: of `drift.begin`, from the phase's first step on; None before.
  """

  def __init__(
    self,
    parts: assemble.Parts,
    phase: phases.Phase,
    step: int,
    stop: signals.Stop,
    kept: dict,
  ):
    """
    Args:
      parts: of the run.
      phase: of RL.
      step: the next to be taken.
      stop: what may ask for an end.
      kept: what `keep` has returned at this step, or {}.
    """
    self._parts = parts
    self._phase = phase
    self._stop = stop
    self.began_at = time.perf_counter()
    self._waiting = collections.deque()
    self.first = find_first(kept)
    kept = {name: x for name, x in kept.items() if name != _FIRST}
    for name in sorted(kept, key=int):
      found = _unpack(parts, kept[name], self.began_at)
      self._waiting.append(lambda found=found: found)
    self._next = step + len(kept)

  @property
  def _most(self):
    return self._parts.config.algorithm.max_staleness

  def take(
    self, state: batches.TrainState, step: int
  ) -> tuple[scoring.Sampled, int]:
    """Returns the rows of a step, with their scores, and how often was sampled
    for them.

    Args:
      state: before the step.
      step: its number; each is taken once.

    Raises:
      signals.Stopped: as asked, in each process. What is ahead of its step is
        never given up: no later weights would sample the same.
    """
    found = self._wait(state, step)
    if step == self._phase.first_step:
      self.first = drift.begin(self._parts, self._phase, state, found[0].rows)
    return found

  def keep(self) -> dict:
    """Waits for the rows that are ahead; returns them as nested dicts of arrays,
    those of all processes together, and what `find_first` finds."""
    ahead = {
      str(i): jax.tree.map(sharding.gather_hosts, _pack(*wait()))
      for i, wait in enumerate(self._waiting)
    }
    return ahead | ({_FIRST: drift.pack(self.first)} if self.first else {})

  def _wait(self, state, step):
    if self._most:
      self._ask(state, step)
      return self._waiting.popleft()()
    found = None
    with contextlib.suppress(signals.Stopped):
      self._ask(state, step)
      found = self._waiting.popleft()()
    self._stop.check_all()
    return found

  def _ask(self, state, step):
    parts, phase = self._parts, self._phase
    last = min(
      step + self._most,
      phase.last_step - 1,
      self._find_checkpoint(step) - 1,
    )
    if self._next > last:
      return
    prepared = parts.train_sampler.prepare(
      lora.join(state.params, state.frozen)
    )
    check = None if self._most else self._stop.check
    while self._next <= last:
      begin = functools.partial(
        _begin, parts, phase, prepared, self._next, step, check
      )
      self._next += 1
      self._waiting.append(parts.on_sampler(begin))

  def _find_checkpoint(self, step):
    """Returns the first step whose weights are kept, from the one behind `step`
    on."""
    every = self._parts.config.checkpoint.every_samples
    taken = step + 1 - self._phase.first_step
    return self._phase.first_step + self._phase.find_due(taken, every)


def find_first(kept: dict) -> batches.Rollouts | None:
  """Returns `Feed.first` as it was when `Feed.keep` returned `kept`."""
  return drift.unpack(kept[_FIRST]) if _FIRST in kept else None


def draw(
  parts: assemble.Parts, step: int, num: int, round_: int = 0
) -> list[batches.Question]:
  """Returns this process's share of the questions of a step, other ones in each
  round of sampling. A function of the seed and of these numbers."""
  seed = parts.config.seed + 2**31 * round_
  drawn = questions.draw(parts.train_questions, step, num, seed)
  return list(sharding.host_share(drawn))


def _begin(parts, phase, prepared, step, policy_step, check):
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
      check=check,
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


def _pack(sampled, num_rounds):
  """Returns rows, with their scores, as nested dicts of arrays."""
  columns = {
    'rewards': sampled.scores.rewards,
    'terms': sampled.terms,
  }
  if sampled.weighted is not None:
    columns['weighted'] = sampled.weighted
  rows = dataclasses.asdict(sampled.rows)
  numbers = {
    'sample_s': sampled.sample_s,
    'reward_s': sampled.reward_s,
    'num_rounds': num_rounds,
    'timeouts': sampled.scores.timeouts,
    'errors': sampled.scores.errors,
    'replaced_rows': sampled.replaced_rows,
    'replaced_tokens': sampled.replaced_tokens,
  }
  return {
    'prompts': rows.pop('prompts'),
    'rows': rows,
    'columns': {name: x for name, x in columns.items() if len(x)},
    'numbers': {name: np.asarray(x) for name, x in numbers.items()},
  }


def _unpack(parts, packed, began_at):
  """Returns this process's share of what `_pack` made in all processes, which may
  have been others; times are those of the slowest, and counts are with the first.
  """

  def share(x):
    return sharding.host_share(x.reshape(-1, *x.shape[2:]))

  prompts, rows, columns = (
    jax.tree.map(share, packed[name]) for name in ('prompts', 'rows', 'columns')
  )
  numbers = packed['numbers']
  counts = {
    name: int(numbers[name].sum()) if jax.process_index() == 0 else 0
    for name in ('timeouts', 'errors', 'replaced_rows', 'replaced_tokens')
  }
  rows = batches.Rollouts(prompts=batches.PromptBatch(**prompts), **rows)
  tokens, lengths = rows.tokens, rows.lengths
  sampled = scoring.Sampled(
    asked=[parts.train_questions.read(i) for i in prompts['uids'].tolist()],
    rows=rows,
    texts=[
      parts.encoding.decode(tokens[at][: lengths[at]])
      for at in np.ndindex(lengths.shape)
    ],
    scores=workers.Scores(
      rewards=columns['rewards'],
      timeouts=counts.pop('timeouts'),
      errors=counts.pop('errors'),
    ),
    began_at=began_at,
    sample_s=float(numbers['sample_s'].max()),
    reward_s=float(numbers['reward_s'].max()),
    terms=columns.get('terms', {}),
    weighted=columns.get('weighted'),
    **counts,
  )
  return sampled, int(numbers['num_rounds'].max())
