"""The command that prints completions: from a file and from stdin, resumed."""

import io
import json
import sys
import types

import jax
import pytest
import tiny_run

from dash_jax import config as config_lib
from dash_jax import generate, sharding, train
from dash_jax.runs import completions, jsonl


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run, for its tokenizer and its weights."""
  with pytest.MonkeyPatch.context() as patched:
    config = tiny_run.borrow(patched)
    config.algorithm.name = 'sft'
    config.algorithm.sft_steps = 1
    folder = tmp_path_factory.mktemp('run')
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
      assert train.train(config, str(folder))
  return folder


def begin(workdir, *flags, prompts=None):
  return tiny_run.start(
    workdir, 'algorithm.num_samples=32', module='dash_jax.generate', flags=flags,
    stdin=prompts,
  )  # fmt: skip


def start(workdir, *flags, prompts=None):
  return tiny_run.finish(begin(workdir, *flags, prompts=prompts))


def make_stdin(data):
  return io.TextIOWrapper(io.BytesIO(data))


def parse(lines):
  return {(row['index'], row['sample']): row for row in map(json.loads, lines)}


def test_completions_of_a_file_go_on_where_they_were_cut(workdir, tmp_path):
  """A file of which the last line is torn and others are missing becomes what
  one uninterrupted call writes; a request's own limit holds; other settings are
  refused."""
  asked = tmp_path / 'asked.jsonl'
  asked.write_text(
    '{"prompt": "1 + 2 ="}\n{"prompt": "3 + 4 =", "max_completion_len": 2}\n'
    '{"prompt": "5 + 6 ="}\n'
  )
  whole = tmp_path / 'whole.jsonl'
  flags = (f'--prompts={asked}', '--num_samples=2')
  code, output = start(workdir, *flags, f'--out={whole}')
  assert code == 0, output
  lines = whole.read_text().splitlines()
  rows = parse(lines)
  assert sorted(rows) == [(i, g) for i in range(3) for g in range(2)]
  assert {row['step'] for row in rows.values()} == {1}
  assert all(rows[1, g]['num_tokens'] <= 2 for g in range(2))
  limits = {
    rows[i, 0]['index']: rows[i, 0]['max_completion_len'] for i in range(3)
  }
  assert limits == {0: 6, 1: 2, 2: 6}
  assert rows[0, 0]['prompt'] == '1 + 2 ='
  assert rows[0, 0]['logprob'] < 0

  cut = tmp_path / 'cut.jsonl'
  torn = lines[2][:20].encode() + 'é'.encode()[:1]  # inside a character
  cut.write_bytes(f'{lines[0]}\n{lines[4]}\n'.encode() + torn)
  code, output = start(workdir, *flags, f'--out={cut}')
  assert code == 0, output
  again = cut.read_text().splitlines()
  assert len(again) == 6
  assert parse(again) == rows

  code, output = start(
    workdir, *flags, f'--out={cut}', '--config.data.template=Add: {question}'
  )
  assert code == 2
  assert 'cut.jsonl:1 has settings=' in output


REQUESTS = [completions.Request(0, 'a', 8), completions.Request(1, 'b', 8)]
DRAWN = {'temperature': 1.0, 'settings': 'abcd'}
LINE = jsonl.encode(
  {'index': 1, 'sample': 0, 'prompt': 'b', 'max_completion_len': 8} | DRAWN
)


@pytest.mark.parametrize(
  ('text', 'kept'),
  [
    ('', ''),
    (LINE, LINE),
    (LINE + '{"in', LINE),
    (LINE + '\0\0', LINE),
    ('{"in', ''),
    (LINE[:-1], ''),
  ],
)
def test_a_torn_completion_is_cut_off(tmp_path, text, kept):
  path = tmp_path / 'out.jsonl'
  path.write_text(text)
  done = completions.read_done(str(path), REQUESTS, DRAWN)
  assert set(done) == ({(1, 0)} if kept else set())
  assert path.read_text() == kept


@pytest.mark.parametrize(
  ('text', 'named'),
  [
    ('my only notes, no newline', 'holds no completions, but begins with'),
    ('{"prompt": "a"}', 'holds no completions, but begins with'),
    ('{"prompt": "a"}\n{"prompt": "b"}', ':1 is a completion of another'),
    ('notes\nmore', ':1 is not JSON'),
    (LINE.replace('"b"', '"c"') + '{', ':1 is a completion of another prompt'),
    (LINE + LINE.replace('1.0', '0.5') + '{', ':2 has temperature=0.5'),
    (LINE.replace('8', '9'), ':1 has max_completion_len=9, and this call .*=8'),
  ],
)
def test_a_file_of_something_else_is_refused_and_kept(tmp_path, text, named):
  path = tmp_path / 'out.jsonl'
  path.write_text(text)
  with pytest.raises(ValueError, match=f'out.jsonl ?{named}'):
    completions.read_done(str(path), REQUESTS, DRAWN)
  assert path.read_text() == text


def test_prompts_of_stdin_are_lines(workdir):
  """With a sampling.batch_size that --num_samples does not divide."""
  code, output = start(
    workdir, '--temperature=0', '--num_samples=3',
    '--config.sampling.batch_size=4', prompts='1 + 2 =\n\n3 + 4 =\n',
  )  # fmt: skip
  assert code == 0, output
  rows = parse(line for line in output.splitlines() if line.startswith('{'))
  assert [rows[i, 0]['prompt'] for i in range(2)] == ['1 + 2 =', '3 + 4 =']
  assert [rows[i, 0]['logprob'] for i in range(2)] == [0, 0]
  assert len(rows) == 6


def test_who_reads_may_have_enough(workdir):
  """As `head` does: the command ends as if all were well."""
  process = begin(workdir, prompts='1 + 2 =\n')
  process.stdin.close()
  process.stdout.close()
  assert process.wait(300) == 0


@pytest.mark.parametrize(
  ('temperature', 'named'), [(1e-30, 'temperature=1e-30'), (1.0, 'too long')]
)
def test_what_is_asked_is_refused_before_weights_are_loaded(
  monkeypatch, mesh, temperature, named
):
  def encode(asked):
    if named == 'too long':
      raise ValueError('too long')

  encoding = types.SimpleNamespace(
    encode=encode,
    max_completion_len=8,
    tokenizer=types.SimpleNamespace(stop_ids=(1,)),
  )
  monkeypatch.setattr(generate.meshes, 'connect', lambda config: mesh)
  monkeypatch.setattr(
    generate.assemble, 'build_encoding', lambda *unused: (encoding, None)
  )
  monkeypatch.setattr(generate.weights, 'restore_params', None)
  monkeypatch.setattr(sys, 'stdin', make_stdin(b'a\n'))
  with pytest.raises(ValueError, match=named):
    generate.write(config_lib.default(), '', temperature=temperature)


@pytest.mark.parametrize(
  ('lines', 'named'),
  [
    ('{"question": "a"}', "1: no field 'prompt'"),
    ('{"prompt": 3}', '1: prompt must be a string'),
    ('{"prompt": "a"}\n{"prompt": "a", "max_completion_len": 9}', '2: .*1 to'),
    ('{"prompt": "a", "max_completion_len": true}', '1: .*must be a number'),
    ('{"prompt": "a"}\n{"prompt": "b\\ud83d"}', '2: .*pair at character 1'),
  ],
)
def test_bad_requests_name_their_line(tmp_path, lines, named):
  path = tmp_path / 'asked.jsonl'
  path.write_text(lines + '\n')
  with pytest.raises(ValueError, match=f'asked.jsonl:{named}'):
    generate.read_requests(str(path), 8)


def test_no_prompt_at_all_is_an_error(monkeypatch):
  monkeypatch.setattr(sys, 'stdin', make_stdin(b'\n \n'))
  with pytest.raises(ValueError, match='standard input has no prompt'):
    generate.read_requests('', 8)


def test_bad_bytes_of_stdin_name_their_line(monkeypatch):
  monkeypatch.setattr(sys, 'stdin', make_stdin(b'a\n\nb\xff\n'))
  with pytest.raises(ValueError, match=r'standard input:3: not UTF-8 .* 1 of'):
    generate.read_requests('', 8)
