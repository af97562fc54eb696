"""Adapters into a PEFT folder, which the package `peft` and vLLM load, and back.

1. `write_adapters` writes adapter_config.json and adapter_model.safetensors.
2. `read_adapters` reads what it wrote.

An adapter is lora_A [r, in] and lora_B [out, r] there, under the path that its
linear layer has in transformers.
"""

import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

from dash_jax.model import llama, tensors

_CONFIG_NAME = 'adapter_config.json'
_WEIGHTS_NAME = 'adapter_model.safetensors'


def write_adapters(
  folder: pathlib.Path,
  config: llama.LlamaConfig,
  params: dict,
  *,
  base: str | None,
  revision: str | None = None,
) -> None:
  """Writes a PEFT folder.

  Args:
    folder: exists.
    config: the architecture, with `lora`.
    params: holds its adapters, in the tree of `llama.weights`.
    base: the frozen weights' model, a folder or a name on the hub; None says
      nothing of it.
    revision: of a model on the hub.
  """
  adapters = config.lora
  fields = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'revision': revision,
    'r': adapters.rank,
    'lora_alpha': adapters.alpha,
    'lora_dropout': adapters.dropout,
    'target_modules': list(adapters.targets),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  text = json.dumps(fields, indent=2) + '\n'
  (folder / _CONFIG_NAME).write_text(text, encoding='utf-8')
  found = {}
  for disk_name, (name, layer, shape) in _list_adapters(config).items():
    x = params[name] if layer is None else params['layers'][name][layer]
    x = jax.device_get(x)
    found[disk_name] = np.ascontiguousarray(x.reshape(shape[::-1]).T)
  safetensors.numpy.save_file(
    found, folder / _WEIGHTS_NAME, metadata={'format': 'pt'}
  )


def read_adapters(folder: pathlib.Path, config: llama.LlamaConfig) -> dict:
  """Returns the adapters that `write_adapters` wrote, as NumPy arrays."""
  found = safetensors.numpy.load_file(folder / _WEIGHTS_NAME)
  declared = llama.weights(config)
  params: dict = {'layers': {}}
  for disk_name, (name, layer, _) in _list_adapters(config).items():
    x = found[disk_name].T
    if layer is None:
      params[name] = x.reshape(declared[name].shape)
      continue
    shape = declared['layers'][name].shape
    stack = params['layers'].setdefault(name, np.empty(shape, x.dtype))
    stack[layer] = x.reshape(shape[1:])
  return params


def _list_adapters(config) -> dict:
  """Returns name, layer and shape on disk of each adapter, by name on disk."""
  adapters = {}
  for disk_name, place in tensors.list_places(config).items():
    path = disk_name.removesuffix('.weight')
    if path.rpartition('.')[2] not in config.lora.targets or path == disk_name:
      continue
    num_out, num_in = place.disk_shape
    for ours, theirs, shape in (
      ('a', 'lora_A', (config.lora.rank, num_in)),
      ('b', 'lora_B', (num_out, config.lora.rank)),
    ):
      adapters[f'base_model.model.{path}.{theirs}.weight'] = (
        f'{place.name}_{ours}',
        place.layer,
        shape,
      )
  return adapters
