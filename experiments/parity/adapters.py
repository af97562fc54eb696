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
from peft import PeftModel

from dash_jax.model import hf, llama, lora, peft
from experiments.parity import ours, theirs
from experiments.parity.report import Report, find_gap

_MAX_GAP = 1e-4  # float32 sums in another order; logits are up to 10


def check_adapters(report: Report) -> None:
  base = theirs.make_model(theirs.list_cases()['llama3'])
  rng = np.random.default_rng(0)
  rows = rng.integers(0, base.config.vocab_size, (2, 24)).tolist()
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
    peft.write_adapters(folder / 'adapters', config, params, base='base')
    model = PeftModel.from_pretrained(base, folder / 'adapters').eval()
  want = ours.compute_logits(config, params, rows)

  def compare(model):
    return find_gap([theirs.compute_logits(model, row) for row in rows], want)

  what = 'logits differ by at most'
  report.add_gap('peft, base + adapters', what, compare(model), _MAX_GAP)
  with model.disable_adapter():
    gap = compare(model)
  report.add(
    'peft, without adapters',
    gap > 0.1,
    f'logits differ by up to {gap:.2g}: they count',
  )
  merged = compare(model.merge_and_unload())
  report.add_gap('peft, merged by peft', what, merged, _MAX_GAP)
