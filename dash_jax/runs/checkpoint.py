"""Checkpoints: what a run goes on from.

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
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Callable

import jax
import orbax.checkpoint as ocp
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import checkpoint_managers
from orbax.checkpoint._src.serialization import tensorstore_utils

from dash_jax import batches, sharding
from dash_jax.runs import checksums

TORN_NAME = 'torn_checkpoints'

_ROWS, _SUMS = 'rows', 'checksums'  # items beside those of the state

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
    sharding.wait_for_all()
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
