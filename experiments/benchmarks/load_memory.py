"""Host memory and seconds that loading a checkpoint takes, beyond its weights.

    python -m experiments.benchmarks.load_memory [--gb=3] [--dtype=bfloat16]

  1. A synthetic Hugging Face folder of that size is written, several files.
  2. A process of its own loads it, and the kernel says the most memory that
     this process ever had. On a CPU the loaded weights are in it too, so they
     are taken off: what is left is what loading needs by itself.

Prints one JSON object. Linux only: it reads /proc.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

from dash_jax import sharding
from dash_jax.model import hf, hf_write, llama, tensors

_PROC = pathlib.Path('/proc/self')


def make_config(gb: float, itemsize: int) -> llama.LlamaConfig:
  """Returns an architecture of about `gb` * 10**9 bytes."""
  config = llama.LlamaConfig(
    vocab_size=8_000, embed_dim=2048, num_layers=1, num_heads=16,
    num_kv_heads=4, head_dim=128, ffw_dim=5632,
  )  # fmt: skip
  places = tensors.list_places(config).values()
  sizes = [(p.layer, np.prod(p.disk_shape) * itemsize) for p in places]
  top = sum(size for layer, size in sizes if layer is None)
  each = sum(size for layer, size in sizes if layer is not None)
  num_layers = max(1, round((gb * 1e9 - top) / each))
  return llama.LlamaConfig(**vars(config) | {'num_layers': num_layers})


def write(folder: pathlib.Path, config: llama.LlamaConfig, dtype) -> int:
  """Writes random weights, a file a layer; returns the largest tensor's bytes."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=1 << 20).astype(dtype)
  weight_map, by_layer = {}, {}
  for name, place in tensors.list_places(config).items():
    by_layer.setdefault(place.layer, []).append((name, place.disk_shape))
  largest = 0
  for layer, entries in by_layer.items():
    made = {name: np.resize(noise, shape) for name, shape in entries}
    largest = max(largest, *(x.nbytes for x in made.values()))
    file = f'layer-{layer}.safetensors'
    safetensors.numpy.save_file(made, folder / file)
    weight_map |= dict.fromkeys(made, file)
  index = json.dumps({'weight_map': weight_map})
  (folder / 'model.safetensors.index.json').write_text(index)
  fields = hf_write.make_config(
    config, dtype=np.dtype(dtype).name, max_len=64, bos_id=None, stop_ids=(0,)
  )
  (folder / 'config.json').write_text(json.dumps(fields))
  return largest


def measure(folder: str, dtype) -> dict:
  """Loads the folder in this process."""
  config = hf.read_config(folder)
  with jax.set_mesh(sharding.make_mesh(1, -1, 1)):
    jax.block_until_ready(jax.numpy.zeros(1))
    _PROC.joinpath('clear_refs').write_text('5')  # the peak starts anew
    before = _read_memory('VmRSS')
    start = time.perf_counter()
    params = jax.block_until_ready(hf.read_weights(folder, config, dtype))
    seconds = time.perf_counter() - start
  held = sum(x.nbytes for x in jax.tree.leaves(params))
  return {
    'weights_bytes': held,
    'beyond_weights_bytes': _read_memory('VmHWM') - before - held,
    'load_s': seconds,
  }


def _read_memory(field: str) -> int:
  status = _PROC.joinpath('status').read_text()
  return int(status.split(f'{field}:')[1].split()[0]) * 1024


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--gb', type=float, default=3.0)
  parser.add_argument(
    '--dtype', choices=['float32', 'bfloat16'], default='bfloat16'
  )
  parser.add_argument('--folder', help=argparse.SUPPRESS)
  args = parser.parse_args()
  dtype = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}[args.dtype]
  if args.folder:
    print(json.dumps(measure(args.folder, dtype)))
    return
  with tempfile.TemporaryDirectory() as folder:
    config = make_config(args.gb, np.dtype(dtype).itemsize)
    largest = write(pathlib.Path(folder), config, dtype)
    command = [sys.executable, '-m', 'experiments.benchmarks.load_memory']
    out = subprocess.run(
      [*command, f'--dtype={args.dtype}', f'--folder={folder}'],
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
  found = json.loads(out.stdout.splitlines()[-1])
  print(json.dumps({'largest_tensor_bytes': largest} | found))


if __name__ == '__main__':
  main()
