"""Stopping and going on: checkpoints, the run's configuration, signals.

The life of a checkpoint:
  1. `save` copies the arrays off the devices and returns; Orbax writes them
     behind the next steps to checkpoints/<step>, and commits them last. A
     process that is killed in between leaves the checkpoint before it.
  2. It holds the state, the rows that are sampled ahead of it, and a checksum of
     each array. All else that a run goes on from is a function of the seed and
     the number of the step.
  3. `restore` reads the newest step that is whole onto the mesh of now, which need
     not be the mesh of then. One that is not is named and set aside.
     `restore_params` reads the weights alone, and disturbs no run that is going
     on.

A workdir belongs to one configuration: `check_config` refuses another one, and
so keeps a run from going on with other hyper-parameters unseen.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import signal
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.serialization import tensorstore_utils

from dash_jax import batches, sharding
from dash_jax.model import fields
from dash_jax.runs import checksums, jsonl

CONFIG_NAME = 'config.json'
STOPPED = 75  # BSD's EX_TEMPFAIL: call again
INTERRUPTED = 130  # as a shell has it: 128 and the signal's number
TORN_NAME = 'torn_checkpoints'
LOCK_NAME = 'lock'

_SHOW_CURSOR = b'\x1b[?25h'  # which progress bars hide
_ROWS, _SUMS = 'rows', 'checksums'  # items beside those of the state

# A workdir may go on with other values of these: of what it keeps and looks at, of
# what its machine has room for, where sums change by rounding alone, and of
# limits that the clock sets.
MAY_CHANGE = (
  'log.', 'eval.', 'checkpoint.', 'mesh.', 'optim.nonfinite',
  'optim.minibatch_size', 'sampling.batch_size', 'model.remat',
  'reward.num_workers', 'reward.timeout_s',
)  # fmt: skip

# How many bytes TensorStore has written, which Orbax asks at each save for a line of
# its log. TensorStore (0.1.86) frees no value of the JSON that it answers in: without
# this, each save of a tiny state leaves some 30 KiB in memory.
tensorstore_utils.get_tensorstore_raw_bytes = lambda unused_direction=None: 0


class TornError(Exception):
  """A checkpoint does not hold what was saved."""


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
    self._keep = keep
    self._kept = frozenset()
    self._folder = _folder(workdir)
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_Policy(self._is_kept), cleanup_tmp_directories=True
      ),
    )

  def __enter__(self):
    return self

  def __exit__(self, unused_kind, error, unused_trace):
    try:
      self.close()
    except Exception:  # what a save raised, which may be of the same cause
      if error is None:
        raise

  def save(
    self,
    step: int,
    state: batches.TrainState,
    rows: dict | None = None,
    kept: frozenset[int] = frozenset(),
  ) -> None:
    """Starts to save; returns when the arrays may be donated or changed.

    Args:
      step: optimizer steps taken, in all phases.
      state: any shapes and shardings.
      rows: nested dicts of NumPy arrays, the same in each process.
      kept: steps whose checkpoints stay, beside the newest.

    Raises:
      ValueError: `step` is not after the newest checkpoint.
    """
    latest = self.latest_step()
    if latest is not None and step <= latest:
      raise ValueError(
        f'step {step} is not after step {latest}, the newest checkpoint in '
        f'{self._folder}'
      )
    self._kept = kept
    trees = _split(state) | ({_ROWS: rows} if rows else {})
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    items[_SUMS] = ocp.args.JsonSave(checksums.find(trees))
    self._manager.save(step, args=ocp.args.Composite(**items))

  def restore(
    self, describe: Callable[[int], batches.TrainState]
  ) -> tuple[batches.TrainState, dict] | None:
    """Returns the newest state that is whole, and the rows that were saved with it,
    or None if nothing was saved.

    What is newer and torn goes to the folder TORN_NAME of the workdir.

    Args:
      describe: from a step to a jax.ShapeDtypeStruct with a concrete sharding
        for each array: where it goes, on any mesh.

    Raises:
      ValueError: the checkpoint's arrays have other names, shapes or dtypes;
        the message names them. Or none is whole.
    """
    self.wait()
    torn = []
    for step in reversed(self.list_steps()):
      wanted = _split(describe(step))
      try:
        restored = _restore(self._folder, step, wanted, has_rows=True)
      except TornError as error:
        logging.warning('%s', error)
        torn.append(step)
        continue
      self._set_aside(torn)
      state = batches.TrainState(params=restored['params'], **restored['rest'])
      return state, restored.get(_ROWS) or {}
    if torn:
      raise ValueError(
        f'{self._folder}: no checkpoint is whole, as said above; take a new'
        ' workdir to begin again'
      )
    return None

  def latest_step(self) -> int | None:
    """Returns the newest saved step, one still being written included."""
    return self._manager.latest_step()

  def list_steps(self) -> list[int]:
    """Returns the saved steps, oldest first, one still being written included."""
    return sorted(self._manager.all_steps())

  def wait(self) -> None:
    """Returns when every save is on disk; raises what a save raised."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for every save and frees the writers."""
    self._manager.close()

  def _is_kept(self, steps):
    return [s in self._kept or s in steps[-self._keep :] for s in steps]

  def _set_aside(self, torn):
    if not torn:
      return
    aside = self._folder.parent / TORN_NAME
    if jax.process_index() == 0:
      aside.mkdir(exist_ok=True)
      for step in torn:
        shutil.rmtree(aside / str(step), ignore_errors=True)
        (self._folder / str(step)).rename(aside / str(step))
    sharding.max_over_hosts({'done': 1})
    self._manager.reload()
    logging.warning(
      'went back to step %s; what is torn is in %s, and may be removed',
      self.latest_step(),
      aside,
    )


