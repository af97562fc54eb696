"""What 'auto' has found comes back on the mesh that it was found on."""

import jax
import pytest

from dash_jax import sharding
from dash_jax.runs import sizes


def test_what_is_written_comes_back_and_elsewhere_nothing_does(tmp_path):
  found = sizes.Found(tmp_path, 'here')
  found.note('rows', 8)
  assert sizes.Found(tmp_path, 'here').recall('rows') is None
  found.write()
  again = sizes.Found(tmp_path, 'here')
  assert (again.recall('rows'), again.recall('others')) == (8, None)
  other = sizes.Found(tmp_path, 'there')
  assert other.recall('rows') is None
  other.note('rows', 4)
  other.write()
  assert sizes.Found(tmp_path, 'here').recall('rows') == 8
  assert sizes.Found(tmp_path, 'there').recall('rows') == 4


def test_meshes_of_other_shapes_have_other_names():
  names = set()
  for shape in ((1, 1, 2), (1, 2, 1), (2, 1, 1), (1, 1, 1)):
    devices = jax.devices()[: shape[0] * shape[1] * shape[2]]
    with jax.set_mesh(jax.make_mesh(shape, sharding.AXES, devices=devices)):
      names.add(sizes.describe_mesh())
  assert len(names) == 4


@pytest.mark.parametrize(
  'text', ['', '[]', '{"a": 3}', '{"a": {"b": 0}}', '{"a": {"b": true}}']
)
def test_what_is_damaged_is_refused_with_a_way_out(tmp_path, text):
  (tmp_path / sizes.SIZES_NAME).write_text(text)
  with pytest.raises(ValueError, match=r'sizes\.json: .*: remove the file'):
    sizes.Found(tmp_path, 'a')
