"""What setup.py and a build ask for is bounded, and .ci/oldest.txt is its lower bounds."""

import itertools
import pathlib
import tomllib

import pytest
import setuptools
from packaging import requirements

ROOT = pathlib.Path(__file__).parents[1]


def read_setup(monkeypatch):
  """Returns the requirements of setup.py: those of all, and the extras'."""
  given = {}
  monkeypatch.setattr(setuptools, 'setup', given.update)
  monkeypatch.chdir(ROOT)
  text = pathlib.Path('setup.py').read_text()
  # `update` takes the same keywords.
  exec(compile(text, 'setup.py', 'exec'), {})
  parse = requirements.Requirement
  return (
    [parse(text) for text in given['install_requires']],
    {
      extra: [parse(text) for text in texts]
      for extra, texts in given['extras_require'].items()
    },
  )


def test_every_package_has_a_lower_and_an_upper_bound(monkeypatch):
  base, extras = read_setup(monkeypatch)
  named = {found.name for found in base}
  project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())
  build = map(requirements.Requirement, project['build-system']['requires'])
  for found in [*base, *itertools.chain(*extras.values()), *build]:
    bounds = {bound.operator for bound in found.specifier}
    # `jax[tpu]` has the bounds of jax.
    is_bounded = bounds in ({'>=', '<'}, {'=='})
    assert is_bounded or (not bounds and found.name in named), found


def test_the_oldest_are_the_lower_bounds(monkeypatch):
  base, extras = read_setup(monkeypatch)
  lower = {
    f'{found.name}=={bound.version}'
    for found in base + extras['dev'] + extras['hub']
    for bound in found.specifier
    if bound.operator == '>='
  }
  lines = (ROOT / '.ci' / 'oldest.txt').read_text().splitlines()
  assert {line for line in lines if not line.startswith('#')} == lower


@pytest.mark.parametrize('version', ['0.10.2', '0.11.0', '0.12.3'])
def test_the_versions_of_jax_that_are_meant_fit(monkeypatch, version):
  base, _ = read_setup(monkeypatch)
  (jax,) = [found for found in base if found.name == 'jax']
  assert jax.specifier.contains(version)
