r"""Llama-3 70B on GSM8K by DASH: the 8B run's recipe in larger steps.

    pip install -e '.[tpu]'
    python -m dash_jax.main --config=experiments/llama3_70b_gsm8k.py \
        --workdir=/mnt/runs/llama3_70b_gsm8k --config.mesh.tensor=4 \
        --config.mesh.multi_host=True

The weights are Meta-Llama-3-70B, which Meta gives to those who accept its
licence: as for llama3_8b_gsm8k.py, at ./Meta-Llama-3-70B.

Hardware (data x fsdp x tensor):

    64 chips of a TPU v5p (v5p-128)     mesh 1 x 16 x 4
    256 chips of a TPU v6e (v6e-256)    mesh 1 x 64 x 4

Not run yet: time and score are unknown. dash_jax.plan says what it needs and how
long a step takes at least; README.md has both plans. On v6e sampling takes
--config.sampling.quantize_weights=True: a quarter of the weights in bfloat16
would leave a device no room.

Departures from the 8B run: 256 questions a step in place of 64, so that every
chip has rows to sample, and a third of the learning rate.
"""

from experiments import llama3_8b_gsm8k


def get_config():
  config = llama3_8b_gsm8k.get_config()
  config.model.preset = 'llama3_70b'
  config.model.weights = 'hf:Meta-Llama-3-70B'
  config.data.tokenizer_path = 'Meta-Llama-3-70B/original/tokenizer.model'
  config.algorithm.batch_size = 1_024
  config.algorithm.num_samples = 90_112  # 88 steps, three epochs
  config.algorithm.sft_steps = 32
  config.optim.sft_batch_size = 64
  config.optim.sft_warmup_steps = 4
  config.optim.minibatch_size = 256
  config.optim.learning_rate = 1e-6
  config.optim.grpo_learning_rate = 3e-7
  return config
