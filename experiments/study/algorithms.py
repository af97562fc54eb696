"""Every algorithm on the quickstart's questions, from one start, in one table.

Each of ALGORITHMS goes on from the seed's supervised phase with NUM_SAMPLES
samples, or rows to imitate, and changes the fields that are named with it. The
table has greedy accuracy on the held-out questions before and after, for each
seed, and the mean gain with its interval.
"""

import re
from collections.abc import Sequence

from experiments.study import findings, intervals, jobs

NUM_SAMPLES = 10_240  # of the quickstart
_SFT = {'name': 'sft', 'sft_steps': NUM_SAMPLES // 16}

# Another policy's right replies, which its job of that name has sampled.
OF_TRACES = {
  'data.source': 'jsonl',
  'data.path': '{folder}/traces/{split}.jsonl',
  'data.solution_field': 'solution',
  'data.num_train': 0,
  # Replies may take more tokens when they are encoded again.
  'data.too_long': 'drop',
}
WITH_MODEL = {
  'reward.model': 'hf:{folder}/reward_model',
  'reward.model_weight': 0.1,
}

ALGORITHMS = {
  'DASH': {},
  'GRPO a question a step': {'name': 'grpo'},
  'Dr. GRPO': {'scale': 'none'},
  'RLOO': {'baseline': 'leave_one_out', 'scale': 'none'},
  'REINFORCE': {'baseline': 'none', 'scale': 'none', 'loss': 'reinforce'},
  'REINFORCE++': {'baseline': 'none', 'scale': 'batch'},
  'MaxRL': {'scale': 'mean'},
  'DAPO': {
    'clip_high': 0.28,
    'normalizer': 'token',
    # Half as many samples, so that with those drawn again there are as many.
    'refill_rounds': 1,
    'num_samples': NUM_SAMPLES // 2,
    'overlong_len': 4,
  },
  'GSPO': {'loss': 'gspo', 'normalizer': 'sequence', 'num_updates': 2},
  'CISPO': {'loss': 'cispo', 'normalizer': 'token', 'num_updates': 2},
  'PPO with a critic': {'baseline': 'critic', 'scale': 'batch'},
  'PPO-Multi': {'num_epochs': 3},
  'PPO-Mini': {'num_updates': 8},
  'dual clip': {'clip_dual': 3.0, 'num_epochs': 2},
  'truncated importance sampling': {'importance_cap': 2.0},
  # As old as they may be, rows are corrected as in the line before.
  'one step behind': {'max_staleness': 1, 'importance_cap': 2.0},
  'two steps behind': {'max_staleness': 2, 'importance_cap': 2.0},
  'four steps behind': {'max_staleness': 4, 'importance_cap': 2.0},
  'KL k3 in the loss': {'kl_coef': 0.04},
  'KL k2 falling': {
    'kl_coef': 0.04,
    'kl_estimator': 'k2',
    'kl_schedule': 'linear',
  },
  'KL k1 in the reward': {
    'kl_coef': 0.01,
    'kl_in': 'reward',
    'kl_estimator': 'k1',
  },
  'KL adaptive': {
    'kl_coef': 0.04,
    'kl_schedule': 'adaptive',
    'kl_target': 0.05,
  },
  'KL to a periodic reference': {
    'kl_coef': 0.04,
    'reference': 'periodic',
    'reference_every': 10,
  },
  'KL to an averaged reference': {
    'kl_coef': 0.04,
    'reference': 'ema',
    'reference_decay': 0.9,
  },
  'entropy bonus': {'entropy_coef': 0.001},
  'filter: group': {'filter': 'group'},
  'filter: largest 64': {'filter': 'largest', 'filter_rows': 64},
  'PODS 4 of 8': {'filter': 'max_variance', 'filter_rows': 128},
  'truncated rows masked': {'mask_truncated': True},
  'DPO of best and worst': {'loss': 'dpo', 'dpo_beta': 0.5},
  'rejection sampling': {'loss': 'supervised', 'normalizer': 'token'},
  "SFT on the data's solutions": _SFT,
  'SFT on traces of the DASH run': _SFT | OF_TRACES,
  'format and length beside the verifier': {
    'reward.format_weight': 0.1,
    'reward.length_weight': 0.1,
  },
  'a reward model beside the verifier': WITH_MODEL,
}


def name(title: str) -> str:
  """Returns the name of the job of an algorithm."""
  return re.sub(r'[^a-z0-9+]+', '_', title.lower()).strip('_')


def make_table(runs: findings.Runs, seeds: Sequence[int]) -> str:
  """Returns Markdown of the algorithms that have finished for a seed.

  Args:
    runs: with `start`.
    seeds: a column for each.
  """
  starts = runs['start']
  rows = [
    ('', 'fields', *(f'seed {seed}' for seed in seeds), 'gain, points'),
    ('---',) * (len(seeds) + 3),
    ('start', '', *_show(starts, seeds), ''),
  ]
  for title, fields in ALGORITHMS.items():
    found = runs.get(name(title), {})
    done = [seed for seed in seeds if seed in found and seed in starts]
    if not done:
      continue
    gain = intervals.of_differences(
      [found[seed].accuracy for seed in done],
      [starts[seed].accuracy for seed in done],
    ).scale(100)
    shown = f'{gain.mean:+.1f}'
    if gain.high is not None:
      shown += f' ± {gain.high - gain.mean:.1f}'
    changed = ' '.join(
      f'`{field.removeprefix("algorithm.")}`'
      for field in jobs.show_fields(fields)
    )
    rows.append((title, changed, *_show(found, seeds), shown))
  return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _show(found, seeds):
  return [
    f'{found[seed].accuracy:.1%}' if seed in found else '' for seed in seeds
  ]
