"""A reasoning model from nothing, in minutes, on two CPU cores.

    python -m dash_jax.main --config=experiments/quickstart.py \
        --workdir=runs/quickstart

A Llama of 2.8 million parameters reads word problems that the project makes
(dash_jax/data/word_problems.py). Half of the solutions that it imitates at first
skip the work and state an answer, so after SFT its likeliest reply is a guess.
DASH rewards right answers alone, and the model finds that working step by step
is what earns them. README.md has the scores and times of three seeds.
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.data.template = '{question} Answer:'
  config.data.max_prompt_len = 42
  config.sampling.max_completion_len = 22
  config.algorithm.sft_steps = 1_200
  config.algorithm.num_samples = 10_240
  config.optim.sft_batch_size = 16
  config.optim.learning_rate = 1e-4
  config.optim.warmup_steps = 5
  config.eval.every_samples = 2_560
  return config
