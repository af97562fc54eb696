"""A policy's texts are the sampler's, and its log-probabilities too."""

import contextlib
import dataclasses
import math
import runpy
import sys
import types

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, batches, sharding, weights
from dash_jax.evaluating import replies, texts
from dash_jax.sampling import decoding


class Letters:
  """A tokenizer of which every text of ids brings them back."""

  vocab_size = 304
  bos_id = None
  adds_bos = False
  stop_ids = (303,)

  def encode(self, text, special=False):
    del special
    return [ord(c) - 0x100 if ord(c) >= 0x100 else ord(c) for c in text]

  def decode(self, ids):
    return ''.join(chr(0x100 + i) for i in ids if i not in self.stop_ids)


CONTEXTS = ['1 + 2 =', '30 + 12 =', '9 + 9 + 9 =', '4']


@pytest.fixture
def make(monkeypatch, tmp_path):
  """Returns what makes a policy on a mesh, within its context."""

  # Of four contexts, so that both come in several calls.
  monkeypatch.setattr(texts, '_MOST_AT_ONCE', 3)
  monkeypatch.setattr(texts, '_TOKENS_AT_ONCE', 2 * 64)

  @contextlib.contextmanager
  def make_policy(shape=(1, 1, 1)):
    config = tiny_run.borrow(monkeypatch)
    config.data.template = 'Add: {question}'
    devices = jax.devices()[: math.prod(shape)]
    grid = jax.make_mesh(shape, sharding.AXES, devices=devices)
    with jax.set_mesh(grid):
      parts = assemble.build(config, str(tmp_path))
      parts.pool.close()
      params = weights.load_params(config, parts.model)
      yield texts.Policy(config, parts.encoding, parts.model, params)

  return make_policy


