"""A reasoning model from nothing, in minutes, on two CPU cores.

    python -m dash_jax.main --config=experiments/quickstart.py \
        --workdir=runs/quickstart
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.algorithm.sft_steps = 500
  return config
