"""Compares folders as Meta publishes Llama with the models they were made of.

1. transformers makes a small random model, and saves its config.json.
2. Its weights are put as Meta has them: q and k rows in neighbouring pairs,
   cut into files the way of Llama 2 or of Llama 3, written by torch.save.
3. What we read of them must be the model's weights, bit by bit, and the
   architecture that of config.json.
"""

import itertools
import json
import os
import tempfile

import torch
import transformers

from dash_jax.model import hf, meta
from experiments.parity.report import Report

# Hugging Face's part of a name, Meta's, and the axis that Meta cuts.
_LAYER = (
  ('input_layernorm', 'attention_norm', None),
  ('self_attn.q_proj', 'attention.wq', 0),
  ('self_attn.k_proj', 'attention.wk', 0),
  ('self_attn.v_proj', 'attention.wv', 0),
  ('self_attn.o_proj', 'attention.wo', 1),
  ('post_attention_layernorm', 'ffn_norm', None),
  ('mlp.gate_proj', 'feed_forward.w1', 0),
  ('mlp.up_proj', 'feed_forward.w3', 0),
  ('mlp.down_proj', 'feed_forward.w2', 1),
)
_SIZES = {
  'vocab_size': 98,
  'hidden_size': 48,
  'intermediate_size': 176,
  'num_hidden_layers': 3,
  'num_attention_heads': 6,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-5,
}
_PARAMS = {
  'dim': 48,
  'multiple_of': 16,
  'ffn_dim_multiplier': 1.3,
  'n_layers': 3,
  'n_heads': 6,
  'n_kv_heads': 2,
  'norm_eps': 1e-5,
}


def check_meta(report: Report) -> None:
  """Adds a check for each way in which Meta has cut its models."""
  llama2 = {'rope_theta': 1e4}
  llama3 = {'rope_theta': 5e5}
  llama3_1 = {**llama3, 'factor': 8.0}
  llama3_2 = {**llama3, 'factor': 32.0}
  # Whose embedding is cut in columns and whose in rows; the number of files.
  _check(report, 'Llama 2', 1, 1, torch.float16, llama2)
  _check(report, 'Llama 2', 1, 2, torch.float16, llama2)
  _check(report, 'Llama 3', 0, 2, torch.bfloat16, llama3)
  _check(report, 'Llama 3.1', 0, 2, torch.bfloat16, llama3_1)
  _check(report, 'Llama 3.2', 0, 1, torch.bfloat16, llama3_2, tied=True)
  _check(report, 'Llama 3', 0, 2, torch.float32, llama3)


def _check(report, name, embed_axis, num_files, dtype, rope, tied=False):
  torch.manual_seed(0)
  scaling = {'rope_type': 'default'}
  if 'factor' in rope:
    scaling = {
      'rope_type': 'llama3',
      'low_freq_factor': 1.0,
      'high_freq_factor': 4.0,
      'original_max_position_embeddings': 8192,
    }
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      **_SIZES,
      max_position_embeddings=131072,
      tie_word_embeddings=tied,
      rope_parameters=scaling | rope,
    )
  ).to(dtype)
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter)
  params = dict(_PARAMS, vocab_size=-1 if embed_axis else 98)
  if not embed_axis:
    params['rope_theta'] = rope['rope_theta']
    params['use_scaled_rope'] = 'factor' in rope
  with tempfile.TemporaryDirectory() as folder:
    model.config.save_pretrained(folder)
    _save(folder, model, params, embed_axis, num_files)
    config = meta.read_config(folder)
    same_config = config == hf.read_config(folder)
    theirs = model.state_dict()
    opened = meta.open_tensors(folder, config)
    equal = [
      torch.equal(_read_bits(opened[n]), theirs[n].float().view(torch.int32))
      for n in theirs.keys() & opened.keys()
    ]
    report.add(
      f'Meta folder, {name} in {num_files} of {str(dtype)[6:]}',
      same_config and opened.keys() == theirs.keys() and all(equal),
      f'{sum(equal)} of {len(theirs)} tensors are equal bit by bit, the '
      f'architecture {"too" if same_config else f"not: {config}"}',
    )


def _read_bits(tensor) -> torch.Tensor:
  """Returns the whole tensor as the bits of float32, which holds them all."""
  array = tensor.read(tuple(slice(0, size) for size in tensor.shape))
  return torch.from_numpy(array.astype('float32').view('int32'))


def _save(folder, model, params, embed_axis, num_files) -> None:
  """Writes the model's weights and `params` as Meta does."""
  theirs = model.state_dict()
  cut = {
    'tok_embeddings.weight': (theirs['model.embed_tokens.weight'], embed_axis),
    'norm.weight': (theirs['model.norm.weight'], None),
    'output.weight': (theirs['lm_head.weight'], 0),
  }
  layers = range(params['n_layers'])
  for layer, (name, meta_name, axis) in itertools.product(layers, _LAYER):
    weight = theirs[f'model.layers.{layer}.{name}.weight']
    if name.endswith(('q_proj', 'k_proj')):
      halves = weight.unflatten(0, (-1, 2, model.config.head_dim // 2))
      weight = halves.transpose(1, 2).flatten(0, 2)
    cut[f'layers.{layer}.{meta_name}.weight'] = (weight, axis)
  for i in range(num_files):
    state = torch.nn.Module().state_dict()  # With the attributes of a real one.
    for name, (weight, axis) in cut.items():
      if axis is not None:
        weight = weight.chunk(num_files, axis)[i]
      state[name] = weight.clone(memory_format=torch.contiguous_format)
    if embed_axis:
      state['rope.freqs'] = torch.ones(4)
    torch.save(state, os.path.join(folder, f'consolidated.{i:02}.pth'))
  with open(os.path.join(folder, 'params.json'), 'w', encoding='utf-8') as file:
    json.dump(params, file)
