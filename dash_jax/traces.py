"""A policy's right replies to the training questions, for others to learn from.

    python -m dash_jax.traces --config=experiments/X.py --workdir=DIR \\
        --out=FOLDER [--replies=4] [--questions=N] [--most=1] [--overwrite]

  1. The newest checkpoint in the workdir (without one, the weights that the run
     starts from) samples `--replies` replies to each training question, as the
     section `sampling` says, with noise that no training step has.
  2. They are scored by the verifier; a reward of exactly 1 is right,
     also of a reply that was cut (dash_jax's own verifier gives that 0).
  3. FOLDER/train.jsonl has `question`, `answer` and `solution`, a right reply: at
     most `--most` different ones a question. test.jsonl has the held-out
     questions. SFT of any model on the two:
       --config.data.source=jsonl --config.data.path=FOLDER/{split}.jsonl
       --config.data.solution_field=solution
  4. FOLDER/pairs.jsonl has `question`, `chosen` and `rejected`: a right and a
     wrong reply to a question that has both, for dash_jax.reward_model. One that
     ran out of room is neither: a model would learn how texts are cut.
"""

import pathlib
from collections.abc import Iterable

import jax
import ml_collections
import numpy as np
from absl import flags

from dash_jax import (
  assemble,
  batches,
  commands,
  meshes,
  scoring,
  weights,
)
from dash_jax.runs import jsonl

NAMES = ('train.jsonl', 'test.jsonl', 'pairs.jsonl')
_MOST_AT_ONCE = 512  # questions of one call
# No step has this number, nor have an evaluation and dropout.
_NOISE = 2**31 - 3


def sample(
  parts: assemble.Parts,
  params: dict,
  asked: list[batches.Question],
  num_replies: int,
) -> Iterable[scoring.Sampled]:
  """Yields the replies to some questions at a time, scored.

  Args:
    parts: of the run that samples.
    params: the model's weights.
    asked: the questions.
    num_replies: G.
  """
  most = min(len(asked), _MOST_AT_ONCE)
  sampled_by = assemble.make_sampler(
    parts.config,
    parts.model,
    jax.sharding.get_mesh(),
    num_prompts=most,
    group_size=num_replies,
  )
  how = assemble.make_decoding(parts.config, parts.stop_ids)
  key = jax.random.fold_in(jax.random.key(parts.config.seed), _NOISE)
  prepared = sampled_by.prepare(params)
  for first in range(0, len(asked), most):
    some = list(asked[first : first + most])
    yield parts.sample_and_score(sampled_by, prepared, some, key, how)()


def choose(
  sampled: scoring.Sampled, most: int
) -> tuple[list[dict], list[dict]]:
  """Returns the lines of train.jsonl and of pairs.jsonl.

  Args:
    sampled: replies to questions.
    most: right replies of a question that are kept.
  """
  solutions, pairs = [], []
  G = sampled.rows.lengths.shape[1]
  right = sampled.scores.rewards.reshape(-1, G) == 1
  stopped = ~np.asarray(sampled.rows.truncated)
  for q, question in enumerate(sampled.asked):
    texts = sampled.texts[q * G : (q + 1) * G]
    good = list(dict.fromkeys(texts[g] for g in np.flatnonzero(right[q])))
    good = [text for text in good if text.strip()]  # nothing can be learned of
    better, worse = (
      [
        texts[g]
        for g in np.flatnonzero(chosen & stopped[q])
        if texts[g].strip()
      ]
      for chosen in (right[q], ~right[q])
    )
    for text in good[:most]:
      solutions.append(_describe(question) | {'solution': text})
    if better and worse:
      pairs.append(
        {'question': question.prompt, 'chosen': better[0], 'rejected': worse[0]}
      )
  return solutions, pairs


def _describe(question):
  return {'question': question.prompt, 'answer': question.answer}


def write(
  config: ml_collections.ConfigDict,
  workdir: str,
  out: pathlib.Path,
  *,
  num_replies: int = 4,
  num_questions: int = 0,
  most: int = 1,
  overwrite: bool = False,
) -> None:
  """Samples and writes the traces of a run, on the mesh in use.

  Args:
    config: of the run.
    workdir: of the run.
    out: the folder.
    num_replies: sampled for each question.
    num_questions: the first so many; 0 takes all.
    most: right replies that are kept of a question.
    overwrite: whether files of an earlier call may be replaced.

  Raises:
    ValueError, OSError: names the flag or field and what would be valid.
  """
  if config.mesh.multi_host:
    raise ValueError(
      'mesh.multi_host=True: traces are sampled in one process; set it to False'
    )
  if out.exists() and not out.is_dir():
    raise ValueError(f'--out={out}: must be a folder, and is a file')
  there = [name for name in NAMES if (out / name).exists()]
  if there and not overwrite:
    raise ValueError(
      f'--out={out} has {", ".join(there)} already: name another folder, or say'
      ' --overwrite'
    )
  parts = assemble.build(config, workdir)
  asked = parts.train_questions[: num_questions or None]
  solutions, pairs, num_right = [], [], 0
  with parts.pool:
    params, step = weights.load_step(config, parts.model, workdir)
    for sampled in sample(parts, params, asked, num_replies):
      num_right += int((sampled.scores.rewards == 1).sum())
      found = choose(sampled, most)
      solutions += found[0]
      pairs += found[1]
  out.mkdir(parents=True, exist_ok=True)
  tests = [_describe(question) for question in parts.test_questions]
  for name, lines in zip(NAMES, (solutions, tests, pairs), strict=True):
    jsonl.write(out / name, lines)
  answered = len({line['question'] for line in solutions})
  print(
    f'step {step}: {num_right} of {len(asked) * num_replies} replies are'
    f' right, to {answered} of {len(asked)} questions; {out} has'
    f' {len(solutions)} solutions and {len(pairs)} pairs'
  )


def main(config, workdir):
  given = flags.FLAGS
  with jax.set_mesh(meshes.connect(config)):
    write(
      config,
      workdir,
      pathlib.Path(given.out),
      num_replies=given.replies,
      num_questions=given.questions,
      most=given.most,
      overwrite=given.overwrite,
    )


def _define_flags():
  flags.DEFINE_string('out', None, 'The folder to write.', required=True)
  flags.DEFINE_integer(
    'replies', 4, 'Sampled for each question.', lower_bound=1
  )
  flags.DEFINE_integer(
    'questions', 0, 'The first so many; 0 takes all.', lower_bound=0
  )
  flags.DEFINE_integer(
    'most', 1, 'Right replies that are kept of a question.', lower_bound=1
  )
  flags.DEFINE_bool(
    'overwrite', False, 'Whether files of an earlier call may be replaced.'
  )


if __name__ == '__main__':
  _define_flags()
  commands.run(main)
