"""The sizes that 'auto' has found, kept so that a run that goes on has the same.

What fits is what a device has room for at the moment, and other sizes change sums
by rounding. So a process takes what an earlier one found on the same mesh, from
sizes.json in its folder; on another mesh it looks anew.
"""

import json
import os
import pathlib

import jax

from dash_jax.model import fields
from dash_jax.runs import jsonl

SIZES_NAME = 'sizes.json'


class Found:
  """The sizes of one process on one mesh, by their names."""

  def __init__(self, folder: str | os.PathLike, where: str):
    """Reads what is there.

    Args:
      folder: of this process.
      where: what they belong to; of `describe_mesh`, and what else may change.

    Raises:
      ValueError: what is there are no sizes; the message says what to do.
    """
    self._path = pathlib.Path(folder) / SIZES_NAME
    self._where = where
    self._all = _read(self._path) if self._path.exists() else {}

  def recall(self, name: str) -> int | None:
    """Returns what was found for a name, in this process or before."""
    return self._all.get(self._where, {}).get(name)

  def note(self, name: str, size: int) -> None:
    """Takes what was found; only `write` keeps it."""
    self._all.setdefault(self._where, {})[name] = size

  def write(self) -> None:
    """Keeps all that was found, for the processes to come."""
    if self._all:
      text = json.dumps(self._all, indent=2, sort_keys=True)
      jsonl.replace(self._path, text + '\n')


def describe_mesh() -> str:
  """Returns the mesh in use in words, alike for meshes on which the same fits."""
  mesh = jax.sharding.get_mesh()
  shape = ' x '.join(map(str, mesh.axis_sizes))
  kind = jax.devices()[0].device_kind
  return f'{shape} of {kind}, processes: {jax.process_count()}'


def _read(path):
  way_out = "remove the file, and what is 'auto' is found anew"
  try:
    found = fields.read_json(path)
  except ValueError as error:
    raise ValueError(f'{error}: {way_out}') from error
  for where, sizes in found.items():
    if not isinstance(sizes, dict) or not all(
      type(size) is int and size > 0 for size in sizes.values()
    ):
      raise ValueError(
        f'{path}: {where!r} is not sizes over 0 by their names: {way_out}'
      )
  return found
