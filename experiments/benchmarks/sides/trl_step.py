"""Optimizer steps of TRL's GRPOTrainer, as a side of
experiments/benchmarks/learner.py. It needs trl and what that needs.

Weights are those of `workloads.make_params`. All rows of a step are one batch
of the trainer. Sampling is transformers' generate, on the device that there is.
"""

import pathlib
import sys

import datasets
import tokenizers
import torch
import transformers
import trl

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import protocol

# What an option named `switch` asks of the trainer.
_SWITCHES = {
  '': {'bf16': False, 'gradient_checkpointing': False},
  'static': {
    'bf16': False,
    'gradient_checkpointing': False,
    'cache_implementation': 'static',
  },
  'batching': {
    'bf16': False,
    'gradient_checkpointing': False,
    'use_transformers_continuous_batching': True,
  },
  'defaults': {},  # bfloat16 and gradient checkpointing
}


def _to_word(token):
  # In brackets: special words are found within others, as 0 would be in 10.
  return f'<{token}>'


def _make_tokenizer(workload):
  """Returns a tokenizer of texts of `_to_word`. It insists on a stop id: where
  the workload has none, one that no token has."""
  size = workload['model']['vocab_size']
  vocab = {_to_word(i): i for i in range(size + 1)}
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocab, unk_token=_to_word(size))
  )
  words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=words,
    pad_token=_to_word(workload['pad_id']),
    eos_token=_to_word((workload['eos_ids'] or [size])[0]),
    padding_side='left',
  )


def _make_settings(workload, folder, switch):
  adam = workload['optim']
  return trl.GRPOConfig(
    output_dir=f'{folder}/trl',
    use_cpu=not torch.cuda.is_available(),
    max_steps=10**9,
    num_generations=workload['num_generations'],
    per_device_train_batch_size=(
      workload['num_prompts'] * workload['num_generations']
    ),
    max_completion_length=workload['max_new_tokens'],
    temperature=workload['temperature'],
    top_p=workload['top_p'],
    top_k=workload['top_k'],
    beta=workload['algo']['beta'],
    epsilon=workload['algo']['clip'],
    num_iterations=workload['algo']['num_iterations'],
    loss_type='grpo',
    learning_rate=adam['lr'],
    lr_scheduler_type='constant',
    adam_beta1=adam['b1'],
    adam_beta2=adam['b2'],
    adam_epsilon=adam['eps'],
    weight_decay=adam['weight_decay'],
    max_grad_norm=adam['grad_clip'],
    shuffle_dataset=False,
    seed=workload['seed'],
    report_to='none',
    save_strategy='no',
    logging_strategy='no',
    disable_tqdm=True,
    **_SWITCHES[switch],
  )


class _Watch(transformers.TrainerCallback):
  """Makes the trainer's steps turns."""

  def __init__(self, turns, figures):
    self._turns, self._figures = turns, figures

  def on_step_begin(self, *unused_args, **unused_kwargs):
    self._figures['computed_tokens'] = 0
    self._turns.begin()

  def on_step_end(self, *unused_args, **unused_kwargs):
    if torch.cuda.is_available():
      torch.cuda.synchronize()
    self._turns.end(self._figures)


def main():
  turns = protocol.Turns()
  workload, options = turns.workload, turns.options
  turns.about = {
    'trl': f'{trl.__version__}, transformers {transformers.__version__}, torch'
    f' {torch.__version__}, {torch.get_num_threads()} threads'
  }
  figures = {}
  model = transformers.AutoModelForCausalLM.from_pretrained(
    options['folder'], dtype=torch.float32
  )
  stops = workload['eos_ids'] or None
  model.generation_config.eos_token_id = stops
  model.generation_config.pad_token_id = workload['pad_id']

  def count(module, args, inputs):
    if torch.is_grad_enabled():
      figures['computed_tokens'] += inputs['input_ids'].numel()

  model.register_forward_pre_hook(count, with_kwargs=True)

  def watch(generate):
    def sample(*args, **kwargs):
      with turns.sampling():
        return generate(*args, **kwargs)

    return sample

  model.generate = watch(model.generate)
  model.generate_batch = watch(model.generate_batch)

  def reward(completion_ids, **unused_columns):
    num_tokens = sum(map(len, completion_ids))
    figures['sampled_tokens'] = figures['trained_tokens'] = num_tokens
    return [protocol.fraction_even(ids) for ids in completion_ids]

  prompts = protocol.draw_prompts(
    workload,
    (options['warmup'] + options['turns']) * workload['num_prompts'],
  )
  trainer = trl.GRPOTrainer(
    model=model,
    reward_funcs=reward,
    args=_make_settings(workload, options['folder'], options['switch']),
    train_dataset=datasets.Dataset.from_dict(
      {'prompt': [' '.join(map(_to_word, x)) for x in prompts]}
    ),
    processing_class=_make_tokenizer(workload),
    callbacks=[_Watch(turns, figures)],
  )
  trainer.train()


if __name__ == '__main__':
  main()