class _Policy(checkpoint_managers.PreservationPolicy):
  """Keeps the steps that a function chooses."""

  def __init__(self, choose):
    self._choose = choose

  def should_preserve(self, checkpoints, *, context):
    del context
    return self._choose([info.step for info in checkpoints])


def list_committed(workdir: str | os.PathLike) -> list[int]:
  """Returns the steps that are on disk, oldest first."""
  folder = _folder(workdir)
  names = [path.name for path in folder.iterdir()] if folder.exists() else []
  return sorted(int(name) for name in names if name.isdecimal())


def restore_params(
  workdir: str | os.PathLike, abstract_params: dict, step: int | None = None
) -> tuple[dict, int] | None:
  """Returns a checkpoint's weights and its step, or None if there is none.

  Nothing in the folder changes: a run may be writing there.

  Args:
    workdir: the run's folder.
    abstract_params: as `Checkpoints.restore`'s.
    step: None is the newest that is whole.

  Raises:
    ValueError: as `Checkpoints.restore`, or there is no checkpoint of `step`, or
      it is torn.
  """
  folder, steps = _folder(workdir), list_committed(workdir)
  if not steps:
    return None
  if step is not None and step not in steps:
    raise ValueError(
      f'{folder} has no checkpoint of step {step}; it has'
      f' {", ".join(map(str, steps))}'
    )
  wanted = {'params': abstract_params}
  torn = []
  for one in reversed(steps) if step is None else [step]:
    try:
      return _restore(folder, one, wanted)['params'], one
    except TornError as error:
      logging.warning('%s', error)
      torn.append(str(error))
  raise ValueError('; '.join(torn))


def find_torn(workdir: str | os.PathLike) -> dict[int, str]:
  """Reads every checkpoint whole, on the mesh in use; returns what is wrong with
  each by its step, '' where nothing is.

  Nothing in the folder changes. Weights and optimizer state are in memory one
  after the other.
  """
  folder, found = _folder(workdir), {}
  place = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
  handler = ocp.StandardCheckpointHandler()
  for step in list_committed(workdir):
    found[step] = ''
    try:
      for name in ('params', 'rest'):
        tree = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
          handler.metadata(folder / str(step) / name).tree,
        )
        _restore(folder, step, {name: tree}, has_rows=name == 'rest')
    except Exception as error:  # as `_restore` has it of what is not there
      if not isinstance(error, TornError):
        error = _torn(folder / str(step), error)
      found[step] = str(error)
      if not (folder / str(step)).exists():  # a run that goes on removed it
        del found[step]
  return found


def _folder(workdir):
  folder = pathlib.Path(workdir).absolute() / 'checkpoints'
  if folder.exists() and not folder.is_dir():
    raise NotADirectoryError(f'{folder}: must be a folder, and is a file')
  return folder


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


