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
  batches,
  commands,
  drift,
  feed,
  phases,
  profile,
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
  ownership,
  progress,
  rollouts,
  signals,
  wandb_board,
  watch,
)
from dash_jax.sampling import memory


def train(config, workdir: str, profiled: str = '') -> bool:
  """Runs or resumes a run.

  Args:
    config: a checked config; the mesh in use is `meshes.connect`'s.
    workdir: the run's folder.
    profiled: 'FIRST:LAST', the steps that profile.py is to trace, or ''.

  Returns:
    True when the run is complete, False when a signal asked it to stop; the
    same call then goes on where it was.

  Raises:
    ValueError, OSError, ModuleNotFoundError: the input is bad; no step was
      taken, and a new workdir holds no run yet.
    RuntimeError: anything of this kind that happens once the run goes on.
  """
  is_writer = jax.process_index() == 0
  ownership.check_config(workdir, config.to_dict())
  if config.log.wandb:
    wandb_board.require()
  parts = assemble.build(config, workdir)
  plan = phases.phases(config, parts.stop_ids)
  window = profile.Window(profiled, parts.own_folder, plan[-1].last_step)
  with (
    parts.pool,
    # In a folder that several machines share, this is up to its file system.
    ownership.hold(workdir) if is_writer else contextlib.nullcontext(),
    signals.Stop() as stop,
    checkpoint.Checkpoints(workdir, keep=config.checkpoint.keep) as saved,
    progress.Progress(shown=is_writer) as bars,
    contextlib.ExitStack() as closing,
    watch.report_failure(),
  ):
    closing.callback(parts.end_sampling)
    closing.callback(window.close)
    watch.mark('making or reading the weights')
    state, kept = _start(parts, plan, saved)
    watch.mark('compiling what samples')
    _compile(parts, plan)
    log = alarmed = None
    if is_writer:
      ownership.save_config(workdir, config.to_dict())
      board = None
      if project := config.log.wandb:
        board = wandb_board.Board(project, workdir, config.to_dict())
      log = closing.enter_context(
        metrics.MetricsWriter(workdir, int(state.step), board)
      )
      alarmed = alarms.Alarms(workdir, config, bars)
    stop.begin()
    with _at_work(workdir):
      run = _Run(parts, plan, stop, saved, bars, window, log, alarmed)
      finished = run.go_on(state, kept)
      watch.mark('waiting for the last checkpoint')
      saved.wait()
  if finished and is_writer:
    # Its matplotlib is a third of all that a command loads before it begins.
    from dash_jax import report

    with _at_work(workdir):
      progress.print_summary(report.summarize(workdir))
      report.draw([workdir], pathlib.Path(workdir) / 'curves.png')
    print(f'Curves: {pathlib.Path(workdir) / "curves.png"}')
  return finished


