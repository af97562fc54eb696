"""Secrets come from Secret Manager into the environment alone."""

import base64
import json
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'with_secrets.py'
# Stands for Google's metadata and secret servers, inside the script's process.
_RUN = """
import io, json, runpy, sys, urllib.error, urllib.request
script, replies = sys.argv[1], json.loads(sys.argv[2])

def urlopen(request, timeout):
  print(request.full_url, request.headers, file=sys.stderr)
  if request.full_url not in replies:
    raise urllib.error.HTTPError(request.full_url, 403, 'no', {}, None)
  return io.StringIO(json.dumps(replies[request.full_url]))

urllib.request.urlopen = urlopen
sys.argv = sys.argv[:1] + sys.argv[3:]
runpy.run_path(script, run_name='__main__')
"""
_TOKEN_URL = (
  'http://metadata.google.internal/computeMetadata/v1/instance/'
  'service-accounts/default/token'
)
_SECRETS = 'https://secretmanager.googleapis.com/v1/projects/p/secrets/'
_REPLIES = {
  _TOKEN_URL: {'access_token': 'my-access'},
  f'{_SECRETS}hf-token/versions/latest:access': {
    'payload': {'data': base64.b64encode(b"hf_it's $x").decode()}
  },
}


def run(*args, replies=_REPLIES):
  return subprocess.run(
    [sys.executable, '-c', _RUN, _SCRIPT, json.dumps(replies), *args],
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


def test_a_command_gets_the_secret_and_its_words_as_they_are():
  show = 'import os, sys; print([os.environ["HF_TOKEN"], *sys.argv[1:]])'
  done = run(
    'HF_TOKEN=projects/p/secrets/hf-token',
    *['--', sys.executable, '-c', show, 'a b', '--', '$x'],
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == str(["hf_it's $x", 'a b', '--', '$x']) + '\n'
  token, secret = done.stderr.splitlines()
  assert "{'Metadata-flavor': 'Google'}" in token
  assert 'Bearer my-access' in secret


def test_the_exit_code_is_the_command_s():
  assert run('--', 'bash', '-c', 'exit 75').returncode == 75


@pytest.mark.parametrize(
  ('name', 'replies', 'message'),
  [
    ('HF_TOKEN=projects/p/secrets/other', _REPLIES, 'HTTP 403'),
    ('HF_TOKEN=projects/p/secrets/hf-token', {}, 'access token is refused'),
    ('HF_TOKEN=hf-token', _REPLIES, 'must be VARIABLE=projects/P/secrets/S'),
  ],
)
def test_what_cannot_be_read_is_named_and_nothing_runs(name, replies, message):
  done = run(name, '--', 'echo', 'ran', replies=replies)
  assert done.returncode == 2
  assert message in done.stderr
  assert done.stdout == ''
