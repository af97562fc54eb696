"""The parts of experiments/benchmarks/sampler.py that time our sampler alone.

  1. `measure_sharing`: the same rows with their prompts shared, and not.
  2. `measure_host`: the share of a call in which no program runs, by a profile.
  3. `time_call`: one large call of a config file against a device's bandwidth.

Each returns or yields dicts for JSON with a `measure`, which `describe` prints.
"""

import dataclasses
import glob
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dash_jax import profile, sharding
from dash_jax.model import llama, presets
from dash_jax.planning import work
from dash_jax.sampling import decoding, sampler
from experiments.benchmarks import gpu_timings, step, workloads

_GROUP_SIZE = 8


def _one_device():
  return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])


def _make_prompts(config, num, prompt_len):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, config.vocab_size, (num, prompt_len))
  return workloads.fill_prompts(tokens.astype(np.int32))


def measure_sharing(workload: workloads.Workload, turns: int) -> dict:
  """Returns what it saves to keep a prompt once for its 8 rows, P = C.

  The side that does not share asks each prompt eight times for one row. Rows
  are full on both, so that both draw as many tokens.
  """
  config, P = workload.model.config, workload.completion_len
  Q = workload.num_questions
  prompts = _make_prompts(config, Q, P)
  repeated = jax.tree.map(lambda x: x.repeat(_GROUP_SIZE, axis=0), prompts)
  settings = decoding.make_decoding(1.0)
  found = {}
  with jax.set_mesh(_one_device()):
    params = workloads.make_params(workload)
    sides = {}
    for name, asked, group_size in (
      ('shared', prompts, _GROUP_SIZE), ('apart', repeated, 1),
    ):  # fmt: skip
      made = sampler.Sampler(
        workload.model,
        params,
        num_prompts=len(asked.tokens),
        group_size=group_size,
        max_prompt_len=P,
        max_completion_len=P,
      )
      found[name] = {'cache_bytes': made.cache_bytes, 'seconds': []}
      sides[name] = made, asked
    for turn in range(turns + 2):
      for name, (made, asked) in sides.items():
        start = time.perf_counter()
        made.sample(params, asked, jax.random.key(turn), settings)
        if turn > 1:  # two turns warm up
          found[name]['seconds'].append(time.perf_counter() - start)
  shared, apart = found['shared'], found['apart']
  medians = [statistics.median(x['seconds']) for x in (shared, apart)]
  return {
    'measure': f'{workload.name}, prompts shared by 8 rows, P = C = {P}',
    'cache_saved': 1 - shared['cache_bytes'] / apart['cache_bytes'],
    'time_of_not_shared': medians[0] / medians[1],
    'sides': found,
  }


def measure_host(workload: workloads.Workload, turns: int) -> dict:
  """Returns the share of a call in which the device runs no program."""
  P, Q = workload.prompt_len, workload.num_questions
  prompts = _make_prompts(workload.model.config, Q, P)
  shares = []
  with jax.set_mesh(_one_device()):
    params = workloads.make_params(workload)
    made = step.make_sampler(workload, params)
    for turn in range(turns + 2):
      with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
          start = time.perf_counter()
          key = jax.random.key(turn)
          made.sample(params, prompts, key, workload.decoding)
          wall_s = time.perf_counter() - start
        if turn > 1:
          shares.append(1 - _busy_s(folder) / wall_s)
  return {
    'measure': f'{workload.name}, share of a call in which no program runs',
    'share': step.summarize(shares),
  }


# What a profile calls the run of a whole program on a CPU, and the lines of what
# runs on a TPU and on a GPU.
_CPU_PROGRAM = 'ThunkExecutor::Execute'
_DEVICE_LINES = ('XLA Modules', 'Stream')


def _busy_s(folder) -> float:
  """Returns the seconds in which at least one program ran."""
  (path,) = glob.glob(f'{folder}/**/*.xplane.pb', recursive=True)
  spans = []
  for plane in jax.profiler.ProfileData.from_file(path).planes:
    for line in plane.lines:
      spans += [
        (event.start_ns, event.start_ns + event.duration_ns)
        for event in line.events
        if line.name.startswith(_DEVICE_LINES)
        or event.name.startswith(_CPU_PROGRAM)
      ]
  if not spans:
    raise RuntimeError(f'{path}: it names no program that ran')
  return profile.measure(spans)


@dataclasses.dataclass(frozen=True)
class Call:
  """One large sampling call.

  Attributes:
    name: of the model.
    model: the architecture and its types.
    prompt_len, max_completion_len: P and C.
    lengths: i[Q, G], completion tokens of each row.
  """

  name: str
  model: llama.Llama
  prompt_len: int
  max_completion_len: int
  lengths: np.ndarray


