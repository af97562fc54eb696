"""Small models of every architecture: ours beside transformers'.

Each is saved by transformers and read by us. Log-probabilities, greedy
continuations and the gradients of a GRPO loss must agree; then we take one
optimizer step and write the model, and transformers computes from it what we do.
"""

import itertools
import json
import pathlib
import tempfile

import jax
import transformers

from dash_jax import sharding
from dash_jax.model import hf, hf_write
from experiments.parity import draw, ours, theirs
from experiments.parity.report import Report, find_gap, find_relative_gap

# float32 sums in another order, on log-probabilities of 1 to 15 and on logits
# of up to 10.
MAX_LOGPROB_GAP = 1e-4
MAX_LOGIT_GAP = 1e-4
# Of a tensor's largest gradient: the same sums, backwards through two layers.
MAX_GRADIENT_GAP = 1e-4
KL_COEF = 0.1


def check_models(report: Report) -> None:
  for name, case in theirs.list_cases().items():
    model = theirs.make_model(case)
    reference = theirs.make_model(case, seed=1)
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      model.save_pretrained(folder / 'policy')
      reference.save_pretrained(folder / 'reference')
      config = hf.read_config(folder / 'policy')
      params = hf.read_weights(folder / 'policy', config)
      ref_params = hf.read_weights(folder / 'reference', config)
    rows = draw.draw_rows(config.vocab_size)
    logprobs = check_logprobs(report, name, model, config, params, rows)
    old = draw.make_old(rows, logprobs)
    check_greedy(report, name, model, config, params, rows.prompts, 12)
    for kl_coef in (0.0, KL_COEF):
      check_gradient(
        report, name, (model, reference), config, (params, ref_params), rows,
        old, kl_coef, MAX_GRADIENT_GAP,
      )  # fmt: skip
    check_export(report, name, model, config, params, rows, old)


def check_logprobs(report, name, model, config, params, rows):
  """Returns transformers' log-probabilities."""
  want = theirs.compute_logprobs(model, rows)
  found = ours.compute_logprobs(config, params, rows)
  gap = find_gap(itertools.chain(*found), itertools.chain(*want))
  report.add_gap(f'{name}, logprobs', 'differ by at most', gap, MAX_LOGPROB_GAP)
  return want


def check_greedy(report, name, model, config, params, prompts, max_len):
  """The stop id is one that the first continuation comes to half way."""
  free = theirs.generate(model, prompts[:1], stop_id=-1, max_len=max_len)
  stop_id = free[0][max_len // 2]
  want = theirs.generate(model, prompts, stop_id, max_len)
  found = ours.generate(config, params, prompts, stop_id, max_len)
  lengths = ', '.join(str(len(reply)) for reply in want)
  report.add(
    f'{name}, greedy',
    found == want and want[0][-1] == stop_id,
    f'{sum(x == y for x, y in zip(found, want, strict=True))} of'
    f' {len(want)} continuations are equal ({lengths} tokens)',
  )


def check_gradient(
  report, name, models, config, params, rows, old, kl_coef, allowed
):
  """Args: models and params are each policy and reference."""
  want_loss, want, clipped = theirs.compute_gradient(
    models[0], rows, old, models[1], kl_coef
  )
  loss, found = ours.compute_gradient(
    config, params[0], rows, old, params[1] if kl_coef else None, kl_coef
  )
  gap = find_relative_gap(found, want)
  loss_gap = abs(loss - want_loss) / abs(want_loss)
  report.add(
    f'{name}, GRPO gradient' + (', with KL' if kl_coef else ''),
    gap <= allowed and loss_gap <= allowed and 0 < clipped < 1,
    f'{len(want)} tensors differ by at most {gap:.2g} of their largest (allowed'
    f' {allowed:g}), the loss by {loss_gap:.2g} of itself; {clipped:.0%} of'
    ' tokens clipped',
  )


def check_export(report, name, model, config, params, rows, old):
  """Takes a step, and lets transformers read what we write."""
  ids = [
    prompt + group[0]
    for prompt, group in zip(rows.prompts, rows.replies, strict=True)
  ]
  before = [theirs.compute_logits(model, row) for row in ids]
  params = ours.take_step(config, params, rows, old)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    fields = hf_write.make_config(
      config, dtype='float32', max_len=128, bos_id=None, stop_ids=(0,)
    )
    (folder / 'config.json').write_text(json.dumps(fields))
    hf_write.write_weights(folder, config, params)
    again = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
  after = [theirs.compute_logits(again, row) for row in ids]
  gap = find_gap(ours.compute_logits(config, params, ids), after)
  moved = find_gap(after, before)
  report.add(
    f'{name}, one step and out again',
    gap <= MAX_LOGIT_GAP and moved > 100 * MAX_LOGIT_GAP,
    f"transformers' logits differ from ours by at most {gap:.2g} (allowed"
    f' {MAX_LOGIT_GAP:g}); the step moved them by {moved:.2g}',
  )


def make_mesh():
  """Returns a mesh of one device, on which all checks run."""
  return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
