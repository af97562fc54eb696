"""A reasoning model from nothing, in minutes, on two CPU cores.

    python -m dash_jax.main --config=experiments/quickstart.py \
        --workdir=runs/quickstart
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.data.template = '{question} Answer:'
  config.data.max_prompt_len = 42
  config.sampling.max_completion_len = 22
  config.algorithm.sft_steps = 1_000
  config.algorithm.num_samples = 10_240
  config.optim.sft_learning_rate = 1.5e-3
  config.optim.sft_batch_size = 16
  config.optim.learning_rate = 1e-4
  config.optim.warmup_steps = 5
  return config
