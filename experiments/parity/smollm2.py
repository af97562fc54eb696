"""SmolLM2-135M-Instruct, from the GGUF file that both sides read by themselves.

Every weight must be equal bit by bit; logits, greedy continuations and the
gradients of a GRPO loss must agree.
"""

import os

import jax
import numpy as np
import torch
import transformers

from dash_jax.data import chat, tokenizer
from dash_jax.model import gguf
from experiments.parity import draw, models, ours, theirs
from experiments.parity.report import Report, find_gap
from experiments.parity.texts import TEXTS

# Sums of 576 and of 49,152 terms, in 30 layers; logits are up to 40.
_MAX_LOGIT_GAP = 1e-3
_MAX_GRADIENT_GAP = 1e-3

_QUESTIONS = ('What is 12 + 30?', 'Name a prime number above 20.')
_REPLIES = (
  (' The answer is 42.', ' 12 + 30 = 52'),
  (' 23', ' It is 27, I think'),
)


def check_smollm2(report: Report, path: str, tok: tokenizer.Tokenizer) -> None:
  """Args: path is of the GGUF file, tok the tokenizer in it."""
  config = gguf.read_config(path)
  params = gguf.read_weights(path, config)
  folder, name = os.path.split(path)
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32
  ).eval()
  # The file's pad token is its EOS; torch would leave out what that token's
  # embedding gets from being read.
  model.get_input_embeddings().padding_idx = None
  want = dict(model.named_parameters())
  found = ours.to_disk(config, jax.device_get(params))
  equal = [np.array_equal(found[n], x.detach()) for n, x in want.items()]
  report.add(
    'SmolLM2 weights',
    all(equal) and found.keys() == want.keys(),
    f'{sum(equal)} of {len(found)} tensors are equal bit by bit',
  )
  prompts = [
    chat.encode_prompt(question, tok, chat.CHAT) for question in _QUESTIONS
  ]
  ids = [tok.encode(text) for text in TEXTS] + prompts
  logits = [theirs.compute_logits(model, row) for row in ids]
  gap = find_gap(ours.compute_logits(config, params, ids), logits)
  report.add_gap('SmolLM2 logits', 'differ by at most', gap, _MAX_LOGIT_GAP)
  rows = draw.make_rows(
    prompts, [[tok.encode(text) for text in group] for group in _REPLIES]
  )
  logprobs = models.check_logprobs(
    report, 'SmolLM2', model, config, params, rows
  )
  models.check_greedy(report, 'SmolLM2', model, config, params, prompts, 24)
  models.check_gradient(
    report, 'SmolLM2', (model, None), config, (params, None), rows,
    draw.make_old(rows, logprobs), 0.0, _MAX_GRADIENT_GAP,
  )  # fmt: skip
