"""Completions of your own prompts, printed as they come.

    python -m dash_jax.generate --config=experiments/X.py --workdir=DIR \\
        [--prompts=FILE.jsonl] [--out=FILE.jsonl] [--num_samples=1] \\
        [--temperature=T]

  1. Prompts are the lines of standard input, or the `prompt` of each line of a
     JSONL file, which may have a `max_completion_len` of its own. Each goes into
     `data.template`, as a question does in training.
  2. The newest checkpoint's weights sample (without one, those that the run
     starts from), as the section `sampling` says; --temperature=0 takes the
     likeliest tokens.
  3. Each completion is a JSON line, written as soon as it has ended: `index` of
     its prompt, `sample`, `prompt`, `completion`, `num_tokens`, `truncated`,
     `logprob` (of the whole), and how it was drawn; `settings` names the rest
     that it follows from (the sections model, lora, data and sampling).
  4. With --out, what the file holds already is not sampled again: the same
     command goes on where it was stopped, with the completions that it would
     have written.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from absl import flags

from dash_jax import assemble, batches, checks, commands, sharding, weights
from dash_jax.data import jsonl as data_jsonl
from dash_jax.runs import jsonl
from dash_jax.sampling import decoding

_MOST_AT_ONCE = 1_024  # prompts of one call, so that the host holds no more

_PROMPTS = flags.DEFINE_string(
  'prompts', '', 'JSONL file with a `prompt` a line; else lines of stdin.'
)
_OUT = flags.DEFINE_string('out', '', 'JSONL file to write, or to go on with.')
_NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples', 1, 'Completions of each prompt.', lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', None, 'Instead of sampling.temperature.', lower_bound=0.0
)


@dataclasses.dataclass(frozen=True)
class Request:
  """One prompt; `index` counts them, and seeds its noise."""

  index: int
  prompt: str
  max_completion_len: int


def read_requests(path: str, max_completion_len: int) -> list[Request]:
  """Returns the prompts of a JSONL file, or of standard input if path is ''.

  Args:
    path: the file.
    max_completion_len: of prompts that name none.

  Raises:
    ValueError, FileNotFoundError: names the line and what would be valid.
  """
  if not path:
    lines = [line.rstrip('\n') for line in sys.stdin]
    requests = [
      Request(i, line, max_completion_len)
      for i, line in enumerate(line for line in lines if line.strip())
    ]
    if not requests:
      raise ValueError('standard input has no prompt: give one a line')
    return requests
  checks.check_file('--prompts', path)
  requests = []
  for number, row in data_jsonl.read(path, ('prompt',)):
    limit = row.get('max_completion_len', max_completion_len)
    if not isinstance(row['prompt'], str):
      raise ValueError(f'{path}:{number}: prompt must be a string')
    if type(limit) is not int or not 1 <= limit <= max_completion_len:
      raise ValueError(
        f'{path}:{number}: max_completion_len={limit!r}: must be a number from 1'
        f' to sampling.max_completion_len={max_completion_len}'
      )
    requests.append(Request(len(requests), row['prompt'], limit))
  return requests


def read_done(path: str, requests: list[Request], drawn: dict) -> set:
  """Returns the (index, sample) that a file of completions holds; a torn last
  line is cut off.

  Args:
    path: the file; it may not be there.
    requests: of this call.
    drawn: how this call draws.

  Raises:
    ValueError: the file's completions are of other prompts, or drawn otherwise.
  """
  if not pathlib.Path(path).exists():
    return set()
  jsonl.cut_torn_line(path)
  rows = jsonl.read(path)
  for number, row in enumerate(rows, 1):
    index, sample = row.get('index'), row.get('sample')
    known = type(index) is int and 0 <= index < len(requests)
    known = known and type(sample) is int
    if not known or row.get('prompt') != requests[index].prompt:
      raise ValueError(
        f'--out={path}:{number} is a completion of another prompt: name a new'
        ' file, or give the prompts that it was begun with'
      )
    for name, value in drawn.items():
      if row.get(name) != value:
        raise ValueError(
          f'--out={path}:{number} has {name}={row.get(name)!r}, and this call'
          f' {name}={value!r}: name a new file'
        )
  return {(row['index'], row['sample']) for row in rows}


def main(config, workdir):
  if config.mesh.multi_host:
    raise ValueError(
      'mesh.multi_host=True: generate runs in one process; set it to False'
    )
  with (
    jax.set_mesh(assemble.connect(config)),
    contextlib.ExitStack() as closing,
  ):
    encoding, model = assemble.build_encoding(config, workdir)
    requests = read_requests(_PROMPTS.value, encoding.max_completion_len)
    restored = weights.restore_params(config, model, workdir)
    params, step = restored or (weights.load_params(config, model), 0)
    drawn = _describe(config, step)
    done = read_done(_OUT.value, requests, drawn) if _OUT.value else set()
    file = sys.stdout
    if _OUT.value:
      file = closing.enter_context(
        open(_OUT.value, 'a', encoding='utf-8', newline='\n')
      )
    for row in _sample(config, encoding, model, params, requests, done):
      print(jsonl.encode(row | drawn), end='', file=file, flush=True)


def _describe(config, step):
  """Returns how completions are drawn, as every line has it."""
  sampling = config.sampling
  temperature = _TEMPERATURE.value
  return {
    'step': step,
    'seed': config.seed,
    'temperature': sampling.temperature if temperature is None else temperature,
    'top_p': sampling.top_p,
    'top_k': sampling.top_k,
    'min_p': sampling.min_p,
    'settings': _hash_settings(config),
  }


def _hash_settings(config):
  """Returns what names all else that a completion follows from."""
  fields = config.to_dict()
  kept = {name: fields[name] for name in ('model', 'lora', 'data', 'sampling')}
  for name in ('batch_size', 'attention'):  # which change no token
    del kept['sampling'][name]
  text = json.dumps(kept, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def _ask(request):
  return batches.Question(request.prompt, answer='', uid=request.index)


def _sample(config, encoding, model, params, requests, done):
  """Yields the completions that are not done, as they end."""
  G = _NUM_SAMPLES.value
  left = [
    r for r in requests if any((r.index, g) not in done for g in range(G))
  ]
  if not left:
    return
  how = _describe(config, 0)
  sampled_by = assemble.make_sampler(
    config, model, num_prompts=min(len(left), _MOST_AT_ONCE), group_size=G
  )
  stop_text = config.data.stop_text
  settings = decoding.make_decoding(
    how['temperature'],
    how['top_p'],
    how['top_k'],
    min_p=how['min_p'],
    min_len=config.sampling.min_completion_len,
    stop_ids=assemble.find_stop_ids(encoding.tokenizer, stop_text),
  )
  shards = sharding.num_batch_shards(jax.sharding.get_mesh())
  encoding.encode([_ask(r) for r in left])  # refuses those that are too long
  for first in range(0, len(left), _MOST_AT_ONCE):
    asked = left[first : first + _MOST_AT_ONCE]
    # Filled up so that every shard has as many; what is added is not written.
    full = asked + asked[:1] * (-len(asked) % shards)
    prompts = encoding.encode([_ask(r) for r in full])
    limits = np.array([[r.max_completion_len] * G for r in full])
    for rows, made in sampled_by.stream(
      params,
      prompts,
      jax.random.key(config.seed),
      settings,
      limits=limits,
      find_end=assemble.make_find_end(encoding.tokenizer, stop_text),
    ):
      for q, g in zip(*np.divmod(rows, G), strict=True):
        if q >= len(asked) or (asked[q].index, g) in done:
          continue
        length = made.lengths[q, g]
        yield {
          'index': asked[q].index,
          'sample': g,
          'prompt': asked[q].prompt,
          'completion': encoding.decode(made.tokens[q, g, :length]),
          'num_tokens': length,
          'truncated': bool(made.truncated[q, g]),
          'logprob': made.logprobs[q, g].sum(),
        }


if __name__ == '__main__':
  commands.run(main)
