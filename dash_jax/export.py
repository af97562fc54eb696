"""A run's checkpoint as a Hugging Face folder, for vLLM or transformers.

    python -m dash_jax.export --workdir=DIR --out=DIR [--step=N] [--adapters] \\
        [--check]

  1. The workdir's config.json says the model and the tokenizer.
  2. The weights go to safetensors in the type they were trained in, beside
     config.json, generation_config.json, the tokenizer and its chat template.
     LoRA's adapters are merged, or with --adapters go alone to a PEFT folder.
  3. --check reads the folder back and compares logits: they must be equal. Merged
     adapters may differ from the run's by the rounding of the merged weights.

Exit codes: 0 done; 1 the check failed; 2 the input is bad.
"""

import argparse
import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import ml_collections
import numpy as np

from dash_jax import checks, sharding, tokenizing, weights
from dash_jax.data import tokenizer
from dash_jax.model import fields, hf, hf_write, llama, lora, peft
from dash_jax.runs import ownership

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
_MERGE_ROUNDING = {'float32': 1e-4, 'bfloat16': 0.05}


@dataclasses.dataclass(frozen=True)
class Exported:
  """What was written.

  Attributes:
    config: the architecture.
    params: its weights.
    unmerged: what the run computes with, config and weights, where adapters were
      merged for this.
  """

  config: llama.LlamaConfig
  params: dict
  unmerged: tuple[llama.LlamaConfig, dict] | None = None


def export(
  workdir: pathlib.Path,
  out: pathlib.Path,
  *,
  step: int | None = None,
  adapters: bool = False,
) -> Exported:
  """Writes a checkpoint of `workdir` to `out`.

  Args:
    workdir: a run's.
    out: a new or an empty folder.
    step: of the checkpoint; None is the newest.
    adapters: whether to write a PEFT folder of the adapters alone.

  Raises:
    ValueError, OSError: names the field or the folder.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'--out={out}: must be a new or an empty folder')
  config = _read_config(workdir)
  model = weights.make_model(config)
  if adapters and model.config.lora is None:
    raise ValueError(
      f'--adapters: the run in {workdir} trained all weights (lora.rank=0);'
      ' without --adapters they are all written'
    )
  restored = weights.restore_params(config, model, workdir, step)
  if restored is None:
    raise ValueError(f'--workdir={workdir}: there is no checkpoint yet')
  params, step = restored
  model, params = drop_critic(model, params)
  if adapters:
    written = Exported(model.config, params)
    out.mkdir(parents=True, exist_ok=True)
    peft.write_adapters(out, model.config, params, **_find_base(config))
  else:
    written = merge(model, params)
    write_model(config, workdir, out, written)
  print(f'step {step} of {workdir} is in {out}')
  return written


def compare(written: Exported, out: pathlib.Path) -> float:
  """Returns how far the folder's logits are from the weights', at most."""
  config = written.config
  if config.lora is None:
    config = hf.read_config(out)
    dtype = written.params['embed'].dtype
    read_back = hf.read_weights(out, config, dtype)
  else:
    _, frozen = lora.split(config.lora, written.params)
    read_back = lora.join(peft.read_adapters(out, config), frozen)
  gap = _run(written.config, written.params) - _run(config, read_back)
  return float(np.abs(gap).max())


def compare_merged(written: Exported) -> tuple[float, float]:
  """Returns how far merging has moved the logits, at most, and how far it may:
  by the rounding of the merged weights, as a share of the largest logit."""
  want = _run(*written.unmerged)
  gap = float(np.abs(_run(written.config, written.params) - want).max())
  rounding = _MERGE_ROUNDING[written.params['embed'].dtype.name]
  return gap, rounding * float(np.abs(want).max())


def _run(config, params) -> np.ndarray:
  """Returns f32[n, T, V], logits of made-up rows, one for each device."""
  shape = (jax.sharding.get_mesh().size, _CHECKED_TOKENS)
  tokens = np.arange(shape[0] * shape[1]) * 7919 % config.vocab_size
  tokens = sharding.put_rows(tokens.reshape(shape).astype(np.int32))
  model = llama.Llama(config)

  @jax.jit
  def run(params, tokens, mask):
    hidden = model.apply({'params': params}, tokens, mask)
    return model.apply({'params': params}, hidden, method='logits')

  mask = sharding.put_rows(np.ones(shape, bool))
  return np.asarray(run(params, tokens, mask))


def _read_config(workdir):
  config = ownership.read_config(workdir)
  try:
    checks.check(config)
  except ValueError as error:
    raise ValueError(f'{workdir / ownership.CONFIG_NAME}: {error}') from error
  return config


def drop_critic(model: llama.Llama, params: dict) -> tuple[llama.Llama, dict]:
  """Returns a run's model and its weights as a policy: without a scalar head."""
  config = dataclasses.replace(model.config, scalar_head=False)
  params = {name: x for name, x in params.items() if name != 'score'}
  return dataclasses.replace(model, config=config), params


