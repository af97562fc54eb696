"""Rows of a JSONL file: one JSON object a line, in UTF-8. Blank lines are none."""

import array
import codecs
import json
import os
import weakref

import numpy as np

_MARK = codecs.BOM_UTF8  # some editors begin files with it


class Rows:
  """The rows of a file, each of which is read when it is asked for.

  Only where they begin is kept. The file may be replaced meanwhile, but not
  changed. Several threads may read.

  Attributes:
    numbers: i64[rows], their lines, from 1.
  """

  def __init__(self, path: str | os.PathLike, fields: tuple[str, ...]):
    """
    Args:
      path: the file.
      fields: names that every row must have.

    Raises:
      FileNotFoundError: there is no such file.
      IsADirectoryError: it is a folder.
      ValueError: it has no rows, or is a pipe.
    """
    self._path = os.path.expanduser(path)
    self._fields = fields
    numbers, starts = array.array('q'), array.array('q')
    at = 0
    with open(self._path, 'rb') as file:
      if not file.seekable():
        raise ValueError(
          f'{self._path}: a pipe, but rows are read where they are asked; write'
          ' a file'
        )
      self._file = os.dup(file.fileno())
      weakref.finalize(self, os.close, self._file)
      # Before the rows are found: what changes meanwhile is noticed too.
      self._state = self._stat()
      for number, line in enumerate(file, 1):
        if not _is_blank(line):
          numbers.append(number)
          starts.append(at)
        at += len(line)
    if not numbers:
      raise _no_rows(self._path)
    starts.append(at)
    self.numbers, self._starts = np.array(numbers), np.array(starts)

  def read(self, number: int) -> dict:
    """Returns the row of a line.

    Raises:
      ValueError: naming file:line, what is wrong there and what would be right;
        it has no row; or the file is another one by now.
    """
    place = int(np.searchsorted(self.numbers, number))
    if number not in self.numbers[place : place + 1]:
      raise ValueError(
        f'{self._path}:{number}: no row there, but one is asked for; give the'
        ' file that it was in'
      )
    start, end = self._starts[place : place + 2].tolist()
    # With blank lines behind it. At a place, since threads share the file.
    data = os.pread(self._file, end - start, start)
    if self._stat() != self._state:
      raise ValueError(
        f'{self._path}: changed since it was opened; write a new file beside it,'
        ' and rename that'
      )
    return _parse(data, self._path, number, self._fields)

  def _stat(self):
    found = os.fstat(self._file)
    return found.st_size, found.st_mtime_ns


def read(
  path: str | os.PathLike, fields: tuple[str, ...]
) -> list[tuple[int, dict]]:
  """Returns the rows of a file, in order; it may be a pipe.

  Args:
    path: the file.
    fields: names that every row must have.

  Returns:
    (line number from 1, JSON object) of each row.

  Raises:
    FileNotFoundError: there is no such file.
    IsADirectoryError: it is a folder.
    ValueError: naming file:line, what is wrong there and what would be right;
      or the file has no rows.
  """
  path = os.path.expanduser(path)
  with open(path, 'rb') as file:
    rows = [
      (number, _parse(line, path, number, fields))
      for number, line in enumerate(file, 1)
      if not _is_blank(line)
    ]
  if not rows:
    raise _no_rows(path)
  return rows


def _is_blank(line):
  return not line.removeprefix(_MARK).strip()


def _no_rows(path):
  return ValueError(f'{path}: no rows; it must hold one JSON object a line')


def _parse(line, path, number, fields):
  """Returns the object of a line, given in bytes, with what may follow it: a
  text file would be decoded in blocks, and an error in it could not name its line.
  """
  where = f'{path}:{number}'
  try:
    text = line.partition(b'\n')[0].decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{where}: not UTF-8 ({error.reason} at byte {error.start} of the '
      'line); save the file as UTF-8'
    ) from error
  try:
    row = json.loads(
      text, object_pairs_hook=_make_object, parse_constant=_refuse_constant
    )
  except (ValueError, RecursionError) as error:
    why = error
    if isinstance(error, json.JSONDecodeError):
      why = f'{error.msg} at column {error.colno}'
    raise ValueError(
      f'{where}: not JSON ({why}); each line must be one JSON object'
    ) from error
  if not isinstance(row, dict):
    raise ValueError(
      f'{where}: a JSON {type(row).__name__}, but each line must be one '
      'JSON object'
    )
  for field in fields:
    if field not in row:
      raise ValueError(
        f'{where}: no field {field!r}; the fields there are {sorted(row)}'
      )
    _check_text(row[field], f'{where}: field {field!r}')
  return row


def _make_object(pairs):
  made = dict(pairs)
  if len(made) < len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise ValueError(f'field {twice!r} stands there twice')
  return made


def _refuse_constant(name):
  raise ValueError(f'{name} is no number of JSON')


def _check_text(value, where):
  """Refuses text that no tokenizer could be given."""
  try:
    str(value).encode('utf-8')
  except UnicodeEncodeError as error:
    raise ValueError(
      f'{where} has half a surrogate pair at character {error.start}: write whole'
      ' characters'
    ) from error
