"""What a checkpoint's replies to held-out questions are worth, with intervals.

    python -m dash_jax.evaluate --config=experiments/X.py --workdir=DIR \\
        [--questions=FILE.jsonl] [--step=N] [--num_samples=1] \\
        [--out=FILE.jsonl] [--against=FILE.jsonl]

The life of an evaluation:
  1. The held-out questions, or those of a file, are asked `--num_samples` times
     each, greedily unless `eval.temperature` is above 0; those that do not fit the
     device wait.
  2. Answers are scored as in training; a reward of exactly 1 is right. Replies
     whose scoring timed out or failed are counted apart.
  3. Printed are the share of right replies (pass@1), pass@k, maj@k (the majority
     of the answers) and the mean length, each with a 95% interval over questions:
     evaluating/estimates.py has the formulas, votes.py the majority's rules.
  4. With --out, each reply is a line of a file (evaluating/replies.py), written as
     soon as it is scored: the same command goes on where it was stopped, and the
     file is put in order at the end.
  5. With --against, the file of another evaluation of the same questions, such as
     of an earlier checkpoint, is compared with this, question by question.

`evaluate` is the one of training: one reply a question, and no file.
"""

import contextlib
import functools
import json
import os
import time

import jax
import ml_collections
from absl import flags

from dash_jax import assemble, commands, meshes, refusals, sharding, weights
from dash_jax.evaluating import estimates, replies
from dash_jax.rewards import workers
from dash_jax.runs import jsonl, ownership, signals, watch


def evaluate(
  parts: assemble.Parts, params: dict, stop: signals.Stop | None = None
) -> dict:
  """Returns accuracy on the test questions, as evals.jsonl has it.

  Args:
    parts: of the run.
    params: the whole model's weights.
    stop: what may ask for an end, if anything.

  Keys: split, num_questions, accuracy, accuracy_low, accuracy_high (95%),
  completion_len_mean (tokens, the stop token included), reward_timeouts,
  reward_errors, eval_s.

  Raises:
    signals.Stopped: as asked, in each process.
  """
  start = time.perf_counter()
  asked = parts.test_questions
  prepared = parts.eval_sampler.prepare(params)
  check = stop.check if stop else None
  sums = None
  with contextlib.suppress(signals.Stopped):
    sums = parts.on_sampler(functools.partial(_begin, parts, prepared, check))()
  if stop:
    stop.check_all()
  total = sharding.sum_over_hosts(sums)
  total = {name: round(float(value)) for name, value in total.items()}
  right = total['right']
  low, high = estimates.wilson_interval(right, len(asked))
  return {
    'split': 'test',
    'num_questions': len(asked),
    'accuracy': right / len(asked),
    'accuracy_low': low,
    'accuracy_high': high,
    'completion_len_mean': total['tokens'] / len(asked),
    'reward_timeouts': total['timeouts'],
    'reward_errors': total['errors'],
    'eval_s': time.perf_counter() - start,
  }


def _begin(parts, prepared, check):
  """Samples; returns what waits for the scores and returns sums over this
  process's questions."""
  asked = list(parts.test_questions[jax.process_index() :: jax.process_count()])
  if not asked:  # there are fewer questions than processes
    return lambda: dict.fromkeys(('right', 'tokens', 'timeouts', 'errors'), 0)
  finish = parts.sample_and_score(
    parts.eval_sampler,
    prepared,
    asked,
    replies.make_key(parts.config.seed),
    replies.make_decoding(parts),
    check=check,
  )

  def sum_up():
    sampled = finish()
    return {
      'right': (sampled.scores.rewards == 1).sum(),
      'tokens': sampled.rows.lengths.sum(),
      'timeouts': sampled.scores.timeouts,
      'errors': sampled.scores.errors,
    }

  return sum_up


def main(config, workdir):
  given = flags.FLAGS
  if given.questions:
    refusals.check_file('--questions', given.questions)
  check_flags(config, given.num_samples, given.out, given.against)
  differing = ownership.compare_config(workdir, config.to_dict())
  if differing:
    print('Judged with other fields than the run has:', *differing, sep='\n')
  with (
    jax.set_mesh(meshes.connect(config)),
    watch.Watch(config.mesh.silent_s, config.mesh.stall_s),
  ):
    if given.questions:
      parts = assemble.build_to_evaluate(config, workdir, given.questions)
    else:
      parts = assemble.build(config, workdir)
    with parts.pool:
      watch.mark('reading the weights')
      params, step = weights.load_step(config, parts.model, workdir, given.step)
      watch.mark('evaluating')
      print_evaluation(
        parts,
        params,
        step,
        num_samples=given.num_samples,
        out=given.out,
        against=given.against,
      )


def check_flags(
  config: ml_collections.ConfigDict, num_samples: int, out: str, against: str
) -> None:
  """Refuses flags of the command that do not go together.

  Raises:
    ValueError, FileNotFoundError: names the flag and what would be valid.
  """
  if num_samples > 1 and not config.eval.temperature:
    raise ValueError(
      f'--num_samples={num_samples} with eval.temperature=0.0: the replies to a'
      ' question would all be alike; set --config.eval.temperature=1.0, or'
      ' --num_samples=1'
    )
  for flag, path in (('out', out), ('against', against)):
    if path and config.mesh.multi_host:
      raise ValueError(
        f'--{flag}={path} with mesh.multi_host=True: files are kept by one'
        ' process; leave one of them out'
      )
    if os.path.isdir(path):
      raise ValueError(f'--{flag}={path}: must be a file, and is a folder')
  if against:
    refusals.check_file('--against', against)


