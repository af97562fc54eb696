"""Speed and memory of sampling and of learning, by the size of their batch.

  python -m experiments.study.sizes --config=FILE.py --out=DIR
      [--config.section.field=value ..]

1. The replies of a step are sampled with `sampling.batch_size` at each power
   of two from a group to all of them. Which tokens are drawn does not depend
   on it, so that the work is the same.
2. Gradients of all these rows are summed, nothing filtered, in minibatches of
   as many full rows.
3. DIR/sizes.jsonl has a line for each size, medians of a few turns behind one
   that warms up, and one of what 'auto' takes.
"""

import functools
import pathlib
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from dash_jax import (
  assemble,
  commands,
  meshes,
  phases,
  sharding,
  updates,
  weights,
)
from dash_jax import config as config_lib
from dash_jax.learning import learner, packing
from dash_jax.reporting import figures, workdirs
from dash_jax.runs import jsonl
from dash_jax.sampling import memory
from experiments.study import comparisons

NAME = 'sizes.jsonl'
# By what is measured: title, label of the axis, scale, and a label for each side.
_FIGURES = {
  'tokens_per_s': (
    'Speed against the size of a batch',
    'tokens of replies a second',
    1,
    ('sampling', 'learning'),
  ),
  'bytes': (
    'Memory against the size of a batch',
    'MiB',
    2**-20,
    ('sampling: keys and values', 'learning: beside weights and optimizer'),
  ),
}
_TURNS = 3


def draw(measured: Sequence[Sequence[dict]]) -> list[figures.Figure]:
  """Returns the figures of speed and memory.

  Args:
    measured: of each seed, the lines of its file.
  """
  drawn = []
  for key, (title, y_label, scale, labels) in _FIGURES.items():
    found = []
    for side in ('sample', 'learn'):
      by_seed = comparisons.by_size(measured, f'{side}_{key}')
      shared = sorted(set.intersection(*map(set, by_seed)))
      values = [[scale * some[size] for size in shared] for some in by_seed]
      found.append(
        workdirs.Curve(
          np.array(shared, float), *workdirs.average(np.array(values))
        )
      )
    drawn.append(
      figures.draw_curves(
        f'sizes_{key}', title, 'full rows at once', y_label, found, labels,
        'Bands: 95% intervals over seeds.', doubles=True,
      )
    )  # fmt: skip
  return [figure for figure in drawn if figure]


def measure(config, workdir: pathlib.Path) -> list[dict]:
  """Returns a dict for each size, the smallest first, and that of 'auto'.

  Each has `size`, and of sampling and learning `.._tokens_per_s` (of replies)
  and `.._bytes`: those of keys and values; those beside weights and optimizer.
  A size for which there is no memory has none of its side.

  Args:
    config: of a run, on the mesh in use.
    workdir: a folder for what `assemble.build` keeps.
  """
  parts = assemble.build(config, str(workdir))
  with parts.pool:
    pass  # nothing is scored
  *_, phase = phases.phases(config, parts.stop_ids)
  params = weights.load_params(config, parts.model)
  state = learner.init_state(params, phase.optimizer)
  B, G = phase.rows_per_step, phase.group_size
  # A device holds no part of a group.
  least = G * sharding.num_batch_shards(jax.sharding.get_mesh())
  num_sizes = (B // least).bit_length()
  found = [{'size': B >> i} for i in reversed(range(num_sizes))]
  asked, rows = parts.train_questions[: B // G], None
  for row in found:
    # The rows are the same; of the largest sizes there may be none.
    rows = _sample(parts, params, asked, G, row) or rows
  for row in found:
    _learn(parts, phase, state, rows, row)
  return [*found, _find_auto(parts, phase, state, asked, G)]


def _sample(parts, params, asked, G, row):
  """Adds what sampling costs; returns the rollouts."""
  sampler = _make_sampler(parts, row['size'], len(asked), G)
  if sampler.batch_size != row['size']:
    return None  # no memory for more
  sample = functools.partial(
    sampler.sample,
    params,
    parts.encoding.encode(asked),
    jax.random.key(parts.config.seed),
    assemble.make_decoding(parts.config, parts.stop_ids),
    find_end=parts.find_end,
  )
  rows, seconds = _time(sample)
  row['sample_tokens_per_s'] = int(rows.lengths.sum()) / seconds
  row['sample_bytes'] = sampler.cache_bytes
  return rows


def _make_sampler(parts, size, num_prompts, G):
  config = parts.config.copy_and_resolve_references()
  with config.ignore_type():  # it may be 'auto'
    config.sampling.batch_size = size
  return assemble.make_sampler(
    config, parts.model, parts.sampling_mesh,
    num_prompts=num_prompts, group_size=G,
  )  # fmt: skip


def _learn(parts, phase, state, rows, row):
  """Adds what learning costs."""
  weight = np.full(rows.lengths.shape, 1 / rows.lengths.sum(), np.float32)
  # Of no meaning; of both signs.
  gain = np.where(np.arange(weight.size) % 2, 1, -1).reshape(weight.shape)
  try:
    room, need = (
      _make_room(parts, phase, row['size']),
      _need(parts, phase, state),
    )
    row['learn_bytes'] = need(row['size'])
    minibatches = packing.make_minibatches(
      rows, gain.astype(np.float32), np.ones(weight.shape, bool), weight, room
    )
    _, seconds = _time(
      functools.partial(
        learner.sum_gradients, state, minibatches, phase.decoding,
        model=parts.model, objective=phase.objective,
      )
    )  # fmt: skip
  except jax.errors.JaxRuntimeError as error:
    if not memory.is_exhausted(error):
      raise
    row.pop('learn_bytes', None)
    return
  row['learn_tokens_per_s'] = int(rows.lengths.sum()) / seconds


def _make_room(parts, phase, size):
  return packing.make_room(
    size,
    phase.group_size,
    parts.encoding.max_prompt_len,
    parts.encoding.max_completion_len,
  )


def _need(parts, phase, state):
  """Returns what takes a size and returns the bytes that learning needs."""

  def need(size):
    first, *_ = packing.make_empty(_make_room(parts, phase, size))
    return learner.measure(
      state, first, phase.decoding, model=parts.model, objective=phase.objective
    )

  return need


def _find_auto(parts, phase, state, asked, G):
  sampler = _make_sampler(parts, config_lib.AUTO, len(asked), G)
  return {
    'auto_sampling': sampler.batch_size,
    'auto_learning': updates.find_minibatch_size(
      _need(parts, phase, state),
      memory.find_room(),
      phase.rows_per_step,
      sharding.num_batch_shards(jax.sharding.get_mesh()),
    ),
  }


def _time(function):
  """Returns what a function returns, and the median of its seconds."""
  seconds = []
  for _ in range(_TURNS + 1):
    start = time.perf_counter()
    found = jax.block_until_ready(function())
    seconds.append(time.perf_counter() - start)
  return found, statistics.median(seconds[1:])


def main(config):
  out = pathlib.Path(flags.FLAGS.out)
  with jax.set_mesh(meshes.connect(config)):
    jsonl.write(out / NAME, measure(config, out))
  return 0


if __name__ == '__main__':
  flags.DEFINE_string('out', None, 'The folder to write.', required=True)
  commands.run(lambda config, _: main(config), needs_workdir=False)
