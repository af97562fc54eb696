"""Which devices a topology names, and what jax makes of them."""

import pytest

from dash_jax.planning import devices


@pytest.mark.parametrize(
  ('topology', 'found'),
  [
    ('v5e:4x4', ('v5e', 16)),
    ('v5p:2x2x1', ('v5p', 4)),
    ('h200:8', ('h200', 8)),
    ('cpu:1', ('cpu', 1)),
  ],
)
def test_a_topology_is_a_kind_and_a_number(topology, found):
  assert devices.split(topology) == found


@pytest.mark.parametrize('topology', ['', 'v5e', 'v9:4', 'v5e:', 'h200:0x2'])
def test_what_is_no_topology_is_refused_with_those_that_are(topology):
  with pytest.raises(ValueError, match=r'v5e:4x4') as error:
    devices.split(topology)
  assert 'tpu7x' in str(error.value)


def test_every_kind_that_is_not_the_cpu_has_all_figures():
  for name, kind in devices.KINDS.items():
    rates = (
      kind.memory,
      kind.flops_per_s,
      kind.bytes_per_s,
      kind.link_bytes_per_s,
    )
    assert all(rates) == (name != 'cpu')
    assert kind.source


def test_others_are_laid_out_on_devices_of_the_cpu():
  found = devices.find('h200:2')
  assert len(found.devices) == 2
  assert not found.compiles
  assert found.kind.memory == 141e9
  with pytest.raises(ValueError, match='JAX_NUM_CPU_DEVICES=64'):
    devices.find('h200:64')


def test_what_is_here_is_known_by_its_name():
  """This machine's CPU, whose memory is shared by its devices."""
  found = devices.find('')
  assert (found.name, len(found.devices)) == ('cpu', 8)
  assert 0 < found.kind.memory < 2**50
  assert devices.find('cpu:1').kind.memory == 8 * found.kind.memory
