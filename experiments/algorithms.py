"""Every algorithm on the quickstart's questions, from one start, in one table.

    python -m experiments.algorithms --out=DIR [--seeds=0,1,2] [--only=NAME,..]

  1. A seed's start is the quickstart's supervised phase; it is exported, and its
     tokenizer kept. Of its replies to training questions a reward model is made,
     and of those of the seed's DASH run a stronger model's traces.
  2. Each of ALGORITHMS goes on from there with the quickstart's 10,240 samples,
     or rows to imitate, by `python -m dash_jax.main` and the fields that are
     named with it.
  3. The table has greedy accuracy on the held-out questions before and after,
     for each seed, and the mean gain with Student's 95% interval over seeds.

The same command skips what is finished and goes on with what is not.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys

from scipy import stats

from dash_jax.runs import metrics

_CONFIG = 'experiments/quickstart.py'
_NUM_SAMPLES = 10_240  # of the quickstart
_NUM_REPLIES = 4  # to a question, of traces
_SFT = {'name': 'sft', 'sft_steps': _NUM_SAMPLES // 16}

# Fields of `algorithm`, or of another section with its name. '{seed}' is a
# seed's folder.
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
    'num_samples': _NUM_SAMPLES // 2,
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
  'SFT on traces of the DASH run': _SFT
  | {
    'data.source': 'jsonl',
    'data.path': '{seed}/traces/{{split}}.jsonl',
    'data.solution_field': 'solution',
    'data.num_train': 0,
    # Replies may take more tokens when they are encoded again.
    'data.too_long': 'drop',
  },
  'format and length beside the verifier': {
    'reward.format_weight': 0.1,
    'reward.length_weight': 0.1,
  },
  'a reward model beside the verifier': {
    'reward.model': 'hf:{seed}/reward_model',
    'reward.model_weight': 0.1,
  },
}


def make_options(fields: dict, seed: str = '') -> list[str]:
  """Returns flags.

  Args:
    fields: as in ALGORITHMS.
    seed: the seed's folder.
  """
  return [
    f'--config.{name if "." in name else f"algorithm.{name}"}='
    + str(value).format(seed=seed)
    for name, value in fields.items()
  ]


def summarize(before: list[float], after: list[float]) -> dict:
  """Returns the mean gain and half of its 95% interval over seeds, in shares.

  Args:
    before, after: accuracies of the same seeds; of one there is no interval.
  """
  gains = [b - a for a, b in zip(before, after, strict=True)]
  found = {'mean': statistics.mean(gains), 'half': None}
  if len(gains) > 1:
    error = statistics.stdev(gains) / len(gains) ** 0.5
    found['half'] = float(stats.t.ppf(0.975, len(gains) - 1)) * error
  return found


def make_table(starts: dict[int, float], found: dict[str, dict]) -> str:
  """Returns Markdown.

  Args:
    starts: accuracy before, by seed.
    found: by algorithm, accuracy after, by seed.
  """
  seeds = sorted(starts)
  lines = [
    '| | fields | '
    + ' | '.join(f'seed {seed}' for seed in seeds)
    + ' | gain, points |',
    '|---|---|' + '---|' * (len(seeds) + 1),
    '| start | | '
    + ' | '.join(f'{starts[seed]:.1%}' for seed in seeds)
    + ' | |',
  ]
  for name, by_seed in found.items():
    fields = ' '.join(
      f'`{flag.removeprefix("--config.")}`'
      for flag in make_options(ALGORITHMS[name], 'SEED')
    )
    cells = [
      f'{by_seed[seed]:.1%}' if seed in by_seed else '' for seed in seeds
    ]
    done = sorted(by_seed)
    gain = summarize([starts[s] for s in done], [by_seed[s] for s in done])
    cell = f'{100 * gain["mean"]:+.1f}'
    if gain['half'] is not None:
      cell += f' ± {100 * gain["half"]:.1f}'
    lines.append(f'| {name} | {fields} | {" | ".join(cells)} | {cell} |')
  return '\n'.join(lines)


def _call(module, *options):
  command = [sys.executable, '-m', module, *options]
  print('$', shlex.join(command[1:]), flush=True)
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    sys.exit(f'{module} ended with {done.returncode}:\n{done.stderr[-3000:]}')


def _train(workdir, seed, options):
  """Runs to the end, if it has not, and returns the last accuracy."""
  marker = workdir / 'curves.png'  # a run draws it last
  if not marker.exists():
    _call(
      'dash_jax.main', f'--config={_CONFIG}', f'--workdir={workdir}',
      f'--config.seed={seed}', *options,
    )  # fmt: skip
  return metrics.read(workdir / 'evals.jsonl')[-1]['accuracy']


def _take_traces(workdir, out, options):
  if not out.exists():
    _call(
      'dash_jax.traces', f'--config={_CONFIG}', f'--workdir={workdir}',
      f'--out={out}', f'--replies={_NUM_REPLIES}',
      f'--questions={_NUM_SAMPLES // _NUM_REPLIES}', *options,
    )  # fmt: skip


def _make_start(folder, seed):
  """Returns the accuracy that a seed starts from, and the flags that start
  there. Leaves a reward model in the seed's folder."""
  workdir, exported = folder / 'start', folder / 'exported'
  options = make_options({'name': 'sft', 'checkpoint.every_samples': 10**9})
  accuracy = _train(workdir, seed, options)
  if not (exported / 'config.json').exists():
    _call('dash_jax.export', f'--workdir={workdir}', f'--out={exported}')
  options.append(f'--config.seed={seed}')
  _take_traces(workdir, folder / 'pairs', options)
  if not (folder / 'reward_model').exists():
    _call(
      'dash_jax.reward_model', f'--config={_CONFIG}', f'--workdir={workdir}',
      f'--pairs={folder / "pairs" / "pairs.jsonl"}', '--epochs=4',
      f'--out={folder / "reward_model"}', *options,
      '--config.optim.sft_learning_rate=3e-4',
    )  # fmt: skip
  return accuracy, make_options(
    {
      'sft_steps': 0,
      'model.weights': f'hf:{exported}',
      'data.tokenizer': 'sentencepiece',
      'data.tokenizer_path': workdir / 'tokenizer.model',
      'eval.every_samples': _NUM_SAMPLES,
      'checkpoint.every_samples': _NUM_SAMPLES,
      'log.rollouts_every_samples': _NUM_SAMPLES,
    }
  )


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
    description='Runs every algorithm on the quickstart, and makes a table.'
  )
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--only', default='', help='names, all if left out')
  args = parser.parse_args(argv)
  seeds = [int(seed) for seed in args.seeds.split(',')]
  chosen = args.only.split(',') if args.only else list(ALGORITHMS)
  for name in chosen:
    if name not in ALGORITHMS:
      parser.error(f'--only={name}: must be of {", ".join(ALGORITHMS)}')
  # Traces are of the DASH run.
  names = list(dict.fromkeys(['DASH', *chosen]))
  starts, found = {}, {name: {} for name in names}
  for seed in seeds:
    folder = args.out / f'seed_{seed}'
    starts[seed], flags = _make_start(folder, seed)
    for name in names:
      workdir = folder / name.lower().replace(' ', '_')
      options = flags + make_options(ALGORITHMS[name], str(folder))
      found[name][seed] = _train(workdir, seed, options)
      if name == 'DASH':
        options.append(f'--config.seed={seed}')
        _take_traces(workdir, folder / 'traces', options)
      print(f'{name}: {starts[seed]:.1%} -> {found[name][seed]:.1%}')
  table = make_table(starts, found)
  print(table)
  (args.out / 'table.md').write_text(table + '\n', encoding='utf-8')
  (args.out / 'table.json').write_text(
    json.dumps({'starts': starts, 'found': found}, indent=1)
  )


if __name__ == '__main__':
  main()
