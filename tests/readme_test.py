"""README.md's worked example can be applied, and does what it says."""

import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_the_new_filtering_rule_of_the_readme(tmp_path):
  change = re.search(
    r'^```diff\n(.*?)^```$', (ROOT / 'README.md').read_text(), re.M | re.S
  )[1]
  assert len(re.findall(r'^\+(?!\+)', change, re.M)) < 20
  for folder in ('dash_jax', 'tests'):
    shutil.copytree(
      ROOT / folder,
      tmp_path / folder,
      ignore=shutil.ignore_patterns('__pycache__'),
    )
  subprocess.run(
    ['git', 'apply', '-'], cwd=tmp_path, input=change, text=True, check=True
  )
  done = subprocess.run(
    [sys.executable, '-m', 'pytest', '-o', 'addopts=', '-k', 'rare',
     'tests/learning/filtering_test.py'],
    cwd=tmp_path, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stdout
  assert '1 passed' in done.stdout
