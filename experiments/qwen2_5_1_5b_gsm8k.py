r"""Qwen2.5 1.5B on GSM8K by DASH: the paper's family and one of its sizes.

    pip install -e '.[hub,cuda]'
    python -m dash_jax.main --config=experiments/qwen2_5_1_5b_gsm8k.py \
        --workdir=runs/qwen2_5_1_5b_gsm8k [--config.data.path=FOLDER]

FOLDER holds the public train.jsonl and test.jsonl; without it they are
downloaded, once, as the weights are. A GGUF file of the architecture does too:

    --config.model.weights=gguf:FILE --config.data.tokenizer=gguf \
    --config.data.tokenizer_path=FILE

Hardware: one GPU (mesh 1 x 1 x 1) with 80 GB. By dash_jax.plan 37 GiB of it are
needed, by the gradient, and a step takes an H100 1.75 s at least.

Not run yet: time and score are unknown. As arXiv 2505.17218 without its KL term:
64 questions x 4 samples a step, learning rate 3e-6 falling linearly, AdamW
without decay, temperature 0.9, tokens counted as 1 / max_completion_len, three
epochs. Departures: GSM8K's questions, not MATH's; a warm start on 2,048 worked
solutions, for the '####' that is rewarded and the end of a reply; top_k is off;
one greedy answer a question at evaluation, of all 1,319, without examples.
"""

from dash_jax import config as config_lib


def get_config():
  config = config_lib.default()
  config.seed = 42
  config.model.preset = 'qwen2_5_1_5b'
  config.model.weights = 'hub:Qwen/Qwen2.5-1.5B'
  config.model.dtype = 'bfloat16'
  # A step of 3e-6 would vanish in bfloat16 weights.
  config.model.param_dtype = 'float32'
  config.model.remat = 'layer'
  config.data.source = 'gsm8k'
  config.data.num_train = 0
  config.data.tokenizer = 'huggingface'
  config.data.tokenizer_path = 'hub:Qwen/Qwen2.5-1.5B'
  config.data.template = 'Question: {question}\nAnswer:\n'
  config.data.max_prompt_len = 240
  config.algorithm.batch_size = 256
  config.sampling.max_completion_len = 352
  config.sampling.temperature = 0.9
  config.reward.num_workers = 4
  config.algorithm.group_size = 4
  config.algorithm.num_samples = 89_600  # 350 steps, three epochs
  config.algorithm.sft_steps = 128
  config.optim.sft_batch_size = 16
  config.optim.sft_learning_rate = 1e-5
  config.optim.sft_warmup_steps = 8
  config.optim.minibatch_size = 32
  config.optim.learning_rate = 3e-6
  config.optim.grpo_learning_rate = 1e-6
  config.eval.num_questions = 1_319  # all of them
  config.eval.every_samples = 12_800
  config.checkpoint.every_samples = 6_400
  config.log.rollouts_every_samples = 6_400
  return config
