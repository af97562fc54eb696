"""A run of a small model, described on devices of the CPU or of a topology."""

import contextlib
import dataclasses
import math

from dash_jax import config as config_lib
from dash_jax.model import llama, presets
from dash_jax.planning import devices, job

MODEL = llama.LlamaConfig(
  vocab_size=4096,
  embed_dim=512,
  num_layers=2,
  num_heads=8,
  num_kv_heads=4,
  head_dim=64,
  ffw_dim=2048,
)


def make_config(changes: dict | None = None):
  """Returns a small run's config, some fields changed."""
  config = config_lib.default()
  config.data.max_prompt_len = 16
  config.sampling.max_completion_len = 16
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
