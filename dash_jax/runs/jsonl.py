"""Files of one JSON object per line, and files that appear whole or not at all.

JSON has no word for numbers that are not finite, and a file that some readers
refuse is a loss just when a run has gone wrong. They are written as the strings
'nan', 'inf' and '-inf', which `float` reads back.
"""

import json
import math
import os
import pathlib

import numpy as np


def encode(row: dict) -> str:
  """Returns `row` as one line of valid JSON, with its newline.

  Args:
    row: strings, booleans, None, and Python, NumPy or JAX scalars by name, or
      lists of these.

  Raises:
    TypeError: a value is none of these; the message names its key.
  """
  values = {key: _plain(key, value) for key, value in row.items()}
  return json.dumps(values, ensure_ascii=False, allow_nan=False) + '\n'


def _plain(key, value):
  if value is None or isinstance(value, str | bool | int):
    return value
  if isinstance(value, float):
    return value if math.isfinite(value) else str(value)
  if getattr(value, 'shape', None) == ():
    return _plain(key, np.asarray(value).item())
  if isinstance(value, list):
    return [_plain(key, x) for x in value]
  raise TypeError(
    f'{key} is {type(value).__name__}; a value in a JSON line is a string, '
    'a boolean, None, one number or a list of these'
  )


def read(path: str | os.PathLike) -> list[dict]:
  """Returns the objects of `path` in order, without a torn last line.

  A last line without its newline is one that was being written when the
  process died, or is being written now.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: any other line is not a JSON object.
  """
  return _parse(path, pathlib.Path(path).read_bytes())


class Tail:
  """Reads what a file gains, line by line; `read` returns the new objects."""

  def __init__(self, path: str | os.PathLike):
    """Begins at the first line; there need be no file yet."""
    self._path = pathlib.Path(path)
    self._num_bytes = self._num_lines = 0

  def read(self) -> list[dict]:
    """Returns the objects since the last call, as `read` does."""
    if not self._path.exists():
      return []
    with open(self._path, 'rb') as file:
      file.seek(self._num_bytes)
      data = file.read()
    whole = data[: data.rfind(b'\n') + 1]
    before = self._num_lines
    self._num_bytes += len(whole)
    self._num_lines += whole.count(b'\n')
    return _parse(self._path, whole, before)


def _parse(path, data, num_before=0):
  # In bytes, since the last line may be torn inside a character. Not splitlines:
  # it also cuts at characters that JSON text may hold.
  lines = data.split(b'\n')
  rows = []
  for number, line in enumerate(lines[:-1], start=num_before + 1):
    try:
      row = json.loads(line.decode('utf-8'))
    except ValueError as error:
      raise ValueError(f'{path}:{number} is not JSON: {error}') from error
    if not isinstance(row, dict):
      raise ValueError(f'{path}:{number} is not a JSON object')
    rows.append(row)
  return rows


def cut_torn_line(path: str | os.PathLike) -> None:
  """Cuts off a last line that lacks its newline, wherever it was torn."""
  with open(path, 'rb+') as file:
    file.truncate(file.read().rfind(b'\n') + 1)


def write(path: str | os.PathLike, rows: list[dict]) -> None:
  """Replaces `path` by `rows`, whole or not at all."""
  replace(path, ''.join(encode(row) for row in rows))


def sync(path: str | os.PathLike) -> None:
  """Returns when a file's bytes, or a folder's names, are on the disk, so that a
  loss of power takes none of them."""
  number = os.open(path, os.O_RDONLY)
  try:
    os.fsync(number)
  finally:
    os.close(number)


def replace(path: str | os.PathLike, text: str) -> None:
  """Replaces the text of `path`; a crash leaves the old or the new text."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.tmp')
  with open(temporary, 'w', encoding='utf-8', newline='\n') as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)
