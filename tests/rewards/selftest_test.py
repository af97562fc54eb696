"""Properties of the reward self-test."""

import json

import pytest

from dash_jax.rewards import selftest

_GSM8K = [
  {'question': 'a', 'answer': 'So 6 * 3 = <<6*3=18>>18\n#### 18'},
  {'question': 'b', 'answer': 'He makes $1,000.\n#### 1,000'},
]
_MATH = [
  {'solution': r'Thus $\boxed{\frac{1}{2}}$.', 'answer': r'\frac12'},
  {'solution': r'Thus $\boxed{3}$.', 'answer': 4},
  {'solution': 'Nothing.', 'answer': '5'},
  {'solution': r'Thus $\boxed{6}$.', 'answer': '6'},
]


def _write(tmp_path, rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def test_solutions_that_hold_their_answers_all_score(tmp_path, capsys):
  path = _write(tmp_path, _GSM8K)
  argv = [path, '--style=gsm8k', '--solution_field=answer']
  assert selftest.main(argv) == 0
  assert '2 of 2 gold solutions score 1 (100.00%' in capsys.readouterr().out


def test_misses_are_listed_and_decide_the_exit_status(tmp_path, capsys):
  # Two of four are wrong, one with another answer and one with none.
  path = _write(tmp_path, _MATH)
  argv = [path, '--style=boxed', '--solution_field=solution']
  assert selftest.main(argv) == 1
  said = capsys.readouterr().out
  assert "line 2: extracted '3', gold '4'" in said
  assert "line 3: extracted None, gold '5'" in said
  assert 'line 1' not in said
  assert '2 of 4 gold solutions score 1 (50.00%' in said
  assert selftest.main([*argv, '--min_rate=0.5']) == 0


def test_a_gold_answer_that_is_no_number_is_a_miss_and_a_failure(
  tmp_path, capsys
):
  path = _write(tmp_path, [{'solution': '#### 18', 'answer': 'eighteen'}])
  assert (
    selftest.main([path, '--style=gsm8k', '--solution_field=solution']) == 1
  )
  assert '0 timed out, 1 failed' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('', 'no rows'),
    ('\n\n', 'no rows'),
    (
      '{"answer": "#### 1"}\n{"a": 1, "b": 2}',
      "rows.jsonl:2: no field 'answer'; the fields there are ['a', 'b']",
    ),
    ('{"answer": "#### 1"}\nnot json', 'rows.jsonl:2: not JSON'),
    ('[1]', 'rows.jsonl:1: a JSON list'),
    (
      '{"answer": "no hashes"}',
      "rows.jsonl:1: field 'answer' ends in no answer",
    ),
  ],
)
def test_a_file_that_cannot_be_used_is_an_error(
  tmp_path, capsys, content, message
):
  path = tmp_path / 'rows.jsonl'
  path.write_text(content)
  with pytest.raises(SystemExit, match='2'):
    selftest.main([str(path), '--style=gsm8k', '--solution_field=answer'])
  assert message in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path, capsys):
  path = str(tmp_path / 'missing.jsonl')
  with pytest.raises(SystemExit, match='2'):
    selftest.main([path, '--style=gsm8k', '--solution_field=answer'])
  assert path in capsys.readouterr().err
