"""Folders from the Hugging Face hub, where there is a network.

`find` downloads a repository's weights, config and tokenizer to the cache of the
package huggingface_hub, which serves them again without a network.
"""

import functools

PREFIX = 'hub:'

# Weights are read from safetensors alone: other formats run code or come twice.
_WANTED = ['*.json', '*.safetensors', '*.jinja', '*.txt', 'tokenizer.model']


@functools.lru_cache(maxsize=8)
def find(name: str) -> str:
  """Returns the local folder of a repository.

  Args:
    name: 'ORG/NAME', or 'ORG/NAME@REVISION' with a branch, a tag or a commit.

  Raises:
    ModuleNotFoundError: huggingface_hub is not installed.
    OSError: it cannot be reached and is not in the cache, is not there, or asks
      for a login.
    ValueError: `name` is not of this form.
  """
  try:
    import huggingface_hub
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'{PREFIX}{name} is downloaded with the package huggingface_hub: pip'
      " install -e '.[hub]'"
    ) from error
  repository, _, revision = name.partition('@')
  if repository.count('/') != 1:
    raise ValueError(f"{PREFIX}{name}: must be '{PREFIX}ORG/NAME[@REVISION]'")
  try:
    return huggingface_hub.snapshot_download(
      repository, revision=revision or None, allow_patterns=_WANTED
    )
  except OSError as error:
    raise OSError(
      f'{PREFIX}{name} cannot be downloaded, and is not in the cache: {error}. A'
      ' private or gated repository asks for HF_TOKEN; a folder that was'
      ' downloaded elsewhere is hf:FOLDER'
    ) from error
