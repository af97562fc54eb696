"""Bytes of a training state with all weights trained, and with adapters alone.

    python -m experiments.benchmarks.lora_memory [--preset=smollm2_135m]

For each rank (0 trains all weights) the state is made as a run makes it, takes
one optimizer step on the device, and its arrays' bytes are added up.
"""

import argparse

import jax
import numpy as np

from dash_jax import assemble, batches, sharding, weights
from dash_jax import config as config_lib
from dash_jax.learning import learner, losses, packing
from dash_jax.sampling import decoding

RANKS = (0, 8, 64)
Q, G, P, C = 1, 2, 8, 8


def measure(preset: str, rank: int) -> dict:
  """Returns bytes on the device, by what they are for."""
  config = config_lib.default()
  config.model.preset = preset
  config.lora.rank = rank
  model = weights.make_model(config)
  optimizer = assemble.make_optimizer(config, 1e-4, 1, 0)
  params = weights.load_params(config, model)
  state = learner.init_state(params, optimizer, model.config.lora)
  minibatches = packing.make_minibatches(
    _make_rows(),
    np.array([[1, -1]], np.float32),
    np.ones((Q, G), bool),
    np.full((Q, G), 1 / (Q * G * C), np.float32),
    packing.make_room(Q * G, G, P, C),
  )
  state, _ = learner.update(
    state,
    minibatches,
    decoding.make_decoding(1.0),
    model=model,
    optimizer=optimizer,
    objective=losses.Objective(),
  )

  def count(tree):
    return sum(x.nbytes for x in jax.tree.leaves(jax.block_until_ready(tree)))

  return {
    'trained': count(state.params),
    'frozen': count(state.frozen),
    'optimizer': count(state.opt_state),
  }


def _make_rows() -> batches.Rollouts:
  return batches.Rollouts(
    prompts=batches.PromptBatch(
      tokens=np.ones((Q, P), np.int32),
      lengths=np.full(Q, P, np.int32),
      uids=np.arange(Q, dtype=np.int32),
    ),
    tokens=np.ones((Q, G, C), np.int32),
    lengths=np.full((Q, G), C, np.int32),
    logprobs=np.full((Q, G, C), -1.0, np.float32),
    truncated=np.zeros((Q, G), bool),
    policy_step=np.zeros((Q, G), np.int32),
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--preset', default='smollm2_135m')
  preset = parser.parse_args().preset
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  print('rank   trained, MB   frozen, MB   optimizer, MB')
  for rank in RANKS:
    with jax.set_mesh(mesh):
      found = measure(preset, rank)
    mb = {name: f'{size / 1e6:.2f}' for name, size in found.items()}
    print(
      f'{rank or "all":>4}   {mb["trained"]:>11}   {mb["frozen"]:>10}'
      f'   {mb["optimizer"]:>13}'
    )


if __name__ == '__main__':
  main()
