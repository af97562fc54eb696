"""One large sampling call: Q prompts in, B = Q * G completions out.

  1. Each prompt is prefilled once; its keys and values are stored once and
     shared by the G rows of its group.
  2. A while loop decodes one token for every row, and ends when every row has
     stopped or is full.
  3. A row's noise is a function of (key, prompt uid, sample index, slot), so
     samples do not depend on batch size, row order or mesh.

The whole call is one program. Weights come in the TRAIN layout and are cast
and gathered inside it: sharing them with the learner is a data-flow edge.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from dash_jax import batches, sharding
from dash_jax.model import llama
from dash_jax.sampling import decoding as decoding_lib


@batches.pytree
class _State:
  """What a decode step changes. `slot` counts the tokens a live row has."""

  slot: jax.Array  # i32[]
  tokens: jax.Array  # i32[B, C]
  logprobs: jax.Array  # f32[B, C]
  stopped: jax.Array  # bool[B]
  lengths: jax.Array  # i32[B], completion tokens, the stop id included
  own: tuple  # for each layer (k, v), each [B, K, C, H]


def row_keys(key, uids, group_size: int):
  """Returns key[Q * G]: one key for each (prompt uid, sample index)."""
  rows = sharding.SAMPLE.spec('batch')
  uids = jnp.repeat(uids, group_size, out_sharding=rows)
  samples = jnp.arange(uids.size, dtype=jnp.uint32) % group_size
  samples = jax.sharding.reshard(samples, rows)

  def row_key(uid, sample):
    return jax.random.fold_in(jax.random.fold_in(key, uid), sample)

  return jax.vmap(row_key)(uids, samples)


@functools.partial(
  jax.jit, static_argnames=('model', 'group_size', 'max_completion_len')
)
def sample(
  model: llama.Llama,
  params: dict,
  prompts: batches.PromptBatch,
  key: jax.Array,
  stop_ids: jax.Array,
  decoding: decoding_lib.Decoding,
  policy_step: jax.Array,
  *,
  group_size: int,
  max_completion_len: int,
) -> batches.Rollouts:
  """Samples `group_size` completions for every prompt.

  Args:
    model: the architecture and the dtype to compute in.
    params: its weights, TRAIN layout.
    prompts: Q prompts; Q divides by the mesh's batch shards.
    key: the noise of this call; a new one for every optimizer step.
    stop_ids: i32[E]; a row ends with the first of them, which it keeps.
    decoding: temperature, top_p, top_k.
    policy_step: i32[], stamped on every row.
    group_size: G.
    max_completion_len: C.

  Returns:
    Rollouts of G rows for each prompt; `truncated` rows ran out of slots.
  """
  C, G = max_completion_len, group_size
  Q = len(prompts.tokens)
  spec = sharding.SAMPLE.spec
  params = llama.gather_params(params, model.config, model.dtype)
  apply = functools.partial(model.apply, {'params': params})
  layers = llama.unstack_layers(params)

  prompt_mask = prompts.mask
  hidden, (k, v) = apply(prompts.tokens, prompt_mask, keep_kv=True)
  prompt_kv = tuple((k[i], v[i]) for i in range(k.shape[0]))

  def per_row(x):
    return jnp.repeat(x, G, axis=0, out_sharding=spec(*_batch_axes(x)))

  keys = row_keys(key, prompts.uids, G)
  prompt_lengths = per_row(prompts.lengths)

  def draw(state: _State, logits) -> _State:
    """Adds the token at `state.slot` to every live row."""
    noise = jax.vmap(jax.random.fold_in, (0, None))(keys, state.slot)
    logits = jax.sharding.reshard(logits, spec('batch', None))
    token = decoding_lib.sample(noise, logits, decoding)
    logprob = decoding_lib.token_logprobs(logits, token, decoding)
    live = ~state.stopped
    at = (0, state.slot)
    put = jax.lax.dynamic_update_slice
    stop = (token[:, None] == stop_ids).any(-1)
    return _State(
      slot=state.slot + 1,
      tokens=put(state.tokens, jnp.where(live, token, 0)[:, None], at),
      logprobs=put(state.logprobs, jnp.where(live, logprob, 0.0)[:, None], at),
      stopped=state.stopped | stop,
      lengths=state.lengths + live,
      own=state.own,
    )

  def step(state: _State) -> _State:
    last = state.slot - 1
    token = jax.lax.dynamic_index_in_dim(state.tokens, last, 1, keepdims=False)
    logits, own = apply(
      layers,
      token,
      prompt_lengths + last,
      prompt_kv,
      prompt_mask,
      state.own,
      last,
      method=llama.Llama.decode,
    )
    return draw(dataclasses.replace(state, own=own), logits)

  def go_on(state: _State):
    return (state.slot < C) & ~jnp.all(state.stopped)

  B, K, H = Q * G, model.config.num_kv_heads, model.config.head_dim
  rows = spec('batch')
  empty = jnp.zeros(
    (B, K, C, H),
    model.dtype,
    out_sharding=spec('batch', 'kv_heads', None, None),
  )
  state = _State(
    slot=jnp.int32(0),
    tokens=jnp.zeros((B, C), jnp.int32, out_sharding=spec('batch', None)),
    logprobs=jnp.zeros((B, C), jnp.float32, out_sharding=spec('batch', None)),
    stopped=jnp.zeros(B, bool, out_sharding=rows),
    lengths=jnp.zeros(B, jnp.int32, out_sharding=rows),
    own=((empty, empty),) * model.config.num_layers,
  )
  first = apply(hidden[:, -1], method=llama.Llama.logits)
  state = draw(state, per_row(jax.sharding.reshard(first, spec('batch', None))))
  state = jax.lax.while_loop(go_on, step, state)

  def by_group(x):
    return jnp.reshape(
      x,
      (Q, G, *x.shape[1:]),
      out_sharding=spec('batch', *(None,) * x.ndim),
    )

  return batches.Rollouts(
    prompts=prompts,
    tokens=by_group(state.tokens),
    lengths=by_group(state.lengths),
    logprobs=by_group(state.logprobs),
    truncated=by_group(~state.stopped),
    policy_step=by_group(jnp.zeros_like(state.lengths) + policy_step),
  )


def _batch_axes(x):
  return ('batch',) + (None,) * (x.ndim - 1)