def print_evaluation(
  parts: assemble.Parts,
  params: dict,
  step: int,
  *,
  num_samples: int = 1,
  out: str = '',
  against: str = '',
) -> None:
  """Prints what the replies of a policy to the test questions are worth.

  Args:
    parts: of the run.
    params: the whole model's weights.
    step: that they are of.
    num_samples: G, replies to a question.
    out: JSONL file of the replies; those that it holds are not sampled again. ''
      keeps none.
    against: one of another evaluation, to compare with; '' for none.

  Raises:
    ValueError: a file holds other replies than these.
  """
  start, num = time.perf_counter(), len(parts.test_questions)
  drawn = replies.describe(parts, step)
  wanted = range(jax.process_index(), num, jax.process_count())
  lines = replies.read_done(out, parts, drawn) if out else {}
  other = replies.read_other(against, parts) if against else None
  with contextlib.ExitStack() as closing:
    file = None
    if out:
      file = closing.enter_context(
        open(out, 'a', encoding='utf-8', newline='\n')
      )

    def write(line):
      line = json.loads(jsonl.encode(line | drawn))
      lines[line['index'], line['sample']] = line
      if file:
        print(jsonl.encode(line), end='', file=file, flush=True)

    replies.sample(parts, params, wanted, num_samples, set(lines), write)
  if out:
    replies.sort(out)

  def tabulate(lines, num_samples):
    columns = replies.tabulate(
      lines,
      wanted,
      num_samples,
      parts.config.reward.style,
      functools.partial(_compare_answers, parts.config.reward),
    )
    return replies.join(columns, wanted, num, num_samples)

  table = tabulate(lines, num_samples)
  print(_format(table, step, time.perf_counter() - start))
  if other:
    compared = estimates.compare(table, tabulate(*other))
    has_votes = max(num_samples, other[1]) > 1
    print(_format_comparison(compared, against, has_votes))


def _compare_answers(section: ml_collections.ConfigDict, pairs) -> list[bool]:
  """Returns which pairs of answers are equal; those that take too long are not."""
  with workers.Pool(
    'dash_jax.rewards.answers:score_equal',
    kwargs={'style': section.style},
    num_workers=section.num_workers,
    timeout_s=section.timeout_s,
  ) as pool:
    given, gold = map(list, zip(*pairs, strict=True))
    scores = pool.score(given, gold, [False] * len(pairs), watch.mark)
  return (scores.rewards == 1).tolist()


def _format(table: estimates.Table, step: int, eval_s: float) -> str:
  """Returns what is printed of an evaluation."""
  G, Q = table.num_samples, len(table.right)
  accuracy = estimates.find_share(table.right / G, G)
  length = estimates.find_mean(table.tokens / G)
  where = f'step {step}' if step else 'the weights that the run starts from'
  lines = [
    f'{where}: accuracy {accuracy.value:.1%}'
    f' (95% {accuracy.low:.1%} to {accuracy.high:.1%}) on {Q} questions,'
    f' {length.value:.1f} tokens a reply'
    f' (95% {length.low:.1f} to {length.high:.1f}),'
    f' {table.truncated.sum() / (Q * G):.1%} truncated,'
    f' {table.timeouts} timed out, {table.errors} failed, {eval_s:.1f} s'
  ]
  if G > 1:
    figures = {
      f'pass@{k}': estimates.find_share(
        # So many sets of k replies have none in common.
        estimates.pass_at(k, table.right, G),
        G // k,
      )
      for k in estimates.list_ks(G)
    }
    if table.majority is not None:
      figures[f'maj@{G}'] = estimates.find_share(table.majority, 1)
    lines += [
      f'{name:>9} {x.value:6.1%} [{x.low:.1%}, {x.high:.1%}]'
      for name, x in figures.items()
    ]
  return '\n'.join(lines)


def _format_comparison(
  found: estimates.Comparison, against: str, has_votes: bool
) -> str:
  """Returns what is printed of a comparison."""
  by, difference = 100, found.difference
  text = (
    f'against {against}: pass@1 {by * difference.value:+.1f} points'
    f' (95% {by * difference.low:+.1f} to {by * difference.high:+.1f})'
  )
  if found.p_value is None:
    return f'{text}; no reply states an answer that a majority could have'
  by_vote = ' by the majority of their replies' if has_votes else ''
  return (
    f'{text}; {found.gained} questions gained and {found.lost} lost{by_vote},'
    f" McNemar's exact p = {found.p_value:.2g}"
  )


def define_step() -> None:
  """Defines --step, as `load_params` takes it."""
  flags.DEFINE_integer(
    'step',
    None,
    'Of a checkpoint that is not the newest; 0 is where the run starts.',
    lower_bound=0,
  )


def _define_flags():
  define_step()
  flags.DEFINE_integer(
    'num_samples', 1, 'Replies to each question.', lower_bound=1
  )
  flags.DEFINE_string(
    'questions', '', 'JSONL file to ask in place of the held-out questions.'
  )
  flags.DEFINE_string('out', '', 'JSONL file to write, or to go on with.')
  flags.DEFINE_string('against', '', 'JSONL file of another evaluation.')


if __name__ == '__main__':
  _define_flags()
  commands.run(main)
