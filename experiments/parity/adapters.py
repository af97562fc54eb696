"""Adapters that we write, as the package `peft` reads them.

A random model of transformers gets random adapters on all eight linear layers;
our logits with base + adapter, peft's from the PEFT folder that we write, and
peft's once it has merged them by its own arithmetic, must agree.
"""

import dataclasses
import pathlib
import tempfile

import jax
import numpy as np
import peft
import torch
import transformers

from dash_jax.model import hf, llama, lora
from dash_jax.model import peft as ours
from experiments.parity.report import Report

_MAX_GAP = 1e-4  # float32 sums in another order; logits are up to 10


def check_adapters(report: Report) -> None:
  torch.manual_seed(0)
  base = transformers.AutoModelForCausalLM.from_config(
    transformers.LlamaConfig(
      vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
      num_attention_heads=6, num_key_value_heads=2, head_dim=16,
      initializer_range=0.2, tie_word_embeddings=False,
    )
  )  # fmt: skip
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 97, (2, 24)).astype(np.int32)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    base.save_pretrained(folder / 'base')
    config = hf.read_config(folder / 'base')
    frozen = hf.read_weights(folder / 'base', config)
    adapters = lora.Lora(rank=4, alpha=6.0, targets=tuple(lora.TARGETS))
    config = dataclasses.replace(config, lora=adapters)
    drawn = jax.tree.map(
      lambda w: (0.2 * rng.normal(size=w.shape)).astype(np.float32),
      llama.weights(config),
      is_leaf=llama.is_weight,
    )
    params = lora.join(lora.split(adapters, drawn)[0], frozen)
    (folder / 'adapters').mkdir()
    ours.write_adapters(folder / 'adapters', config, params, base='base')
    model = llama.Llama(config)

    @jax.jit
    def run(params):
      x = model.apply({'params': params}, tokens, np.ones(tokens.shape, bool))
      return model.apply({'params': params}, x, method='logits')

    want = np.asarray(run(params))
    theirs = peft.PeftModel.from_pretrained(base, folder / 'adapters').eval()
    _compare(report, 'peft, base + adapters', theirs, tokens, want)
    with theirs.disable_adapter():
      without = _run(theirs, tokens)
    report.add(
      'peft, without adapters',
      np.abs(without - want).max() > 0.1,
      f'logits differ by up to {np.abs(without - want).max():.2g}: they count',
    )
    _compare(
      report, 'peft, merged by peft', theirs.merge_and_unload(), tokens, want
    )


def _compare(report, name, model, tokens, want):
  gap = float(np.abs(_run(model, tokens) - want).max())
  report.add_gap(name, 'logits differ by at most', gap, _MAX_GAP)


def _run(model, tokens):
  with torch.no_grad():
    return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
