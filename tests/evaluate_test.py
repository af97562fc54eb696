"""Accuracy counts every question once; files of replies go on and are compared."""

import contextlib
import json
import math
import re
import time

import jax
import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, evaluate, sharding, tokenizing, weights
from dash_jax.evaluating import estimates
from dash_jax.rewards import workers

ONE, FOUR = (1, 1, 1), (1, 4, 1)


@pytest.fixture
def build(monkeypatch, tmp_path):
  """Returns what builds the parts of a run on a mesh, within its context."""

  @contextlib.contextmanager
  def make(shape, batch_size='auto'):
    config = tiny_run.borrow(monkeypatch)
    config.eval.temperature = 1.0  # or all replies of a random model are alike
    config.sampling.batch_size = batch_size
    devices = jax.devices()[: math.prod(shape)]
    grid = jax.make_mesh(shape, sharding.AXES, devices=devices)
    with jax.set_mesh(grid):
      built = assemble.build(config, str(tmp_path))
      with built.pool:
        yield built, weights.load_params(config, built.model)

  return make


def test_any_batch_size_and_mesh_give_the_same_accuracy(build):
  """6 questions at once, four at once, one by one, and on four shards of rows,
  one of which has none."""
  results = []
  for shape, size in ((ONE, 'auto'), (ONE, 4), (ONE, 1), (FOUR, 'auto')):
    with build(shape, size) as (parts, params):
      result = evaluate.evaluate(parts, params)
    assert result.pop('eval_s') > 0
    results.append(result)
  for other in results[1:]:
    assert other == results[0]
  assert results[0]['num_questions'] == 6
  assert 1 <= results[0]['completion_len_mean'] <= 6
  right = results[0]['accuracy'] * 6
  assert right == pytest.approx(round(right))
  assert (
    results[0]['accuracy_low'],
    results[0]['accuracy_high'],
  ) == estimates.wilson_interval(round(right), 6)


@pytest.mark.parametrize('shape', [ONE, FOUR])
def test_every_reply_is_scored_once(build, monkeypatch, shape):
  """And is right, and has a time-out: of 6, whatever the mesh."""
  scored = []

  def score(completions, answers, truncated, on_done):
    del answers, truncated
    n = len(completions)
    scored.append(n)
    return workers.Scores(np.ones(n, np.float32), n, 0)

  with build(shape) as (parts, params):
    monkeypatch.setattr(parts.pool, 'score', score)
    result = evaluate.evaluate(parts, params)
  assert sum(scored) == 6
  assert result['accuracy'] == 1
  assert result['reward_timeouts'] == 6


def test_a_partly_right_reply_is_not_right(build, monkeypatch):
  """Accuracy counts rewards of exactly 1; time-outs and errors stand apart."""
  rewards = iter([1.0, 0.5, 0.999, 0.0, -1.0, 2.0])

  def score(completions, answers, truncated, on_done):
    del answers, truncated
    n = len(completions)
    found = [next(rewards) for _ in range(n)]
    return workers.Scores(np.array(found, np.float32), 2 * n, 3 * n)

  with build(ONE) as (parts, params):
    monkeypatch.setattr(parts.pool, 'score', score)
    result = evaluate.evaluate(parts, params)
  assert result['accuracy'] == pytest.approx(1 / 6)
  assert (result['reward_timeouts'], result['reward_errors']) == (12, 18)


