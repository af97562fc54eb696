"""Compares Llama 3's tokenizer with Meta's own reading of the same file.

    pip install -e '.[dev]'
    python -m experiments.parity.llama3_ids FILE.jsonl [FILE.jsonl ..]

  1. The package llama-models brings tokenizer.model and the reference.
  2. We read the file, and read again what we would export of it.
  3. Every string field of every line must have the reference's ids in both, and
     must come back unchanged.

Prints a line a file, and the first texts that differ. Exits with 1 if any does.
GSM8K's 8,792 questions and MATH-500's 500 have none.
"""

import pathlib
import sys
import tempfile

import llama_models.llama3
from llama_models.llama3 import tokenizer as reference

from dash_jax.data import jsonl, tokenizer


def read_strings(path: str) -> list[str]:
  """Returns every string field of a JSONL file's lines."""
  rows = jsonl.read(path, fields=())
  return [x for _, row in rows for x in row.values() if isinstance(x, str)]


def main(paths: list[str]) -> int:
  if not paths:
    print(__doc__)
    return 2
  folder = pathlib.Path(llama_models.llama3.__path__[0])
  theirs = reference.Tokenizer(folder / 'tokenizer.model')
  loaded = tokenizer.load('tiktoken', folder / 'tokenizer.model')
  with tempfile.TemporaryDirectory() as out:
    loaded.save(pathlib.Path(out))
    exported = tokenizer.load('huggingface', out)
  num_bad = 0
  for path in paths:
    texts, num_ids, differing = read_strings(path), 0, []
    for text in texts:
      want = theirs.encode(text, bos=False, eos=False)
      num_ids += len(want)
      if not (
        loaded.encode(text) == exported.encode(text) == want
        and loaded.decode(want) == exported.decode(want) == text
      ):
        differing.append(text)
    num_bad += len(differing)
    print(f'{path}: {len(texts)} texts, {num_ids} ids; {len(differing)} differ')
    for text in differing[:3]:
      print(f'  {text!r}')
  return int(num_bad > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
