"""Optimizer steps of Tunix's GRPOLearner, as a side of
experiments/benchmarks/learner.py. It needs google-tunix and what that needs.

A step begins when the learner asks for prompts and ends, its weights being
there, when it asks for the next ones. Its sampler is the plain one; all rows of
a step are one minibatch, as they are by its own default.
"""

import importlib.metadata
import pathlib
import sys

import jax
import numpy as np
import optax
from flax import nnx
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import protocol
import tunix_model


def _make_cluster(workload):
  """Returns Tunix's model with sampler and optimizer, and the sampler's
  settings."""
  P, C = workload['prompt_len'], workload['max_new_tokens']
  stops, adam = tunix_model.stop_ids(workload), workload['optim']
  mesh = tunix_model.make_mesh()
  with mesh:
    model = tunix_model.make_model(workload)
  rollout = base_rollout.RolloutConfig(
    max_tokens_to_generate=C,
    max_prompt_length=P,
    kv_cache_size=P + C,
    temperature=workload['temperature'],
    top_p=workload['top_p'],
    top_k=workload['top_k'] or None,
    eos_tokens=stops,
    seed=0,
  )
  roles = rl_cluster.Role
  config = rl_cluster.ClusterConfig(
    role_to_mesh=dict.fromkeys(
      (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT), mesh
    ),
    rollout_engine='vanilla',
    rollout_config=rollout,
    training_config=rl_cluster.RLTrainingConfig(
      actor_optimizer=optax.adamw(
        adam['lr'],
        b1=adam['b1'],
        b2=adam['b2'],
        eps=adam['eps'],
        weight_decay=adam['weight_decay'],
      ),
      eval_every_n_steps=10**9,
      max_steps=10**9,
      mini_batch_size=workload['num_prompts'],
      train_micro_batch_size=workload['num_prompts'],
    ),
  )
  cluster = rl_cluster.RLCluster(
    actor=model,
    tokenizer=tunix_model.Ids(stops[0], workload['pad_id']),
    cluster_config=config,
  )
  return cluster, rollout


def main():
  turns = protocol.Turns()
  workload, options = turns.workload, turns.options
  version = importlib.metadata.version('google-tunix')
  turns.about = {'tunix': f'{version}, jax {jax.__version__}'}
  cluster, rollout = _make_cluster(workload)
  figures = {}
  generate, update_actor = cluster.generate, cluster.update_actor

  def sample(*args, **kwargs):
    with turns.sampling():
      out = generate(*args, **kwargs)
    figures['sampled_tokens'] = tunix_model.count_tokens(
      out.tokens, workload['max_new_tokens']
    )
    return out

  def update(examples, *args, **kwargs):
    figures['computed_tokens'] = sum(
      x.prompt_ids.size + x.completion_ids.size for x in examples
    )
    figures['trained_tokens'] = sum(
      int(x.completion_mask.sum()) for x in examples
    )
    return update_actor(examples, *args, **kwargs)

  cluster.generate, cluster.update_actor = sample, update

  def draw():
    Q = workload['num_prompts']
    num_steps = options['warmup'] + options['turns']
    prompts = protocol.draw_prompts(workload, num_steps * Q)
    for tokens in prompts.reshape(num_steps, Q, -1):
      turn = turns.begin()
      rollout.seed = turn + 100  # without, every step has the same noise
      yield {'prompts': np.array([tunix_model.to_text(x) for x in tokens])}
      jax.block_until_ready(nnx.state(cluster.actor_trainer.model))
      turns.end(figures)

  def reward(prompts, completions, **unused_columns):
    return [
      protocol.fraction_even([int(x) for x in text.split()])
      for text in completions
    ]

  grpo_learner.GRPOLearner(
    rl_cluster=cluster,
    reward_fns=reward,
    algo_config=grpo_learner.GRPOConfig(
      num_generations=workload['num_generations'],
      num_iterations=workload['algo']['num_iterations'],
      beta=workload['algo']['beta'],
      epsilon=workload['algo']['clip'],
    ),
  ).train(draw())


if __name__ == '__main__':
  main()