def sample(policy, temperature):
  """Returns Rollouts of the contexts, by the sampler itself."""
  sampled_by = assemble.make_sampler(
    policy.config, policy.model, jax.sharding.get_mesh(),
    num_prompts=4, group_size=1,
  )  # fmt: skip
  asked = [batches.Question(c, '', uid=i) for i, c in enumerate(CONTEXTS)]
  return sampled_by.sample(
    policy.params,
    policy.encoding.encode(asked),
    replies.make_key(policy.config.seed),
    decoding.make_decoding(
      temperature, stop_ids=policy.encoding.tokenizer.stop_ids
    ),
  )


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_completions_are_the_samplers(make, temperature):
  """Each with its own limit, and cut in front of the texts that end it."""
  with make() as policy:
    rows = sample(policy, temperature)
    wanted = [
      policy.encoding.decode(row[:n])
      for row, n in zip(rows.tokens[:, 0], rows.lengths[:, 0], strict=True)
    ]

    def complete(stops, limits):
      return policy.complete(
        [
          texts.Prompt(c, stops, limit, temperature)
          for c, limit in zip(CONTEXTS, limits, strict=True)
        ]
      )

    assert complete((), [6] * 4) == wanted
    short = complete((), [6, 2, 6, 6])
    assert wanted[1].startswith(short[1])
    assert len(short[1]) < len(wanted[1])
    assert short[2:] == wanted[2:]
    # A character from within, and a text that never comes.
    stop = wanted[0][len(wanted[0]) // 2]
    cut = complete((stop, 'never'), [6] * 4)
    assert cut == [text.partition(stop)[0] for text in wanted]
    with pytest.raises(ValueError, match=r'7 tokens .*max_completion_len=6'):
      complete((), [7] * 4)


@pytest.mark.parametrize('shape', [(1, 1, 1), (1, 2, 2)])
def test_continuations_are_as_likely_as_they_were_when_sampled(make, shape):
  """The sum of what the sampler gave each token; and the likeliest are greedy."""
  with make(shape) as policy:
    policy = dataclasses.replace(
      policy, encoding=dataclasses.replace(policy.encoding, tokenizer=Letters())
    )
    for temperature in (0.0, 1.0):
      rows = sample(policy, temperature)
      made = [policy.encoding.decode(row) for row in rows.tokens[:, 0]]
      made = [
        text[:n] for text, n in zip(made, rows.lengths[:, 0], strict=True)
      ]
      found = policy.measure(list(zip(CONTEXTS, made, strict=True)))
      if temperature:
        wanted = [
          logprobs[: len(text)].sum()
          for logprobs, text in zip(rows.logprobs[:, 0], made, strict=True)
        ]
        np.testing.assert_allclose([p for p, _ in found], wanted, rtol=1e-4)
        assert not all(greedy for _, greedy in found)
      else:
        assert all(greedy for _, greedy in found)


def test_a_whole_text_is_the_product_of_its_parts(make):
  with make() as policy:
    text = '12 + 30 = 42'
    (whole,) = policy.measure([('', text)], plain=True)
    tok = policy.encoding.tokenizer
    ids = tok.encode(text)
    first = tok.bos_id if tok.bos_id is not None else tok.stop_ids[0]
    tokens = np.array([[first, *ids]])
    x = policy.model.apply(
      {'params': policy.params}, tokens, np.ones(tokens.shape, bool)
    )
    logits = policy.model.apply({'params': policy.params}, x, method='logits')
    logprobs = np.asarray(jax.nn.log_softmax(logits[0, :-1]))
    wanted = logprobs[np.arange(len(ids)), ids].sum()
    assert whole[0] == pytest.approx(wanted, rel=1e-4)


def test_requests_of_the_harness_are_prompts(monkeypatch):
  """With a stand-in for lm_eval, whose Instances have `args`."""

  class LM:
    pass

  names = ('lm_eval', 'lm_eval.api', 'lm_eval.api.model')
  modules = {name: types.ModuleType(name) for name in names}
  modules['lm_eval.api.model'].LM = LM
  modules['lm_eval.api'].model = modules['lm_eval.api.model']
  for name in ('evaluator', 'tasks', 'utils'):
    setattr(modules['lm_eval'], name, None)
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.delitem(sys.modules, 'dash_jax.harness', raising=False)
  from dash_jax import harness

  asked = []
  policy = types.SimpleNamespace(
    encoding=types.SimpleNamespace(max_completion_len=64),
    complete=lambda prompts: asked.extend(prompts) or ['x'] * len(prompts),
    measure=lambda pairs, plain=False: [(-len(b), plain) for _, b in pairs],
  )
  model = harness.HarnessModel(policy)

  def request(*args):
    return types.SimpleNamespace(args=args)

  options = [
    {'until': ['\n\n', 'Q:'], 'max_gen_toks': 32},
    {'until': '\n', 'temperature': 0.7, 'top_p': 0.9, 'max_gen_toks': 256},
    {'temperature': 0.7, 'do_sample': False},
    {'do_sample': True, 'temperature': 1.0},
  ]
  made = model.generate_until([request('a', o) for o in options])
  assert made == ['x'] * 4
  assert asked == [
    texts.Prompt('a', ('\n\n', 'Q:'), 32, 0.0),
    texts.Prompt('a', ('\n',), 64, 0.7, 0.9),
    texts.Prompt('a', (), 64, 0.0),
    texts.Prompt('a', (), 64, 1.0),
  ]
  assert model.loglikelihood([request('a', 'bc')]) == [(-2, False)]
  assert model.loglikelihood_rolling([request('abc')]) == [-3]
  monkeypatch.delitem(sys.modules, 'dash_jax.harness')


def test_the_harness_missing_is_one_line(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  monkeypatch.delitem(sys.modules, 'dash_jax.harness', raising=False)
  with pytest.raises(SystemExit, match='2'):
    runpy.run_module('dash_jax.harness', run_name='__main__')
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('dash_jax: ')
  assert line.endswith("pip install -e '.[harness]'")
