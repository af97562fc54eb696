"""A real browser for tests: Chromium without a window, spoken to through pipes.

    with chromium.open_page(path) as page:
      page.run('document.title')

It is the browser that is called chromium, google-chrome or chrome, or that
CHROME names. `Page` keeps what the page reported and asked for.
"""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
_PATIENCE_S = 120


def find() -> str:
  """Returns the browser's path.

  Raises:
    FileNotFoundError: there is none.
  """
  for name in (os.environ.get('CHROME', ''), *NAMES):
    if path := shutil.which(name):
      return path
  raise FileNotFoundError(
    'no Chromium: install it (Debian: apt-get install chromium), or name it in'
    ' the environment variable CHROME'
  )


class Page:
  """A page that is open.

  Attributes:
    problems: errors that were thrown, logged or reported by the policy.
    requests: URLs that were asked for, but for data in the page.
  """

  def __init__(self, read: int, write: int):
    """Speaks to a browser through two descriptors."""
    self._read = read
    self._write = write
    self._unread = b''
    self._ids = itertools.count(1)
    self._session = {}
    self.problems = []
    self.requests = []

  def call(self, method: str, **params) -> dict:
    """Calls a method of the Chrome DevTools Protocol."""
    number = next(self._ids)
    message = {'id': number, 'method': method, 'params': params}
    data = json.dumps(message | self._session).encode() + b'\0'
    while data:
      data = data[os.write(self._write, data) :]
    while True:
      answer = self._next()
      if answer.get('id') == number:
        assert 'error' not in answer, answer
        return answer['result']

  def run(self, script: str):
    """Returns the value of an expression in the page."""
    found = self.call('Runtime.evaluate', expression=script, returnByValue=True)
    assert 'exceptionDetails' not in found, found['exceptionDetails']
    return found['result'].get('value')

  def attach(self) -> None:
    """Goes on with the browser's first page."""
    targets = self.call('Target.getTargets')['targetInfos']
    (target,) = [t['targetId'] for t in targets if t['type'] == 'page']
    found = self.call('Target.attachToTarget', targetId=target, flatten=True)
    self._session = {'sessionId': found['sessionId']}
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')

  def save(self, method: str, path: pathlib.Path, **params) -> None:
    """Saves what Page.captureScreenshot or Page.printToPDF returns."""
    path.write_bytes(base64.b64decode(self.call(method, **params)['data']))

  def _next(self):
    while b'\0' not in self._unread:
      assert select.select([self._read], [], [], _PATIENCE_S)[0], 'no answer'
      chunk = os.read(self._read, 1 << 16)
      assert chunk, 'the browser has ended'
      self._unread += chunk
    text, _, self._unread = self._unread.partition(b'\0')
    message = json.loads(text)
    params = message.get('params', {})
    match message.get('method'):
      case 'Runtime.exceptionThrown' | 'Log.entryAdded':
        self.problems.append(params)
      case 'Runtime.consoleAPICalled' if params['type'] in ('error', 'warning'):
        self.problems.append(params)
      case 'Network.requestWillBeSent':
        url = params['request']['url']
        if not url.startswith('data:'):
          self.requests.append(url)
    return message


@contextlib.contextmanager
def open_page(path: pathlib.Path, width: int = 1280, height: int = 900):
  """Opens a file, and yields its Page once it is loaded."""
  browser = find()
  # The browser reads from its descriptor 3, and writes to 4.
  to_read, to_write = os.pipe()
  from_read, from_write = os.pipe()
  with (
    # Processes of the browser's own may outlive it for a moment.
    tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    contextlib.ExitStack() as ends,
  ):
    process = subprocess.Popen(
      [
        'bash', '-c', f'exec "$@" 3<&{to_read} 4>&{from_write}', 'bash',
        browser, '--headless', '--remote-debugging-pipe', '--no-sandbox',
        '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run',
        f'--user-data-dir={profile}', f'--window-size={width},{height}',
        'about:blank',
      ],
      pass_fds=(to_read, from_write),
      stderr=subprocess.DEVNULL,
    )  # fmt: skip
    ends.callback(process.wait)
    ends.callback(process.kill)
    os.close(to_read)
    os.close(from_write)
    ends.callback(os.close, from_read)
    ends.callback(os.close, to_write)
    page = Page(from_read, to_write)
    page.attach()
    url = path.absolute().as_uri()
    page.call('Page.navigate', url=url)
    while page.run("document.readyState + ' ' + location") != f'complete {url}':
      time.sleep(0.02)
    yield page
