"""Stores what transformers and torch compute, for tests that run without them.

    python -m experiments.parity.make_reference tests/model/reference.json

For every architecture of theirs.py: the config.json that transformers writes,
the tensors' shapes, the log-probabilities of draw.py's rows, a greedy
continuation, the GRPO loss with a KL term, and of each tensor's gradient its
length and its projection on a direction that its name draws.
"""

import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

from experiments.parity import draw, models, theirs

MAX_LEN = 12


def make_case(case: transformers.PretrainedConfig) -> dict:
  """Returns what is stored of one architecture."""
  model = theirs.make_model(case)
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config = json.loads(pathlib.Path(folder, 'config.json').read_text())
  rows = draw.draw_rows(case.vocab_size)
  logprobs = theirs.compute_logprobs(model, rows)
  free = theirs.generate(model, rows.prompts[:1], stop_id=-1, max_len=MAX_LEN)
  stop_id = free[0][MAX_LEN // 2]
  loss, gradient, _ = theirs.compute_gradient(
    model,
    rows,
    draw.make_old(rows, logprobs),
    theirs.make_model(case, seed=1),
    models.KL_COEF,
  )
  return {
    'config': config,
    'shapes': {name: list(x.shape) for name, x in gradient.items()},
    'logprobs': [[x.tolist() for x in group] for group in logprobs],
    'stop_id': stop_id,
    'max_len': MAX_LEN,
    'continuations': theirs.generate(model, rows.prompts, stop_id, MAX_LEN),
    'kl_coef': models.KL_COEF,
    'loss': loss,
    'gradient_lengths': {
      name: float(np.linalg.norm(x)) for name, x in gradient.items()
    },
    'gradient_projections': {
      name: float((x * draw.draw_direction(name, x.shape)).sum())
      for name, x in gradient.items()
    },
  }


def main(path: str) -> None:
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  stored = {
    'versions': {m.__name__: m.__version__ for m in (torch, transformers)},
    'cases': {
      name: make_case(case) for name, case in theirs.list_cases().items()
    },
  }
  pathlib.Path(path).write_text(json.dumps(stored) + '\n', encoding='utf-8')


if __name__ == '__main__':
  main(*sys.argv[1:])
