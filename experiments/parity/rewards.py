"""Reward models: transformers' classifiers with one label, beside ours.

Each is saved by transformers and read by us. The scores of rows, and the gradient
of the loss of their pairs, written in torch, must agree; so must the scores of
the folder that we write, as transformers reads it.
"""

import json
import pathlib
import tempfile

import jax
import numpy as np
import torch
import transformers

from dash_jax import sharding
from dash_jax.learning import reward_model
from dash_jax.model import hf, hf_write, llama
from experiments.parity import draw, ours, theirs
from experiments.parity.report import Report, find_gap

_CASES = ('llama3', 'qwen2_tied', 'qwen3')
# float32 sums in another order, of scores of 0.1 to 3 and gradients of up to 1.
_MAX_GAP = 1e-5


def check_rewards(report: Report) -> None:
  for name in _CASES:
    case = theirs.list_cases()[name]
    case.num_labels = 1
    model = _make_model(case)
    rows = draw.draw_rows(case.vocab_size)
    chosen, rejected = (
      [
        p + group[i]
        for p, group in zip(rows.prompts, rows.replies, strict=True)
      ]
      for i in range(2)
    )
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      model.save_pretrained(folder)
      config = hf.read_config(folder)
      params = hf.read_weights(folder, config)
    want, want_gradient = _compute_theirs(model, chosen, rejected)
    found, gradient = _compute_ours(config, params, chosen, rejected)
    gap = find_gap(found, want)
    report.add_gap(f'{name}, scores', 'differ by at most', gap, _MAX_GAP)
    report.add_gap(
      f"{name}, gradient of the pairs' loss",
      f'{len(gradient)} tensors differ by at most',
      find_gap(
        [gradient[name] for name in want_gradient], want_gradient.values()
      ),
      _MAX_GAP,
    )
    again = _write_and_read(config, params)
    gap = find_gap(_compute_theirs(again, chosen, rejected)[0], want)
    report.add_gap(
      f'{name}, out again', "transformers' scores move by", gap, _MAX_GAP
    )


def _make_model(case):
  auto = transformers.AutoModelForSequenceClassification
  model = auto.from_config(case).eval()
  with torch.no_grad():
    for name, x in model.named_parameters():
      x.copy_(torch.from_numpy(draw.draw_tensor(name, tuple(x.shape))))
  return model


def _compute_theirs(model, chosen, rejected):
  """Returns scores of all rows, chosen first, and the gradient by tensor."""
  model.zero_grad()
  scores = [
    torch.stack([model(torch.tensor([row])).logits[0, 0] for row in rows])
    for rows in (chosen, rejected)
  ]
  torch.nn.functional.softplus(scores[1] - scores[0]).mean().backward()
  gradient = {n: x.grad.numpy().copy() for n, x in model.named_parameters()}
  return [x.detach().numpy() for x in scores], gradient


def _compute_ours(config, params, chosen, rejected):
  model = llama.Llama(config)
  num_slots = max(map(len, [*chosen, *rejected])) + 3
  put = [
    sharding.put_rows(reward_model.pad(rows, num_slots))
    for rows in (chosen, rejected)
  ]

  @jax.jit
  @jax.grad
  def differentiate(params):
    scores = [reward_model.score_rows(model, params, rows) for rows in put]
    return reward_model.pair_loss(*scores).mean()

  scores = [np.asarray(reward_model.score(model, params, rows)) for rows in put]
  gradient = jax.device_get(differentiate(params))
  return scores, ours.to_disk(config, gradient)


def _write_and_read(config, params):
  fields = hf_write.make_config(
    config, dtype='float32', max_len=128, bos_id=None, stop_ids=(0,)
  )
  auto = transformers.AutoModelForSequenceClassification
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / 'config.json').write_text(json.dumps(fields))
    hf_write.write_weights(folder, config, params)
    return auto.from_pretrained(folder).eval()
