"""What evals.jsonl says of the policy's way from where RL began."""

import jax
import numpy as np
import plain_llama
import pytest
import tiny_run

from dash_jax import drift, train, weights
from dash_jax.runs import jsonl

STEPS = 3


def find_logprobs(params, config, rows):
  """Returns a f64[n] for each row, one at a time, in plain NumPy."""
  found = []
  for q, g in np.ndindex(rows.lengths.shape):
    prompt = rows.prompts.tokens[q][-rows.prompts.lengths[q] :]
    reply = rows.tokens[q, g][: rows.lengths[q, g]]
    logits = plain_llama.forward(params, config, [*prompt, *reply])
    at = np.arange(len(prompt) - 1, len(prompt) + len(reply) - 1)
    found.append(plain_llama.log_softmax(logits[at])[range(len(at)), reply])
  return found


def test_drift_is_what_the_first_policy_gives_its_own_tokens_more(
  mesh, monkeypatch, tmp_path
):
  """0 before the first step learns; then as computed apart, from the weights of
  the start and of a checkpoint."""
  config = tiny_run.borrow(monkeypatch)
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = STEPS * 32
  config.eval.every_samples = config.checkpoint.every_samples = 32
  config.checkpoint.keep = STEPS
  config.optim.learning_rate = 3e-3
  begin, kept = drift.begin, []

  def record(parts, phase, state, rows):
    kept.append(begin(parts, phase, state, rows))
    assert drift.measure(parts, phase, state, kept[0]) == 0.0
    return kept[0]

  monkeypatch.setattr(drift, 'begin', record)
  assert train.train(config, str(tmp_path))
  (rows,) = kept
  assert rows.lengths.shape == (8, 4)
  model = weights.make_model(config)
  start = jax.device_get(weights.load_params(config, model))
  first = find_logprobs(start, model.config, rows)
  none, *evals = jsonl.read(tmp_path / 'evals.jsonl')
  assert none['step'] == 0
  assert 'drift_kl' not in none
  for row in evals:
    params, _ = weights.restore_params(config, model, tmp_path, row['step'])
    now = find_logprobs(jax.device_get(params), model.config, rows)
    gone = np.concatenate(first) - np.concatenate(now)
    assert row['drift_kl'] == pytest.approx(gone.mean(), abs=1e-6)
  drifts = [row['drift_kl'] for row in evals]
  assert drifts == sorted(drifts)
  assert drifts[-1] > 0.01
