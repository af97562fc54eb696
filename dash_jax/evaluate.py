"""Accuracy on held-out questions, with its interval.

    python -m dash_jax.evaluate --config=experiments/X.py --workdir=DIR

The life of an evaluation:
  1. Questions are asked all at once, one sample each, greedily unless
     `eval.temperature` is above 0; those that do not fit the device wait.
  2. Answers are scored as in training; a reward of exactly 1 is right. Replies
     whose scoring timed out or failed are counted apart.
  3. The interval is Wilson's, which holds near 0 and 1 too.
"""

import contextlib
import functools
import math
import time

import jax
import numpy as np

from dash_jax import assemble, commands, sharding, weights
from dash_jax.runs import checkpoint, watch
from dash_jax.sampling import decoding

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


def evaluate(
  parts: assemble.Parts, params: dict, stop: checkpoint.Stop | None = None
) -> dict:
  """Returns accuracy on the test questions, as evals.jsonl has it.

  Args:
    parts: of the run.
    params: the whole model's weights.
    stop: what may ask for an end, if anything.

  Keys: split, num_questions, accuracy, accuracy_low, accuracy_high (95%),
  completion_len_mean (tokens, the stop token included), reward_timeouts,
  reward_errors, eval_s.

  Raises:
    checkpoint.Stopped: as asked, in each process.
  """
  start = time.perf_counter()
  asked = parts.test_questions
  prepared = parts.eval_sampler.prepare(params)
  check = stop.check if stop else None
  sums = None
  with contextlib.suppress(checkpoint.Stopped):
    sums = parts.on_sampler(functools.partial(_begin, parts, prepared, check))()
  if stop:
    stop.check_all()
  total = sharding.sum_over_hosts(sums)
  total = {name: round(float(value)) for name, value in total.items()}
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


def _begin(parts, prepared, check):
  """Samples; returns what waits for the scores and returns sums over this
  process's questions."""
  config, asked = parts.config, parts.test_questions
  # Filled up so that every shard has as many; what is added is not counted.
  shards = sharding.num_batch_shards(jax.sharding.get_mesh())
  shards *= jax.process_count()
  places = np.arange(len(asked) + -len(asked) % shards)
  # What is added stands last in every process's share.
  own = sharding.host_share(places)
  counted = own < len(asked)
  finish = parts.sample_and_score(
    parts.eval_sampler,
    prepared,
    list(asked[np.where(counted, own, 0)]),
    # No training step has this number, so noise is not shared with one.
    jax.random.fold_in(jax.random.key(config.seed), 2**31 - 1),
    decoding.make_decoding(
      config.eval.temperature, config.eval.top_p, stop_ids=parts.stop_ids
    ),
    num_scored=counted.sum(),
    check=check,
  )

  def sum_up():
    sampled = finish()
    return {
      'right': ((sampled.scores.rewards == 1) & counted).sum(),
      'tokens': sampled.rows.lengths[counted].sum(),
      'timeouts': sampled.scores.timeouts,
      'errors': sampled.scores.errors,
    }

  return sum_up


def main(config, workdir):
  differing = checkpoint.compare_config(workdir, config.to_dict())
  if differing:
    print('Judged with other fields than the run has:', *differing, sep='\n')
  with (
    jax.set_mesh(assemble.connect(config)),
    watch.Watch(config.mesh.silent_s, config.mesh.stall_s),
  ):
    parts = assemble.build(config, workdir)
    with parts.pool:
      watch.mark('reading the weights')
      restored = weights.restore_params(config, parts.model, workdir)
      params, step = restored or (weights.load_params(config, parts.model), 0)
      watch.mark('evaluating')
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
