"""Every architecture beside values that transformers and torch computed.

`python -m experiments.parity.make_reference` made reference.json from the same
drawn weights and rows; `python -m experiments.parity` compares more of the same
where torch is installed.
"""

import itertools
import json
import pathlib

import numpy as np
import pytest
from safetensors import numpy as safetensors

from dash_jax.model import hf
from experiments.parity import draw, ours

STORED = json.loads(
  pathlib.Path(__file__).with_name('reference.json').read_text()
)['cases']

pytestmark = pytest.mark.usefixtures('mesh')


def read(folder, case, seed=0, **changes):
  """Returns config and weights of a folder as transformers would write it."""
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(case['config'] | changes))
  drawn = {
    name: draw.draw_tensor(name, tuple(shape), seed)
    for name, shape in case['shapes'].items()
  }
  safetensors.save_file(drawn, folder / 'model.safetensors')
  config = hf.read_config(folder)
  return config, hf.read_weights(folder, config)


def find_logprob_gap(case, config, params):
  rows = draw.draw_rows(config.vocab_size)
  found = ours.compute_logprobs(config, params, rows)
  return max(
    np.abs(np.asarray(x) - y).max()
    for x, y in zip(
      itertools.chain(*found), itertools.chain(*case['logprobs']), strict=True
    )
  )


@pytest.mark.parametrize('name', STORED)
def test_logprobs_and_greedy_continuations(tmp_path, name):
  """Rows are padded here and were not there; the continuations come from the
  sampler's cache, and end at a stop id or are full."""
  case = STORED[name]
  config, params = read(tmp_path / 'm', case)
  assert find_logprob_gap(case, config, params) <= 1e-4
  prompts = draw.draw_rows(config.vocab_size).prompts
  found = ours.generate(
    config, params, prompts, case['stop_id'], case['max_len']
  )
  assert found == case['continuations']
  assert found[0][-1] == case['stop_id']


@pytest.mark.parametrize('name', STORED)
def test_the_gradient_of_a_grpo_loss(tmp_path, name):
  """With clipped ratios and a KL term. Of each tensor's gradient its length and
  one projection are known: another gradient has another."""
  case = STORED[name]
  config, params = read(tmp_path / 'policy', case)
  _, ref_params = read(tmp_path / 'reference', case, seed=1)
  rows = draw.draw_rows(config.vocab_size)
  logprobs = [[np.array(x) for x in group] for group in case['logprobs']]
  old = draw.make_old(rows, logprobs)
  loss, gradient = ours.compute_gradient(
    config, params, rows, old, ref_params, case['kl_coef']
  )
  assert loss == pytest.approx(case['loss'], rel=1e-4)
  assert gradient.keys() == case['shapes'].keys()
  for tensor, x in gradient.items():
    length = case['gradient_lengths'][tensor]
    assert length > 1e-3
    assert np.linalg.norm(x) == pytest.approx(length, rel=1e-4), tensor
    projection = (x * draw.draw_direction(tensor, x.shape)).sum()
    want = case['gradient_projections'][tensor]
    assert projection == pytest.approx(want, abs=1e-4 * length), tensor


@pytest.mark.parametrize(
  ('name', 'change'),
  [
    ('llama2', {'rms_norm_eps': 1e-2}),
    (
      'llama3',
      {'rope_parameters': {'rope_type': 'default', 'rope_theta': 9e3}},
    ),
    ('llama3_1', {'rope_parameters': None, 'rope_theta': 500.0}),
    # The same tensors, cut into fewer and wider heads.
    (
      'llama3_2',
      {'head_dim': 8, 'num_attention_heads': 3, 'num_key_value_heads': 1},
    ),
  ],
)
def test_another_model_fails(tmp_path, name, change):
  """The smallest of these mistakes is a hundred times what is allowed."""
  case = STORED[name]
  config, params = read(tmp_path / 'm', case, **change)
  assert find_logprob_gap(case, config, params) > 1e-2
