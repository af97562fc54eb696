"""The model of a config, and the weights that it starts from or has come to.

1. `find_weights` says what reads `model.weights`, and `model_config` what the
   architecture is; a preset's must be the same.
2. `load_params` makes the weights or reads them, straight into the layout
   they rest in; `restore_params` takes a checkpoint's.
3. Where adapters are trained, no checkpoint holds the others: `check_frozen`
   refuses weights that the adapters were not trained beside.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import ml_collections

from dash_jax import config as config_lib
from dash_jax import refusals
from dash_jax.model import fields, gguf, hf, hub, llama, lora, meta, presets
from dash_jax.runs import checkpoint, checksums, jsonl

# What the frozen weights beside a run's adapters are.
FROZEN_NAME = 'frozen.json'

# How `model.weights` is read, by what stands before its colon.
_READERS = {'gguf': gguf, 'hf': hf, 'hub': hf, 'meta': meta}


def find_weights(config: ml_collections.ConfigDict):
  """Returns the module that reads `model.weights` (hf, gguf, meta), None if
  they are random, and the file or folder."""
  kind, _, path = config.model.weights.partition(':')
  if not kind:
    return None, ''
  path = hub.find(config.model.weights if kind == 'hub' else path)
  path = gguf.resolve(path)
  refusals.check_file('model.weights', path)
  return _READERS[kind], path


def make_model(config: ml_collections.ConfigDict) -> llama.Llama:
  """Returns the model; as `model_config`, it may refuse the weights' file."""
  return llama.Llama(
    model_config(config),
    dtype=jnp.dtype(config.model.dtype),
    param_dtype=jnp.dtype(config.model.param_dtype),
    remat=config.model.remat,
  )


def model_config(config: ml_collections.ConfigDict) -> llama.LlamaConfig:
  """Returns the architecture; a file of weights must have the preset's.

  Raises:
    ValueError: the file's architecture is another, or has no layer that
      `lora.targets` names.
  """
  reader, path = find_weights(config)
  if reader:
    found = reader.read_config(path)
    if found.scalar_head:
      raise ValueError(
        f'model.weights={config.model.weights!r} is a reward model, which cannot'
        ' continue a text: it goes to reward.model'
      )
    if config.model.preset != config_lib.AUTO:
      _compare(config.model, found, presets.PRESETS[config.model.preset])
  else:
    found = presets.PRESETS[config.model.preset]
  if config.algorithm.baseline == 'critic':
    found = dataclasses.replace(found, scalar_head=True)
  if not config.lora.rank:
    return found
  targets = tuple(config.lora.targets.split(','))
  if found.tied and 'lm_head' in targets:
    raise ValueError(
      f"lora.targets={config.lora.targets!r}: the model's embedding is tied, so"
      ' it has no lm_head of its own to adapt'
    )
  sizes = (found.embed_dim, found.ffw_dim, found.vocab_size)
  if config.lora.rank > min(sizes):
    raise ValueError(
      f'lora.rank={config.lora.rank}: must be at most {min(sizes)}, the smallest'
      ' dimension of the layers that it adapts'
    )
  return dataclasses.replace(
    found,
    lora=lora.Lora(
      rank=config.lora.rank,
      alpha=config.lora.alpha,
      targets=targets,
      dropout=config.lora.dropout,
    ),
  )


def _compare(section, found, preset):
  differing = [
    f'{field.name} is {getattr(found, field.name)} there,'
    f' {getattr(preset, field.name)} in the preset'
    for field in dataclasses.fields(preset)
    if getattr(found, field.name) != getattr(preset, field.name)
  ]
  if differing:
    raise ValueError(
      f'model.weights={section.weights!r} is not a {section.preset}:'
      f" {'; '.join(differing)}. model.preset='auto' takes what is there"
    )


def load_step(
  config: ml_collections.ConfigDict,
  model: llama.Llama,
  workdir: str | os.PathLike,
  step: int | None = None,
) -> tuple[dict, int]:
  """Returns the whole model's weights at a checkpoint, and its step.

  Args:
    config: of the run.
    model: of the run.
    workdir: of the run; nothing in it changes.
    step: None takes the newest checkpoint. 0, as None where there is none, takes
      the weights that the run starts from.

  Raises:
    ValueError: there is no such checkpoint, or it is torn.
  """
  if step != 0:
    restored = restore_params(config, model, workdir, step)
    if restored:
      return restored
    if step:
      raise ValueError(f'--step={step}: {workdir} has no checkpoint')
  return load_params(config, model), 0


