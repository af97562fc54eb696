"""A reward model, trained from pairs of a better and a worse reply.

    python -m dash_jax.reward_model --config=experiments/X.py --workdir=DIR \\
        --pairs=FILE.jsonl --out=FOLDER [--epochs=1] [--held_out=0.1]

  1. Each line of the file has a `question` and two replies to it, `chosen` and
     `rejected`; dash_jax.traces writes such a file.
  2. The model begins with the weights of the newest checkpoint in the workdir
     (without one, with those that the run starts from) and a scalar head of 0.
  3. A share of the questions is held out with all their pairs. Steps of
     `optim.sft_batch_size` pairs, with the section `optim` and
     `sft_learning_rate`, lower the loss of `learning.reward_model.pair_loss`.
  4. The share of held-out pairs whose chosen reply scores above the other is
     printed, with its 95% interval.
  5. FOLDER becomes a Hugging Face folder that classifies sequences with one
     label, the score: `reward.model=hf:FOLDER` and transformers read it.
"""

import dataclasses
import pathlib

import jax
import ml_collections
import numpy as np
from absl import flags

from dash_jax import (
  assemble,
  commands,
  export,
  judge,
  meshes,
  refusals,
  sharding,
  weights,
)
from dash_jax.data import jsonl
from dash_jax.evaluating import estimates
from dash_jax.learning import learner, reward_model
from dash_jax.model import llama

