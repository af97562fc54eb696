"""How input is refused: an error names the field or file, says what is wrong, and
what would be valid."""

import os
from collections.abc import Collection


def require(ok: bool, message: str) -> None:
  """Refuses what is not so.

  Raises:
    ValueError: `message`.
  """
  if not ok:
    raise ValueError(message)


def check_choice(field: str, value: str, choices: Collection[str]) -> None:
  """Refuses a value that is none of `choices`.

  Raises:
    ValueError: names the field and the choices.
  """
  require(
    value in choices,
    f'{field}={value!r}: must be one of {", ".join(map(repr, choices))}',
  )


def check_file(field: str, path: str) -> None:
  """Refuses a path that does not exist.

  Raises:
    FileNotFoundError: names the field and the path.
  """
  if not os.path.exists(path):
    raise FileNotFoundError(
      f'{field}={path!r}: no such file or folder (looked from {os.getcwd()})'
    )


def name_multiples(unit: int, near: int) -> str:
  """Returns the multiples of `unit` on either side of a number, as a message says
  them."""
  below = max(near // unit, 1) * unit
  return f'{below} or {below + unit}'
