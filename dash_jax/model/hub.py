"""Folders from the Hugging Face hub.

1. A path 'hub:ORG/NAME' or 'hub:ORG/NAME@REVISION' names a repository, and a
   branch, tag or commit of it.
2. `find` downloads what we read of it into the hub's own cache, or finds it
   there, and returns the folder. Where the hub cannot be reached, what is in
   the cache is used.
"""

import functools
import os
import re

_PREFIX = 'hub:'
_NAMES = ('*.safetensors', '*.json', 'tokenizer.model', '*.jinja', '*.txt')
# Some repositories hold the weights twice: also as their authors' own code
# reads them (Mistral), or in other formats, in folders.
_NOT_NAMES = ('consolidated*', '*/*')


# One snapshot serves a process: a branch may move while it runs.
@functools.cache
def find(path: str) -> str:
  """Returns a local path: 'hub:..' is downloaded, others are unchanged.

  Of a repository, safetensors, JSON, tokenizer and template files are taken.

  Raises:
    ModuleNotFoundError: huggingface_hub is not installed.
    ValueError: the path is not hub:ORG/NAME or hub:ORG/NAME@REVISION.
    OSError: there is no such repository or revision, it may not be read, it
      holds none of these files, or the hub cannot be reached.
  """
  path = os.fspath(path)
  if not path.startswith(_PREFIX):
    return path
  match = re.fullmatch(r'([^/@]+/[^/@]+)(?:@(.+))?', path.removeprefix(_PREFIX))
  if match is None:
    raise ValueError(
      f'{path!r} names no repository; wanted: hub:ORG/NAME or '
      'hub:ORG/NAME@REVISION'
    )
  repository, revision = match.groups()
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'{path} is downloaded with the package huggingface_hub: '
      "pip install -e '.[hub]'"
    ) from error
  try:
    folder = huggingface_hub.snapshot_download(
      repository,
      revision=revision,
      allow_patterns=list(_NAMES),
      ignore_patterns=list(_NOT_NAMES),
    )
  except errors.HFValidationError as error:
    raise ValueError(f'{path}: {error}') from error
  except errors.GatedRepoError as error:
    raise PermissionError(
      f"{path}: the repository is gated; accept its terms on the hub's page of "
      f'{repository}, then log in with `hf auth login` or set HF_TOKEN'
    ) from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
      f'{path}: the hub has no repository {repository}, or a private one; check '
      'the name, or log in with `hf auth login` or set HF_TOKEN'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(
      f'{path}: {repository} has no branch, tag or commit {revision}'
    ) from error
  # The errors of its HTTP client are another package's in each of its versions.
  except Exception as error:
    raise OSError(
      f'{path}: not in the cache, and the hub cannot be reached or fails; where '
      f'there is a network, `hf download {repository}` makes a folder whose path '
      f'can be given here: {error}'
    ) from error
  if not os.path.isdir(folder):
    raise FileNotFoundError(
      f'{path}: {repository} has no file that can be read: {", ".join(_NAMES)}'
    )
  return folder
