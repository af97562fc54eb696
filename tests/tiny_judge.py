"""A reward model of noise with its own tokenizer, as a Hugging Face folder."""

import json

import jax
import numpy as np

from dash_jax.data import addition, pieces
from dash_jax.model import hf_write, llama

CONFIG = llama.LlamaConfig(
  vocab_size=300,
  embed_dim=16,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=8,
  ffw_dim=24,
  tied=True,
  scalar_head=True,
)


def train_tokenizer(folder):
  """Returns the path of a sentencepiece model."""
  path = str(folder / 'tokenizer.model')
  texts = [q.prompt + q.solution for q in addition.generate(50, 'train', 0)]
  pieces.train(texts, CONFIG.vocab_size, path)
  return path


def write(folder):
  """Writes the model to `folder`, which exists; returns its weights."""
  tokenizer = pieces.from_file(train_tokenizer(folder))
  tokenizer.save(folder)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda w: (0.3 * rng.normal(size=w.shape)).astype(np.float32),
    llama.weights(CONFIG),
    is_leaf=llama.is_weight,
  )
  fields = hf_write.make_config(
    CONFIG,
    dtype='float32',
    max_len=64,
    bos_id=tokenizer.bos_id,
    stop_ids=tokenizer.stop_ids,
    pad_id=tokenizer.pad_id,
  )
  (folder / 'config.json').write_text(json.dumps(fields))
  hf_write.write_weights(folder, CONFIG, params)
  return params
