"""Rows of a JSONL file: one JSON object a line, in UTF-8."""

import json
import os


def read(
  path: str | os.PathLike, fields: tuple[str, ...]
) -> list[tuple[int, dict]]:
  """Returns the rows of a file, in order.

  Args:
    path: the file. Blank lines are allowed and are not rows.
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
  rows = []
  # In bytes: a text file would be decoded in blocks, and an error in it could
  # not name its line.
  with open(path, 'rb') as f:
    for line_number, line in enumerate(f, 1):
      where = f'{path}:{line_number}'
      try:
        text = line.decode('utf-8-sig').strip()
      except UnicodeDecodeError as error:
        raise ValueError(
          f'{where}: not UTF-8 ({error.reason} at byte {error.start} of the '
          'line); save the file as UTF-8'
        ) from error
      if not text:
        continue
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
      rows.append((line_number, row))
  if not rows:
    raise ValueError(f'{path}: no rows; it must hold one JSON object a line')
  return rows


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
