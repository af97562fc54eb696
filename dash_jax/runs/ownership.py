"""Whose a workdir is: one process's at a time, and for good one configuration's.

`check_config` refuses another one, and so keeps a run from going on with other
hyper-parameters unseen.
"""

import contextlib
import fcntl
import json
import os
import pathlib

import ml_collections

from dash_jax import config as config_lib
from dash_jax.model import fields
from dash_jax.runs import jsonl

CONFIG_NAME = 'config.json'
LOCK_NAME = 'lock'

# A workdir may go on with other values of these: of what it keeps and looks at, of
# what its machine has room for, where sums change by rounding alone, and of
# limits that the clock sets.
MAY_CHANGE = (
  'log.', 'eval.', 'checkpoint.', 'mesh.', 'optim.nonfinite',
  'optim.minibatch_size', 'sampling.batch_size', 'model.remat',
  'reward.num_workers', 'reward.timeout_s',
)  # fmt: skip


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


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Returns a run's config, with defaults for fields that were not there yet when
  it began.

  Raises:
    FileNotFoundError: there is none.
    ValueError: it is not one.
  """
  path = pathlib.Path(workdir) / CONFIG_NAME
  stored = fields.read_json(path, 'give the --workdir of a run that has begun')
  known = config_lib.default().to_dict()
  try:
    for name in known:
      if name not in stored:
        raise ValueError(f'config has no section {name!r}')
    return ml_collections.ConfigDict(
      stored
      | {
        name: default | stored[name]
        for name, default in known.items()
        if isinstance(default, dict)
      }
    )
  except (ValueError, TypeError, AttributeError) as error:
    raise ValueError(f'{path} is not the config of a run: {error}') from error


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
