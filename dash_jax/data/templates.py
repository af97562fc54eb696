"""Renders chat templates, which come with a checkpoint and are programs.

1. `render` starts this file as a process for one template, hands it the messages
   as JSON, and reads the text.
2. There Jinja's sandbox keeps the template from everything but its messages, and
   limits of the system keep it from taking time or memory without end.
"""

import json
import resource
import subprocess
import sys

import jinja2
import jinja2.sandbox

_MAX_CPU_S = 10
_MAX_WALL_S = 60
_MAX_MEMORY_BYTES = 1 << 30
_MAX_CHARACTERS = 1_000_000


def render(
  template: str, messages: list[dict], *, add_generation_prompt: bool, **names
) -> str:
  """Returns the text of a chat, as transformers renders it.

  Args:
    template: Jinja.
    messages: each has a role and a content.
    add_generation_prompt: whether the text ends where a reply begins.
    **names: the texts of special tokens, as bos_token.

  Raises:
    ValueError: the template failed.
  """
  values = {
    'messages': messages,
    'tools': None,
    'documents': None,
    'add_generation_prompt': add_generation_prompt,
  } | names
  try:
    done = subprocess.run(
      [sys.executable, '-P', __file__],
      input=json.dumps([template, values]),
      capture_output=True,
      encoding='utf-8',
      timeout=_MAX_WALL_S,
    )
    found = json.loads(done.stdout)
  except (subprocess.TimeoutExpired, ValueError):
    found = {
      'failed': f'it takes more than {_MAX_CPU_S} s or'
      f' {_MAX_MEMORY_BYTES >> 20} MiB'
    }
  if 'failed' in found:
    raise ValueError(f'the chat template failed: {found["failed"]}')
  return found['text']


def _render(template: str, values: dict) -> str:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  # What published templates use of transformers. Its strftime_now is left out:
  # with it a prompt would change with the date. Templates that ask whether it
  # is defined, as Llama 3.2's, have a date of their own.
  environment.globals['raise_exception'] = _raise_exception
  environment.filters['tojson'] = _to_json
  text = environment.from_string(template).render(**values)
  if len(text) > _MAX_CHARACTERS:
    raise ValueError(f'it writes more than {_MAX_CHARACTERS} characters')
  return text


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _to_json(
  value, ensure_ascii=False, indent=None, separators=None, sort_keys=False
) -> str:
  # Jinja's own writes characters of HTML as escapes.
  return json.dumps(
    value,
    ensure_ascii=ensure_ascii,
    indent=indent,
    separators=separators,
    sort_keys=sort_keys,
  )


def _main():
  template, values = json.load(sys.stdin)
  for what, most in (
    (resource.RLIMIT_CPU, _MAX_CPU_S),
    (resource.RLIMIT_AS, _MAX_MEMORY_BYTES),
    (resource.RLIMIT_CORE, 0),
  ):
    resource.setrlimit(what, (most, most))
  try:
    found = {'text': _render(template, values)}
  except Exception as error:  # a template may fail in any way
    found = {'failed': f'{error}' or type(error).__name__}
  json.dump(found, sys.stdout)


if __name__ == '__main__':
  _main()
