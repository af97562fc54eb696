"""Data is never run: no file, template or config makes dash_jax do more than read.

What checkpoints and indexes may name is in bad_input/bad_files_test.py, what is
refused of pickles in model/pth_test.py.
"""

import ast
import contextlib
import pathlib
import time

import pytest

from dash_jax.data import templates
from dash_jax.model import pth

ROOT = pathlib.Path(__file__).parents[1]

# Modules that run what they read.
MODULES = {
  'cloudpickle', 'code', 'dill', 'joblib', 'marshal', 'pickle', 'runpy',
  'shelve', 'torch', 'yaml',
}  # fmt: skip
# What runs or unpacks what it is given, by its last names.
CALLS = {
  '__import__', 'compile', 'eval', 'exec', 'execfile', 'extractall',
  'import_module', 'jinja2.Environment', 'jinja2.Template', 'mktemp',
  'numpy.load', 'np.load', 'os.popen', 'os.system', 'spec_from_file_location',
}  # fmt: skip
FLAGS = {'shell', 'allow_pickle'}  # that may not be True

ALLOWED = {
  ('dash_jax/model/pth.py', 'pickle'): (
    'taken apart: find_class imports nothing, and returns records'
  ),
  ('dash_jax/rewards/code_sides.py', 'compile'): 'what the next line runs',
  ('dash_jax/rewards/code_sides.py', 'exec'): (
    'replies and their tests, in processes that have locked themselves down'
  ),
  ('dash_jax/rewards/code_sides.py', 'import_module'): (
    "modules of Python's own library, which tests of code name, in such a process"
  ),
  ('dash_jax/rewards/worker.py', 'import_module'): (
    "the user's reward function, from the import path in reward.function alone"
  ),
}


def find_uses(text):
  """Returns what a source has of the above."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import | ast.ImportFrom):
      names = [alias.name for alias in node.names]
      if isinstance(node, ast.ImportFrom):
        names.append(node.module or '')
        # Under its own name a call of it is seen below.
        found |= {alias.name for alias in node.names if alias.asname} & CALLS
      found |= {name.partition('.')[0] for name in names} & MODULES
    if isinstance(node, ast.Call):
      parts = ast.unparse(node.func).split('.')
      # Methods are others' own: a model's eval, a pattern's compile.
      last = {'.'.join(parts[-2:])}
      ours = parts[:-1] in ([], ['builtins'])
      if ours or parts[-1] not in ('compile', 'eval'):
        last.add(parts[-1])
      found |= last & CALLS
      found |= {
        word.arg
        for word in node.keywords
        if word.arg in FLAGS and getattr(word.value, 'value', True) is not False
      }
  return found


def test_no_source_runs_what_it_reads():
  """Peers' sides of benchmarks and of the comparison aside, which load torch."""
  found = set()
  for path in [*ROOT.glob('dash_jax/**/*.py'), *ROOT.glob('launch/*.py')]:
    name = str(path.relative_to(ROOT))
    found |= {(name, use) for use in find_uses(path.read_text())}
  assert found == ALLOWED.keys()


def test_the_walk_sees_what_it_looks_for():
  assert find_uses('from pickle import loads') == {'pickle'}
  assert find_uses('import yaml.loader') == {'yaml'}
  assert find_uses('eval(x); re.compile(x); model.eval()') == {'eval'}
  assert find_uses('builtins.eval(x)') == {'eval'}
  assert find_uses('from importlib import import_module as f') == {
    'import_module'
  }
  assert find_uses('subprocess.run(x, shell=True)') == {'shell'}
  assert find_uses('np.load(x, allow_pickle=y)') == {'np.load', 'allow_pickle'}
  assert find_uses('os.system(x)') == {'os.system'}


def test_a_pickle_may_name_what_tensors_are_made_of_alone():
  assert all(
    name.startswith(('torch.', 'collections.')) for name in pth._GLOBALS
  )


MESSAGES = [{'role': 'user', 'content': 'hi'}]
ESCAPES = [
  "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  "{{ ''['__class__'] }}",
  "{{ (''|attr('__class__')).__mro__ }}",
  "{{ messages.__init__.__globals__['os'].system('id') }}",
  '{{ cycler.__init__.__globals__.os.popen("id").read() }}',
  '{{ lipsum.__globals__["os"].popen("id").read() }}',
  "{{ raise_exception.__globals__['json'] }}",
  "{{ self.__init__.__globals__ }}",
  "{{ '{0.__class__.__mro__}'.format(messages) }}",
  "{{ '{x.__class__}'.format_map({'x': messages}) }}",
  "{{ ('{0.__class__}'|string).format(1) }}",
  "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
  "{{ ['{0.__class__}']|map('format', 1)|list }}",
  '{{ messages.append(1) }}',
  '{{ messages[0].update(role="x") }}',
  "{% include '/etc/passwd' %}",
  "{% import 'os' as os %}",
  "{% extends 'x' %}",
]  # fmt: skip


@pytest.mark.parametrize('template', ESCAPES)
def test_templates_cannot_leave_their_sandbox(template):
  with contextlib.suppress(ValueError):  # it is refused, or
    text = templates.render(template, MESSAGES, add_generation_prompt=True)
    # sees undefined names, or its own text.
    for found in ('class ', 'uid=', 'root:', 'function', "{'"):
      assert found not in text


HUNGRY = [
  '{% for i in range(10**9) %}x{% endfor %}',
  "{{ 'x' * 10**10 }}",
  "{{ [0] * 10**10 }}",
  "{{ 'x'.center(10**11) }}",
  "{{ '%099999999999d' % 1 }}",
  "{{ ('x' * 10**6) | replace('x', 'y' * 10**6) }}",
  "{{ 'x' * 10**7 }}",
]  # fmt: skip


@pytest.mark.parametrize('template', HUNGRY)
def test_templates_cannot_take_all_memory(template):
  with pytest.raises(ValueError, match='the chat template failed'):
    templates.render(template, MESSAGES, add_generation_prompt=True)


def test_templates_cannot_take_all_time(monkeypatch):
  monkeypatch.setattr(templates, '_MAX_WALL_S', 2)
  start = time.monotonic()
  endless = '{% for a in range(99999) %}{% for b in range(99999) %}'
  endless += '{% endfor %}{% endfor %}'
  with pytest.raises(ValueError, match='takes more than'):
    templates.render(endless, MESSAGES, add_generation_prompt=True)
  assert time.monotonic() - start < 30
