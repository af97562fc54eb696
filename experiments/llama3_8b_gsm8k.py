r"""Llama-3 8B on GSM8K by DASH: a short warm start for the format, then RL.

    pip install -e '.[tpu]'     (on GPUs '.[cuda]')
    python -m dash_jax.main --config=experiments/llama3_8b_gsm8k.py \
        --workdir=runs/llama3_8b_gsm8k [--config.data.path=FOLDER]

The weights are Meta-Llama-3-8B, which Meta gives to those who accept its
licence: a Hugging Face folder with its original/tokenizer.model, put or linked
at ./Meta-Llama-3-8B. For another place set both fields:

    --config.model.weights=hf:FOLDER \
    --config.data.tokenizer_path=FOLDER/original/tokenizer.model

Hardware (data x fsdp x tensor; the default gives all devices to fsdp):

    8 GPUs of 80 GB          mesh 1 x 8 x 1
    4 chips of a TPU v5p     mesh 1 x 4 x 1
    16 chips of a TPU v5e    mesh 1 x 4 x 4

Not run yet: time and score are unknown. A test builds its programs abstractly
on mesh 1 x 8 x 1. By arithmetic weights, Adam's moments and the gradient, all
float32, take 128 GB over all devices; sampling takes a bfloat16 copy of the
weights, 16 GB on each device (divided by mesh.tensor), and 13 GB of cache over
all devices.

As arXiv 2505.17218 without its KL term: 64 questions x 4 samples a step,
learned from in minibatches, learning rate 3e-6 falling linearly, AdamW
without decay, temperature 0.9, tokens counted as 1 / max_completion_len, three
epochs. Departures: the model; a warm start on 2,048 worked solutions, because
a base model seldom ends its reply by itself; top_k is off, where the authors
sample from 50 tokens and learn as if from all; filtered rows stay in the
denominator; one greedy answer a question at evaluation.
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.seed = 42
  config.model.preset = 'llama3_8b'
  config.model.weights = 'hf:Meta-Llama-3-8B'
  config.model.dtype = 'bfloat16'
  # A step of 3e-6 would vanish in bfloat16 weights.
  config.model.param_dtype = 'float32'
  config.model.remat = 'layer'
  config.data.source = 'gsm8k'
  config.data.num_train = 0
  config.data.tokenizer = 'tiktoken'  # begins texts with BOS
  config.data.tokenizer_path = 'Meta-Llama-3-8B/original/tokenizer.model'
  config.data.template = 'Question: {question}\nAnswer:\n'
  # The longest prompt has 213 tokens, the longest solution 293.
  config.data.max_prompt_len = 224
  config.algorithm.batch_size = 256
  config.sampling.max_completion_len = 320
  config.sampling.temperature = 0.9
  config.reward.num_workers = 4
  config.algorithm.group_size = 4
  config.algorithm.num_samples = 89_600  # 350 steps, three epochs
  config.algorithm.sft_steps = 128
  config.optim.sft_batch_size = 16
  config.optim.sft_learning_rate = 1e-5
  config.optim.sft_warmup_steps = 8
  # Of 8 devices each holds one group, whose prompt it runs once.
  config.optim.minibatch_size = 32
  config.optim.learning_rate = 3e-6
  config.optim.grpo_learning_rate = 1e-6
  config.eval.num_questions = 1_319  # all of them
  config.eval.every_samples = 12_800
  config.checkpoint.every_samples = 6_400
  config.log.rollouts_every_samples = 6_400
  return config