_FIELDS = ('question', 'chosen', 'rejected')
_REPORTS = 10  # lines that a training prints


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two replies to a question, of which `chosen` is the better."""

  question: str
  chosen: str
  rejected: str


def read_pairs(path: str) -> list[Pair]:
  """Returns the pairs of a JSONL file.

  Raises:
    ValueError, FileNotFoundError: names the line and what would be valid.
  """
  refusals.check_file('--pairs', path)
  pairs = []
  for number, row in jsonl.read(path, _FIELDS):
    for field in _FIELDS:
      if not isinstance(row[field], str):
        raise ValueError(f'{path}:{number}: {field} must be a string')
    pairs.append(Pair(*(row[field] for field in _FIELDS)))
  return pairs


def split_pairs(
  pairs: list[Pair], share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
  """Returns the pairs to learn from, and those that are held out: all that
  belong to a share of the questions, at least one.

  Args:
    pairs: of at least two questions.
    share: of the questions.
    seed: which they are.

  Raises:
    ValueError: a part would be empty.
  """
  asked = sorted({pair.question for pair in pairs})
  order = np.random.default_rng(seed).permutation(len(asked))
  num = max(round(share * len(asked)), 1)
  if num >= len(asked):
    raise ValueError(
      f'--held_out={share} of {len(asked)} questions leaves none to learn from:'
      ' take a smaller share, or pairs of more questions'
    )
  held = {asked[i] for i in order[:num]}
  return (
    [pair for pair in pairs if pair.question not in held],
    [pair for pair in pairs if pair.question in held],
  )


def train(
  config, asking: judge.Judge, pairs: list[Pair], num_epochs: int
) -> judge.Judge:
  """Returns the reward model that has learned from pairs.

  Args:
    config: of the run whose optimizer is used.
    asking: the model as it begins; its weights are donated.
    pairs: to learn from.
    num_epochs: passes over them, each in an order of its own.

  Raises:
    ValueError: there are too few pairs for a step.
  """
  size = config.optim.sft_batch_size
  steps_a_pass = len(pairs) // size
  total = num_epochs * steps_a_pass
  warmup = config.optim.sft_warmup_steps
  if total <= warmup:
    raise ValueError(
      f'{len(pairs)} pairs make {total} steps of optim.sft_batch_size={size}, of'
      f' which there must be more than optim.sft_warmup_steps={warmup}: lower'
      ' these, or raise --epochs'
    )
  optimizer = assemble.make_optimizer(
    config, config.optim.sft_learning_rate, total, warmup
  )
  questions = [pair.question for pair in pairs]
  ended = [False] * len(pairs)
  chosen, rejected = (
    asking.encode(questions, replies, ended)
    for replies in ([p.chosen for p in pairs], [p.rejected for p in pairs])
  )
  num_slots = asking.find_slots([*chosen, *rejected])
  state = learner.init_state(asking.params, optimizer)
  for step in range(total):
    epoch, at = divmod(step, steps_a_pass)
    order = np.random.default_rng([config.seed, epoch]).permutation(len(pairs))
    taken = order[at * size : (at + 1) * size]
    put = [
      sharding.put_rows(reward_model.pad([rows[i] for i in taken], num_slots))
      for rows in (chosen, rejected)
    ]
    state, found = reward_model.update(
      state, *put, model=asking.model, optimizer=optimizer
    )
    if not np.isfinite(found['loss'] + found['grad_norm']):
      raise RuntimeError(
        f'step {step + 1}: the loss ({found["loss"]}) or the gradient (norm'
        f' {found["grad_norm"]}) is not finite; lower optim.sft_learning_rate'
      )
    if (step + 1) * _REPORTS // total > step * _REPORTS // total:
      print(
        f'step {step + 1} of {total}: loss {found["loss"]:.3f}, right in'
        f' {found["accuracy"]:.1%} of {size} pairs',
        flush=True,
      )
  return dataclasses.replace(asking, params=state.params)


def count_right(asking: judge.Judge, pairs: list[Pair]) -> int:
  """Returns how many pairs have a chosen reply that scores above the other."""
  questions = [pair.question for pair in pairs]
  ended = [False] * len(pairs)
  better, worse = (
    asking.score(questions, replies, ended)
    for replies in ([p.chosen for p in pairs], [p.rejected for p in pairs])
  )
  return int((better > worse).sum())


def begin(config, workdir: str) -> judge.Judge:
  """Returns the model that training begins with."""
  encoding, model = assemble.build_encoding(config, workdir)
  params, step = weights.load_step(config, model, workdir)
  print(f'begins with step {step} of {workdir}')
  policy = export.merge(*export.drop_critic(model, params))
  # What would read out tokens has no use.
  architecture = dataclasses.replace(policy.config, scalar_head=True, tied=True)
  score = llama.weights(architecture)['score']
  params = {n: x for n, x in policy.params.items() if n != 'unembed'}
  params['score'] = jax.jit(score.init, static_argnums=1)(
    jax.random.key(config.seed), model.param_dtype
  )
  return judge.Judge(
    model=dataclasses.replace(model, config=architecture),
    params=params,
    tokenizer=encoding.tokenizer,
    template=encoding.template,
    system=encoding.system,
    min_slots=0,
  )


def make(
  config: ml_collections.ConfigDict,
  workdir: str,
  pairs: list[Pair],
  out: pathlib.Path,
  *,
  num_epochs: int = 1,
  held_out: float = 0.1,
) -> tuple[int, int]:
  """Trains a reward model and writes it, on the mesh in use.

  Args:
    config: of a run.
    workdir: of the run, whose newest weights the model begins with.
    pairs: to learn from and to judge it by.
    out: a new or an empty folder.
    num_epochs: passes over the pairs.
    held_out: share of the questions whose pairs judge the model.

  Returns:
    How many held-out pairs it has right, and how many there are.

  Raises:
    ValueError, OSError: names the flag or field and what would be valid.
  """
  if config.mesh.multi_host:
    raise ValueError(
      'mesh.multi_host=True: a reward model is trained in one process; set it to'
      ' False'
    )
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ValueError(f'--out={out}: must be a new or an empty folder')
  learned, judged = split_pairs(pairs, held_out, config.seed)
  trained = train(config, begin(config, workdir), learned, num_epochs)
  right, num = count_right(trained, judged), len(judged)
  written = export.Exported(trained.model.config, trained.params)
  export.write_model(config, pathlib.Path(workdir), out, written)
  low, high = estimates.wilson_interval(right, num)
  print(
    f'right in {right / num:.1%} (95% {low:.1%} to {high:.1%}) of {num} held-out'
    f' pairs, after {len(learned)} to learn from; reward.model=hf:{out}'
  )
  return right, num


def main(config, workdir):
  given = flags.FLAGS
  with jax.set_mesh(meshes.connect(config)):
    make(
      config,
      workdir,
      read_pairs(given.pairs),
      pathlib.Path(given.out),
      num_epochs=given.epochs,
      held_out=given.held_out,
    )


def _define_flags():
  flags.DEFINE_string(
    'pairs',
    None,
    'JSONL file: question, chosen and rejected a line.',
    required=True,
  )
  flags.DEFINE_string('out', None, 'A new or an empty folder.', required=True)
  flags.DEFINE_integer('epochs', 1, 'Passes over the pairs.', lower_bound=1)
  flags.DEFINE_float(
    'held_out',
    0.1,
    'Share of the questions whose pairs judge the model.',
    lower_bound=0.0,
    upper_bound=1.0,
  )


if __name__ == '__main__':
  _define_flags()
  commands.run(main)
