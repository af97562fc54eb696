"""A model of transformers in Meta's layout, saved by torch, read by us.

q and k rows are interleaved and the tensors split over files here, from what
Meta's own code says of its layout; every weight must come back bit by bit.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np
import torch

from dash_jax.model import hf, meta
from experiments.parity import ours, theirs
from experiments.parity.report import Report

_PARTS = (
  ('model.embed_tokens', 'tok_embeddings'),
  ('model.norm', 'norm'),
  ('lm_head', 'output'),
  ('model.layers', 'layers'),
  ('input_layernorm', 'attention_norm'),
  ('post_attention_layernorm', 'ffn_norm'),
  ('self_attn.q_proj', 'attention.wq'),
  ('self_attn.k_proj', 'attention.wk'),
  ('self_attn.v_proj', 'attention.wv'),
  ('self_attn.o_proj', 'attention.wo'),
  ('mlp.gate_proj', 'feed_forward.w1'),
  ('mlp.up_proj', 'feed_forward.w3'),
  ('mlp.down_proj', 'feed_forward.w2'),
)


def check_meta(report: Report) -> None:
  case = theirs.list_cases()['llama2']
  model = theirs.make_model(case).to(torch.bfloat16)
  for num_files, columns in ((1, False), (2, True), (2, False)):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      model.save_pretrained(folder / 'hf')
      _write(folder / 'meta', model, case, num_files, columns)
      config = hf.read_config(folder / 'hf')
      config_found = meta.read_config(folder / 'meta')
      want = ours.to_disk(
        config, jax.device_get(hf.read_weights(folder / 'hf', config))
      )
      found = ours.to_disk(
        config, jax.device_get(meta.read_weights(folder / 'meta', config))
      )
    equal = [np.array_equal(found[name], x) for name, x in want.items()]
    report.add(
      f"Meta's folder, {num_files} files"
      + (', embedding split by columns' if columns else ''),
      all(equal) and config_found == config,
      f'{sum(equal)} of {len(want)} tensors are equal bit by bit',
    )


def _write(folder, model, case, num_files, columns):
  folder.mkdir()
  fields = {
    'dim': case.hidden_size,
    'n_layers': case.num_hidden_layers,
    'n_heads': case.num_attention_heads,
    'vocab_size': -1 if columns else case.vocab_size,
    'multiple_of': 8,
    'ffn_dim_multiplier': case.intermediate_size / (8 * case.hidden_size / 3),
    'norm_eps': case.rms_norm_eps,
  }
  (folder / 'params.json').write_text(json.dumps(fields))
  files = [{} for _ in range(num_files)]
  for name, x in model.state_dict().items():
    for part, other in _PARTS:
      name = name.replace(part, other)
    if name.endswith(('wq.weight', 'wk.weight')):
      heads = x.view(case.num_attention_heads, 2, -1, x.shape[1])
      x = heads.transpose(1, 2).reshape(x.shape)
    axis = int(name.endswith(('wo.weight', 'w2.weight')))
    if name.startswith('tok_embeddings'):
      axis = int(columns)
    pieces = [x] * num_files if x.ndim == 1 else x.chunk(num_files, axis)
    for file, piece in zip(files, pieces, strict=True):
      file[name] = piece.contiguous().clone()
  for i, file in enumerate(files):
    torch.save(file, folder / f'consolidated.{i:02}.pth')
