"""The life of a run.

1. It is a supervised phase (if asked for) and an RL phase, counted as one
   sequence of optimizer steps (steps.py).
2. Each step's metrics go to metrics.jsonl; evaluations to evals.jsonl.
3. A signal, or a number of samples, writes a checkpoint; the same command
   goes on from the newest that is whole, as if it had never stopped.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib

import jax
from absl import logging

from dash_jax import (
  assemble,
  commands,
  feed,
  phases,
  report,
  sharding,
  steps,
  updates,
  weights,
)
from dash_jax import evaluate as evaluate_lib
from dash_jax.learning import learner, reference
from dash_jax.model import lora
from dash_jax.runs import (
  alarms,
  checkpoint,
  compiles,
  metrics,
  progress,
  rollouts,
  watch,
)
from dash_jax.sampling import memory


def train(config, workdir: str) -> bool:
  """Runs or resumes a run.

  Args:
    config: a checked config; the mesh in use is `assemble.connect`'s.
    workdir: the run's folder.

  Returns:
    True when the run is complete, False when a signal asked it to stop; the
    same call then goes on where it was.

  Raises:
    ValueError, OSError, ModuleNotFoundError: the input is bad; no step was
      taken, and a new workdir holds no run yet.
    RuntimeError: anything of this kind that happens once the run goes on.
  """
  is_writer = jax.process_index() == 0
  checkpoint.check_config(workdir, config.to_dict())
  parts = assemble.build(config, workdir)
  plan = phases.phases(config, parts.stop_ids)
  with (
    parts.pool,
    checkpoint.Stop() as stop,
    checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as saved,
    progress.Progress(shown=is_writer) as bars,
    contextlib.ExitStack() as closing,
    watch.report_failure(),
  ):
    closing.callback(parts.end_sampling)
    watch.mark('making or reading the weights')
    state, kept = _start(parts, plan, saved)
    watch.mark('compiling what samples')
    _compile(parts, plan)
    log = None
    if is_writer:
      checkpoint.save_config(workdir, config.to_dict())
      log = closing.enter_context(
        metrics.MetricsWriter(workdir, int(state.step))
      )
    stop.begin()
    with _at_work(saved):
      finished = _go_on(parts, plan, state, kept, stop, saved, bars, log)
      watch.mark('waiting for the last checkpoint')
      saved.wait()
  if finished and is_writer:
    with _at_work(saved):
      progress.print_summary(report.summarize(workdir))
      report.draw([workdir], pathlib.Path(workdir) / 'curves.png')
    print(f'Curves: {pathlib.Path(workdir) / "curves.png"}')
  return finished


@contextlib.contextmanager
def _at_work(saved):
  """Keeps what fails in the run apart from what commands call bad input."""
  try:
    yield
  except Exception as error:
    goes_on = (
      'the same command goes on from its newest checkpoint, step'
      f' {saved.find_committed()}'
    )
    if _is_full(error):
      raise commands.FailedError(
        f'the disk is full ({error}); nothing that was saved is lost: make room,'
        f' and {goes_on}'
      ) from error
    if isinstance(error, commands.INPUT_ERRORS):
      raise RuntimeError(f'the run failed at work; {goes_on}') from error
    raise


def _is_full(error):
  if getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
    return True
  # Orbax's writers say it in words.
  return any(
    os.strerror(number) in str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
  )


def _go_on(parts, plan, state, kept, stop, saved, bars, log) -> bool:
  """Takes the steps that are left; returns whether all were taken."""
  config, fed = parts.config, None
  alarmed = alarms.Alarms(parts.workdir, config, bars) if log else None

  def save():
    step = int(state.step)
    watch.mark(f'saving step {step}')
    if saved.latest_step() != step:
      rows = fed.keep() if fed else {}
      worth = _list_worth(config, plan, saved.list_steps(), log)
      saved.save(step, state, rows, worth)

  def evaluate(phase_name):
    _evaluate(parts, log, state, phase_name, stop)

  try:
    for phase in plan:
      done = int(state.step) - phase.first_step
      if not 0 <= done < phase.num_steps:
        continue
      bar = bars.phase(phase.title, phase.num_steps, done)
      watch.mark('compiling what learns')
      room = updates.make_ready(parts, phase, state)
      fed = feed.Feed(parts, phase, int(state.step), stop, kept)
      kept, late = {}, compiles.Late()
      if phase.name == 'rl' and not done:
        evaluate('sft' if phase.first_step else 'rl')
      elif _is_eval_due(parts, phase, done):
        # The process may have died between the checkpoint and the evaluation.
        evaluate('rl')
      for step in range(int(state.step), phase.last_step):
        stop.check_all()
        taken = step + 1 - phase.first_step
        with late:
          state, values = steps.take_step(
            parts, phase, room, fed, state, step,
            write_rollouts=phase.is_due(taken, config.log.rollouts_every_samples),
          )  # fmt: skip
        if log:
          more = {'phase': phase.name, 'compiles': late.num}
          used = memory.find_device_share()
          if used is not None:
            more['memory_fraction'] = used
          log.write(step + 1, values | more)
          alarmed.look()
        bar.update(taken, **_show(values))
        if values['skipped_updates']:
          _report_nonfinite(parts, step + 1, values)
        is_last = step + 1 == phase.last_step
        if is_last and phase is not plan[-1]:
          state = _enter_rl(plan[-1], state)
        if is_last or phase.is_due(taken, config.checkpoint.every_samples):
          save()
        if _is_eval_due(parts, phase, taken):
          evaluate('rl')
    evaluate(plan[-1].name)
  except checkpoint.Stopped:
    save()
    return False
  return True


def _compile(parts, plan):
  """Compiles all that samples, beside the state that it must leave room for."""
  if any(phase.name == 'rl' for phase in plan):
    _ = parts.judge
    _ = parts.train_sampler
  _ = parts.eval_sampler


def _start(parts, plan, saved):
  """Returns the newest state, or a new one, and the rows that are ahead of it."""
  first, last = plan[0], plan[-1]
  adapters = parts.model.config.lora

  def describe(step):
    return learner.abstract_state(
      parts.model,
      first.optimizer,
      has_reference=last.needs_reference and step >= last.first_step,
    )

  restored = saved.restore(describe)
  if restored is None:
    params = weights.load_params(parts.config, parts.model)
    state = learner.init_state(params, first.optimizer, adapters)
    weights.check_frozen(parts.config, state.frozen, parts.workdir, keep=True)
    return _begin_reference(first, state), {}
  state, kept = restored
  if adapters:
    # No checkpoint holds what is frozen: it is read where it was read before.
    params = weights.load_params(parts.config, parts.model)
    _, frozen = lora.split(adapters, params)
    weights.check_frozen(parts.config, frozen, parts.workdir)
    state = dataclasses.replace(state, frozen=frozen)
  return state, kept


def _enter_rl(phase, state):
  """Returns the state with a fresh optimizer, and a reference if it needs one."""
  optimizer = jax.jit(phase.optimizer.init)(state.params)
  return _begin_reference(
    phase, dataclasses.replace(state, opt_state=optimizer)
  )


def _begin_reference(phase, state):
  return reference.begin(state) if phase.needs_reference else state


def _list_worth(config, plan, steps, log):
  """Returns those of the saved steps that are worth keeping however old."""
  section, first = config.checkpoint, {}
  for phase in plan if section.keep_every_samples else ():
    for step in steps:
      rows = (step - phase.first_step) * phase.rows_per_step
      turn = rows // section.keep_every_samples
      if turn > 0 and step <= phase.last_step:
        first.setdefault((phase.name, turn), step)
  best = log.find_best(section.keep_best, steps) if log else []
  found = sharding.max_over_hosts(
    {str(i): max(best[i : i + 1], default=-1) for i in range(section.keep_best)}
  )
  return frozenset([*first.values(), *map(int, found.values())])


def _is_eval_due(parts, phase, taken):
  every = parts.config.eval.every_samples
  return phase.name == 'rl' and phase.is_due(taken, every)


def _evaluate(parts, log, state, phase_name, stop):
  """Evaluates, unless evals.jsonl already holds this step."""
  step = int(state.step)
  done = bool(log and log.has_eval(step, phase_name, 'test'))
  if sharding.max_over_hosts({'done': done})['done']:
    return
  watch.mark(f'evaluating step {step}')
  params = lora.join(state.params, state.frozen)
  result = evaluate_lib.evaluate(parts, params, stop)
  if log:
    log.write_eval({'step': step, 'phase': phase_name} | result)


def _report_nonfinite(parts, step, values):
  folder = parts.own_folder / updates.NONFINITE_NAME
  text = (
    f'step {step}: the loss ({values["loss"]}) or the gradient (norm'
    f' {values["grad_norm"]}) is not finite, and the weights stay as they were.'
    f' The minibatches to blame are in {folder}, the rollouts in'
    f' {rollouts.path(parts.own_folder, step)}.'
  )
  if parts.config.optim.nonfinite == 'stop':
    raise commands.FailedError(
      f'{text} The same command with --config.optim.nonfinite=skip goes on'
      ' without such steps'
    )
  logging.warning('%s', text)


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
