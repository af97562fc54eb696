"""Stopping and going on: checkpoints, the run's configuration, signals.

The life of a checkpoint:
  1. `save` copies the arrays off the devices and returns; Orbax writes them
     behind the next steps to checkpoints/<step>, and commits them last. A
     process that is killed in between leaves the checkpoint before it.
  2. `restore` reads the newest committed step onto the mesh of now, which need
     not be the mesh of then. `restore_params` reads the weights alone, and
     disturbs no run that is going on.

A workdir belongs to one configuration: `check_config` refuses another one, and
so keeps a run from going on with other hyper-parameters unseen.
"""

import json
import os
import pathlib
import signal

import jax
import orbax.checkpoint as ocp

from dash_jax import batches
from dash_jax.model import fields
from dash_jax.runs import jsonl

CONFIG_NAME = 'config.json'
INTERRUPTED = 130  # as a shell has it: 128 and the signal's number

_SHOW_CURSOR = b'\x1b[?25h'  # which progress bars hide

# A workdir may go on with other values of these.
MAY_CHANGE = ('log.', 'eval.', 'checkpoint.', 'mesh.', 'reward.num_workers')


class Checkpoints:
  """The checkpoints of one run; a context that waits for the last save.

  In a job of several processes each of them makes one, on a folder that they
  share, and makes the same calls.
  """

  def __init__(self, workdir: str | os.PathLike, keep: int):
    """Opens `workdir`/checkpoints, and removes what killed saves left there.

    Args:
      workdir: the run's folder.
      keep: how many of the newest checkpoints stay.

    Raises:
      ValueError: `keep` is below 1.
    """
    if keep < 1:
      raise ValueError(f'keep is {keep}; at least 1 checkpoint must stay')
    self._folder = _folder(workdir)
    self._manager = _open(
      self._folder,
      ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, *exc_info):
    self.close()

  def save(self, step: int, state: batches.TrainState) -> None:
    """Starts to save; returns when the arrays may be donated or changed.

    Args:
      step: optimizer steps taken, in all phases.
      state: any shapes and shardings.

    Raises:
      ValueError: `step` is not after the newest checkpoint.
    """
    latest = self.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(
        f'step {step} is not after step {latest}, the newest checkpoint in '
        f'{self._folder}'
      )
    items = {
      name: ocp.args.StandardSave(tree) for name, tree in _split(state).items()
    }
    self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(
    self, abstract_state: batches.TrainState
  ) -> batches.TrainState | None:
    """Returns the newest state, or None if nothing was saved.

    Args:
      abstract_state: a jax.ShapeDtypeStruct with a concrete sharding for each
        array: where it goes, on any mesh.

    Raises:
      ValueError: the checkpoint's arrays have other names, shapes or dtypes;
        the message names them.
    """
    self.wait()
    step = self.latest_step()
    if step is None:
      return None
    restored = _restore(
      self._manager, self._folder, step, _split(abstract_state)
    )
    return batches.TrainState(params=restored.params, **restored.rest)

  def latest_step(self) -> int | None:
    """Returns the newest saved step, one still being written included."""
    return self._manager.latest_step()

  def wait(self) -> None:
    """Returns when every save is on disk; raises what a save raised."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for every save and frees the writers."""
    self._manager.close()


def restore_params(
  workdir: str | os.PathLike, abstract_params: dict, step: int | None = None
) -> tuple[dict, int] | None:
  """Returns a checkpoint's weights and its step, or None if there is none.

  Nothing in the folder changes: a run may be writing there.

  Args:
    workdir: the run's folder.
    abstract_params: as `Checkpoints.restore`'s.
    step: None is the newest.

  Raises:
    ValueError: as `Checkpoints.restore`, or there is no checkpoint of `step`.
  """
  folder = _folder(workdir)
  if not folder.exists():
    return None
  # Read-only implies the other two; unsaid, Orbax warns of them.
  options = ocp.CheckpointManagerOptions(
    read_only=True, create=False, save_interval_steps=0
  )
  with _open(folder, options) as manager:
    steps = sorted(manager.all_steps())
    if not steps:
      return None
    step = steps[-1] if step is None else step
    if step not in steps:
      raise ValueError(
        f'{folder} has no checkpoint of step {step}; it has'
        f' {", ".join(map(str, steps))}'
      )
    wanted = {'params': abstract_params}
    return _restore(manager, folder, step, wanted).params, step


def _folder(workdir):
  folder = pathlib.Path(workdir).absolute() / 'checkpoints'
  if folder.exists() and not folder.is_dir():
    raise NotADirectoryError(f'{folder}: must be a folder, and is a file')
  return folder


