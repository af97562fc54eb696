"""The run that soak.py soaks: a tiny model of noise, whose replies have random
lengths, and a reward that takes its time, hangs, raises and dies.

What a reply meets is a function of its text, so that a run that goes on meets the
same.
"""

import os
import time
import zlib

STEPS = 4_000
ROWS = 32


def get_config():
  from dash_jax import config as config_lib
  from dash_jax.model import llama, presets

  presets.PRESETS['soak'] = llama.LlamaConfig(
    vocab_size=304,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffw_dim=64,
  )
  config = config_lib.default()
  config.mesh.fsdp = 1
  config.model.preset = 'soak'
  config.data.source = 'addition'
  config.data.template = '{question}'
  config.data.num_train = 1_000
  # Noise says it now and then.
  config.data.stop_text = ' '
  config.sampling.max_completion_len = 32
  config.reward.function = 'experiments.benchmarks.soak_run:score'
  config.reward.timeout_s = 0.5
  config.algorithm.batch_size = ROWS
  config.algorithm.group_size = 4
  config.algorithm.num_samples = ROWS * STEPS
  config.optim.minibatch_size = 8
  config.optim.learning_rate = 1e-5
  config.eval.num_questions = 8
  config.eval.every_samples = ROWS * 250
  config.checkpoint.every_samples = ROWS * 20
  config.log.rollouts_every_samples = ROWS * 50
  return config


def score(completion, answer, truncated, style):
  """Returns 1 for every other text; of a thousand texts 30 take 50 ms, two hang,
  two raise and one ends its process."""
  del answer, truncated, style
  number = zlib.crc32(completion.encode())
  turn = number // 2 % 1000
  if turn < 30:
    time.sleep(0.05)
  elif turn < 32:
    time.sleep(3600)
  elif turn < 34:
    raise RuntimeError('a reward that raises')
  elif turn < 35:
    os._exit(1)
  return float(number % 2)
