"""A run's newest checkpoint as a Hugging Face folder, for vLLM or transformers.

    python -m dash_jax.export --workdir=DIR --out=DIR [--check]

  1. The workdir's config.json says the model and the tokenizer.
  2. The weights go to safetensors in the type they were trained in, beside
     config.json, generation_config.json, the tokenizer and its chat template.
  3. --check reads the folder back and compares logits: they must be equal.

Exit codes: 0 done; 1 the check failed; 2 the input is bad.
"""

import argparse
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from dash_jax import assemble, sharding
from dash_jax import config as config_lib
from dash_jax.data import tokenizer
from dash_jax.model import gguf, hf, hf_write, llama
from dash_jax.runs import checkpoint

_TEMPLATE_NAME = 'chat_template.jinja'
# What a Hugging Face folder may hold of its tokenizer.
_TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'tokenizer.model',
  'special_tokens_map.json',
  _TEMPLATE_NAME,
)
_CHECKED_TOKENS = 64


def export(
  workdir: pathlib.Path, out: pathlib.Path
) -> tuple[llama.Llama, dict]:
  """Writes the newest checkpoint of `workdir` to `out`.

  Returns:
    The model and the weights that were written.

  Raises:
    ValueError, OSError: names the field or the folder.
  """
  if out.exists() and any(out.iterdir()):
    raise ValueError(f'--out={out}: must be a new or an empty folder')
  model, params, step, config = load(workdir)
  tok = assemble.load_tokenizer(config, workdir)
  fields = hf_write.make_config(
    model.config,
    dtype=jnp.dtype(model.param_dtype).name,
    max_len=_find_max_len(config),
    bos_id=tok.bos_id,
    stop_ids=assemble.find_stop_ids(tok, config.data.stop_text).tolist(),
    pad_id=tok.pad_id,
  )
  out.mkdir(parents=True, exist_ok=True)
  write_tokenizer(config, tok, out)
  _write_json(out / 'config.json', fields)
  ends = (f'{name}_token_id' for name in ('bos', 'eos', 'pad'))
  _write_json(out / 'generation_config.json', {n: fields[n] for n in ends})
  hf_write.write_weights(out, model.config, params)
  print(f'step {step} of {workdir} is in {out}')
  return model, params


def load(workdir: pathlib.Path):
  """Returns model, weights, step and config of a workdir.

  Raises:
    ValueError, OSError: it is not a run's, or has no checkpoint.
  """
  path = workdir / checkpoint.CONFIG_NAME
  if not path.exists():
    raise FileNotFoundError(f'--workdir={workdir}: there is no {path.name}')
  config = ml_collections.ConfigDict(json.loads(path.read_text()))
  config_lib.check(config)
  model = assemble.make_model(config)
  restored = checkpoint.restore_params(
    workdir, llama.abstract_params(model.config, model.param_dtype)
  )
  if restored is None:
    raise ValueError(f'--workdir={workdir}: there is no checkpoint yet')
  return model, *restored, config


def write_tokenizer(
  config: ml_collections.ConfigDict,
  tok: tokenizer.Tokenizer,
  out: pathlib.Path,
) -> None:
  """Writes a run's tokenizer and chat template to `out`, which exists.

  Files that are of this form already are copied.

  Raises:
    ValueError: it has no such form.
  """
  if config.data.tokenizer != 'huggingface':
    tok.save(out)
    return
  folder = pathlib.Path(config.data.tokenizer_path)
  folder = folder if folder.is_dir() else folder.parent
  for name in _TOKENIZER_FILES:
    if (folder / name).exists():
      shutil.copy(folder / name, out / name)
  if tok.chat_template and not tokenizer.load('huggingface', out).chat_template:
    (out / _TEMPLATE_NAME).write_text(tok.chat_template, encoding='utf-8')


def compare(model: llama.Llama, params: dict, out: pathlib.Path) -> float:
  """Returns how far the folder's logits are from the weights', at most."""
  tokens = np.arange(_CHECKED_TOKENS) * 7919 % model.config.vocab_size
  tokens = tokens[None].astype(np.int32)

  def compute(config, params):
    again = llama.Llama(config)

    @jax.jit
    def run(params):
      mask = jnp.ones(tokens.shape, bool)
      hidden = again.apply({'params': params}, jnp.asarray(tokens), mask)
      return again.apply({'params': params}, hidden, method='logits')

    return np.asarray(run(params))

  config = hf.read_config(out)
  read_back = hf.read_weights(out, config, dtype=jnp.dtype(model.param_dtype))
  return float(
    np.abs(compute(model.config, params) - compute(config, read_back)).max()
  )


def _find_max_len(config) -> int:
  """Returns the longest row that the weights were made for."""
  kind, _, path = config.model.weights.partition(':')
  if kind == 'hf':
    path = pathlib.Path(path) / 'config.json'
    fields, name = json.loads(path.read_text()), 'max_position_embeddings'
  elif kind == 'gguf':
    path = gguf.resolve(path)
    fields = gguf.read_metadata(path)
    name = f'{fields["general.architecture"]}.context_length'
  else:
    return config.data.max_prompt_len + config.sampling.max_completion_len
  if name not in fields:
    raise ValueError(f'{path}: {name} is missing, the longest row it takes')
  return fields[name]


def _write_json(path, fields):
  path.write_text(json.dumps(fields, indent=2) + '\n', encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m dash_jax.export',
    description='Writes a checkpoint as a Hugging Face folder.',
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args(argv)
  mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
  with jax.set_mesh(mesh):
    try:
      model, params = export(args.workdir, args.out)
    except (ValueError, OSError, ModuleNotFoundError) as error:
      parser.error(str(error))
    if not args.check:
      return 0
    gap = compare(model, params, args.out)
  print(f'read back, its logits differ by at most {gap:g}')
  return int(gap != 0)  # also where it is not a number


if __name__ == '__main__':
  sys.exit(main())
