"""Runs a command with secrets of Google Cloud's Secret Manager in its environment.

    python launch/with_secrets.py HF_TOKEN=projects/P/secrets/hf-token .. -- \\
        COMMAND ..

For a machine or pod of Google Cloud. Its service account reads the newest
version of each secret, which needs roles/secretmanager.secretAccessor. Command
lines hold names alone, which ps and logs may show.
"""

import base64
import json
import os
import re
import sys
import urllib.error
import urllib.request

_TOKEN = (  # nosec B105 (an address, and no secret)
  'http://metadata.google.internal/computeMetadata/v1/instance/'
  'service-accounts/default/token'
)
_SECRET = 'https://secretmanager.googleapis.com/v1/{}/versions/latest:access'  # nosec B105
_NAME = re.compile(r'([A-Za-z_]\w*)=(projects/[^/]+/secrets/[^/]+)', re.ASCII)
BAD_INPUT = 2


def main():
  if '--' not in sys.argv[:-1]:
    sys.exit('with_secrets.py: NAME=projects/P/secrets/S .. -- COMMAND ..')
  split = sys.argv.index('--')
  names, command = sys.argv[1:split], sys.argv[split + 1 :]
  try:
    os.environ.update(read(names))
  except (ValueError, OSError) as error:
    print(f'with_secrets.py: {error}', file=sys.stderr)
    sys.exit(BAD_INPUT)
  os.execvp(command[0], command)  # nosec B606 (what the user typed)


def read(names: list[str]) -> dict[str, str]:
  """Returns the value of each secret.

  Args:
    names: each VARIABLE=projects/PROJECT/secrets/SECRET.

  Raises:
    ValueError: a name is written otherwise.
    OSError: a secret can't be read.
  """
  found = [_NAME.fullmatch(name) for name in names]
  if not all(found):
    raise ValueError(
      f'{names[found.index(None)]!r} must be VARIABLE=projects/P/secrets/S'
    )
  token = _get(_TOKEN, {'Metadata-Flavor': 'Google'}, 'access token')
  header = {'Authorization': f'Bearer {token["access_token"]}'}
  values = {}
  for variable, secret in (match.groups() for match in found):
    payload = _get(_SECRET.format(secret), header, secret)['payload']
    values[variable] = base64.b64decode(payload['data']).decode()
  return values


def _get(url, header, what):
  request = urllib.request.Request(url, headers=header)
  try:
    # Both addresses above are http.
    with urllib.request.urlopen(request, timeout=30) as reply:  # nosec B310
      return json.load(reply)
  except urllib.error.HTTPError as error:
    raise PermissionError(
      f'{what} is refused with HTTP {error.code}: is it there, and may the'
      " machine's service account read it (roles/secretmanager.secretAccessor)?"
    ) from error
  except urllib.error.URLError as error:
    raise ConnectionError(
      f'{what}: not a machine of Google Cloud? {error.reason}'
    ) from error


if __name__ == '__main__':
  main()
