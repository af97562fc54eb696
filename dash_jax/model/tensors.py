"""A checkpoint's tensors, one by one, into the arrays that a model rests in.

  1. A reader (hf.py, gguf.py, meta.py) lists what a checkpoint holds as
     `Tensor`s, which are not read yet, under Hugging Face's names.
  2. `list_places` says, for every tensor, which weight of ours it is: shapes
     and layouts derive from `llama.weights`, names from the two tables below.
  3. `load` checks names and shapes, then takes each tensor by itself: every
     device's part is read, put there as it is on disk, and turned there into
     its place of the stacked tree. The host holds one tensor at a time, and of
     it only what its own devices take.

A linear weight is [out, in] on disk and [in.., out..] with us, heads apart from
head size. Their rotary convention, pairs (i, i + H/2), is ours.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dash_jax import sharding
from dash_jax.model import llama

# Our name -> the name on disk, and how many of our leading axes are inputs;
# None is a tensor that is stored as we hold it.
_TOP_TENSORS = {
  'embed': ('model.embed_tokens.weight', None),
  'final_norm': ('model.norm.weight', None),
  'unembed': ('lm_head.weight', 1),
  'score': ('score.weight', 1),  # of a model that classifies
}
_LAYER_TENSORS = {
  'attn_norm': ('input_layernorm.weight', None),
  'wq': ('self_attn.q_proj.weight', 1),
  'wk': ('self_attn.k_proj.weight', 1),
  'wv': ('self_attn.v_proj.weight', 1),
  'bq': ('self_attn.q_proj.bias', 0),
  'bk': ('self_attn.k_proj.bias', 0),
  'bv': ('self_attn.v_proj.bias', 0),
  'q_norm': ('self_attn.q_norm.weight', None),
  'k_norm': ('self_attn.k_norm.weight', None),
  'wo': ('self_attn.o_proj.weight', 2),
  'mlp_norm': ('post_attention_layernorm.weight', None),
  'w_gate': ('mlp.gate_proj.weight', 1),
  'w_up': ('mlp.up_proj.weight', 1),
  'w_down': ('mlp.down_proj.weight', 1),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor of a checkpoint that is not read yet.

  Attributes:
    name, file: as they are on disk, for errors.
    shape: linear weights are [out, in].
    read: returns the part at a tuple of slices, one an axis, each with start
      and stop, in a floating type.
  """

  name: str
  file: str
  shape: tuple[int, ...]
  read: Callable[[tuple[slice, ...]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a tensor on disk belongs.

  Attributes:
    name: the weight's name in `params`, or in `params['layers']`.
    layer: its index there, None for a weight outside the layers.
    shape: its shape with us, without the layer axis.
    axes: the logical axes of `shape`.
    disk_shape: the tensor's shape on disk.
    disk_axes: the logical axes of `disk_shape`.
    linear: whether it is [out, in] on disk.
  """

  name: str
  layer: int | None
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  disk_shape: tuple[int, ...]
  disk_axes: tuple[str | None, ...]
  linear: bool


def list_places(config: llama.LlamaConfig) -> dict[str, Place]:
  """Returns the place of every tensor of the architecture, by its name."""
  weights = llama.weights(config)
  places = {}
  for name, (disk_name, num_inputs) in _TOP_TENSORS.items():
    if name in weights:
      w = weights[name]
      places[disk_name] = _place(name, None, w.shape, w.axes, num_inputs)
  for name, (disk_name, num_inputs) in _LAYER_TENSORS.items():
    if name not in weights['layers']:
      continue
    w = weights['layers'][name]
    for layer in range(config.num_layers):
      places[f'model.layers.{layer}.{disk_name}'] = _place(
        name, layer, w.shape[1:], w.axes[1:], num_inputs
      )
  return places


def load(
  source: str,
  config: llama.LlamaConfig,
  found: Mapping[str, Tensor],
  dtype,
  *,
  rename: Callable[[str], str] = str,
) -> dict:
  """Returns the weights in the tree and the TRAIN layout of `llama.weights`.

  Args:
    source: the file or folder, for errors.
    config: the architecture.
    found: the checkpoint's tensors, by Hugging Face's names where they have
      one; read in this order.
    dtype: what the weights are converted to, on the devices.
    rename: a tensor's name at Hugging Face to its name on disk, for errors.

  Raises:
    ValueError: a tensor is missing, unknown, of another shape, or holds what is
      no finite number; the message names it and its file.
  """
  places = list_places(config)
  found = dict(found)
  twin = found.pop('lm_head.weight', None) if config.tied else None
  check_names(
    source, config, map(rename, places), (x.name for x in found.values())
  )
  for name, tensor in found.items():
    if tensor.shape != places[name].disk_shape:
      raise ValueError(
        f'{tensor.file}: tensor {tensor.name} has shape {tensor.shape}, but the'
        f' architecture asks for {places[name].disk_shape}'
      )
  embed_name = _TOP_TENSORS['embed'][0]
  if twin and not _equal(twin, found[embed_name], places[embed_name]):
    raise ValueError(
      f'{twin.file}: the embedding is said to be tied, but {twin.name} is not'
      f' {rename(embed_name)}'
    )
  likes = llama.abstract_params(config, dtype)
  params: dict = {'layers': {}}
  for name, tensor in found.items():
    place = places[name]
    raw = _put(tensor, place)
    if place.layer is None:
      x, finite = _turn(raw, place=_kind(place), dtype=np.dtype(dtype))
      params[place.name] = x
    else:
      layers = params['layers']
      if place.name not in layers:
        layers[place.name] = _make_empty(likes['layers'][place.name])
      layers[place.name], finite = _turn_layer(
        layers[place.name], raw, place.layer, place=_kind(place)
      )
    # Also waits, so that no other tensor is read before this one is let go.
    if not finite:
      raise ValueError(
        f'{tensor.file}: tensor {tensor.name} holds NaN or infinite values'
      )
  return params


def to_disk(x: np.ndarray, place: Place) -> np.ndarray:
  """Returns a weight of ours, without layer axis, as it is on disk."""
  if place.linear:
    x = x.reshape(place.disk_shape[::-1]).T
  return np.ascontiguousarray(x.reshape(place.disk_shape))


def check_names(
  source: str,
  config: llama.LlamaConfig,
  wanted: Iterable[str],
  found: Iterable[str],
) -> None:
  """Refuses a checkpoint whose tensors are not those of an architecture.

  Args:
    source: the file or folder, for errors.
    config: the architecture.
    wanted, found: names as they are on disk.

  Raises:
    ValueError: names what is missing and what is unknown.
  """
  wanted, found = set(wanted), set(found)
  if wanted != found:
    raise ValueError(
      f'{source}: missing {_shorten(wanted - found)}, unknown'
      f' {_shorten(found - wanted)}: its tensors are not those of {config}'
    )


def rename(
  name: str,
  top_names: Mapping[str, str],
  layer_names: Mapping[str, str],
  layers: str,
) -> str:
  """Returns what another format calls a tensor.

  Args:
    name: at Hugging Face.
    top_names: tensors outside the layers, whole names.
    layer_names: those of a layer, without 'model.layers.N.' and without 'weight'
      or 'bias'; what is not in it keeps its name, under which it is missing.
    layers: what stands for 'model.layers'.
  """
  if name in top_names:
    return top_names[name]
  layer, _, rest = name.removeprefix('model.layers.').partition('.')
  part, _, kind = rest.rpartition('.')
  return f'{layers}.{layer}.{layer_names.get(part, part)}.{kind}'


def split_heads(tensor: Tensor, head_dim: int) -> Tensor:
  """Returns a q or k tensor with each head's rows in halves, (i, i + H/2), where
  on disk they are in neighbouring rotary pairs, (2i, 2i + 1)."""

  def read(index):
    rows, columns = index
    # The two halves of a head are spread over all its rows.
    start = rows.start // head_dim * head_dim
    stop = -(-rows.stop // head_dim) * head_dim
    read = tensor.read((slice(start, stop), columns))
    pairs = read.reshape(-1, head_dim // 2, 2, read.shape[1])
    halves = pairs.swapaxes(1, 2).reshape(read.shape)
    return halves[rows.start - start : rows.stop - start]

  return dataclasses.replace(tensor, read=read)


def _place(name, layer, shape, axes, num_inputs) -> Place:
  if num_inputs is None:
    return Place(name, layer, shape, axes, shape, axes, linear=False)
  # Only the first axis of a group is ever split, so the group can be.
  num_out, num_in = math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs])
  disk_shape, disk_axes = (num_out,), (axes[num_inputs],)
  if num_inputs:
    disk_shape, disk_axes = (num_out, num_in), (axes[num_inputs], axes[0])
  return Place(
    name, layer, shape, axes, disk_shape, disk_axes, linear=num_inputs > 0
  )


def _kind(place: Place) -> Place:
  """Returns what all tensors that are turned alike have in common."""
  return dataclasses.replace(place, name='', layer=None)


def _put(tensor: Tensor, place: Place) -> jax.Array:
  """Returns the tensor as it is on disk, each device's part read for it."""

  def read(index):
    part = tensor.read(
      tuple(
        slice(*at.indices(size)[:2])
        for at, size in zip(index, tensor.shape, strict=True)
      )
    )
    return part.astype(np.float32) if part.dtype == np.float64 else part

  layout = sharding.TRAIN.spec(*place.disk_axes)
  return jax.make_array_from_callback(
    tensor.shape, NamedSharding(jax.sharding.get_mesh(), layout), read
  )


def _as_ours(raw, place: Place, dtype):
  x = (raw.T if place.linear else raw).astype(dtype)
  layout = sharding.TRAIN.spec(*place.axes)
  return jnp.reshape(x, place.shape, out_sharding=layout)


@functools.partial(jax.jit, static_argnames=('place', 'dtype'))
def _turn(raw, *, place: Place, dtype):
  return _as_ours(raw, place, dtype), jnp.isfinite(raw).all()


@functools.partial(
  jax.jit, static_argnames=('place',), donate_argnames=('stack',)
)
def _turn_layer(stack, raw, layer, *, place: Place):
  x = _as_ours(raw, place, stack.dtype)
  stack = jax.lax.dynamic_update_index_in_dim(stack, x, layer, axis=0)
  return stack, jnp.isfinite(raw).all()


def _make_empty(like: jax.ShapeDtypeStruct) -> jax.Array:
  make = functools.partial(jnp.zeros, like.shape, like.dtype)
  return jax.jit(make, out_shardings=like.sharding)()


def _equal(a: Tensor, b: Tensor, place: Place) -> bool:
  if a.shape != b.shape:
    return False
  return bool(jax.jit(_all_equal)(_put(a, place), _put(b, place)))


def _all_equal(a, b):
  # What is no number is found later, and named as that.
  return jnp.array_equal(a, b, equal_nan=True)


def _shorten(names: set[str]) -> str:
  names = sorted(names)
  if not names:
    return 'none'
  more = f' and {len(names) - 4} more' if len(names) > 4 else ''
  return ', '.join(names[:4]) + more
