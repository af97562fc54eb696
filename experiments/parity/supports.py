"""The support that a token is drawn from, and its log-probabilities, as
transformers' own warpers cut it: temperature, top_k, top_p, min_p and the least
length, in the order in which `generate` applies them.
"""

import numpy as np
import torch
import transformers

from dash_jax.sampling import decoding
from experiments.parity.report import Report

_V, _ROWS = 500, 40
_STOPS = (3, 77)
_CASES = (
  {'temperature': 0.7},
  {'temperature': 1.0, 'top_k': 20},
  {'temperature': 1.3, 'top_p': 0.8},
  {'temperature': 0.9, 'min_p': 0.03},
  {'temperature': 1.4, 'top_k': 100, 'top_p': 0.9},
  {'temperature': 0.8, 'top_k': 2 * _V, 'top_p': 0.95, 'min_p': 0.01},
  {'temperature': 1.0, 'top_k': 50, 'min_len': 4},
)


def check_supports(report: Report) -> None:
  logits = 2 * np.random.default_rng(0).normal(size=(_ROWS, _V))
  logits = logits.astype(np.float32)
  for case in _CASES:
    expected = _warp(torch.from_numpy(logits), **case).double()
    expected = expected.log_softmax(-1).numpy()
    how = decoding.make_decoding(**case, stop_ids=_STOPS)
    slots = np.zeros((_ROWS, _V), np.int32)
    rows, tokens = np.nonzero(np.isfinite(expected))
    found = decoding.token_logprobs(
      logits[rows], tokens.astype(np.int32), slots[rows, 0], how
    )
    gap = np.abs(np.asarray(found) - expected[rows, tokens]).max()
    name = ', '.join(f'{key} {value}' for key, value in case.items())
    what = f"the {len(rows)} kept tokens' logprobs are off by"
    report.add_gap(f'support, {name}', what, gap, 1e-5)


def _warp(scores, temperature, top_k=0, top_p=1.0, min_p=0.0, min_len=0):
  warpers = transformers.LogitsProcessorList()
  if min_len:
    warpers.append(
      transformers.MinNewTokensLengthLogitsProcessor(1, min_len, list(_STOPS))
    )
  warpers.append(transformers.TemperatureLogitsWarper(temperature))
  if top_k:
    warpers.append(transformers.TopKLogitsWarper(top_k))
  if top_p < 1:
    warpers.append(transformers.TopPLogitsWarper(top_p))
  if min_p:
    warpers.append(transformers.MinPLogitsWarper(min_p))
  return warpers(torch.zeros((len(scores), 1), dtype=torch.long), scores)
