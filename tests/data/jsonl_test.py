"""Properties of reading JSONL files."""

import pytest

from dash_jax.data import jsonl


def _write(tmp_path, content):
  path = tmp_path / 'rows.jsonl'
  path.write_bytes(content)
  return path


def _read_where_they_begin(path, fields):
  rows = jsonl.Rows(path, fields)
  return [(number, rows.read(number)) for number in rows.numbers.tolist()]


_both = pytest.mark.parametrize('read', [jsonl.read, _read_where_they_begin])


@_both
def test_rows_come_in_order_with_their_line_numbers(tmp_path, read):
  # The blank line shifts numbers: a row's number is its line in the file, so
  # that an editor finds it. U+2028 is no end of line in JSON, a byte order mark
  # and Windows line ends are no part of it.
  content = '\ufeff{"a": 1}\r\n\r\n{"a": "x\u2028y", "b": 2}'.encode()
  assert read(_write(tmp_path, content), ('a',)) == [
    (1, {'a': 1}),
    (3, {'a': 'x\u2028y', 'b': 2}),
  ]


@_both
@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'{"a": 1}\n{"a": 1', r'rows.jsonl:2: not JSON \(.* at column'),
    (b'{"a": 1}\n{\n\n', r'rows.jsonl:2: not JSON \(.* at column 2\)'),
    (b'{"a": 1}\n[1]\n', 'rows.jsonl:2: a JSON list, but .* JSON object'),
    (b'{"a": 1}\n{"a": "\xe9"}\n', 'rows.jsonl:2: not UTF-8 .* byte 7 '),
    (
      b'{"a": 1}\n{"c": 1, "b": 2}\n',
      r"rows.jsonl:2: no field 'a'; the fields there are \['b', 'c'\]",
    ),
    (b'', 'rows.jsonl: no rows'),
    (b'\n \n', 'rows.jsonl: no rows'),
  ],
)
def test_a_bad_file_is_named_with_its_line_and_what_would_be_right(
  tmp_path, content, message, read
):
  with pytest.raises(ValueError, match=message):
    read(_write(tmp_path, content), ('a',))


@_both
def test_a_missing_file_is_named(tmp_path, read):
  with pytest.raises(FileNotFoundError, match=r'nothing\.jsonl'):
    read(tmp_path / 'nothing.jsonl', ())