def merge(model: llama.Llama, params: dict) -> Exported:
  """Returns a policy with its adapters, if any, merged into what they adapt."""
  config = model.config
  if config.lora is None:
    return Exported(config, params)
  merged = lora.merge(config.lora, params, model.param_dtype)
  return Exported(
    dataclasses.replace(config, lora=None), merged, (config, params)
  )


def write_model(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  out: pathlib.Path,
  written: Exported,
) -> None:
  """Writes weights, architecture and a run's tokenizer to `out`, which is made if
  it is missing."""
  tok = tokenizing.load_tokenizer(config, workdir)
  said = hf_write.make_config(
    written.config,
    dtype=written.params['embed'].dtype.name,
    max_len=_find_max_len(config),
    bos_id=tok.bos_id,
    stop_ids=list(tokenizing.find_stop_ids(tok, config.data.stop_text)),
    pad_id=tok.pad_id,
  )
  out.mkdir(parents=True, exist_ok=True)
  write_tokenizer(config, tok, out)
  _write_json(out / 'config.json', said)
  ends = (f'{name}_token_id' for name in ('bos', 'eos', 'pad'))
  _write_json(out / 'generation_config.json', {n: said[n] for n in ends})
  hf_write.write_weights(out, written.config, written.params)


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
  folder = pathlib.Path(tokenizing.find_tokenizer(config))
  folder = folder if folder.is_dir() else folder.parent
  for name in _TOKENIZER_FILES:
    if (folder / name).exists():
      shutil.copy(folder / name, out / name)
  path = out / 'tokenizer_config.json'
  said = fields.read_json(path)
  pads = [name for name, i in tok.specials.items() if i == tok.pad_id]
  given = said.get('pad_token')
  given = given.get('content') if isinstance(given, dict) else given
  if pads and given != pads[0]:
    # One that ends a reply would be left out of what others train on.
    _write_json(path, said | {'pad_token': pads[0]})
  if tok.chat_template and not tokenizer.load('huggingface', out).chat_template:
    (out / _TEMPLATE_NAME).write_text(tok.chat_template, encoding='utf-8')


def _find_base(config) -> dict:
  """Returns base and revision, as others find the frozen weights' model."""
  kind, _, path = config.model.weights.partition(':')
  if kind == 'hub':
    base, _, revision = path.partition('@')
    return {'base': base, 'revision': revision or None}
  if kind == 'hf':
    return {'base': str(pathlib.Path(path).absolute()), 'revision': None}
  print(
    f'adapter_config.json names no base: model.weights={config.model.weights!r}'
    ' is no Hugging Face folder. Load the base by itself, or export merged'
  )
  return {'base': None, 'revision': None}


def _find_max_len(config) -> int:
  """Returns the longest row that the weights were made for, or if none is said,
  that they were trained on."""
  reader, path = weights.find_weights(config)
  said = reader.read_max_len(path) if reader else None
  return said or config.data.max_prompt_len + config.sampling.max_completion_len


def _write_json(path, said):
  path.write_text(json.dumps(said, indent=2) + '\n', encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m dash_jax.export',
    description='Writes a checkpoint as a Hugging Face folder.',
  )
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--step', type=int, help='the newest, if left out')
  parser.add_argument(
    '--adapters', action='store_true', help="write LoRA's adapters alone"
  )
  parser.add_argument('--check', action='store_true')
  args = parser.parse_args(argv)
  with jax.set_mesh(sharding.make_mesh(1, -1, 1)):
    try:
      written = export(
        args.workdir, args.out, step=args.step, adapters=args.adapters
      )
    except (ValueError, OSError, ModuleNotFoundError) as error:
      parser.error(str(error))
    if not args.check:
      return 0
    passed = True
    if written.unmerged:
      gap, allowed = compare_merged(written)
      print(
        f'merged, its logits differ by at most {gap:.2g} ({allowed:.2g} may)'
      )
      passed = gap <= allowed
    gap = compare(written, args.out)
  print(f'read back, its logits differ by at most {gap:g}')
  return int(not passed or gap != 0)  # also where it is not a number


if __name__ == '__main__':
  sys.exit(main())
