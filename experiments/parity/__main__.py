"""Runs every check; prints a line for each, and exits with 1 if one fails."""

import os
import sys
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import torch
import transformers

from dash_jax.data import bpe
from dash_jax.model import gguf
from experiments.parity import (
  adapters,
  chats,
  meta,
  models,
  rewards,
  smollm2,
  supports,
  texts,
)  # fmt: skip
from experiments.parity.report import Report


def main() -> int:
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  # Two spin at barriers, and on a busy machine take many times as long.
  torch.set_num_threads(1)
  report, start = Report(), time.perf_counter()
  path = gguf.find_packaged()
  tokenizer = bpe.from_gguf(path)
  with jax.set_mesh(models.make_mesh()):
    # Compiling is most of what small models take.
    jax.config.update('jax_disable_most_optimizations', True)
    models.check_models(report)
    adapters.check_adapters(report)
    rewards.check_rewards(report)
    jax.config.update('jax_disable_most_optimizations', False)
    supports.check_supports(report)
    meta.check_meta(report)
    chats.check_chats(report)
    texts.check_tokenizer(report, path, tokenizer)
    smollm2.check_smollm2(report, path, tokenizer)
  seconds = time.perf_counter() - start
  print(f'{report.num_failed} checks failed; {seconds:.0f} s')
  return int(report.num_failed > 0)


if __name__ == '__main__':
  sys.exit(main())