def read_call(path: str, tiny: bool) -> Call:
  """Returns the call of a config file.

  Args:
    path: a file with get_config() and MEAN_COMPLETION_LEN; a colon hands the
      rest to get_config.
    tiny: take a tiny model and few rows, to run the same on a CPU.
  """
  path, _, argument = path.partition(':')
  spec = importlib.util.spec_from_file_location('timed_config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(*([argument] if argument else []))
  model = llama.Llama(
    presets.PRESETS[config.model.preset],
    dtype=jnp.dtype(config.model.dtype).type,
    param_dtype=jnp.dtype(config.model.param_dtype).type,
  )
  G, C = config.algorithm.group_size, config.sampling.max_completion_len
  Q, P = config.algorithm.batch_size // G, config.data.max_prompt_len
  if tiny:
    small = dataclasses.replace(
      model.config, vocab_size=64, embed_dim=32, num_layers=1, num_heads=4,
      num_kv_heads=2, head_dim=8, ffw_dim=48,
    )  # fmt: skip
    model, Q = dataclasses.replace(model, config=small), 2
  lengths = np.random.default_rng(0).geometric(
    1 / module.MEAN_COMPLETION_LEN, (Q, G)
  )
  return Call(config.model.preset, model, P, C, np.minimum(lengths, C))


def describe_for_others(call: Call) -> dict:
  """Returns the call as a workload file has it, for sides/hf_generate.py."""
  config = call.model.config
  return {
    'seed': 0,
    'temperature': 1.0,
    'top_p': 1.0,
    'top_k': 0,
    'prompt_ids_from': 0,
    'pad_id': 0,
    'eos_ids': [],
    'prompt_len': call.prompt_len,
    'max_new_tokens': call.max_completion_len,
    'num_generations': call.lengths.shape[1],
    'model': {'vocab_size': config.vocab_size},
  }


def time_call(call: Call, turns: int, tiny: bool) -> Iterator[dict]:
  """Yields the machine's rates, and a call's figures in bf16 and in int8."""
  model, lengths = call.model, call.lengths
  (Q, G), P, C = lengths.shape, call.prompt_len, call.max_completion_len
  with jax.set_mesh(_one_device()):
    ceilings = {}
    deadline = time.monotonic() + 600
    for row in gpu_timings.measure_ceilings(tiny, deadline):
      ceilings |= row.pop('ceilings')
      yield row
    params = llama.init_params(
      model.config, jax.random.key(0), model.param_dtype
    )
    prompts = _make_prompts(model.config, Q, P)
    settings = decoding.make_decoding(1.0)
    for quantize in (False, True):
      made = sampler.Sampler(
        model,
        params,
        num_prompts=Q,
        group_size=G,
        max_prompt_len=P,
        max_completion_len=C,
        quantize_cache=quantize,
        quantize_weights=quantize,
      )
      seconds, _ = gpu_timings.time_runs(
        lambda i, made=made: made.sample(
          params, prompts, jax.random.key(i), settings, limits=lengths
        ),
        deadline,
        most=turns,
      )
      one = 1 if quantize else np.dtype(model.dtype).itemsize
      floor = work.decode_floor(
        model.config, lengths, prompt_len=P, weight_bytes=one, cache_bytes=one
      )
      least_s = floor.bandwidth_seconds(ceilings['bytes_per_s'])
      dtype = np.dtype(model.dtype).name
      kind = 'int8 weights and cache' if quantize else dtype
      yield {
        'measure': f'{call.name}, {Q} prompts x {G}, {kind}',
        'unit': 'tokens/s',
        **step.summarize([lengths.sum() / s for s in seconds]),
        'batch_size': made.batch_size,
        'floor_s': least_s,
        'share_of_floor': least_s / statistics.median(seconds),
        'seconds': seconds,
      }
      del made


def describe(row: dict) -> str:
  """Returns a dict of this file as a line of text."""
  if 'cache_saved' in row:
    return (
      f'{row["measure"]}: {row["cache_saved"]:.0%} less cache,'
      f' {row["time_of_not_shared"]:.2f} of the time of not sharing'
    )
  if 'share' in row:
    s = row['share']
    return (
      f'{row["measure"]}: {s["median"]:.1%} [{s["min"]:.1%}, {s["max"]:.1%}]'
    )
  text = (
    f'{row["measure"]}: {row["median"]:,.0f} {row["unit"]}'
    f' [{row["min"]:,.0f}, {row["max"]:,.0f}]'
  )
  if 'share_of_floor' in row:
    text += (
      f', {row["share_of_floor"]:.0%} of the bandwidth floor,'
      f' {row["batch_size"]} rows at once'
    )
  return text
