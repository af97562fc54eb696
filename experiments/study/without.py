"""dash_jax.main with one part taken out, to see what that part saves.

    python -m experiments.study.without --part=packing --config=FILE.py \\
        --workdir=DIR [--config.section.field=value ..]

The parts are not options of dash_jax: nobody wants a run without them. What a
run samples and learns stays the same, but for the order in which floats are added
and, without shared prompts in the sampler, for the noise. Filtering is an option,
algorithm.filter.
"""

import dataclasses

import numpy as np
from absl import flags

from dash_jax import batches, commands
from dash_jax import main as main_lib
from dash_jax.learning import packing
from dash_jax.sampling import calls, ladder, sampler


def pad(config) -> None:
  """Gives every row and prompt all its slots, so that no other takes them."""
  fit = packing.fit

  def fit_padded(prompt_lens, lengths, keep, room):
    return fit(
      np.full_like(prompt_lens, config.data.max_prompt_len),
      np.full_like(lengths, room.max_completion_len),
      keep,
      room,
    )

  packing.fit = fit_padded


def part_groups(config) -> None:
  """Gives every row that is learned from a prompt of its own."""
  del config
  fit, make_room = packing.fit, packing.make_room

  def make_room_apart(minibatch_size, group_size, *lens):
    del group_size
    return make_room(minibatch_size, 1, *lens)

  def fit_apart(prompt_lens, lengths, keep, room):
    G = lengths.shape[1]
    lines, filled = fit(
      prompt_lens.repeat(G), lengths.reshape(-1, 1), keep.reshape(-1, 1), room
    )
    rows = [
      [[divmod(q, G) for q, _ in part] for part in line] for line in lines
    ]
    return rows, filled

  packing.fit, packing.make_room = fit_apart, make_room_apart


class _Apart:
  """A sampler that runs a prompt for each reply; see `sampler.Sampler`."""

  def __init__(self, *args, num_prompts, group_size, **options):
    self.group_size = group_size
    self._sampler = _Sampler(
      *args, num_prompts=num_prompts * group_size, group_size=1, **options
    )
    self.batch_size = self._sampler.batch_size
    self.prepare = self._sampler.prepare

  def stream(self, weights, prompts, key, decoding, **options):
    Q, G = len(prompts.uids), self.group_size
    each = batches.PromptBatch(
      tokens=prompts.tokens.repeat(G, axis=0),
      lengths=prompts.lengths.repeat(G),
      # Replies to a question are to differ.
      uids=prompts.uids.repeat(G) ^ np.tile(np.arange(G) << 20, Q).astype('i4'),
    )
    for rows, made in self._sampler.stream(
      weights, each, key, decoding, **options
    ):
      yield (
        rows,
        calls.Completions(
          **{
            name: x.reshape(Q, G, *x.shape[2:])
            for name, x in vars(made).items()
          }
        ),
      )


_Sampler = sampler.Sampler


def part_prompts(config) -> None:
  """Runs the prompt of every reply by itself."""
  del config
  sampler.Sampler = _Apart


def keep_stopped(config) -> None:
  """Lets rows that have stopped cost as much as those that go on."""
  del config
  make = ladder.make

  def make_wide(num_rows, *args, **options):
    made = make(num_rows, *args, **options)
    rungs = tuple(rung for rung in made.rungs if rung.rows == num_rows)
    longer = {a: b for a, b in made.longer.items() if a in rungs}
    return dataclasses.replace(made, rungs=rungs, narrower={}, longer=longer)

  ladder.make = make_wide


PARTS = {
  'packing': pad,
  'sharing': part_groups,
  'sampled_sharing': part_prompts,
  'stopping': keep_stopped,
}


def main(config, workdir):
  PARTS[flags.FLAGS.part](config)
  return main_lib.main(config, workdir)


if __name__ == '__main__':
  flags.DEFINE_enum('part', None, PARTS, 'What to take out.', required=True)
  commands.run(main)
