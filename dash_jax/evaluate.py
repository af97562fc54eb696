"""Accuracy on held-out questions, with its interval.

    python -m dash_jax.evaluate --config=experiments/X.py --workdir=DIR

The life of an evaluation:
  1. Questions are asked in batches of one compiled size, one sample each,
     greedily unless `eval.temperature` is above 0.
  2. Answers are scored as in training; a reward of exactly 1 is right. Replies
     whose scoring timed out or failed are counted apart.
  3. The interval is Wilson's, which holds near 0 and 1 too.
"""

import collections
import itertools
import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import assemble, commands, sharding, weights
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
  completion_len_mean (tokens, the stop token included), reward_timeouts,
  reward_errors, eval_s.
  """
  start = time.perf_counter()
  config, encoding = parts.config, parts.encoding
  size = config.eval.batch_size
  settings = decoding.make_decoding(config.eval.temperature, config.eval.top_p)
  asked = parts.test_questions
  total = collections.Counter()
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
    rollouts = _take(sharding.local_rows(rollouts), counted)
    _, scores = parts.score(list(itertools.compress(mine, counted)), rollouts)
    sums = sharding.sum_over_hosts(
      {
        'right': float((scores.rewards == 1).sum()),
        'tokens': float(rollouts.lengths.sum()),
        'timeouts': scores.timeouts,
        'errors': scores.errors,
      }
    )
    total.update({name: round(value) for name, value in sums.items()})
  right = total['right']
  low, high = wilson_interval(right, len(asked))
  return {
    'split': 'test',
    'num_questions': len(asked),
    'accuracy': right / len(asked),
    'accuracy_low': low,
    'accuracy_high': high,
    'completion_len_mean': total['tokens'] / len(asked),
    'reward_timeouts': total['timeouts'],
    'reward_errors': total['errors'],
    'eval_s': time.perf_counter() - start,
  }


def _take(tree, rows):
  return jax.tree.map(lambda x: x[rows], tree)


def main(config, workdir):
  differing = checkpoint.compare_config(workdir, config.to_dict())
  if differing:
    print('Judged with other fields than the run has:', *differing, sep='\n')
  with jax.set_mesh(assemble.connect(config)):
    parts = assemble.build(config, workdir)
    with parts.pool:
      restored = weights.restore_params(config, parts.model, workdir)
      params, step = restored or (weights.load_params(config, parts.model), 0)
      result = evaluate(parts, params)
  where = f'step {step}' if restored else 'the weights that the run starts from'
  print(
    f'{where}: accuracy {result["accuracy"]:.1%}'
    f' (95% {result["accuracy_low"]:.1%} to {result["accuracy_high"]:.1%})'
    f' on {result["num_questions"]} questions,'
    f' {result["completion_len_mean"]:.1f} tokens a reply,'
    f' {result["reward_timeouts"]} timed out, {result["reward_errors"]} failed,'
    f' {result["eval_s"]:.1f} s'
  )


if __name__ == '__main__':
  commands.run(main)
