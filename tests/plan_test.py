"""The command: it runs nothing, says what fits, and what would."""

import re

import pytest
import tiny_run

_QUICKSTART = tiny_run.FOLDER.parent / 'experiments' / 'quickstart.py'
_LLAMA = tiny_run.FOLDER.parent / 'experiments' / 'llama3_8b_gsm8k.py'


def _plan(config, *flags, options=()):
  return tiny_run.finish(
    tiny_run.start(
      None, *options, module='dash_jax.plan', config=config, flags=flags
    )
  )


@pytest.fixture(scope='module')
def compiled():
  code, text = _plan(
    tiny_run.__file__, '--topology=cpu:2', options=('mesh.fsdp=2',)
  )
  assert code == 0, text
  return text


def test_a_small_model_is_compiled(compiled):
  for name in ('prepare', 'admit', 'decode', 'gradient', 'update'):
    assert re.search(rf'^{name} .* yes  compiled in \d+ s', compiled, re.M), (
      name
    )


def test_seconds_are_not_made_up_for_a_cpu(compiled):
  assert 'Seconds are not known' in compiled


def test_a_large_model_is_estimated_without_its_files():
  """Its weights, tokenizer and data are not here."""
  code, text = _plan(_LLAMA, '--topology=v5p:2x2x1', '--nocompile')
  assert code == 0, text
  assert '8.03 billion weights' in text
  assert 'compiled' not in text
  assert re.search(r'A step takes [\d.]+ s at least', text)
  assert re.search(
    r'It is bound in sampling by [a-z ]+, most of it in (admit|decode|prepare); in'
    r' learning by [a-z ]+, most of it in (gradient|update)\.',
    text,
  )


def test_part_of_a_tpu_is_estimated_and_not_compiled():
  options = ('mesh.sampler_devices=1', 'mesh.fsdp=1', 'mesh.data=-1')
  code, text = _plan(
    tiny_run.__file__, '--topology=v5e:2x2', '--compile', options=options
  )
  assert code == 2, text
  assert 'a part of the devices of v5e cannot be compiled' in text
  assert 'mesh.sampler_devices=0' in text


def test_what_does_not_fit_ends_with_what_would():
  code, text = _plan(_LLAMA, '--topology=h200:1', '--nocompile')
  assert code == 1, text
  assert 'By the estimate this does: --config.' in text


def test_several_topologies_are_compared():
  code, text = _plan(_LLAMA, '--topology=v5p:2x2x1,v5p:2x2x2', '--nocompile')
  assert code == 0, text
  rates = re.findall(r'^v5p:\S+ +(\d+) .* yes', text, re.M)
  assert rates == ['4', '8']


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--topology=v9:4', 'must be a kind of device'),
    ('--topology=h200:3', 'does not divide over 3 shards'),
  ],
)
def test_bad_input_is_one_line(flag, message):
  code, text = _plan(_LLAMA, flag)
  assert code == 2, text
  assert message in text
  assert 'Traceback' not in text
