"""The parts of experiments/benchmarks/learner.py that measure ours alone.

  1. `measure_sharing`: the same rows behind shared prompts, and each behind one
     of its own.
  2. `measure_filtering`: all of the rows, and parts of them.
  3. `measure_memory`: what the compiled program needs, for a small vocabulary
     and a large one, with and without rematerialisation.

Each returns a dict for JSON with a `measure`, which `describe` prints.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dash_jax import batches, sharding
from dash_jax.learning import advantages, learner, losses, optim, packing
from dash_jax.model import llama
from dash_jax.runs import compiles
from dash_jax.sampling import decoding
from experiments.benchmarks import step, workloads

SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
_GROUP_SIZE = 8
_MIB = 2**20

# Of the memory: a small model whose vocabulary varies, rows and their slots.
MODEL = llama.LlamaConfig(
  vocab_size=2**13,
  embed_dim=256,
  num_layers=8,
  num_heads=8,
  num_kv_heads=4,
  head_dim=32,
  ffw_dim=688,
)
VOCAB_SIZES = (2**13, 2**17)
_ROWS, _PROMPT_LEN, _COMPLETION_LEN = 16, 64, 128


def _one_device():
  return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])


def _take_turns(sides, workload, turns, minibatch_size):
  """Learns from each side in turns.

  Args:
    sides: {name: (its workload, rollouts, advantages f32[Q, G], keep)}.
    workload: whose weights they train.
    turns: timed ones.
    minibatch_size: full rows of a minibatch.

  Returns:
    {name: (seconds of each turn, tokens computed)}, and how many programs were
    compiled while timed.
  """
  optimizer = optim.make_optimizer(workload.optim)
  state = learner.init_state(workloads.make_params(workload), optimizer)
  found = {name: ([], []) for name in sides}
  for turn in range(turns + 2):
    if turn == 2:  # two turns warm up
      num_programs = compiles.count()
    for name, (asked, *rows) in sides.items():
      start = time.perf_counter()
      state, values = step.learn(asked, optimizer, state, *rows, minibatch_size)
      if turn >= 2:
        found[name][0].append(time.perf_counter() - start)
        found[name][1].append(int(values['computed_tokens']))
  return (
    {name: (seconds, tokens[0]) for name, (seconds, tokens) in found.items()},
    compiles.count() - num_programs,
  )


def measure_sharing(
  workload: workloads.Workload, turns: int, minibatch_size: int
) -> dict:
  """Returns the learning seconds of full rows, P = C, whose prompts are shared
  by 8, and of the same rows with a prompt each."""
  Q, C = workload.num_questions, workload.completion_len
  together = dataclasses.replace(workload, group_size=_GROUP_SIZE, prompt_len=C)
  apart = dataclasses.replace(
    together, num_questions=Q * _GROUP_SIZE, group_size=1
  )
  rows, gain = _draw_rows(together)
  split = _split_groups(rows)
  with jax.set_mesh(_one_device()):
    found, num_programs = _take_turns(
      {
        'shared': (together, rows, gain, np.ones(gain.shape, bool)),
        'apart': (
          apart, split, gain.reshape(-1, 1), np.ones((gain.size, 1), bool)
        ),
      },
      workload,
      turns,
      minibatch_size,
    )  # fmt: skip
  sides = {
    name: {'learn_s': step.summarize(seconds), 'computed_tokens': tokens}
    for name, (seconds, tokens) in found.items()
  }
  return {
    'measure': f'{workload.name}, learning, prompts of 8 rows, P = C = {C}',
    'apart_of_shared': (
      sides['apart']['learn_s']['median'] / sides['shared']['learn_s']['median']
    ),
    'sides': sides,
    'minibatch_size': minibatch_size,
    'compiles_while_timed': num_programs,
  }


def _draw_rows(workload):
  """Returns full rows of random tokens, and advantages f32[Q, G]."""
  Q, G = workload.num_questions, workload.group_size
  P, C = workload.prompt_len, workload.completion_len
  V = workload.model.config.vocab_size
  rng = np.random.default_rng(0)
  rows = batches.Rollouts(
    prompts=workloads.fill_prompts(rng.integers(0, V, (Q, P), np.int32)),
    tokens=rng.integers(0, V, (Q, G, C), np.int32),
    lengths=np.full((Q, G), C, np.int32),
    logprobs=np.full((Q, G, C), -np.log(V), np.float32),
    truncated=np.zeros((Q, G), bool),
    policy_step=np.zeros((Q, G), np.int32),
  )
  return rows, rng.standard_normal((Q, G), np.float32)


def _split_groups(rows):
  """Returns the rows as groups of one, each with the prompt again."""
  num_groups, group_size = rows.lengths.shape
  split = jax.tree.map(
    lambda x: x.reshape(num_groups * group_size, 1, *x.shape[2:]),
    dataclasses.replace(rows, prompts=None),
  )
  tokens = rows.prompts.tokens.repeat(group_size, axis=0)
  return dataclasses.replace(split, prompts=workloads.fill_prompts(tokens))


def measure_filtering(
  workload: workloads.Workload, turns: int, minibatch_size: int
) -> dict:
  """Returns the learning seconds with each of SHARES of the groups kept, of
  rows that are sampled once. The same programs serve every share."""
  with jax.set_mesh(_one_device()):
    params = workloads.make_params(workload)
    (tokens,) = workloads.make_prompts(workload, 1)
    rows = step.make_sampler(workload, params).sample(
      params,
      workloads.fill_prompts(tokens),
      jax.random.key(workload.seed),
      workload.decoding,
    )
    gain = advantages.find_advantages(
      workloads.fraction_even(rows.tokens, rows.mask)
    )
    Q, G = gain.shape
    sides = {}
    for share in SHARES:
      keep = np.arange(Q)[:, None] < round(share * Q)
      sides[share] = workload, rows, gain, np.broadcast_to(keep, (Q, G))
    found, num_programs = _take_turns(sides, workload, turns, minibatch_size)
  shares = [
    {
      'kept_rows': round(share * Q) * G,
      'rows': Q * G,
      'learn_s': step.summarize(seconds),
      'computed_tokens': tokens,
    }
    for share, (seconds, tokens) in found.items()
  ]
  for row in shares:
    whole = shares[0]['learn_s']['median']
    row['of_all_rows'] = row['learn_s']['median'] / whole
  return {
    'measure': f'{workload.name}, learning, groups kept',
    'shares': shares,
    'minibatch_size': minibatch_size,
    'compiles_while_timed': num_programs,
  }


def measure_memory() -> dict:
  """Returns the bytes that the compiled gradient of one minibatch needs beside
  weights and gradient, for each vocabulary, with and without
  rematerialisation; nothing runs."""
  rows = []
  with jax.set_mesh(_one_device()):
    room = packing.make_room(_ROWS, _GROUP_SIZE, _PROMPT_LEN, _COMPLETION_LEN)
    minibatch = packing.make_empty(room)[0]
    for vocab_size in VOCAB_SIZES:
      for remat in ('attention', 'layer'):
        config = dataclasses.replace(MODEL, vocab_size=vocab_size)
        model = llama.Llama(config, remat=remat)
        state = learner.abstract_state(model, optax.sgd(1.0))
        num_bytes = learner.measure(
          state,
          minibatch,
          decoding.make_decoding(1.0),
          model=model,
          objective=losses.Objective(),
        )
        num_weights = sum(x.size for x in jax.tree.leaves(state.params))
        itemsize = jnp.dtype(model.param_dtype).itemsize
        rows.append(
          {
            'vocab_size': vocab_size,
            'remat': remat,
            # What is measured has the gradient, in float32.
            'temporary_bytes': num_bytes - 4 * num_weights,
            'weight_bytes': itemsize * num_weights,
            'logit_weight_bytes': itemsize * vocab_size * config.embed_dim,
            'all_logits_bytes': 4 * minibatch.slots.size * vocab_size,
          }
        )
  return {
    'measure': f'{minibatch.slots.size} slots, temporary memory of gradients',
    'memory': rows,
  }


def describe(row: dict) -> str:
  """Returns a dict of this file as text."""
  lines = [row['measure']]
  if 'apart_of_shared' in row:
    for name, side in row['sides'].items():
      lines.append(
        f'  {name:10}{_spread(side["learn_s"]):>27}'
        f'{side["computed_tokens"]:>10} tokens computed'
      )
    lines.append(f'  apart / shared: {row["apart_of_shared"]:.2f}')
  elif 'shares' in row:
    lines += [
      f'  {share["kept_rows"]:4} of {share["rows"]:4}'
      f'{_spread(share["learn_s"]):>25}'
      f'{share["computed_tokens"]:>10} tokens computed'
      f'{share["of_all_rows"]:>8.0%}'
      for share in row['shares']
    ]
  else:
    lines[0] += ', MiB'
    lines += [
      f'  V = {size["vocab_size"]:6}, remat {size["remat"]:9}'
      f' {size["temporary_bytes"] / _MIB:8.1f}'
      f'   weights {size["weight_bytes"] / _MIB:.1f}'
      f' (of logits {size["logit_weight_bytes"] / _MIB:.1f});'
      f' all logits would be {size["all_logits_bytes"] / _MIB:.0f}'
      for size in row['memory']
    ]
  if row.get('compiles_while_timed'):
    lines.append(f'  {row["compiles_while_timed"]} compiles while timed')
  return '\n'.join(lines)


def _spread(s):
  return f'{s["median"]:.3f} s [{s["min"]:.3f}, {s["max"]:.3f}]'
