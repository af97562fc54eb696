"""A run of a small model, described on devices of the CPU or of a topology."""

import contextlib
import dataclasses
import math

from dash_jax import config as config_lib
from dash_jax.model import llama, presets
from dash_jax.planning import devices, job

# Weights and activations are of one size, so that neither hides the other.
MODEL = llama.LlamaConfig(
  vocab_size=512,
  embed_dim=128,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_dim=32,
  ffw_dim=512,
)


def make_config(changes: dict | None = None):
  """Returns a small run's config, some fields changed."""
  config = config_lib.default()
  config.data.max_prompt_len = 64
  config.sampling.max_completion_len = 64
  config.algorithm.group_size = 4
  config.algorithm.batch_size = 32
  config.algorithm.num_samples = 64
  config.optim.minibatch_size = 8
  with config.ignore_type():
    for field, value in (changes or {}).items():
      section, name = field.split('.')
      config[section][name] = value
  return config


@contextlib.contextmanager
def make(mesh, changes=None, model=MODEL, topology=''):
  """Yields the job of `make_config` on a mesh."""
  sizes = dict(zip(('data', 'fsdp', 'tensor'), mesh, strict=True))
  fields = {f'mesh.{name}': size for name, size in sizes.items()}
  config = make_config(fields | (changes or {}))
  found = devices.find(topology or f'cpu:{math.prod(mesh)}')
  known = presets.PRESETS['quickstart']
  presets.PRESETS['quickstart'] = dataclasses.replace(model)
  try:
    yield job.make_job(config, found)
  finally:
    presets.PRESETS['quickstart'] = known
