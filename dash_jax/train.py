"""The training loop: each line of `rl_step` is one arrow of the design.

The life of a run:
  1. It is a supervised phase (if asked for) and an RL phase, counted as one
     sequence of optimizer steps. Everything a step draws (questions, noise) is
     a function of the seed and its number, so a run resumes from a step.
  2. `rl_step`: questions -> prompts -> rollouts -> rewards -> advantages ->
     the rows worth learning from -> one update.
  3. Each step's metrics go to metrics.jsonl; evaluations to evals.jsonl.
"""

import contextlib
import dataclasses
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import assemble, batches, report, sharding
from dash_jax import config as config_lib
from dash_jax import evaluate as evaluate_lib
from dash_jax.data import questions
from dash_jax.learning import advantages, filtering, learner, losses
from dash_jax.runs import checkpoint, compiles, metrics, progress, rollouts
from dash_jax.sampling import decoding, sampler

# A workdir may go on with other values of these.
_MAY_CHANGE = ('log.', 'eval.', 'checkpoint.', 'mesh.', 'reward.num_workers')


@dataclasses.dataclass(frozen=True)
class Phase:
  """What the steps of one phase share."""

  name: str  # 'sft' or 'rl', as in metrics.jsonl
  title: str
  first_step: int
  num_steps: int
  rows_per_step: int
  optimizer: object
  objective: losses.Objective
  decoding: decoding.Decoding

  @property
  def last_step(self) -> int:
    return self.first_step + self.num_steps


def phases(config) -> tuple[Phase, ...]:
  """Returns the phases of a run, in order."""
  sizes, algorithm = config_lib.sizes(config), config.algorithm
  sft = Phase(
    name='sft',
    title='SFT',
    first_step=0,
    num_steps=algorithm.sft_steps,
    rows_per_step=config.optim.sft_batch_size,
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
    optimizer=assemble.make_optimizer(
      config, sizes.learning_rate, sizes.rl_steps, config.optim.warmup_steps
    ),
    objective=losses.Objective(
      clip_low=algorithm.clip_low,
      clip_high=algorithm.clip_high,
      kl_coef=algorithm.kl_coef,
    ),
    decoding=decoding.make_decoding(
      config.sampling.temperature, config.sampling.top_p, config.sampling.top_k
    ),
  )
  return tuple(phase for phase in (sft, rl) if phase.num_steps)


def sft_step(
  parts: assemble.Parts, phase: Phase, state: batches.TrainState, step: int
) -> tuple[batches.TrainState, dict]:
  """Takes one supervised step on worked solutions."""
  start = time.perf_counter()
  asked = sharding.host_share(
    questions.draw(
      parts.train_questions, step, phase.rows_per_step, parts.config.seed
    )
  )
  rows = parts.encoding.encode_solutions(asked)
  lengths = rows.completion_mask.sum(axis=1)
  weight, counted = losses.row_weights(
    'token', lengths, parts.encoding.max_completion_len
  )
  total = sharding.sum_over_hosts({'tokens': float(counted.sum())})['tokens']
  minibatches, n = filtering.cut(
    rows,
    advantages=np.ones(len(lengths), np.float32),
    keep=np.ones(len(lengths), bool),
    weight=weight / total,
    minibatch_size=_local_size(parts.config.optim.sft_batch_size),
  )
  state, values = _update(parts, phase, state, minibatches, n, None)
  end = time.perf_counter()
  return state, values | {
    'learn_s': end - start,
    'step_s': end - start,
    'trained_tokens': round(total),
  }


