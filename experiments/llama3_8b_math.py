r"""Llama-3 8B on MATH by DASH, scored by the last \boxed{}.

    python -m dash_jax.main --config=experiments/llama3_8b_math.py \
        --workdir=runs/llama3_8b_math --config.data.path='FOLDER/{split}.jsonl'

FOLDER holds train.jsonl, the 12,000 problems of MATH that are not in MATH-500,
and test.jsonl, MATH-500; each line has the fields problem, solution, answer.
Weights, install and departures from the paper: see llama3_8b_gsm8k.py.

Hardware (data x fsdp x tensor), with 71 GB of cache over all devices while
sampling and the weights as there:

    8 GPUs of 80 GB          mesh 1 x 8 x 1
    4 chips of a TPU v5p     mesh 1 x 4 x 1

Not run yet: time and score are unknown. A test builds its programs abstractly
on mesh 1 x 8 x 1. Prompts with more than 256 tokens are left out and counted,
10 of MATH-500's 500 among them, so evaluate all 500 at the end:

    python -m dash_jax.evaluate --config=experiments/llama3_8b_math.py \
        --workdir=runs/llama3_8b_math --config.data.path='FOLDER/{split}.jsonl' \
        --config.data.max_prompt_len=800

Solutions with more than 2,047 tokens are left out likewise; none of MATH-500's
has more than 1,282.
"""

from experiments import llama3_8b_gsm8k


def get_config():
  config = llama3_8b_gsm8k.get_config()
  config.data.source = 'jsonl'
  config.data.path = 'MATH/{split}.jsonl'
  config.data.prompt_field = 'problem'
  config.data.solution_field = 'solution'
  config.data.template = 'Problem: {question}\nSolution:\n'
  config.data.max_prompt_len = 256
  config.data.too_long = 'drop'
  config.sampling.max_completion_len = 2_048
  config.reward.style = 'boxed'
  config.algorithm.num_samples = 143_616  # 561 steps, three epochs
  config.eval.num_questions = 500
  return config
