"""Scores replies to questions of reasoning_gym by their task's own scorer.

1. The final answer is taken out of the reply as `reward.style` says: 'boxed' for
   any text, 'last_number' where answers are numbers.
2. The task says what it is worth, from 0 to 1; exactly 1 is right. Some tasks
   give a part of it for an answer that is partly right.

  --config.data.source=reasoning_gym --config.data.path=TASK
  --config.reward.function=dash_jax.rewards.procedural:score_one
"""

import functools
import json

from dash_jax.data import procedural
from dash_jax.rewards import answers


@functools.lru_cache(maxsize=8)
def _make_task(task):
  import reasoning_gym

  name, options = procedural.parse(task)
  return reasoning_gym.create_dataset(name, **options)


def score_one(
  completion: str, answer: str, truncated: bool, style: str
) -> float:
  """Scores one completion.

  Args:
    completion: the sampled text.
    answer: the item, as data/procedural.py has it.
    truncated: whether the completion ran out of room before it stopped.
    style: one of answers.STYLES.

  Returns:
    What the task's scorer gives the answer that the completion states; 0.0 where
    it states none or did not stop.

  Raises:
    ValueError: `answer` is no such item.
  """
  given = None if truncated else answers.extract(completion, style)
  item = json.loads(answer)
  if not isinstance(item, dict) or 'task' not in item:
    raise ValueError("the answer is no item of data.source='reasoning_gym'")
  if given is None:
    return 0.0
  return float(_make_task(item['task']).score_answer(given, item))


def prepare(style: str) -> None:
  """Imports the package, so that no answer's time-out pays for it."""
  answers.prepare(style)
  import reasoning_gym  # noqa: F401


score_one.prepare = prepare
