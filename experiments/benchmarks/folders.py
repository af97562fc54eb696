"""Workloads as Hugging Face folders, which other programs read."""

import json
import pathlib

from dash_jax.model import hf_write, llama
from experiments.benchmarks import workloads


def write_config(
  folder: pathlib.Path, config: llama.LlamaConfig, max_len: int
) -> None:
  """Writes the config.json of a Hugging Face folder.

  Args:
    folder: where.
    config: the architecture.
    max_len: most tokens of a prompt with its completion.
  """
  fields = hf_write.make_config(
    config, dtype='float32', max_len=max_len, bos_id=None, stop_ids=()
  )
  (folder / 'config.json').write_text(json.dumps(fields))


def write_model(folder: pathlib.Path, workload: workloads.Workload) -> None:
  """Writes the workload's weights as a Hugging Face folder."""
  config = workload.model.config
  write_config(folder, config, workload.prompt_len + workload.completion_len)
  hf_write.write_weights(folder, config, workloads.make_params(workload))
