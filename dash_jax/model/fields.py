"""Fields that describe a model, from JSON files that may hold anything."""

import json
import pathlib
from collections.abc import Mapping

from dash_jax.model import llama


def read_json(path: pathlib.Path, holds: str = '') -> dict:
  """Returns the object in a JSON file.

  Args:
    path: the file.
    holds: what its folder should hold, for the error if it is not there.

  Raises:
    FileNotFoundError: it is not there.
    ValueError: it is no JSON object in UTF-8.
  """
  if not path.is_file():
    raise FileNotFoundError(f'{path} is not there' + (holds and f'; {holds}'))
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
    raise ValueError(f'{path}: not JSON: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path}: not a JSON object')
  return found


def get(source: str, fields: Mapping, name: str, kind: type, *default):
  """Returns a field of the type that is wanted; numbers are over 0 and finite.

  Args:
    source: the file, for errors.
    fields: what it says.
    name: of the field.
    kind: int, float (an int will do) or bool.
    default: what to return if the field is missing or None.

  Raises:
    ValueError: the field is missing, of another type, or out of range.
  """
  value = fields.get(name)
  if value is None:
    if default:
      return default[0]
    raise ValueError(f'{source}: field {name} is missing')
  if type(value) is not kind and (kind, type(value)) != (float, int):
    raise ValueError(f'{source}: {name} is {value!r}; wanted: {kind.__name__}')
  most = 2**31 if kind is int else 1e38
  if kind is not bool and not 0 < value < most:
    raise ValueError(
      f'{source}: {name} is {value!r}; wanted: over 0, finite, under {most}'
    )
  return kind(value)


def check_heads(source: str, config: llama.LlamaConfig) -> llama.LlamaConfig:
  """Returns the config if its heads can be rotated and shared.

  Raises:
    ValueError: a head has an odd size, or key heads do not divide query heads.
  """
  if config.head_dim % 2:
    raise ValueError(
      f'{source}: a head has {config.head_dim} dimensions, which do not make'
      ' pairs to rotate'
    )
  if config.num_heads % config.num_kv_heads:
    raise ValueError(
      f'{source}: {config.num_heads} heads cannot share'
      f' {config.num_kv_heads} key and value heads evenly'
    )
  return config
