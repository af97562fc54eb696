"""Weights and architecture into a Hugging Face folder; hf.py reads it back.

1. `make_config` says the architecture in the fields of config.json.
2. `write_weights` turns each weight of `tensors.list_places` into the tensor on
   disk, and cuts them into files of at most `max_file_bytes`.
"""

import json
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
import safetensors.numpy

from dash_jax.model import llama, tensors

MAX_FILE_BYTES = 5 * 10**9


def make_config(
  config: llama.LlamaConfig,
  *,
  dtype: str,
  max_len: int,
  bos_id: int | None,
  stop_ids: Sequence[int],
  pad_id: int | None = None,
) -> dict:
  """Returns the fields of config.json.

  Mistral without its window and Llama 2 and 3 compute the same: all are written
  as model_type 'llama'. With a scalar head it is a model that classifies, which
  has no lm_head.

  Args:
    config: the architecture.
    dtype: of the tensors.
    max_len: tokens a row that the model was made for.
    bos_id, stop_ids, pad_id: as the tokenizer has them.

  Raises:
    ValueError: no model type has this mix of features.
  """
  if config.qk_norm and config.qkv_bias:
    raise ValueError('no Hugging Face model type has both qkv_bias and qk_norm')
  kind, name = ('llama', 'Llama')
  if config.qkv_bias:
    kind, name = ('qwen2', 'Qwen2')
  elif config.qk_norm:
    kind, name = ('qwen3', 'Qwen3')
  fields = {
    'architectures': [f'{name}ForCausalLM'],
    'model_type': kind,
    'vocab_size': config.vocab_size,
    'hidden_size': config.embed_dim,
    'num_hidden_layers': config.num_layers,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.ffw_dim,
    'hidden_act': 'silu',
    'rms_norm_eps': config.norm_eps,
    'rope_theta': config.rope_theta,
    'rope_scaling': None,
    'tie_word_embeddings': config.tied,
    'max_position_embeddings': max_len,
    'torch_dtype': dtype,
    'bos_token_id': bos_id,
    'eos_token_id': list(stop_ids),
    'pad_token_id': pad_id,
  }
  if config.scalar_head:
    fields['architectures'] = [f'{name}ForSequenceClassification']
    fields |= {'id2label': {'0': 'score'}, 'label2id': {'score': 0}}
  if config.rope_scaling is not None:
    s = config.rope_scaling
    fields['rope_scaling'] = {
      'rope_type': 'llama3',
      'factor': s.factor,
      'low_freq_factor': s.low_freq_factor,
      'high_freq_factor': s.high_freq_factor,
      'original_max_position_embeddings': s.original_max_len,
    }
  return fields


def write_weights(
  folder: pathlib.Path,
  config: llama.LlamaConfig,
  params: dict,
  *,
  max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes `params` as safetensors files, with an index if there are several.

  Args:
    folder: exists.
    config: the architecture of `params`.
    params: weights in the tree of `llama.weights`, written in their own type.
    max_file_bytes: a file holds no more, unless one tensor does.
  """
  places = tensors.list_places(config)
  itemsize = params['embed'].dtype.itemsize
  # Each file's tensors, in order: a new one begins where the next is too much.
  sizes = {n: int(np.prod(p.shape)) * itemsize for n, p in places.items()}
  files, used = [[]], 0
  for name, size in sizes.items():
    if files[-1] and used + size > max_file_bytes:
      files.append([])
      used = 0
    files[-1].append(name)
    used += size
  weight_map = {}
  for number, names in enumerate(files, start=1):
    file = 'model.safetensors'
    if len(files) > 1:
      file = f'model-{number:05}-of-{len(files):05}.safetensors'
    weight_map |= dict.fromkeys(names, file)
    safetensors.numpy.save_file(
      {name: _read(params, places[name]) for name in names},
      folder / file,
      # transformers refuses files that do not say so.
      metadata={'format': 'pt'},
    )
  if len(files) > 1:
    index = {
      'metadata': {'total_size': sum(sizes.values())},
      'weight_map': weight_map,
    }
    text = json.dumps(index, indent=2)
    (folder / 'model.safetensors.index.json').write_text(text)


def _read(params, place) -> np.ndarray:
  """Returns one tensor as it is on disk, [out, in] if it is linear."""
  if place.layer is None:
    x = jax.device_get(params[place.name])
  else:
    x = jax.device_get(params['layers'][place.name][place.layer])
  return tensors.to_disk(x, place)