def rl_step(
  parts: assemble.Parts,
  phase: Phase,
  state: batches.TrainState,
  step: int,
  ref_params: dict | None,
  rollouts_step: int | None,
) -> tuple[batches.TrainState, dict]:
  """Takes one on-policy step: sample, score, filter, learn.

  Args:
    parts: of the run.
    phase: the RL phase.
    state: donated.
    step: its number, over all phases.
    ref_params: the reference policy, if the loss has a KL term.
    rollouts_step: the number to write the rollouts under, if any.

  Returns:
    The new state and the step's metrics.
  """
  config, sizes = parts.config, config_lib.sizes(parts.config)
  G = config.algorithm.group_size
  start = time.perf_counter()
  asked = sharding.host_share(
    questions.draw(
      parts.train_questions, step, sizes.num_questions, config.seed
    )
  )
  prompt_batch = sharding.put_rows(parts.encoding.encode(asked))
  sampled = sampler.sample(
    parts.model,
    state.params,
    prompt_batch,
    jax.random.fold_in(jax.random.key(config.seed), step),
    jnp.asarray(parts.stop_ids),
    phase.decoding,
    state.step,
    group_size=G,
    max_completion_len=parts.encoding.max_completion_len,
  )
  rows = sharding.local_rows(sampled)
  sampled_at = time.perf_counter()

  scores = evaluate_lib.score(parts, asked, rows)
  scored_at = time.perf_counter()

  gain = advantages.group_advantages(
    scores.rewards, G, normalize_std=config.algorithm.normalize_std
  )
  keep = filtering.select(gain, sizes.filter_threshold)
  lengths = rows.completion_mask.sum(axis=1)
  weight, counted = losses.row_weights(
    config.algorithm.normalizer, lengths, parts.encoding.max_completion_len
  )
  if config.algorithm.denominator == 'kept':
    counted = counted * keep
  sums = sharding.sum_over_hosts(
    {
      'denominator': counted.sum(),
      'rows': len(keep),
      'kept_rows': keep.sum(),
      'reward': scores.rewards.sum(),
      'right': (scores.rewards == 1).sum(),
      'tokens': lengths.sum(),
      'trained_tokens': lengths[keep].sum(),
      'truncated': rows.truncated.sum(),
      'no_signal': (gain == 0).sum(),
      'timeouts': scores.timeouts,
      'errors': scores.errors,
    }
  )
  minibatches, n = filtering.cut(
    rows,
    gain,
    keep,
    weight / max(sums['denominator'], 1.0),
    _local_size(sizes.minibatch_size),
  )
  state, values = _update(parts, phase, state, minibatches, n, ref_params)
  end = time.perf_counter()
  if rollouts_step is not None:
    rollouts.write(
      _rollouts_folder(parts),
      rollouts_step,
      asked,
      parts.encoding.decode(rows),
      rewards=scores.rewards,
      advantages=gain,
      kept=keep,
      completion_lens=lengths,
      truncated=rows.truncated,
      logprob_sums=rows.logprobs.sum(axis=1),
    )
  num_rows = sums['rows']
  return state, values | {
    'reward_mean': sums['reward'] / num_rows,
    'accuracy': sums['right'] / num_rows,
    'sample_s': sampled_at - start,
    'reward_s': scored_at - sampled_at,
    'learn_s': end - scored_at,
    'step_s': end - start,
    'sampled_tokens': int(sums['tokens']),
    'trained_tokens': int(sums['trained_tokens']),
    'sampled_tokens_per_s': sums['tokens'] / (sampled_at - start),
    'sampled_rows': int(num_rows),
    'kept_rows': int(sums['kept_rows']),
    'zero_signal_fraction': sums['no_signal'] / num_rows,
    'completion_len_mean': sums['tokens'] / num_rows,
    'truncated_fraction': sums['truncated'] / num_rows,
    'reward_timeouts': int(sums['timeouts']),
    'reward_errors': int(sums['errors']),
    'staleness': 0,
  }


def _update(parts, phase, state, minibatches, n, ref_params):
  """Runs the learner and returns host metrics."""
  n = sharding.max_over_hosts({'n': n})['n']
  state, values = learner.update(
    state,
    sharding.put_rows(minibatches, axis=1),
    jnp.int32(n),
    ref_params,
    phase.decoding,
    model=parts.model,
    optimizer=phase.optimizer,
    max_completion_len=parts.encoding.max_completion_len,
    objective=phase.objective,
  )
  return state, {name: float(x) for name, x in jax.device_get(values).items()}


def _local_size(rows: int) -> int:
  return rows // jax.process_count()


def _rollouts_folder(parts) -> pathlib.Path:
  if jax.process_count() == 1:
    return parts.workdir
  return parts.workdir / f'host_{jax.process_index()}'


