"""The command that prints completions: from a file and from stdin, resumed."""

import io
import json
import sys

import pytest
import tiny_run

from dash_jax import generate


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run, for its tokenizer and its weights."""
  folder = tmp_path_factory.mktemp('run')
  code, output = tiny_run.finish(
    tiny_run.start(folder, 'algorithm.num_samples=32')
  )
  assert code == 0, output
  return folder


def start(workdir, *flags, prompts=None):
  process = tiny_run.start(
    workdir, 'algorithm.num_samples=32', module='dash_jax.generate', flags=flags,
    stdin=prompts,
  )  # fmt: skip
  code, output = tiny_run.finish(process)
  return code, output


def parse(lines):
  return {(row['index'], row['sample']): row for row in map(json.loads, lines)}


def test_completions_of_a_file_go_on_where_they_were_cut(workdir, tmp_path):
  """A file of which the last line is torn and others are missing becomes what
  one uninterrupted call writes; a request's own limit holds; other settings or
  prompts are refused."""
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
  assert {row['step'] for row in rows.values()} == {3}
  assert all(rows[1, g]['num_tokens'] <= 2 for g in range(2))
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

  code, output = start(workdir, *flags, f'--out={cut}', '--temperature=0')
  assert code == 2
  assert 'cut.jsonl:1 has temperature=1.0' in output
  code, output = start(
    workdir, *flags, f'--out={cut}', '--config.data.template=Add: {question}'
  )
  assert code == 2
  assert 'cut.jsonl:1 has settings=' in output
  asked.write_text('{"prompt": "7 + 8 ="}\n')
  code, output = start(workdir, *flags, f'--out={cut}')
  assert code == 2
  assert 'is a completion of another prompt' in output


def test_prompts_of_stdin_are_lines(workdir):
  code, output = start(
    workdir, '--temperature=0', prompts='1 + 2 =\n\n3 + 4 =\n'
  )
  assert code == 0, output
  rows = parse(line for line in output.splitlines() if line.startswith('{'))
  assert [rows[i, 0]['prompt'] for i in range(2)] == ['1 + 2 =', '3 + 4 =']
  assert [rows[i, 0]['logprob'] for i in range(2)] == [0, 0]


@pytest.mark.parametrize(
  ('lines', 'named'),
  [
    ('{"question": "a"}', "1: no field 'prompt'"),
    ('{"prompt": 3}', '1: prompt must be a string'),
    ('{"prompt": "a"}\n{"prompt": "a", "max_completion_len": 9}', '2: .*1 to'),
    ('{"prompt": "a", "max_completion_len": true}', '1: .*must be a number'),
  ],
)
def test_bad_requests_name_their_line(tmp_path, lines, named):
  path = tmp_path / 'asked.jsonl'
  path.write_text(lines + '\n')
  with pytest.raises(ValueError, match=f'asked.jsonl:{named}'):
    generate.read_requests(str(path), 8)


def test_no_prompt_at_all_is_an_error(monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('\n \n'))
  with pytest.raises(ValueError, match='standard input has no prompt'):
    generate.read_requests('', 8)
