"""A workload file that runs in a moment."""

import json

WORKLOAD = {
  'name': 'tiny',
  'init_std': 0.02,
  'dtype': 'float32',
  'seed': 3,
  'temperature': 1.0,
  'top_p': 1.0,
  'top_k': 0,
  'reward': 'even_fraction',
  'algo': {
    'name': 'grpo',
    'loss': 'sequence-mean-token-mean',
    'beta': 0.0,
    'clip': 0.2,
    'num_iterations': 1,
    'advantage': 'group (r-mean)/(std+eps)',
  },
  'optim': {
    'name': 'adamw',
    'lr': 1e-5,
    'b1': 0.9,
    'b2': 0.999,
    'eps': 1e-8,
    'weight_decay': 0.0,
    'grad_clip': 0.0,
  },
  'remat': False,
  'prompt_ids_from': 16,
  'pad_id': 0,
  'model': {
    'vocab_size': 64,
    'd_model': 32,
    'n_layers': 1,
    'n_heads': 4,
    'n_kv_heads': 2,
    'head_dim': 8,
    'ffn': 48,
    'rope_theta': 5e5,
    'norm_eps': 1e-5,
    'tie': False,
  },
  'prompt_len': 6,
  'max_new_tokens': 10,
  'num_prompts': 3,
  'num_generations': 4,
  'eos_ids': [0, 1, 2, 3, 4, 5],
}


def write(folder, **changes):
  path = folder / 'workload.json'
  path.write_text(json.dumps(WORKLOAD | changes))
  return str(path)