def train(config, workdir: str) -> bool:
  """Runs or resumes a run.

  Args:
    config: a checked config; the mesh in use is `assemble.connect`'s.
    workdir: the run's folder.

  Returns:
    True when the run is complete, False when a signal asked it to stop; the
    same call then goes on where it was.
  """
  is_writer = jax.process_index() == 0
  parts = assemble.build(config, workdir)
  plan = phases(config)
  checkpoint.check_config(workdir, config.to_dict(), ignore=_MAY_CHANGE)
  if is_writer:
    checkpoint.save_config(workdir, config.to_dict())
  with (
    parts.pool,
    checkpoint.Stop() as stop,
    checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as saved,
    progress.Progress() as shown,
    contextlib.ExitStack() as closing,
  ):
    state, ref_params = _start(parts, plan, saved)
    log = (
      closing.enter_context(metrics.MetricsWriter(workdir, int(state.step)))
      if is_writer
      else None
    )
    evaluate = functools.partial(_evaluate, parts, log)
    for phase in plan:
      done = int(state.step) - phase.first_step
      if not 0 <= done < phase.num_steps:
        continue
      bar = shown.phase(phase.title, phase.num_steps, done)
      if phase.name == 'rl' and not done:
        evaluate(state, 'sft' if phase.first_step else 'rl')
      elif phase.name == 'rl' and _is_due(
        done, phase, config.eval.every_samples
      ):
        # The process may have died between the checkpoint and the evaluation.
        evaluate(state, 'rl')
      for step in range(int(state.step), phase.last_step):
        if sharding.max_over_hosts({'stop': stop.requested})['stop']:
          _save(saved, state)
          return False
        taken = step + 1 - phase.first_step
        due = functools.partial(_is_due, taken, phase)
        if phase.name == 'sft':
          state, values = sft_step(parts, phase, state, step)
        else:
          write_rows = due(config.log.rollouts_every_samples)
          state, values = rl_step(
            parts,
            phase,
            state,
            step,
            ref_params,
            step + 1 if write_rows else None,
          )
        if log:
          log.write(
            step + 1,
            {'phase': phase.name} | values | {'compiles': compiles.count()},
          )
        bar.update(taken, **_show(values))
        is_last = step + 1 == phase.last_step
        if is_last and phase is not plan[-1]:
          state, ref_params = _enter_rl(parts, plan[-1], state)
        if is_last or due(config.checkpoint.every_samples):
          _save(saved, state)
        if phase.name == 'rl' and due(config.eval.every_samples):
          evaluate(state, 'rl')
    evaluate(state, plan[-1].name)
  if is_writer:
    progress.print_summary(report.summarize(workdir))
    report.draw([workdir], pathlib.Path(workdir) / 'curves.png')
    print(f'Curves: {pathlib.Path(workdir) / "curves.png"}')
  return True


def _start(parts, plan, saved):
  """Returns the newest state, or a new one, and the reference policy."""
  first, last = plan[0], plan[-1]
  abstract = learner.abstract_state(parts.model, first.optimizer)
  restored = saved.restore(abstract)
  if restored is None:
    params = assemble.load_params(parts.config, parts.model)
    state = learner.init_state(params, first.optimizer)
    if first.name == 'rl':
      return _enter_rl(parts, first, state)
    return state, None
  state, _ = restored
  if not last.objective.kl_coef or int(state.step) < last.first_step:
    return state, None
  with _reference(parts) as reference:
    like = dataclasses.replace(abstract, opt_state=())
    return state, reference.restore(like)[0].params


def _enter_rl(parts, phase, state):
  """Returns the state with a fresh optimizer, and the reference policy: the
  weights that RL starts from, kept on disk for a resumed run."""
  optimizer = jax.jit(phase.optimizer.init)(state.params)
  state = dataclasses.replace(state, opt_state=optimizer)
  if not phase.objective.kl_coef:
    return state, None
  # A copy: the update donates the state's own weights.
  ref_params = jax.tree.map(jnp.copy, state.params)
  with _reference(parts) as reference:
    if reference.latest_step() is None:
      frozen = batches.TrainState(state.step, ref_params, opt_state=())
      reference.save(int(state.step), frozen, {})
  return state, ref_params


def _reference(parts):
  return checkpoint.Checkpoints(parts.workdir / 'reference', keep=1)


def _save(saved, state):
  step = int(state.step)
  if saved.latest_step() != step:
    saved.save(step, state, {})


def _is_due(taken: int, phase: Phase, every_samples: int) -> bool:
  """Returns whether this step's rows crossed a multiple of `every_samples`."""
  rows = taken * phase.rows_per_step
  return rows // every_samples > (rows - phase.rows_per_step) // every_samples


def _evaluate(parts, log, state, phase_name):
  """Evaluates, unless evals.jsonl already holds this step."""
  step = int(state.step)
  done = bool(log and log.has_eval(step, phase_name, 'test'))
  if sharding.max_over_hosts({'done': done})['done']:
    return
  result = evaluate_lib.evaluate(parts, state.params)
  if log:
    log.write_eval({'step': step, 'phase': phase_name} | result)


def _show(values: dict) -> dict:
  """Returns what the progress bar shows of a step's metrics."""
  tokens = values.get('sampled_tokens', values['trained_tokens'])
  shown = {'tokens_per_s': tokens / values['step_s']}
  for key, name in (
    ('loss', 'loss'),
    ('reward_mean', 'reward'),
    ('accuracy', 'accuracy'),
  ):
    if key in values:
      shown[name] = values[key]
  return shown
