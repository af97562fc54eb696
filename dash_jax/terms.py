"""What a reward is made of, and what each part counts.

    reward = weight        * verifier    `reward.function`, often 0 or 1
           + format_weight * format      1 where a reply states a final answer
           + length_weight * length      -tokens / sampling.max_completion_len
           + extra_weight  * extra       `reward.extra`, another function
           + model_weight  * model       the score of a reward model

The sum is what advantages are taken of; DAPO's penalty on long rows and the KL
come on top, where they are asked for. Accuracy, and which replies are right, remain
the verifier's to say. By default there is the verifier alone.

What workers score is 0 where it failed, and all of it where the row took too long;
length and model are there for every row.
"""

import re

import ml_collections
import numpy as np

from dash_jax import refusals

FORMAT = 'dash_jax.rewards.answers:score_format'

# Where a function is imported from, as 'my_module:score'.
FUNCTION = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*')

# The terms beside the verifier; `format` and `extra` are asked in workers.
NAMES = ('format', 'length', 'extra', 'model')


def list_weights(section: ml_collections.ConfigDict) -> dict[str, float]:
  """Returns what each term counts, by its name; those that count nothing are
  left out, but for the verifier.

  Args:
    section: `reward` of a config.
  """
  weights = {name: section[f'{name}_weight'] for name in NAMES}
  return {'verifier': section.weight} | {n: w for n, w in weights.items() if w}


def is_plain(section: ml_collections.ConfigDict) -> bool:
  """Returns whether the reward is what the verifier says."""
  return list_weights(section) == {'verifier': 1.0}


def list_functions(section: ml_collections.ConfigDict) -> dict[str, str]:
  """Returns the paths of the functions beside the verifier, by term."""
  paths = {'format': FORMAT, 'extra': section.extra}
  used = list_weights(section)
  return {name: path for name, path in paths.items() if name in used}


def measure_length(lengths: np.ndarray, max_completion_len: int) -> np.ndarray:
  """Returns f32, minus the share of its room that a reply took: above -1 if it
  stopped earlier, -1 if it took all.

  Args:
    lengths: i32, tokens of replies, the stop token included.
    max_completion_len: tokens that there is room for.
  """
  return (-lengths / max_completion_len).astype(np.float32)


def combine(
  section: ml_collections.ConfigDict, values: dict[str, np.ndarray]
) -> np.ndarray:
  """Returns f32[B], the weighted sum of the terms.

  Args:
    section: `reward` of a config.
    values: f32[B] of each term that `list_weights` has.
  """
  weights = list_weights(section)
  return sum(np.float32(weights[name]) * values[name] for name in weights)


def check(config: ml_collections.ConfigDict) -> None:
  """Refuses terms that cannot be combined.

  Raises:
    ValueError: names the field, and what would be valid.
  """
  section = config.reward
  for field in ('weight', *(f'{name}_weight' for name in NAMES)):
    refusals.require(
      section[field] >= 0,
      f'reward.{field}={section[field]}: must be at least 0 (0 leaves the term'
      ' out, and length is below 0 as it is)',
    )
  for name, example in (
    ('extra', "a function, as 'my_module:score'"),
    ('model', "a reward model, as 'hf:FOLDER' or 'hub:ORG/NAME'"),
  ):
    weight = section[f'{name}_weight']
    refusals.require(
      bool(section[name]) == (weight > 0),
      f'reward.{name}={section[name]!r} with reward.{name}_weight={weight}:'
      f' set both, {example} and a weight above 0, or neither',
    )
  for field in ('function', 'extra') if section.extra else ('function',):
    refusals.require(
      FUNCTION.fullmatch(section[field]),
      f'reward.{field}={section[field]!r}: must name a module and a function in'
      " it, as in 'my_module:score'",
    )
  kind, _, path = section.model.partition(':')
  refusals.require(
    not section.model or (kind in ('hf', 'hub') and path),
    f"reward.model={section.model!r}: must be '' (none), 'hf:FOLDER' or"
    " 'hub:ORG/NAME'",
  )
  used = list_weights(section)
  refusals.require(
    any(used.values()),
    'reward.weight=0.0 leaves no reward: set it, or one of '
    + ', '.join(f'reward.{name}_weight' for name in NAMES),
  )
  algorithm = config.algorithm
  below = {
    'reward.length_weight': 'length' in used,
    'reward.model_weight': 'model' in used,
    'algorithm.overlong_len': algorithm.overlong_len > 0,
    "algorithm.kl_in='reward'": algorithm.kl_in == 'reward',
  }
  fields = [field for field, is_used in below.items() if is_used]
  refusals.require(
    algorithm.scale != 'mean' or not fields,
    f"algorithm.scale='mean' divides by a group's mean reward, which"
    f' {"".join(fields[:1])} lets fall to 0 and below: take'
    " 'std', 'none' or 'batch'",
  )
