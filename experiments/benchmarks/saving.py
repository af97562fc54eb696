"""What a checkpoint costs the run that writes it.

    python -m experiments.benchmarks.saving [--preset=smollm2_135m] [--turns=5]

  1. A training state of the preset (float32 weights, AdamW) changes its weights,
     with themselves as the gradient, a number of times: the work of a plain turn.
  2. A turn with a save does the same while a checkpoint is written behind it.
  3. Turns alternate. The blocking seconds are those of the call of `save`, in
     which the arrays are checked and copied; what else a turn is longer is work
     that the machine shared with the writers.

Prints one JSON object: medians, and the smallest and largest of each.
"""

import argparse
import functools
import json
import pathlib
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import optax

from dash_jax import sharding
from dash_jax.learning import learner
from dash_jax.model import llama, presets
from dash_jax.runs import checkpoint

_CHANGES = 12  # of the weights, in a turn


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def _change(state, optimizer):
  # Not of ones: what is written is compressed.
  grads = state.params
  return learner.follow_gradient(state, jnp.float32(0), grads, optimizer)


def take_turn(state, optimizer, save):
  """Returns the state after a turn; its seconds, and those of `save`."""
  start = time.perf_counter()
  save(state)
  blocked_s = time.perf_counter() - start
  for _ in range(_CHANGES):
    state = jax.block_until_ready(_change(state, optimizer))
  return state, time.perf_counter() - start, blocked_s


def measure(preset: str, turns: int, folder: str) -> dict:
  """Returns seconds of turns, by what was measured, and the checkpoint's bytes."""
  optimizer = optax.adamw(1e-4)
  params = llama.init_params(
    presets.PRESETS[preset], jax.random.key(0), jnp.float32
  )
  state = learner.init_state(params, optimizer)
  found = {name: [] for name in ('plain_s', 'saving_s', 'save_call_s')}
  found['written_s'] = []
  with checkpoint.Checkpoints(folder, keep=1) as saved:
    # What follows is compiled.
    saved.save(1, state)
    saved.wait()
    state, _, _ = take_turn(state, optimizer, lambda state: None)
    for turn in range(turns):
      state, seconds, _ = take_turn(state, optimizer, lambda state: None)
      found['plain_s'].append(seconds)
      start = time.perf_counter()
      save = functools.partial(saved.save, turn + 2)
      state, seconds, blocked_s = take_turn(state, optimizer, save)
      found['saving_s'].append(seconds)
      found['save_call_s'].append(blocked_s)
      saved.wait()
      found['written_s'].append(time.perf_counter() - start)
  size = sum(p.stat().st_size for p in pathlib.Path(folder).rglob('*'))
  return {'checkpoint_bytes': size} | {
    name: {
      'median': statistics.median(seconds),
      'least': min(seconds),
      'most': max(seconds),
    }
    for name, seconds in found.items()
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--preset', default='smollm2_135m')
  parser.add_argument('--turns', type=int, default=5)
  args = parser.parse_args()
  with (
    tempfile.TemporaryDirectory() as folder,
    jax.set_mesh(sharding.make_mesh(1, -1, 1)),
  ):
    print(json.dumps(measure(args.preset, args.turns, folder)))


if __name__ == '__main__':
  main()
