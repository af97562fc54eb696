"""The model as the sampler runs it: weights made ready once, then one token at
a time.

  1. `prepare` casts the weights, gathers them over fsdp and parts the layers,
     once for each sampling phase; what is multiplied with the same input is
     joined, and `quantize` keeps 8 bits of every matrix.
  2. `prefill` runs whole prompts, and returns their caches.
  3. `decode` runs one new token a row against the caches of its prompt and of
     its own tokens.

Layers are unrolled: on CPU a loop over them takes three times as long. The
numbers are those of llama.py, which runs the same functions.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import reshard

from dash_jax import sharding
from dash_jax.model import attention, layers, llama
from dash_jax.model import cache as cache_lib


def prepare(params: dict, model: llama.Llama, quantize: bool = False) -> dict:
  """Returns the weights as `prefill` and `decode` take them.

  Args:
    params: the model's weights, TRAIN layout.
    model: the architecture and the dtype to compute in.
    quantize: whether to keep 8 bits of each matrix, with a scale for each of
      its outputs.

  Returns:
    A dict of weights by name, in the SAMPLE layout; `layers` is a tuple of such
    dicts, one a layer.
  """
  config, spec = model.config, sharding.SAMPLE.spec
  declared = llama.weights(config)
  # The unit that multiplies on TPUs would have joined gates laid out anew, in a
  # copy of them all.
  joins_gates = not _is_tpu()

  def gather(x, axes):
    return reshard(x.astype(model.dtype), spec(*axes))

  def make_layer(parted):
    one = _join(
      {
        name: gather(x, declared['layers'][name].axes[1:])
        for name, x in parted.items()
      },
      joins_gates,
    )
    if quantize:
      for name in _MATRICES & one.keys():
        one[name] = layers.quantize(one[name], axis=0)
    return one

  w = {
    name: gather(x, declared[name].axes)
    for name, x in params.items()
    if name != 'layers'
  }
  if quantize:
    # Where it is not tied, the embedding is only looked up.
    if config.tied:
      w['embed'] = layers.quantize(w['embed'], axis=1)
    else:
      w['unembed'] = layers.quantize(w['unembed'], axis=0)
  made = []
  for i in range(config.num_layers):
    parted = {name: x[i] for name, x in params['layers'].items()}
    if made:
      # One after the other: gathered together, they would take their room twice.
      parted, made[-1] = jax.lax.optimization_barrier((parted, made[-1]))
    made.append(make_layer(parted))
  return w | {'layers': tuple(made)}


_MATRICES = {'w_qkv', 'w_o', 'w_gate_up', 'w_gate', 'w_up', 'w_down'}


def _is_tpu():
  """Returns whether the devices in use are TPUs."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return device is not None and 'TPU' in device.device_kind


def _join(w, joins_gates):
  """Returns a layer's weights with joined matrices.

  w_qkv [D, K, R + 2, H] has the queries, key and value of each kv head, so that
  it is split over kv heads as its parts are; w_gate_up, if gates are joined, is
  [D, 2, F]; w_o is wo as a plain matrix [N * H, D].
  """
  w, spec = dict(w), sharding.SAMPLE.spec
  wq, wk, wv, wo = (w.pop(name) for name in ('wq', 'wk', 'wv', 'wo'))
  D, K, H = wk.shape
  queries = jnp.reshape(
    wq, (D, K, -1, H), out_sharding=spec('embed', 'kv_heads', None, None)
  )
  if joins_gates:
    w['w_gate_up'] = jnp.stack([w.pop('w_gate'), w.pop('w_up')], axis=1)
  return w | {
    'w_qkv': jnp.concatenate([queries, wk[:, :, None], wv[:, :, None]], axis=2),
    'w_o': jnp.reshape(wo, (-1, D), out_sharding=spec('heads', 'embed')),
  }


def prefill(
  weights: dict,
  model: llama.Llama,
  tokens,
  mask,
  quantize: bool,
  attend=attention.attend,
):
  """Runs prompts.

  Args:
    weights: of `prepare`.
    model: the architecture and the dtype to compute in.
    tokens: i32[Q, P], padded on the left.
    mask: bool[Q, P], True on tokens.
    quantize: whether to keep 8 bits of keys and values.
    attend: as `attention.attend`.

  Returns:
    Logits f32[Q, V] for the first token after each prompt, and the prompts'
    cache.Cache for each layer.
  """
  config = model.config
  rotate = _rotation(config, llama.count_positions(mask))
  x = layers.embed(weights['embed'], tokens, model.dtype)
  caches = []
  for w in weights['layers']:
    q, k, v = layers.project(config, w, x)
    q, k = layers.group_heads(config, rotate(q)), rotate(k)
    x = layers.finish(config, w, x, attend(q, k, v, mask))
    caches.append(cache_lib.make(k, v, quantize))
  return _logits(config, weights, x[:, -1]), tuple(caches)


def decode(
  weights: dict,
  model: llama.Llama,
  tokens,
  positions,
  slot,
  own: tuple,
  attend,
  quantize: bool,
):
  """Runs one new token a row, and adds its keys and values to the caches.

  Args:
    weights: of `prepare`.
    model: the architecture and the dtype to compute in.
    tokens: i32[B].
    positions: i32[B], each token's position in its row.
    slot: i32[], the slot of the own caches that `tokens` take.
    own: cache.Cache of the rows for each layer.
    attend: (layer's number, q [B, K, R, H], its own cache) -> [B, K, R, H].
    quantize: as `prefill`'s.

  Returns:
    Logits f32[B, V] for the token after, and the new `own`.
  """
  config = model.config
  rotate = _rotation(config, positions)
  x = layers.embed(weights['embed'], tokens, model.dtype)
  caches = []
  for i, (w, cache) in enumerate(zip(weights['layers'], own, strict=True)):
    q, k, v = layers.project(config, w, x)
    q, k = layers.group_heads(config, rotate(q)), rotate(k)
    new = cache_lib.make(k[:, None], v[:, None], quantize)
    cache = cache_lib.write(cache, new, slot)
    x = layers.finish(config, w, x, attend(i, q, cache))
    caches.append(cache)
  return _logits(config, weights, x), tuple(caches)


def _rotation(config, positions):
  turns = attention.find_turns(positions, llama.rope_frequencies(config))
  return functools.partial(attention.rotate, turns=turns)


def _logits(config, weights, x):
  x = layers.norm(x, weights['final_norm'], config.norm_eps)
  logits = layers.unembed(config, weights, x)
  return reshard(logits, sharding.SAMPLE.spec('batch', None))