def load_params(config: ml_collections.ConfigDict, model: llama.Llama) -> dict:
  """Returns the weights a run starts from, in the TRAIN layout.

  Weights that are trained come in the model's `param_dtype`. Where adapters
  are, the others come in `dtype`, in which alone they are used.
  """
  adapters = model.config.lora
  base = dataclasses.replace(model.config, lora=None, scalar_head=False)
  dtype = jnp.dtype(model.dtype if adapters else model.param_dtype)
  reader, path = find_weights(config)
  key = jax.random.key(config.seed)
  if reader:
    params = reader.read_weights(path, base, dtype)
  else:
    params = llama.init_params(base, key, dtype)
  if base == model.config:
    return params
  # No key is used twice.
  return lora.join(_make_added(model, jax.random.fold_in(key, 1)), params)


def abstract_params(model: llama.Llama) -> dict:
  """Returns ShapeDtypeStructs of what `load_params` returns."""
  trained = llama.abstract_params(model.config, model.param_dtype)
  adapters = model.config.lora
  if adapters is None:
    return trained
  trained, _ = lora.split(adapters, trained)
  frozen = llama.abstract_params(model.config, model.dtype)
  return lora.join(trained, lora.split(adapters, frozen)[1])


def check_frozen(
  config: ml_collections.ConfigDict,
  frozen: dict,
  workdir: str | os.PathLike,
  *,
  keep: bool = False,
) -> None:
  """Refuses weights that a run's adapters were not trained beside.

  Args:
    config: of the run.
    frozen: what `model.weights` holds now.
    workdir: of the run.
    keep: whether to write what they are, since no adapters are trained yet.

  Raises:
    ValueError: names the weights that are others.
  """
  # Random ones follow from the seed, and may differ by a bit between devices.
  if not config.model.weights or not frozen:
    return
  path = pathlib.Path(workdir) / FROZEN_NAME
  found = checksums.find(frozen)
  if keep:
    if jax.process_index() == 0:
      jsonl.replace(path, json.dumps(found, indent=2) + '\n')
  else:
    try:
      kept = fields.read_json(path)
    except (ValueError, FileNotFoundError) as error:
      raise ValueError(
        f'{path} must say what the adapters were trained beside: {error}'
      ) from error
    differing = [n for n in found if found[n] != kept.get(n)]
    if differing:
      raise ValueError(
        f'model.weights={config.model.weights!r} is not what the adapters in'
        f' {workdir} were trained beside: {", ".join(differing)} differ from'
        f' {path.name}; give back the weights that the run began with'
      )


def restore_params(
  config: ml_collections.ConfigDict,
  model: llama.Llama,
  workdir: str | os.PathLike,
  step: int | None = None,
) -> tuple[dict, int] | None:
  """Returns the whole model's weights at a checkpoint, and its step.

  Args:
    config: of the run.
    model: of the run.
    workdir: of the run; nothing in it changes.
    step: None takes the newest checkpoint, and returns None if there is none.

  Raises:
    ValueError: there is no checkpoint of that step, or it holds other arrays.
  """
  abstract = llama.abstract_params(model.config, model.param_dtype)
  abstract, _ = lora.split(model.config.lora, abstract)
  restored = checkpoint.restore_params(workdir, abstract, step)
  if restored is None or model.config.lora is None:
    return restored
  trained, step = restored
  _, frozen = lora.split(model.config.lora, load_params(config, model))
  check_frozen(config, frozen, workdir)
  return lora.join(trained, frozen), step


@functools.partial(jax.jit, static_argnames='model')
def _make_added(model, key):
  """Returns the adapters and the scalar head, which no base has."""
  # The other weights are never made: nothing asks for them.
  made = llama.init_params(model.config, key, model.param_dtype)
  if model.config.lora:
    return lora.split(model.config.lora, made)[0]
  return {'layers': {}, 'score': made['score']}
