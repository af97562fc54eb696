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
     its prompt, `sample`, `prompt`, `max_completion_len`, `completion`,
     `num_tokens`, `truncated`, `logprob` (of the whole), and how it was drawn;
     `settings` names the rest that it follows from (the sections model, lora,
     data and sampling).
  4. With --out, what the file holds already is not sampled again: the same
     command goes on where it was stopped, with the completions that it would
     have written.
"""

import contextlib
import os
import sys

import jax
import ml_collections
import numpy as np
from absl import flags

from dash_jax import (
  assemble,
  batches,
  commands,
  meshes,
  refusals,
  tokenizing,
  weights,
)
from dash_jax.data import jsonl as data_jsonl
from dash_jax.runs import completions, jsonl

_MOST_AT_ONCE = 1_024  # prompts of one call, so that the host holds no more


def read_requests(
  path: str, max_completion_len: int
) -> list[completions.Request]:
  """Returns the prompts of a JSONL file, or of standard input if path is ''.

  Args:
    path: the file.
    max_completion_len: of prompts that name none.

  Raises:
    ValueError, FileNotFoundError: names the line and what would be valid.
  """
  requests = []
  if not path:
    for number, line in enumerate(sys.stdin.buffer, 1):
      try:
        text = line.decode('utf-8').rstrip('\r\n')
      except UnicodeDecodeError as error:
        raise ValueError(
          f'standard input:{number}: not UTF-8 ({error.reason} at byte'
          f' {error.start} of the line); write it as UTF-8'
        ) from error
      if text.strip():
        requests.append(
          completions.Request(len(requests), text, max_completion_len)
        )
    if not requests:
      raise ValueError('standard input has no prompt: give one a line')
    return requests
  refusals.check_file('--prompts', path)
  for number, row in data_jsonl.read(path, ('prompt',)):
    limit = row.get('max_completion_len', max_completion_len)
    if not isinstance(row['prompt'], str):
      raise ValueError(f'{path}:{number}: prompt must be a string')
    if type(limit) is not int or not 1 <= limit <= max_completion_len:
      raise ValueError(
        f'{path}:{number}: max_completion_len={limit!r}: must be a number from 1'
        f' to sampling.max_completion_len={max_completion_len}'
      )
    requests.append(completions.Request(len(requests), row['prompt'], limit))
  return requests


def write(
  config: ml_collections.ConfigDict,
  workdir: str,
  *,
  prompts: str = '',
  out: str = '',
  num_samples: int = 1,
  temperature: float | None = None,
) -> None:
  """Samples completions and writes their lines.

  Args:
    config: of the run.
    workdir: of the run.
    prompts: of `read_requests`.
    out: the file, to write or to go on with; '' is standard output.
    num_samples: G, completions of each prompt.
    temperature: in place of `sampling.temperature`; 0 takes the likeliest tokens.

  Raises:
    ValueError, OSError: names the flag, field or line and what would be valid.
  """
  if config.mesh.multi_host:
    raise ValueError(
      'mesh.multi_host=True: generate runs in one process; set it to False'
    )
  if os.path.isdir(out):
    raise ValueError(f'--out={out}: must be a file, and is a folder')
  if temperature is None:
    temperature = config.sampling.temperature
  with (
    jax.set_mesh(meshes.connect(config)),
    contextlib.ExitStack() as closing,
  ):
    encoding, model = assemble.build_encoding(config, workdir)
    requests = read_requests(prompts, encoding.max_completion_len)
    # What can be refused is, before anything is loaded or compiled.
    encoding.encode([_ask(r) for r in requests])
    how = _make_decoding(config, encoding, temperature)
    params, step = weights.load_step(config, model, workdir)
    drawn = _describe(config, step, temperature)
    done = {}
    file = sys.stdout
    if out:
      done = completions.read_done(out, requests, drawn)
      file = closing.enter_context(
        open(out, 'a', encoding='utf-8', newline='\n')
      )
    rows = _sample(
      config, encoding, model, params, how, requests, done, num_samples
    )
    try:
      for row in rows:
        print(jsonl.encode(row | drawn), end='', file=file, flush=True)
    except BrokenPipeError:
      # Who reads the lines, such as `head`, has enough. What is left of them
      # would be an error again when Python ends.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _describe(config, step, temperature):
  """Returns how completions are drawn, as every line has it."""
  sampling = config.sampling
  return {
    'step': step,
    'seed': config.seed,
    'temperature': temperature,
    'top_p': sampling.top_p,
    'top_k': sampling.top_k,
    'min_p': sampling.min_p,
    'settings': completions.name_settings(config.to_dict()),
  }


def _make_decoding(config, encoding, temperature):
  stops = tokenizing.find_stop_ids(encoding.tokenizer, config.data.stop_text)
  config = config.copy_and_resolve_references()
  config.sampling.temperature = temperature
  return assemble.make_decoding(config, stops)


def _ask(request):
  return batches.Question(request.prompt, answer='', uid=request.index)


def _sample(config, encoding, model, params, how, requests, done, num_samples):
  """Yields the completions that are not done, as they end."""
  G = num_samples
  left = [
    r for r in requests if any((r.index, g) not in done for g in range(G))
  ]
  if not left:
    return
  sampled_by = assemble.make_sampler(
    config,
    model,
    jax.sharding.get_mesh(),
    num_prompts=min(len(left), _MOST_AT_ONCE),
    group_size=G,
  )
  prepared = sampled_by.prepare(params)
  for first in range(0, len(left), _MOST_AT_ONCE):
    asked = left[first : first + _MOST_AT_ONCE]
    prompts = encoding.encode([_ask(r) for r in asked])
    limits = np.array([[r.max_completion_len] * G for r in asked])
    for rows, made in sampled_by.stream(
      prepared,
      prompts,
      jax.random.key(config.seed),
      how,
      limits=limits,
      find_end=tokenizing.make_find_end(
        encoding.tokenizer, config.data.stop_text
      ),
    ):
      for q, g in zip(*np.divmod(rows, G), strict=True):
        if (asked[q].index, g) in done:
          continue
        length = made.lengths[q, g]
        yield {
          'index': asked[q].index,
          'sample': g,
          'prompt': asked[q].prompt,
          'max_completion_len': asked[q].max_completion_len,
          'completion': encoding.decode(made.tokens[q, g, :length]),
          'num_tokens': length,
          'truncated': bool(made.truncated[q, g]),
          'logprob': made.logprobs[q, g].sum(),
        }


def main(config, workdir):
  given = flags.FLAGS
  write(
    config,
    workdir,
    prompts=given.prompts,
    out=given.out,
    num_samples=given.num_samples,
    temperature=given.temperature,
  )


def _define_flags():
  flags.DEFINE_string(
    'prompts', '', 'JSONL file with a `prompt` a line; else lines of stdin.'
  )
  flags.DEFINE_string('out', '', 'JSONL file to write, or to go on with.')
  flags.DEFINE_integer(
    'num_samples', 1, 'Completions of each prompt.', lower_bound=1
  )
  flags.DEFINE_float(
    'temperature', None, 'Instead of sampling.temperature.', lower_bound=0.0
  )


if __name__ == '__main__':
  _define_flags()
  commands.run(main)
