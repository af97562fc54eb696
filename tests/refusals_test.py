"""What a refusal says. Whole configs are refused in checks_test.py and in bad_input/."""

import pytest

from dash_jax import refusals


def test_a_missing_file_is_named(tmp_path):
  refusals.check_file('data.path', str(tmp_path))
  with pytest.raises(FileNotFoundError, match=r'data\.path=.*gone\.jsonl'):
    refusals.check_file('data.path', str(tmp_path / 'gone.jsonl'))


@pytest.mark.parametrize(
  ('near', 'named'), [(7, '8 or 16'), (8, '8 or 16'), (20, '16 or 24')]
)
def test_multiples_on_either_side_are_named(near, named):
  assert refusals.name_multiples(8, near) == named
