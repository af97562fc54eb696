"""The hub, as a server on this machine plays it."""

import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from dash_jax.model import hub

FILES = {
  'config.json': b'{"a": 1}',
  'model.safetensors': b'weights',
  'tokenizer.model': b'pieces',
  'chat_template.jinja': b'{{ messages }}',
  'pytorch_model.bin': b'a pickle',
}
COMMIT = 'a' * 40


class Hub(http.server.BaseHTTPRequestHandler):
  def do_HEAD(self):
    self.answer()

  def do_GET(self):
    self.wfile.write(self.answer())

  def answer(self):
    data, headers = None, {}
    path = self.path.partition('?')[0]
    if path.startswith('/api/models/org/gated'):
      self.send_response(401)
      self.send_header('X-Error-Code', 'GatedRepo')
    elif path.startswith('/api/models/org/name/revision/'):
      self.server.revisions.append(path.rpartition('/')[2])
      siblings = [{'rfilename': name} for name in FILES]
      data = {'id': 'org/name', 'sha': COMMIT, 'siblings': siblings}
      data = json.dumps(data).encode()
    elif path.startswith('/api/models/org/name/tree/'):
      data = [
        {'type': 'file', 'path': n, 'size': len(x), 'oid': '0'}
        for n, x in FILES.items()
      ]
      data = json.dumps(data).encode()
    elif path.startswith('/org/name/resolve/'):
      data = FILES[path.rpartition('/')[2]]
      headers['ETag'] = f'"{hashlib.sha1(data).hexdigest()}"'
      headers['X-Repo-Commit'] = COMMIT
    else:
      self.send_response(404)
    if data is not None:
      self.send_response(200)
    data = data or b''
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(data)))
    self.end_headers()
    return data

  def log_message(self, *args):
    pass


@pytest.fixture
def server():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Hub)
  server.revisions = []
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield server
  server.shutdown()
  server.server_close()


def find(server, home, *names):
  """Returns what `hub.find` says of each name in a process of its own: the
  package reads its settings when it is imported."""
  code = """
import json, sys
from dash_jax.model import hub
for name in sys.argv[1:]:
  try:
    print(json.dumps(hub.find(name)))
  except (OSError, ValueError) as error:
    print(json.dumps(f'{type(error).__name__}: {error}'))
"""
  out = subprocess.run(
    [sys.executable, '-c', code, *names],
    env=os.environ
    | {
      'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}',
      'HF_HOME': str(home),
      'HF_HUB_DISABLE_XET': '1',
    },
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return [json.loads(line) for line in out.stdout.splitlines()]


def test_a_repository_becomes_a_folder(server, tmp_path):
  """With all that a model is read from, and no pickle; and once it is in the
  cache, without the server."""
  folder, at = find(server, tmp_path, 'org/name', 'org/name@v2')
  files = {f.name: f.read_bytes() for f in pathlib.Path(folder).iterdir()}
  assert files == {n: x for n, x in FILES.items() if not n.endswith('.bin')}
  assert at == folder
  assert set(server.revisions) == {'main', 'v2'}
  server.shutdown()
  server.server_close()
  assert find(server, tmp_path, 'org/name') == [folder]


def test_what_cannot_be_had_is_named(server, tmp_path):
  lost, gated, odd = find(
    server, tmp_path, 'org/lost', 'org/gated', 'just-a-name'
  )
  assert lost.startswith('OSError: hub:org/lost cannot be downloaded')
  assert gated.startswith('OSError: hub:org/gated cannot be downloaded')
  assert 'HF_TOKEN' in gated
  assert odd == "ValueError: hub:just-a-name: must be 'hub:ORG/NAME[@REVISION]'"


def test_without_the_package_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[hub\]'"):
    hub.find('org/any')