@contextlib.contextmanager
def _at_work(workdir):
  """Keeps what fails in the run apart from what commands call bad input."""
  try:
    yield
  except Exception as error:
    goes_on = (
      'the same command goes on from its newest checkpoint, step'
      f' {max(checkpoint.list_committed(workdir), default=0)}'
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


class _Run:
  """A run at work."""

  def __init__(self, parts, plan, stop, saved, bars, window, log, alarmed):
    """
    Args:
      parts, plan: of the run.
      stop: what may ask for an end.
      saved: its checkpoints.
      bars: its progress.
      window: the steps to trace.
      log, alarmed: what process 0 writes to and looks at, None in the others.
    """
    self._parts = parts
    self._plan = plan
    self._stop = stop
    self._saved = saved
    self._bars = bars
    self._window = window
    self._log = log
    self._alarmed = alarmed

  @property
  def _step(self):
    return int(self._state.step)

  def go_on(self, state: batches.TrainState, kept: dict) -> bool:
    """Takes the steps that are left; returns whether all were taken.

    Args:
      state: as it is.
      kept: rows that were saved with it.
    """
    self._state, self._fed, self._kept = state, None, kept
    try:
      for phase in self._plan:
        if phase.first_step <= self._step < phase.last_step:
          self._go_through(phase)
      self._evaluate(self._plan[-1].name)
    except signals.Stopped:
      self._save()
      return False
    return True

  def _go_through(self, phase):
    config, first = self._parts.config, self._step
    done = first - phase.first_step
    bar = self._bars.phase(phase.title, phase.num_steps, done)
    watch.mark('compiling what learns')
    room = updates.make_ready(self._parts, phase, self._state)
    self._parts.sizes.write()
    self._fed = feed.Feed(self._parts, phase, first, self._stop, self._kept)
    self._kept, late = {}, compiles.Late()
    if phase.name == 'rl' and not done:
      self._evaluate('sft' if phase.first_step else 'rl')
    elif _is_eval_due(config, phase, done):
      # The process may have died between the checkpoint and the evaluation.
      self._evaluate('rl')
    for step in range(first, phase.last_step):
      self._stop.check_all()
      taken = step + 1 - phase.first_step
      self._window.begin(step + 1)
      with late:
        self._state, values = steps.take_step(
          self._parts, phase, room, self._fed, self._state, step,
          write_rollouts=phase.is_due(taken, config.log.rollouts_every_samples),
        )  # fmt: skip
      self._write(phase, step + 1, values | {'compiles': late.num})
      bar.update(taken, **_show(values))
      if table := self._window.end(step + 1, values):
        self._bars.show(table)
      is_last = step + 1 == phase.last_step
      if is_last and phase is not self._plan[-1]:
        self._state = _enter_rl(self._plan[-1], self._state)
      if is_last or phase.is_due(taken, config.checkpoint.every_samples):
        self._save()
      if _is_eval_due(config, phase, taken):
        self._evaluate('rl')

  def _write(self, phase, step, values):
    """Writes a step's metrics, and says what is wrong with them."""
    if self._log:
      used = memory.find_device_share()
      if used is not None:
        values = values | {'memory_fraction': used}
      self._log.write(step, {'phase': phase.name} | values)
      self._alarmed.look()
    if not values['skipped_updates']:
      return
    folder = self._parts.own_folder
    text = (
      f'step {step}: the loss ({values["loss"]}) or the gradient (norm'
      f' {values["grad_norm"]}) is not finite, and the weights stay as they were.'
      f' The minibatches to blame are in {folder / updates.NONFINITE_NAME}'
      + (
        f', the rollouts in {rollouts.path(folder, step)}.'
        if phase.name == 'rl'
        else '.'
      )
    )
    if self._parts.config.optim.nonfinite == 'stop':
      raise commands.FailedError(
        f'{text} The same command with --config.optim.nonfinite=skip goes on'
        ' without such steps'
      )
    logging.warning('%s', text)

  def _save(self):
    step = self._step
    watch.mark(f'saving step {step}')
    if self._saved.latest_step() != step:
      if self._log:
        self._log.sync()
      rollouts.sync(self._parts.own_folder)
      rows = self._fed.keep() if self._fed else {}
      self._saved.save(step, self._state, rows, self._list_worth())

  def _list_worth(self):
    """Returns those of the saved steps that are worth keeping however old."""
    section, first = self._parts.config.checkpoint, {}
    saved = self._saved.list_steps()
    for phase in self._plan if section.keep_every_samples else ():
      for step in saved:
        rows = (step - phase.first_step) * phase.rows_per_step
        turn = rows // section.keep_every_samples
        if turn > 0 and step <= phase.last_step:
          first.setdefault((phase.name, turn), step)
    worth = set(first.values())
    if num := section.keep_best:
      best = self._log.find_best(num, saved) if self._log else []
      # Process 0 alone has evaluations; no step is below 0.
      best += [-1] * (num - len(best))
      found = sharding.max_over_hosts(dict(enumerate(best)))
      worth |= set(map(int, found.values()))
    return frozenset(worth)

  def _evaluate(self, phase_name):
    """Evaluates, unless evals.jsonl already holds this step."""
    step, log = self._step, self._log
    done = bool(log and log.has_eval(step, phase_name, 'test'))
    if sharding.max_over_hosts({'done': done})['done']:
      return
    watch.mark(f'evaluating step {step}')
    params = lora.join(self._state.params, self._state.frozen)
    result = evaluate_lib.evaluate(self._parts, params, self._stop)
    first = self._fed.first if self._fed else feed.find_first(self._kept)
    if first is not None:
      result['drift_kl'] = drift.measure(
        self._parts, self._plan[-1], self._state, first
      )
    if log:
      log.write_eval({'step': step, 'phase': phase_name} | result)
      # No step may follow that would look.
      self._alarmed.look()


def _compile(parts, plan):
  """Compiles all that samples, beside the state that it must leave room for."""
  if any(phase.name == 'rl' for phase in plan):
    _ = parts.judge
    _ = parts.train_sampler
  _ = parts.eval_sampler


def _start(parts, plan, saved):
  """Returns the newest state, or a new one, and the rows that were saved with
  it."""
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


def _is_eval_due(config, phase, taken):
  return phase.name == 'rl' and phase.is_due(taken, config.eval.every_samples)


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