def _open(folder, options):
  # Handlers by name, so that shapes can be read before anything is restored.
  handlers = {
    'params': ocp.StandardCheckpointHandler(),
    'rest': ocp.StandardCheckpointHandler(),
  }
  return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def _split(state):
  """Returns a state as two items, so that weights can be read alone."""
  # Not dataclasses.asdict: it would copy arrays and open optax's tuples.
  rest = {
    'step': state.step,
    'opt_state': state.opt_state,
    'kl_scale': state.kl_scale,
  }
  if state.reference is not None:
    rest['reference'] = state.reference
  return {'params': state.params, 'rest': rest}


def _restore(manager, folder, step, wanted):
  """Returns items by their names, checked before anything is read."""
  # Orbax casts other dtypes in silence, and names no field of other shapes.
  metadata = manager.item_metadata(step)
  absent = [name for name in wanted if name not in metadata]
  if absent:
    raise ValueError(
      f'{folder / str(step)} has no item {absent[0]!r}: another version of'
      ' dash_jax wrote it; go on with that one, or use a new workdir'
    )
  stored = _describe({name: metadata[name].tree for name in wanted})
  now = _describe(wanted)
  differing = [
    f'  {name}: {stored.get(name, "absent")} in the checkpoint, '
    f'{now.get(name, "absent")} in this run'
    for name in sorted(stored.keys() | now.keys())
    if stored.get(name) != now.get(name)
  ]
  if differing:
    raise ValueError(
      f'{folder / str(step)} holds other arrays than this run needs '
      '(use the configuration it was made with, or a new workdir):\n'
      + '\n'.join(differing)
    )
  items = {
    name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()
  }
  return manager.restore(step, args=ocp.args.Composite(**items))


def save_config(workdir: str | os.PathLike, config: dict) -> None:
  """Writes config.json, which states what the run does from now on.

  Comes after `check_config`, and so replaces fields that may differ only.

  Raises:
    TypeError: a value cannot be written as JSON.
  """
  text = json.dumps(config, indent=2, sort_keys=True)
  jsonl.replace(pathlib.Path(workdir) / CONFIG_NAME, text + '\n')


def has_begun(workdir: str | os.PathLike) -> bool:
  """Returns whether a run has written its config.json."""
  return (pathlib.Path(workdir) / CONFIG_NAME).exists()


def compare_config(workdir: str | os.PathLike, config: dict) -> list[str]:
  """Returns a line for each field that differs from the run's config.json.

  Args:
    workdir: the run's folder; a new one differs in nothing.
    config: nested dicts of what JSON can hold; fields in MAY_CHANGE may differ.

  Raises:
    ValueError: its config.json is damaged.
  """
  if not has_begun(workdir):
    return []
  path = pathlib.Path(workdir) / CONFIG_NAME
  stored = _flatten(fields.read_json(path))
  # Through JSON, so that a tuple equals the list that it was written as.
  now = _flatten(json.loads(json.dumps(config)))
  return [
    f'  {name}: {_show(stored, name)} there, {_show(now, name)} now'
    for name in sorted(stored.keys() | now.keys())
    if _show(stored, name) != _show(now, name)
    and not name.startswith(MAY_CHANGE)
  ]


def check_config(workdir: str | os.PathLike, config: dict) -> None:
  """Checks that `workdir` is new or belongs to `config`.

  Raises:
    ValueError: fields differ; the message names each with both values.
  """
  differing = compare_config(workdir, config)
  if differing:
    raise ValueError(
      f'{pathlib.Path(workdir) / CONFIG_NAME} belongs to a run with another'
      ' configuration (go on with that one, or use a new workdir):\n'
      + '\n'.join(differing)
    )


class Stop:
  """Turns SIGTERM and Ctrl-C into a request to stop after this step; a context.

  A second Ctrl-C ends the process at once, whatever its threads are at. Each
  process sees its own signals only: in a job of several, all must agree before
  they act on one.
  """

  def __init__(self):
    self._requested = False
    self._interrupted = False
    self._previous = {}

  @property
  def requested(self) -> bool:
    """Whether a signal has asked for a stop."""
    return self._requested

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exc_info):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _receive(self, number, frame):
    del frame
    if number == signal.SIGINT and self._interrupted:
      if os.isatty(2):
        os.write(2, _SHOW_CURSOR)
      os._exit(INTERRUPTED)
    self._requested = True
    self._interrupted |= number == signal.SIGINT
    # Not print: a handler may run inside another write to the same stream.
    os.write(2, b'\nStopping after this step. Ctrl-C twice stops at once.\n')


def _describe(tree):
  """Returns e.g. {'params.embed': 'bfloat16[8, 4]'} for a tree of arrays."""
  # Orbax's metadata has None for an empty optimizer state, which is no leaf.
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): (
      f'{leaf.dtype}{list(leaf.shape)}'
    )
    for path, leaf in leaves
  }


def _flatten(config, prefix=''):
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict) and value:
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _show(flat, name):
  return json.dumps(flat[name]) if name in flat else 'absent'
