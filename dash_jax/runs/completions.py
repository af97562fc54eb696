"""Files of completions, a line each, which the command that writes one goes on with.

1. A line has `index` and `sample`, which name the completion, `prompt` and
   `max_completion_len`, what it was asked with, and how it was drawn.
2. `read_done` returns the lines that are there. It refuses a file of anything
   else, since lines that are drawn in two ways are of no use together.
"""

import dataclasses
import hashlib
import json
import os
import pathlib

from dash_jax.runs import jsonl

_BEGINNING = b'{"index": '  # of every line that is written

Name = tuple[int, int]  # index and sample


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt; `index` counts them, and seeds its noise."""

  index: int
  prompt: str
  max_completion_len: int


def read_done(
  path: str | os.PathLike, requests: list[Request], drawn: dict
) -> dict[Name, dict]:
  """Returns the lines of a file of completions; a torn last line is cut off, if
  the file is seen to be one of completions.

  Args:
    path: the file; it may not be there.
    requests: of this call.
    drawn: how this call draws.

  Raises:
    ValueError: the file holds something else, completions of other prompts, or
      ones that are drawn otherwise.
  """
  if not pathlib.Path(path).exists():
    return {}
  rows = jsonl.read(path)
  for number, row in enumerate(rows, 1):
    index, sample = row.get('index'), row.get('sample')
    known = type(index) is int and 0 <= index < len(requests)
    known = known and type(sample) is int
    if not known or row.get('prompt') != requests[index].prompt:
      raise ValueError(
        f'--out={path}:{number} is a completion of another prompt: name a new'
        ' file, or give the prompts that it was begun with'
      )
    limit = {'max_completion_len': requests[index].max_completion_len}
    for name, value in (drawn | limit).items():
      if row.get(name) != value:
        raise ValueError(
          f'--out={path}:{number} has {name}={row.get(name)!r}, and this call'
          f' {name}={value!r}: name a new file'
        )
  with open(path, 'rb') as file:
    beginning = file.read(len(_BEGINNING))
  if not rows and not _BEGINNING.startswith(beginning):
    raise ValueError(
      f'--out={path} holds no completions, but begins with {beginning!r}: name'
      ' a new file'
    )
  jsonl.cut_torn_line(path)
  return {(row['index'], row['sample']): row for row in rows}


def name_settings(config: dict) -> str:
  """Returns a name of the fields that a completion follows from, beside those that
  a line has: of the sections model, lora, data and sampling of a run's config."""
  kept = {
    section: dict(config[section])
    for section in ('model', 'lora', 'data', 'sampling')
  }
  for name in ('batch_size', 'attention'):  # which change no token
    del kept['sampling'][name]
  text = json.dumps(kept, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]
