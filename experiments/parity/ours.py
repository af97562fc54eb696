"""What we compute of rows: the learner, the sampler, one optimizer step.

Every function wants a mesh in use; see draw.py for rows.
"""

import jax
import numpy as np

from dash_jax import batches, sharding
from dash_jax.learning import learner, losses, optim, packing, reading
from dash_jax.model import llama, tensors
from dash_jax.sampling import decoding, sampler
from experiments.parity import draw

_PLAIN = decoding.make_decoding(1.0)


def pad(rows: draw.Rows, old: list[list[np.ndarray]]) -> batches.Rollouts:
  """Returns the rows and their old log-probabilities, padded."""
  P = max(map(len, rows.prompts)) + 2
  C = max(len(reply) for group in rows.replies for reply in group) + 1
  Q, G = rows.advantages.shape
  prompts = np.zeros((Q, P), np.int32)
  tokens = np.zeros((Q, G, C), np.int32)
  logprobs = np.zeros((Q, G, C), np.float32)
  for q, prompt in enumerate(rows.prompts):
    prompts[q, P - len(prompt) :] = prompt
    for g, reply in enumerate(rows.replies[q]):
      tokens[q, g, : len(reply)] = reply
      logprobs[q, g, : len(reply)] = old[q][g]
  return batches.Rollouts(
    prompts=batches.PromptBatch(
      tokens=prompts,
      lengths=np.array(list(map(len, rows.prompts)), np.int32),
      uids=np.arange(Q, dtype=np.int32),
    ),
    tokens=tokens,
    lengths=np.array(
      [[len(reply) for reply in group] for group in rows.replies], np.int32
    ),
    logprobs=logprobs,
    truncated=np.zeros((Q, G), bool),
    policy_step=np.zeros((Q, G), np.int32),
  )


def pack(
  rows: draw.Rows, old: list[list[np.ndarray]]
) -> list[batches.Minibatch]:
  """Returns the rows as the learner takes them, in one minibatch."""
  rollouts = pad(rows, old)
  Q, G, C = rollouts.tokens.shape
  room = packing.make_room(Q * G, G, rollouts.prompts.tokens.shape[1], C)
  made = packing.make_minibatches(
    rollouts, rows.advantages, np.ones((Q, G), bool), rows.weights, room
  )
  assert len(made) == 1
  return made


def compute_logprobs(
  config: llama.LlamaConfig, params: dict, rows: draw.Rows
) -> list[list[np.ndarray]]:
  """Returns the log-probabilities of each reply's tokens."""
  no_old = [[np.zeros(len(reply)) for reply in g] for g in rows.replies]
  found = reading.completion_logprobs(
    llama.Llama(config), params, pad(rows, no_old), _PLAIN
  )
  return [
    [found[q, g, : len(reply)] for g, reply in enumerate(group)]
    for q, group in enumerate(rows.replies)
  ]


def compute_gradient(
  config: llama.LlamaConfig,
  params: dict,
  rows: draw.Rows,
  old: list[list[np.ndarray]],
  ref_params: dict | None = None,
  kl_coef: float = 0.0,
) -> tuple[float, dict[str, np.ndarray]]:
  """Returns the GRPO loss and its gradient, by the names and in the shapes that
  tensors have on disk."""
  objective = losses.Objective(
    clip_low=draw.CLIP_LOW, clip_high=draw.CLIP_HIGH, kl_coef=kl_coef
  )
  (minibatch,) = pack(rows, old)
  grad = jax.jit(
    jax.value_and_grad(learner.minibatch_loss, has_aux=True),
    static_argnums=(1, 5),
  )
  (loss, _), found = grad(
    params, llama.Llama(config), minibatch, ref_params, _PLAIN, objective
  )
  return float(loss), to_disk(config, jax.device_get(found))


def to_disk(config: llama.LlamaConfig, tree: dict) -> dict[str, np.ndarray]:
  """Returns a tree of `llama.weights`' structure by its tensors on disk."""
  return {
    name: tensors.to_disk(
      tree[place.name]
      if place.layer is None
      else tree['layers'][place.name][place.layer],
      place,
    )
    for name, place in tensors.list_places(config).items()
  }


def generate(
  config: llama.LlamaConfig,
  params: dict,
  prompts: list[list[int]],
  stop_id: int,
  max_len: int,
) -> list[list[int]]:
  """Returns each prompt's greedy continuation, the stop id included."""
  P = max(map(len, prompts)) + 1
  tokens = np.zeros((len(prompts), P), np.int32)
  for row, prompt in zip(tokens, prompts, strict=True):
    row[P - len(prompt) :] = prompt
  rows = sampler.sample(
    llama.Llama(config),
    params,
    batches.PromptBatch(
      tokens=tokens,
      lengths=np.array(list(map(len, prompts)), np.int32),
      uids=np.arange(len(prompts), dtype=np.int32),
    ),
    jax.random.key(0),
    decoding.make_decoding(0.0, stop_ids=(stop_id,)),
    group_size=1,
    max_completion_len=max_len,
  )
  return [
    row[0, : length[0]].tolist()
    for row, length in zip(rows.tokens, rows.lengths, strict=True)
  ]


def take_step(
  config: llama.LlamaConfig, params: dict, rows: draw.Rows, old: list
) -> dict:
  """Returns the weights after one step of AdamW on the rows; `params` are
  donated."""
  optimizer = optim.make_optimizer(
    optim.OptimConfig(
      learning_rate=1e-2, schedule='constant', warmup_steps=0, total_steps=1
    )
  )
  state, _ = learner.update(
    learner.init_state(params, optimizer),
    pack(rows, old),
    _PLAIN,
    model=llama.Llama(config),
    optimizer=optimizer,
    objective=losses.Objective(
      clip_low=draw.CLIP_LOW, clip_high=draw.CLIP_HIGH
    ),
  )
  return state.params


def compute_logits(
  config: llama.LlamaConfig, params: dict, rows: list[list[int]]
) -> list[np.ndarray]:
  """Returns f32[T, V] of each row, all run together, padded on the left."""
  T = max(map(len, rows))
  tokens = np.zeros((len(rows), T), np.int32)
  for padded, row in zip(tokens, rows, strict=True):
    padded[T - len(row) :] = row
  mask = np.arange(T) >= T - np.array([len(row) for row in rows])[:, None]
  model = llama.Llama(config)

  @jax.jit
  def run(params, tokens, mask):
    x = model.apply({'params': params}, tokens, mask)
    return model.apply({'params': params}, x, method=llama.Llama.logits)

  found = np.asarray(run(params, *sharding.put_rows((tokens, mask))))
  return [x[T - len(row) :] for x, row in zip(found, rows, strict=True)]
