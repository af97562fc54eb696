"""Accuracy on held-out questions, with its interval.

    python -m dash_jax.evaluate --config=experiments/X.py --workdir=DIR

The life of an evaluation:
  1. Questions are asked in batches of one compiled size, one sample each,
     greedily unless `eval.temperature` is above 0.
  2. Answers are scored as in training. A reply that never stopped is wrong.
  3. The interval is Wilson's, which holds near 0 and 1 too.
"""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import assemble, batches, commands, sharding
from dash_jax.learning import learner
from dash_jax.rewards import workers
from dash_jax.runs import checkpoint
from dash_jax.sampling import decoding, sampler

_Z95 = 1.959964


def wilson_interval(right: int, total: int) -> tuple[float, float]:
  """Returns the 95% interval of a share.

  Source: Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927).
  """
  share, spread = right / total, _Z95**2 / total
  centre = share + spread / 2
  half = _Z95 * math.sqrt(share * (1 - share) / total + spread / (4 * total))
  low, high = ((centre + s * half) / (1 + spread) for s in (-1, 1))
  return max(low, 0.0), min(high, 1.0)


def evaluate(parts: assemble.Parts, params: dict) -> dict:
  """Returns accuracy on the test questions, as evals.jsonl has it.

  Keys: split, num_questions, accuracy, accuracy_low, accuracy_high (95%),
  completion_len_mean (tokens, the stop token included), eval_s.
  """
  start = time.perf_counter()
  config, encoding = parts.config, parts.encoding
  size = config.eval.batch_size
  settings = decoding.make_decoding(config.eval.temperature, config.eval.top_p)
  asked = parts.test_questions
  right = tokens = 0
  for first in range(0, len(asked), size):
    wave = asked[first : first + size]
    # The last wave is filled up with its first question, not counted.
    full = wave + wave[:1] * (size - len(wave))
    mine = sharding.host_share(full)
    counted = np.array(sharding.host_share(range(size))) < len(wave)
    rollouts = sampler.sample(
      parts.model,
      params,
      sharding.put_rows(encoding.encode(mine)),
      # No training step has this number, so noise is not shared with one.
      jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1),
      jnp.asarray(parts.stop_ids),
      settings,
      jnp.int32(0),
      group_size=1,
      max_completion_len=encoding.max_completion_len,
    )
    rollouts = sharding.local_rows(rollouts)
    _, scores = score(parts, mine, rollouts)
    sums = sharding.sum_over_hosts(
      {
        'right': float((scores.rewards[counted] == 1).sum()),
        'tokens': float(rollouts.lengths[counted].sum()),
      }
    )
    right += round(sums['right'])
    tokens += round(sums['tokens'])
  low, high = wilson_interval(right, len(asked))
  return {
    'split': 'test',
    'num_questions': len(asked),
    'accuracy': right / len(asked),
    'accuracy_low': low,
    'accuracy_high': high,
    'completion_len_mean': tokens / len(asked),
    'eval_s': time.perf_counter() - start,
  }


def score(
  parts: assemble.Parts,
  asked: list[batches.Question],
  rollouts: batches.Rollouts,
) -> tuple[list[str], workers.Scores]:
  """Returns the texts of rows on the host, B = Q * G, and their Scores."""
  texts = parts.encoding.decode(rollouts)
  group_size = len(texts) // len(asked)
  return texts, parts.pool.score(
    texts,
    [q.answer for q in asked for _ in range(group_size)],
    rollouts.truncated.reshape(-1).tolist(),
  )


def main(config, workdir):
  with jax.set_mesh(assemble.connect(config)):
    parts = assemble.build(config, workdir)
    with parts.pool:
      # Every phase's optimizer has the same state, and none of it is used.
      optimizer = assemble.make_optimizer(config, 0.0, 1, 0)
      with checkpoint.Checkpoints(
        workdir, keep=config.checkpoint.keep
      ) as saved:
        restored = saved.restore(learner.abstract_state(parts.model, optimizer))
      if restored is None:
        params, step = assemble.load_params(config, parts.model), 0
      else:
        params, step = restored[0].params, int(restored[0].step)
      result = evaluate(parts, params)
  print(
    f'step {step}: accuracy {result["accuracy"]:.1%}'
    f' (95% {result["accuracy_low"]:.1%} to {result["accuracy_high"]:.1%})'
    f' on {result["num_questions"]} questions,'
    f' {result["completion_len_mean"]:.1f} tokens a reply,'
    f' {result["eval_s"]:.1f} s'
  )


if __name__ == '__main__':
  commands.run(main)
