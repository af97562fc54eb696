"""The least that sampling and learning must do, counted from the architecture.

  1. `decode_floor` and `learn_flops` count what no program can avoid, on one
     device.
  2. `Work` is what a program does on each of several: operations, bytes of its
     memory, bytes that come in from other devices. A function for each program
     (`prefill_work` and so on) counts them for a run's shapes on a mesh.
  3. `Work.bound` says what takes longest at a device's rates, and how long.

A compiled program does no less, and mostly more: what is masked, padded, copied,
or waited for is not counted here.
"""

import dataclasses

import numpy as np

from dash_jax.model import llama
from dash_jax.planning import devices
from dash_jax.sampling import sampler


def count_matmul_params(config: llama.LlamaConfig) -> tuple[int, int]:
  """Returns the weights that multiply every token, layers and unembedding."""
  D, H = config.embed_dim, config.head_dim
  heads = 2 * config.num_heads + 2 * config.num_kv_heads
  layer = D * H * heads + 3 * D * config.ffw_dim
  return layer * config.num_layers, D * config.vocab_size


def _attention_flops(config, first, last):
  """Returns the FLOPs of positions first < t <= last, each over all before."""
  pairs = (last * (last + 1) - first * (first + 1)) / 2
  return 4 * config.num_heads * config.head_dim * config.num_layers * pairs


def learn_flops(
  config: llama.LlamaConfig, num_rows: int, prompt_len: int, completion_len: int
) -> float:
  """Returns the FLOPs of a forward and a backward over full rows, each with a
  prompt of its own.

      3 * rows * (2 * layers' weights * T + attention + 2 * unembedding * C)

  That is the usual 6 N T with attention's causal half, the unembedding only
  where a completion token is predicted; a last token predicts none. What
  rematerialisation or padding adds is not counted.
  """
  body, head = count_matmul_params(config)
  T = prompt_len + completion_len - 1
  forward = 2 * body * T + _attention_flops(config, 0, T)
  return 3 * num_rows * (forward + 2 * head * completion_len)


@dataclasses.dataclass(frozen=True)
class Floor:
  """The least that sampling must do: a prefill, then decode steps."""

  prefill_flops: float
  step_flops: np.ndarray  # f64[steps]
  step_bytes: np.ndarray  # f64[steps]

  def seconds(self, flops_per_s: float, bytes_per_s: float) -> float:
    """Returns the time on a machine that reaches both rates: each decode step
    waits for its arithmetic or for its memory, whichever is slower."""
    decode = np.maximum(
      self.step_flops / flops_per_s, self.step_bytes / bytes_per_s
    )
    return self.prefill_flops / flops_per_s + float(decode.sum())

  def bandwidth_seconds(self, bytes_per_s: float) -> float:
    """Returns the time that reading weights and cache alone takes."""
    return float(self.step_bytes.sum()) / bytes_per_s


def decode_floor(
  config: llama.LlamaConfig,
  lengths: np.ndarray,
  *,
  prompt_len: int,
  weight_bytes: float,
  cache_bytes: float,
) -> Floor:
  """Returns the floor of sampling rows that all begin together.

  Each prompt is prefilled once. A decode step reads every weight once, the cache
  of each prompt that has a live row once, and the live rows' own tokens so far.

  Args:
    config: the architecture.
    lengths: i[Q, G], completion tokens of each row.
    prompt_len: P.
    weight_bytes: of one weight.
    cache_bytes: of one number in the cache.
  """
  body, head = count_matmul_params(config)
  own = np.arange(1, lengths.max())  # own tokens that a step sees
  live = lengths[..., None] > own
  rows = live.sum(axis=(0, 1)).astype(float)
  prompts = live.any(axis=1).sum(axis=0)
  token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim
  token_bytes *= cache_bytes
  prefill = 2 * body * prompt_len + 2 * head
  seen = prompt_len + own
  return Floor(
    prefill_flops=len(lengths)
    * (prefill + _attention_flops(config, 0, prompt_len)),
    step_flops=rows
    * (2.0 * (body + head) + _attention_flops(config, seen - 1, seen)),
    step_bytes=(body + head) * weight_bytes
    + token_bytes * (prompts * prompt_len + rows * own),
  )


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does.

  Attributes:
    flops: operations.
    bytes: that its memory reads and writes.
    link_bytes: that come in from other devices.
  """

  flops: float = 0.0
  bytes: float = 0.0
  link_bytes: float = 0.0

  def __add__(self, other: 'Work') -> 'Work':
    return Work(
      self.flops + other.flops,
      self.bytes + other.bytes,
      self.link_bytes + other.link_bytes,
    )

  def __mul__(self, times: float) -> 'Work':
    return Work(self.flops * times, self.bytes * times, self.link_bytes * times)

  def bound(self, kind: devices.Kind) -> tuple[float, str]:
    """Returns the seconds that it takes at least, and what takes them, if all
    three go on at once; 0 where the kind's rates are not known."""
    if not kind.flops_per_s:
      return 0.0, 'not known'
    return max(
      (self.flops / kind.flops_per_s, 'compute'),
      (self.bytes / kind.bytes_per_s, 'memory bandwidth'),
      (self.link_bytes / kind.link_bytes_per_s, 'interconnect'),
    )