def _restore(folder, step, wanted, *, has_rows=False):
  """Returns items by their names, checked before anything is read and after.

  Args:
    folder, step: where they are.
    wanted: descriptions by name.
    has_rows: whether to read the rows too, if there are such.

  Raises:
    TornError: the files are not those that were written.
    ValueError: they are of another run.
  """
  path = folder / str(step)
  # By handlers, each for itself: the manager's own reading waits for all processes,
  # and one that fails would leave the others there.
  handler = ocp.StandardCheckpointHandler()
  with _read_together(path):
    absent = [name for name in (*wanted, _SUMS) if not (path / name).exists()]
    if absent:
      raise FileNotFoundError(
        f'it has no {absent[0]!r}, or another version of dash_jax wrote it'
      )
    stored = _describe(
      {name: handler.metadata(path / name).tree for name in wanted}
    )
    kept = ocp.JsonCheckpointHandler().restore(
      path / _SUMS, args=ocp.args.JsonRestore()
    )
  # Orbax casts other dtypes in silence, and names no field of other shapes.
  now = _describe(wanted)
  differing = [
    f'  {name}: {stored.get(name, "absent")} in the checkpoint, '
    f'{now.get(name, "absent")} in this run'
    for name in sorted(stored.keys() | now.keys())
    if stored.get(name) != now.get(name)
  ]
  if differing:
    raise ValueError(
      f'{path} holds other arrays than this run needs '
      '(use the configuration it was made with, or a new workdir):\n'
      + '\n'.join(differing)
    )
  items = {
    name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()
  }
  if has_rows and any(name.startswith(f'{_ROWS}.') for name in kept):
    items[_ROWS] = ocp.args.StandardRestore()
  with _read_together(path):
    restored = {
      name: handler.restore(path / name, args=args)
      for name, args in items.items()
    }
  found = checksums.find(restored)
  changed = [name for name in sorted(found) if found[name] != kept.get(name)]
  if changed:
    raise TornError(
      f'{path} is torn: {changed[0]}'
      + (f' and {len(changed) - 1} more are' if changed[1:] else ' is')
      + ' not what was saved'
    )
  return restored


@contextlib.contextmanager
def _read_together(path):
  """Raises TornError in each process if any of them cannot read; all must be here,
  since what follows takes all of them."""
  error = None
  try:
    yield
  except Exception as found:  # whatever Orbax makes of what is not there
    error = found
  if sharding.max_over_hosts({'failed': error is not None})['failed']:
    raise _torn(
      path, error or OSError('another process cannot read it')
    ) from error


def _torn(path, error):
  reason = str(error).strip().split('\n')[0][:200]
  return TornError(f'{path} is torn: {type(error).__name__}: {reason}')


@contextlib.contextmanager
def hold(workdir: str | os.PathLike):
  """Keeps other runs out of a workdir, for as long as this process lives at most.

  Raises:
    ValueError: another process is at work there.
  """
  path = pathlib.Path(workdir) / LOCK_NAME
  with open(path, 'w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f'--workdir={str(workdir)!r}: another process is at work in it, and holds'
        f' {path}; stop it first, or take another workdir'
      ) from None
    yield


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


class Stopped(Exception):
  """A signal has asked the run to stop; the state is as it was."""


class Stop:
  """Turns SIGTERM and Ctrl-C into a request to stop where no work is lost; a
  context. Until `begin`, when there is nothing to lose, they end the process at
  once with STOPPED; a second Ctrl-C always ends it at once.

  Each process sees its own signals only.
  """

  def __init__(self):
    self._has_begun = False
    self._requested = False
    self._interrupted = False
    self._previous = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._receive)
    return self

  def __exit__(self, *exc_info):
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def begin(self) -> None:
    """Says that there is work now which a stop must save."""
    self._has_begun = True

  def check(self) -> None:
    """Raises Stopped if this process is asked to stop."""
    if self._requested:
      raise Stopped

  def check_all(self) -> None:
    """Raises Stopped in each process if any is asked to stop; all must call it."""
    if sharding.max_over_hosts({'stop': self._requested})['stop']:
      raise Stopped

  def _receive(self, number, frame):
    del frame
    if number == signal.SIGINT and self._interrupted:
      _end(INTERRUPTED)
    if not self._has_begun:
      os.write(2, b'\nStopped: the run had not gone on yet.\n')
      _end(STOPPED)
    self._requested = True
    self._interrupted |= number == signal.SIGINT
    # Not print: a handler may run inside another write to the same stream.
    os.write(2, b'\nStopping with a checkpoint. Ctrl-C twice stops at once.\n')


def _end(code):
  if os.isatty(2):
    os.write(2, _SHOW_CURSOR)
  os._exit(code)


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
