"""One large sampling call of Llama-3 8B on one GPU of 141 GB (H200), random
weights:

    python -m experiments.benchmarks.sampler \
        --config=experiments/benchmarks/llama3_8b_h200.py

128 prompts x 8 completions, 256 prompt slots, completions of geometric length
with mean 200, at most 512. SmolLM2-135M's shape instead, 1,024 rows:

    .. --config=experiments/benchmarks/llama3_8b_h200.py:smollm2_135m

It has not been run on such a device yet.
"""

from dash_jax import config as config_lib

MEAN_COMPLETION_LEN = 200


def get_config(preset='llama3_8b'):
  config = config_lib.default()
  config.model.preset = preset
  config.model.dtype = 'bfloat16'
  config.model.param_dtype = 'bfloat16'
  config.data.max_prompt_len = 256
  config.sampling.max_completion_len = 512
  config.sampling.batch_size = 'auto'
  config.algorithm.batch_size = 1_024
  config.algorithm.group_size = 8
  return config