def gathered(size: float, ways: int) -> float:
  """Returns the bytes that come into a device when `size` bytes, split over so
  many devices, are gathered on each; or are summed and split."""
  return size * (ways - 1) / ways


def summed(size: float, ways: int) -> float:
  """Returns the bytes that come in when `size` bytes on each are summed up."""
  return 2 * gathered(size, ways)


@dataclasses.dataclass(frozen=True)
class Shape:
  """What work follows from.

  Attributes:
    config: the architecture.
    data, fsdp, tensor: of the mesh.
    prompt_len, completion_len, group_size: P, C, G.
    itemsize: of what is computed in, bytes.
    param_itemsize: of the weights that are trained.
    trained_weights: that rest on a device: all, or those of adapters.
    moment_itemsize: of all that the optimizer keeps for a weight.
    weight_bytes: of a weight as it is sampled with.
    cache_bytes: of a number in the cache.
    remat: of llama.REMAT.
    forwards: more forwards of the rows that are learned from than the one that is
      differentiated.
  """

  config: llama.LlamaConfig
  data: int
  fsdp: int
  tensor: int
  prompt_len: int
  completion_len: int
  group_size: int
  itemsize: int
  param_itemsize: int
  trained_weights: float
  moment_itemsize: float
  weight_bytes: float
  cache_bytes: float
  remat: str
  forwards: int

  @property
  def shards(self) -> int:
    """Ways that rows are split."""
    return self.data * self.fsdp

  @property
  def own_weights(self) -> float:
    """Weights that rest on a device."""
    return llama.count_params(self.config) / self.fsdp / self.tensor

  @property
  def own_bytes(self) -> float:
    """Bytes of the weights that rest on a device; frozen ones are kept as they are
    computed with."""
    frozen = self.own_weights - self.trained_weights
    return self.trained_weights * self.param_itemsize + frozen * self.itemsize

  @property
  def used_weights(self) -> float:
    """Weights on a device once they are gathered."""
    return llama.count_params(self.config) / self.tensor

  @property
  def token_bytes(self) -> float:
    """Bytes of a token's keys and values on a device."""
    config = self.config
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return numbers * self.cache_bytes / self.tensor

  def count_admitted(self, rows: int) -> int:
    """Returns how many prompts of a shard run at once, if it decodes so many
    rows at once."""
    most = max(sampler.PREFILL_TOKENS // self.prompt_len, 1)
    return max(min(rows // self.group_size, most), 1)

  def layer_sums(self, tokens: float) -> float:
    """Returns the bytes that come in where a layer's two products are summed
    over the axis tensor, for all layers."""
    size = tokens * self.config.embed_dim * self.itemsize
    return 2 * self.config.num_layers * summed(size, self.tensor)


def prepare_work(shape: Shape) -> Work:
  """Returns the work of making the weights ready to sample with, once a phase."""
  return Work(
    bytes=shape.own_bytes + shape.used_weights * shape.weight_bytes,
    link_bytes=gathered(shape.used_weights * shape.itemsize, shape.fsdp),
  )


def prefill_work(shape: Shape, prompts: int, calls: int) -> Work:
  """Returns the work of running prompts.

  Args:
    shape: of the run.
    prompts: on each shard of rows.
    calls: of the program, each of which reads the weights.
  """
  config, P, t = shape.config, shape.prompt_len, shape.tensor
  body, head = count_matmul_params(config)
  flops = prompts * (2 * body * P + _attention_flops(config, 0, P) + 2 * head)
  return Work(
    flops=flops / t,
    bytes=calls * (body + head) / t * shape.weight_bytes
    + prompts * P * shape.token_bytes,
    link_bytes=shape.layer_sums(prompts * P)
    + _edges(shape, prompts * P, prompts),
  )


def decode_work(shape: Shape, rows: int, waves: int) -> Work:
  """Returns the work of drawing all tokens but the first of rows of full length.

  Args:
    shape: of the run.
    rows: that a shard decodes at once.
    waves: how many times it does.
  """
  G, C, t = shape.group_size, shape.completion_len, shape.tensor
  floor = decode_floor(
    shape.config,
    np.full((max(rows // G, 1), min(rows, G)), C),
    prompt_len=shape.prompt_len,
    weight_bytes=shape.weight_bytes,
    cache_bytes=shape.cache_bytes,
  )
  steps = Work(
    flops=float(floor.step_flops.sum()) / t,
    bytes=float(floor.step_bytes.sum()) / t,
    link_bytes=(C - 1) * (shape.layer_sums(rows) + _edges(shape, rows, rows)),
  )
  return steps * waves


def _edges(shape, tokens, predictions):
  """Returns the bytes that come in where tokens' embeddings and predictions'
  logits, which are split over tensor, are joined."""
  config = shape.config
  return gathered(
    tokens * config.embed_dim * shape.itemsize
    + predictions * config.vocab_size * 4,
    shape.tensor,
  )


def minibatch_work(shape: Shape, rows: int) -> Work:
  """Returns the work of one minibatch's gradient.

  A prompt is run once for its rows. What is computed again for the gradient
  counts; a forward alone costs a third of one with its gradient, or half where
  adapters are trained: weights that are frozen have no gradient.

  Args:
    shape: of the run.
    rows: of full length, on each shard.
  """
  config, P, C, t = (
    shape.config, shape.prompt_len, shape.completion_len, shape.tensor,
  )  # fmt: skip
  body, head = count_matmul_params(config)
  prompts = -(-rows // shape.group_size)
  tokens = prompts * P + rows * C
  attention = prompts * _attention_flops(config, 0, P)
  attention += rows * _attention_flops(config, P, P + C)
  layers = 2 * body * tokens
  # A layer's last product is not needed again.
  last = 2 * config.num_layers * config.embed_dim * config.ffw_dim * tokens
  again = {'layer': layers - last + attention}
  logits = 2 * head * rows * C
  flops = (2 if config.lora else 3) * (layers + logits) + 3 * attention
  flops += again.get(shape.remat, attention)
  flops += shape.forwards * (layers + attention + logits)

  tables = config.vocab_size * config.embed_dim * (1 if config.tied else 2)
  in_layers = shape.used_weights - tables / t
  is_again = shape.remat == 'layer'
  gathers = 1 + is_again + shape.forwards
  # Nor is the sum that ends a layer.
  sums = 2 + is_again / 2 + shape.forwards
  used = in_layers * gathers + tables / t * (1 + shape.forwards)
  residuals = config.num_layers * tokens * config.embed_dim * shape.itemsize
  if config.lora:
    gradient = shape.trained_weights * shape.fsdp * shape.itemsize
  else:
    # Of tables, chunks add a gradient up in float32.
    gradient = in_layers * shape.itemsize + tables / t * 4
  stream = tokens * config.embed_dim * shape.itemsize
  return Work(
    flops=flops / t,
    bytes=(used + shape.used_weights) * shape.itemsize
    + gradient
    + shape.trained_weights * (2 * shape.param_itemsize + 8)
    + 2 * residuals,
    link_bytes=gathered(used * shape.itemsize + gradient, shape.fsdp)
    + summed(gradient / shape.fsdp, shape.data)
    + sums * (shape.layer_sums(tokens) + gathered(stream, t)),
  )


def update_work(shape: Shape) -> Work:
  """Returns the work of changing the weights: the gradient is read for its norm
  and once more."""
  kept = shape.param_itemsize + shape.moment_itemsize
  return Work(bytes=shape.trained_weights * (2 * 4 + 2 * kept))