def judge(parts, params, path, num_samples=2, **flags):
  evaluate.print_evaluation(
    parts, params, 0, num_samples=num_samples, out=str(path), **flags
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The file of an evaluation of 6 questions with 2 replies, in one go."""
  with pytest.MonkeyPatch.context() as patched:
    config = tiny_run.borrow(patched)
    config.eval.temperature = 1.0
    folder = tmp_path_factory.mktemp('whole')
    devices = jax.devices()[:1]
    with jax.set_mesh(jax.make_mesh(ONE, sharding.AXES, devices=devices)):
      built = assemble.build(config, str(folder))
      with built.pool:
        params = weights.load_params(config, built.model)
        judge(built, params, folder / 'whole.jsonl')
  return folder / 'whole.jsonl'


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_has_every_reply_once_and_in_order(whole):
  rows = read(whole)
  assert [(row['index'], row['sample']) for row in rows] == [
    (i, g) for i in range(6) for g in range(2)
  ]
  for row in rows:
    # What tiny_run rewards.
    assert row['reward'] == (len(row['completion'].encode()) % 2 == 0)
    assert row['fault'] == ''
    assert row['answer'].isdecimal()
  assert len({row['completion'] for row in rows}) > 6


@pytest.mark.parametrize(
  ('shape', 'batch_size', 'kept'), [(ONE, 2, 0.4), (ONE, 2, 0.95), (FOUR, 4, 0)]
)
def test_what_is_missing_is_sampled_as_it_would_have_been(
  build, whole, tmp_path, capsys, shape, batch_size, kept
):
  """A file that ends anywhere, with its lines in another order, becomes that of one
  call; so it does on another mesh."""
  lines = whole.read_bytes().splitlines(keepends=True)
  mixed = b''.join(lines[::2] + lines[1::2])
  path = tmp_path / 'cut.jsonl'
  path.write_bytes(mixed[: int(kept * len(mixed))])
  with build(shape, batch_size) as (parts, params):
    judge(parts, params, path)
  assert path.read_bytes() == whole.read_bytes()
  assert 'on 6 questions' in capsys.readouterr().out


def test_the_first_reply_is_that_of_an_evaluation_in_training(build, whole):
  first = [row for row in read(whole) if not row['sample']]
  with build(ONE) as (parts, params):
    result = evaluate.evaluate(parts, params)
  assert result['accuracy'] == np.mean([row['reward'] == 1 for row in first])
  assert result['completion_len_mean'] == np.mean(
    [row['num_tokens'] for row in first]
  )


def test_a_killed_evaluation_goes_on(whole, tmp_path):
  """SIGKILL while rewards take their time; then the same command."""
  path = tmp_path / 'killed.jsonl'

  def start(**env):
    return tiny_run.start(
      tmp_path, 'eval.temperature=1.0', 'sampling.batch_size=4',
      module='dash_jax.evaluate', flags=('--num_samples=2', f'--out={path}'), **env,
    )  # fmt: skip

  process = start(SLOW='0.2')
  while not path.exists() or not path.read_text():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  process.kill()
  process.communicate()
  assert path.read_text().count('\n') < 12
  code, output = tiny_run.finish(start())
  assert code == 0, output
  assert path.read_bytes() == whole.read_bytes()
  assert re.search(r'pass@1 .*\n *pass@2 ', output)


def test_files_are_compared(build, whole, tmp_path, capsys):
  """With itself nothing differs; where one more reply is right, a point does."""
  other = tmp_path / 'other.jsonl'
  rows = read(whole)
  wrong = next(row for row in rows if row['reward'] == 0)
  wrong['reward'] = 1.0
  other.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with build(ONE) as (parts, params):
    judge(parts, params, whole, against=str(whole))
    assert 'pass@1 +0.0 points' in capsys.readouterr().out
    judge(parts, params, whole, against=str(other))
    assert 'pass@1 -8.3 points' in capsys.readouterr().out
    # The first replies alone have a majority without any votes.
    judge(parts, params, tmp_path / 'one', num_samples=1, against=str(whole))
    assert 'no reply states an answer' in capsys.readouterr().out
    judge(
      parts, params, tmp_path / 'one', num_samples=1,
      against=str(tmp_path / 'one'),
    )  # fmt: skip
    assert "0 questions gained and 0 lost, McNemar's exact p = 1" in (
      capsys.readouterr().out
    )


def test_majorities_are_printed():
  """Of four replies to each of two questions; the other table has one reply."""
  zeros = np.zeros(2, int)
  four = estimates.Table(
    4, np.array([3, 2]), np.array([True, False]), zeros, zeros
  )
  one = estimates.Table(
    1, np.array([0, 1]), np.array([False, True]), zeros, zeros
  )
  lines = evaluate._format(four, 7, 1.0).splitlines()
  assert [line.split()[0] for line in lines[1:]] == [
    'pass@1', 'pass@2', 'pass@4', 'maj@4',
  ]  # fmt: skip
  assert lines[0].startswith('step 7: accuracy 62.5%')
  assert lines[-1].split()[1] == '50.0%'
  compared = estimates.compare(four, one)
  text = evaluate._format_comparison(compared, 'x.jsonl', has_votes=True)
  assert 'pass@1 +12.5 points' in text
  assert (
    '1 questions gained and 1 lost by the majority of their replies' in text
  )


@pytest.mark.parametrize(
  ('change', 'flag', 'named'),
  [
    ({'seed': 1}, 'out', ':1 has seed=1, and this call seed=0'),
    ({'step': 9}, 'out', ':1 has step=9, and this call step=0'),
    ({'style': 'boxed'}, 'out', ":1 has style='boxed', and this call"),
    ({'prompt': 'x'}, 'out', ':1 is a completion of another prompt'),
    ({'answer': '7x'}, 'out', " has the answer '7x' to question 0, which is"),
    ({'prompt': 'x'}, 'against', ' asked another question 0'),
    ({'answer': '7x'}, 'against', " has the answer '7x' to question 0, which"),
    ({'index': 1}, 'against', ' lacks reply 0 to question 0'),
    ({'found': ...}, 'against', ': a line without found: name a file'),
  ],
)
def test_a_file_of_another_evaluation_is_refused(
  build, whole, tmp_path, change, flag, named
):
  rows = read(whole)
  rows[0] = {k: v for k, v in (rows[0] | change).items() if v is not ...}
  path = tmp_path / 'file.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  text = path.read_text()
  with (
    build(ONE) as (parts, params),
    pytest.raises(ValueError, match=re.escape(f'--{flag}={path}{named}')),
  ):
    evaluate.print_evaluation(
      parts, params, 0, num_samples=2, **{flag: str(path)}
    )
  assert path.read_text() == text


def test_what_failed_is_said_of_its_reply(build, monkeypatch, tmp_path, capsys):
  """Of the six, one takes too long, and two fail."""

  faults = iter([workers.TIMEOUT, workers.ERROR, workers.ERROR, '', '', ''])

  def score(completions, answers, truncated, on_done):
    del answers, truncated
    n = len(completions)
    found = dict(zip(range(n), faults, strict=False))
    return workers.Scores(np.zeros(n, np.float32), 9, 9, faults=found)

  path = tmp_path / 'faults.jsonl'
  with build(ONE) as (parts, params):
    monkeypatch.setattr(parts.pool, 'score', score)
    judge(parts, params, path, num_samples=1)
  written = [row['fault'] for row in read(path)]
  assert sorted(written) == ['', '', '', 'error', 'error', 'timeout']
  assert '1 timed out, 2 failed' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('temperature', 'flags', 'named'),
  [
    (
      0.0,
      (4, '', ''),
      '--num_samples=4 with eval.temperature=0.0: the replies',
    ),
    (1.0, (4, 'FOLDER', ''), '--out=FOLDER: must be a file, and is a folder'),
    (1.0, (4, '', 'gone.jsonl'), "--against='gone.jsonl': no such file"),
    (None, (1, 'x', ''), '--out=x with mesh.multi_host=True: files are kept'),
  ],
)
def test_flags_that_cannot_be_are_refused(
  monkeypatch, tmp_path, temperature, flags, named
):
  (tmp_path / 'FOLDER').mkdir()
  monkeypatch.chdir(tmp_path)
  config = tiny_run.borrow(monkeypatch)
  config.mesh.multi_host = temperature is None
  config.eval.temperature = temperature or 0.0
  with pytest.raises((ValueError, OSError), match=re.escape(named)):
    evaluate.check_flags(config, *flags)


def test_questions_of_a_file_take_the_place_of_the_held_out_ones(
  build, monkeypatch, tmp_path, capsys
):
  path = tmp_path / 'asked.jsonl'
  rows = [{'problem': f'1 + {i} =', 'answer': 1 + i} for i in range(3)]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  with build(ONE) as (parts, params):
    # The tokenizer that `build` has trained is a run's.
    monkeypatch.setattr(tokenizing.ownership, 'has_begun', lambda folder: True)
    parts.config.data.prompt_field = 'problem'
    other = assemble.build_to_evaluate(parts.config, str(tmp_path), str(path))
    with other.pool:
      evaluate.print_evaluation(other, params, 5)
  asked = other.test_questions
  assert [(q.prompt, q.answer) for q in asked] == [
    ('1 + 0 =', '1'), ('1 + 1 =', '2'), ('1 + 2 =', '3'),
  ]  # fmt: skip
  assert capsys.readouterr().out.startswith('step 5: accuracy ')


@pytest.mark.parametrize(
  ('asked', 'there', 'loaded'),
  [(None, 7, 7), (None, None, 0), (3, 7, 3), (0, 7, 0), (0, None, 0)],
)
def test_which_weights_are_judged(monkeypatch, asked, there, loaded):
  """The newest checkpoint's, that of a step, or those of the start."""

  def restore(config, model, workdir, step):
    if there is None:
      return None
    return 'trained', there if step is None else step

  monkeypatch.setattr(weights, 'restore_params', restore)
  monkeypatch.setattr(weights, 'load_params', lambda config, model: 'start')
  found = weights.load_step(None, None, 'run', asked)
  assert found == ('trained' if loaded else 'start', loaded)


def test_a_step_of_a_run_without_checkpoints_is_refused(monkeypatch):
  monkeypatch.setattr(weights, 'restore_params', lambda *unused: None)
  with pytest.raises(ValueError, match='--step=3: run has no checkpoint'):
    weights.load_step(None, None, 'run', 3)
