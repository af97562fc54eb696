"""Scored replies to the held-out questions, a line each, and what they add up to.

  1. `describe` says how replies are drawn: by `eval.temperature` and `eval.top_p`,
     with noise that no training step has. `read_done` finds those that are there.
  2. `sample` asks for the replies that are missing, some questions at a time, and
     hands out each as soon as it is scored.
  3. A line has what a completion of dash_jax.generate has (runs/completions.py),
     but its log-probability, and: `answer`, the right one; `found`, what the
     reply states, null for none; `reward`; and `fault`, 'timeout' or 'error'
     where scoring failed.
  4. `tabulate` counts the lines of some questions.

With several processes, each asks a share of the questions.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from dash_jax import assemble, sharding
from dash_jax.evaluating import estimates, votes
from dash_jax.rewards import answers, workers
from dash_jax.runs import completions, jsonl
from dash_jax.sampling import decoding

# No training step has this number, so noise is not shared with one.
NOISE = 2**31 - 1

_MOST_ROWS = 4_096  # of one call, so that the host holds no more

_COLUMNS = (
  'right', 'majority', 'tokens', 'truncated', 'timeouts', 'errors', 'voted',
)  # fmt: skip

# What a line of another file must have.
_NEEDED = {
  'index', 'sample', 'prompt', 'answer', 'num_tokens', 'truncated', 'found',
  'reward', 'fault',
}  # fmt: skip

Lines = dict[completions.Name, dict]


def make_decoding(parts: assemble.Parts) -> decoding.Decoding:
  """Returns the distribution that evaluation samples from."""
  section = parts.config.eval
  return decoding.make_decoding(
    section.temperature, section.top_p, stop_ids=parts.stop_ids
  )


def make_key(seed: int) -> jax.Array:
  """Returns the noise of evaluation."""
  return jax.random.fold_in(jax.random.key(seed), NOISE)


def describe(parts: assemble.Parts, step: int) -> dict:
  """Returns how replies are drawn and scored, as every line has it."""
  config = parts.config
  return {
    'step': step,
    'seed': config.seed,
    'temperature': config.eval.temperature,
    'top_p': config.eval.top_p,
    'function': config.reward.function,
    'style': config.reward.style,
    'settings': completions.name_settings(config.to_dict()),
  }


def read_done(out: str, parts: assemble.Parts, drawn: dict) -> Lines:
  """Returns the lines of an evaluation that was begun; see `completions.read_done`.

  Args:
    out: the file; it may not be there.
    parts: of the run.
    drawn: of `describe`.

  Raises:
    ValueError: the file holds other replies, or the right answers are others.
  """
  asked, most = list(parts.test_questions), parts.encoding.max_completion_len
  requests = [
    completions.Request(i, question.prompt, most)
    for i, question in enumerate(asked)
  ]
  lines = completions.read_done(out, requests, drawn)
  for (index, _), line in lines.items():
    _check_answer(f'--out={out}', line, asked[index])
  return lines


def read_other(path: str, parts: assemble.Parts) -> tuple[Lines, int]:
  """Returns the lines of another evaluation of the same questions, and how many
  replies to each it has.

  Raises:
    ValueError: it has other questions, or has not ended.
  """
  where = f'--against={path}'
  lines = {}
  for row in jsonl.read(path):
    if not row.keys() >= _NEEDED:
      raise ValueError(
        f'{where}: a line without {", ".join(sorted(_NEEDED - row.keys()))}: name a'
        ' file that dash_jax.evaluate --out has written'
      )
    lines[row['index'], row['sample']] = row
  num_samples = 1 + max((sample for _, sample in lines), default=0)
  for index, question in enumerate(parts.test_questions):
    for sample in range(num_samples):
      line = lines.get((index, sample))
      if line is None:
        raise ValueError(
          f'{where} lacks reply {sample} to question {index}: it has not ended, or'
          ' asked fewer questions; give its command again'
        )
      if line['prompt'] != question.prompt:
        raise ValueError(
          f'{where} asked another question {index}: evaluate both with the same'
          ' data fields'
        )
      _check_answer(where, line, question)
  return lines, num_samples


def _check_answer(where, line, question):
  if line.get('answer') != question.answer:
    raise ValueError(
      f'{where} has the answer {line.get("answer")!r} to question {line["index"]},'
      f' which is {question.answer!r} now: the questions are no longer those that'
      ' it was begun with'
    )


def sort(path: str) -> None:
  """Puts the lines of a file that is complete in order, so that it is the same
  however often it was begun again."""
  rows = jsonl.read(path)
  ordered = sorted(rows, key=lambda row: (row['index'], row['sample']))
  if rows != ordered:
    jsonl.write(path, ordered)


def sample(
  parts: assemble.Parts,
  params: dict,
  wanted: Sequence[int],
  num_samples: int,
  done: Iterable[completions.Name],
  write: Callable[[dict], None],
) -> None:
  """Samples and scores the replies that are missing.

  Args:
    parts: of the run.
    params: the whole model's weights.
    wanted: the questions that this process asks, by their numbers.
    num_samples: G, replies to each.
    done: replies that are there.
    write: is called with each line, from one thread.
  """
  done, G = set(done), num_samples
  left = [i for i in wanted if any((i, g) not in done for g in range(G))]
  if not left and jax.process_count() == 1:
    return
  most = max(_MOST_ROWS // G, 1)
  sampled_by = assemble.make_sampler(
    parts.config,
    parts.model,
    parts.sampling_mesh,
    num_prompts=max(min(most, len(left)), 1),
    group_size=G,
  )
  # Weights are gathered from all processes, also for one that asks nothing.
  prepared = sampled_by.prepare(params)

  def write_scored(asked, questions, rows, made, texts, scores):
    for n, (q, g) in enumerate(zip(*np.divmod(rows, G), strict=True)):
      if (asked[q], g) in done:
        continue
      question, truncated = questions[q], made.truncated[q, g]
      write(
        {
          'index': asked[q],
          'sample': g,
          'prompt': question.prompt,
          'max_completion_len': parts.encoding.max_completion_len,
          'completion': texts[n],
          'num_tokens': made.lengths[q, g],
          'truncated': bool(truncated),
          'answer': question.answer,
          # Where a reply was cut is where an answer seems to stand.
          'found': None
          if truncated
          else answers.extract(texts[n], parts.config.reward.style),
          'reward': scores.rewards[n],
          'fault': scores.faults.get(n, ''),
        }
      )

  def ask_all():
    for first in range(0, len(left), most):
      asked = left[first : first + most]
      questions = [parts.test_questions[i] for i in asked]
      parts.sample_and_score(
        sampled_by,
        prepared,
        questions,
        make_key(parts.config.seed),
        make_decoding(parts),
        on_scored=functools.partial(write_scored, asked, questions),
      )()

  parts.on_sampler(lambda: ask_all)()


def tabulate(
  lines: Lines,
  wanted: Sequence[int],
  num_samples: int,
  style: str,
  compare: Callable[[list[votes.Pair]], Sequence[bool]],
) -> dict[str, np.ndarray]:
  """Returns what the replies to some questions add up to, f64 for each of these,
  by the names of the columns that `join` takes.

  Args:
    lines: with every reply to them.
    wanted: questions.
    num_samples: G; further replies do not count.
    style, compare: as `votes.find_majorities`'s.
  """
  rows = [[lines[i, g] for g in range(num_samples)] for i in wanted]

  def collect(choose, dtype):
    found = [[choose(line) for line in row] for row in rows]
    return np.array(found, dtype).reshape(len(rows), num_samples)

  right = collect(lambda line: float(line['reward']) == 1, bool)
  fault = collect(lambda line: line['fault'], object)
  found = [[line['found'] for line in row] for row in rows]
  majority = right[:, 0]
  if num_samples > 1:
    majority = votes.find_majorities(found, right, style, compare)
  columns = {
    'right': right,
    'tokens': collect(lambda line: line['num_tokens'], int),
    'truncated': collect(lambda line: line['truncated'], bool),
    'timeouts': fault == workers.TIMEOUT,
    'errors': fault == workers.ERROR,
  }
  return {name: values.sum(axis=1) for name, values in columns.items()} | {
    'majority': np.zeros(len(rows)) if majority is None else majority,
    'voted': np.full(len(rows), majority is not None),
  }


def join(
  columns: dict[str, np.ndarray],
  wanted: Sequence[int],
  num_questions: int,
  num_samples: int,
) -> estimates.Table:
  """Returns the table of all questions; all processes must call it.

  Args:
    columns: of the questions that this process asks.
    wanted: these.
    num_questions: of all.
    num_samples: G.
  """
  own = np.zeros((num_questions, len(_COLUMNS)), np.float32)
  for i, name in enumerate(_COLUMNS):
    own[list(wanted), i] = columns[name]
  whole = sharding.gather_hosts(own).sum(axis=0)
  whole = {name: whole[:, i] for i, name in enumerate(_COLUMNS)}
  return estimates.Table(
    num_samples=num_samples,
    right=whole['right'].round().astype(int),
    majority=whole['majority'] > 0.5 if whole['voted'].any() else None,
    tokens=whole['tokens'].round().astype(int),
    truncated=whole['truncated'].round().astype(int),
    timeouts=round(float(whole['timeouts'].sum())),
    errors=round(float(whole['errors'].sum())),
  )
