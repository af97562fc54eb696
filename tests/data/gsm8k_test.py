"""Properties of GSM8K's builder, on small files made here, offline."""

import functools
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from dash_jax.data import gsm8k


def _write(folder, num_train=40, num_test=3):
  folder.mkdir(exist_ok=True)
  for split, num in (('train', num_train), ('test', num_test)):
    rows = [
      {
        'question': f'{split} {i} costs \u20ac{i}?',
        'answer': f'2*{i} = $<<2*{i}={2 * i}>>{2 * i}.\n#### 1,{i:03}',
      }
      for i in range(num)
    ]
    lines = [json.dumps(row) + '\n' for row in rows]
    (folder / f'{split}.jsonl').write_text(''.join(lines))
  return folder


@pytest.fixture
def serve():
  """Serves a folder on this machine; returns its address for `gsm8k.URL`."""
  servers = []

  def start(folder):
    class Handler(http.server.SimpleHTTPRequestHandler):
      def log_message(self, *args):
        pass

    handler = functools.partial(Handler, directory=folder)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever).start()
    servers.append(server)
    return f'http://127.0.0.1:{server.server_port}/{{split}}.jsonl'

  yield start
  for server in servers:
    server.shutdown()
    server.server_close()


def test_questions_stand_in_the_files_order_with_answer_and_solution(tmp_path):
  # 40 rows, which preparation shuffles unless it is told not to.
  raw = _write(tmp_path / 'raw')
  train = gsm8k.load('train', tmp_path / 'data', raw)
  assert [q.prompt for q in train] == [
    f'train {i} costs \u20ac{i}?' for i in range(40)
  ]
  assert train[7].answer == '1,007'
  assert train[7].solution == '2*7 = $14.\n#### 1,007'


def test_uids_are_places_in_the_file_and_differ_between_splits(tmp_path):
  raw = _write(tmp_path / 'raw')
  train, test = (gsm8k.load(s, tmp_path / 'data', raw) for s in gsm8k.SPLITS)
  uids = [q.uid for q in [*train, *test]]
  assert uids[:40] == list(range(40))
  assert len(set(uids)) == 43
  assert all(0 <= uid < 2**31 for uid in uids)


def test_a_changed_file_is_prepared_anew(tmp_path):
  # tensorflow_datasets reuses what lies in its folder, whatever it was made
  # from: without a folder for each content, the old rows would come back.
  raw, data = tmp_path / 'raw', tmp_path / 'data'
  assert len(gsm8k.load('test', data, _write(raw))) == 3
  assert len(gsm8k.load('test', data, _write(raw, num_test=5))) == 5


def test_processes_that_share_a_folder_may_prepare_it_at_once(
  tmp_path, monkeypatch
):
  # The second begins and ends while the first is at it.
  raw, data = _write(tmp_path / 'raw'), tmp_path / 'data'
  generate, others = gsm8k.GradeSchoolMath._generate_examples, []

  def meet(self, path, split):
    if not others:
      others.append(None)
      others[0] = list(gsm8k.load('train', data, raw))
    return generate(self, path, split)

  monkeypatch.setattr(gsm8k.GradeSchoolMath, '_generate_examples', meet)
  assert list(gsm8k.load('train', data, raw)) == others[0]
  (left,) = data.glob('*/*/folder/*')  # of what was prepared twice
  assert left.name == str(gsm8k.GradeSchoolMath.VERSION)


def test_tensorflow_is_not_imported(tmp_path):
  # In a process of its own: another test may have imported it here.
  code = (
    'import sys; from dash_jax.data import gsm8k;'
    "print(len(gsm8k.load('test', *sys.argv[1:])), 'tensorflow' in sys.modules)"
  )
  raw = _write(tmp_path / 'raw')
  printed = subprocess.run(
    [sys.executable, '-c', code, str(tmp_path / 'data'), str(raw)],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
    check=True,
    stdout=subprocess.PIPE,
  ).stdout
  assert printed.split()[-2:] == [b'3', b'False']


def test_without_a_folder_the_files_are_downloaded(
  tmp_path, serve, monkeypatch
):
  # From a server on this machine, which stands for the public one.
  monkeypatch.setattr(gsm8k, 'URL', serve(_write(tmp_path / 'raw')))
  monkeypatch.setattr(gsm8k, 'PUBLIC_NUM_ROWS', {'train': 40, 'test': 3})
  test = gsm8k.load('test', tmp_path / 'data')
  of_folder = gsm8k.load('test', tmp_path / 'data', tmp_path / 'raw')
  assert list(test) == list(of_folder)


def test_a_download_that_lacks_rows_is_an_error(tmp_path, serve, monkeypatch):
  monkeypatch.setattr(gsm8k, 'URL', serve(_write(tmp_path / 'raw')))
  with pytest.raises(
    ValueError, match='40 rows, but the public train file has'
  ):
    gsm8k.load('test', tmp_path / 'data')


def test_a_failed_download_says_how_to_do_without(tmp_path, serve, monkeypatch):
  monkeypatch.setattr(gsm8k, 'URL', serve(tmp_path))
  with pytest.raises(
    ConnectionError, match=r'fetch .*train.jsonl and http.*test'
  ):
    gsm8k.load('test', tmp_path / 'data')


@pytest.mark.parametrize('missing', gsm8k.SPLITS)
def test_a_missing_file_is_named(tmp_path, missing):
  raw = _write(tmp_path / 'raw')
  (raw / f'{missing}.jsonl').unlink()
  message = f'{missing}.jsonl: no such file; .* train.jsonl and test.jsonl'
  with pytest.raises(FileNotFoundError, match=message):
    gsm8k.load('train', tmp_path / 'data', raw)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ({'question': 'q', 'answer': '4'}, "'answer' must end in '#### n'"),
    ({'question': 'q', 'answer': '4 #### '}, "'answer' must end in '#### n'"),
    ({'question': 5, 'answer': '#### 4'}, "'question' must be text"),
    ({'problem': 'q', 'answer': '#### 4'}, "no field 'question'"),
  ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, row, message):
  raw = _write(tmp_path / 'raw')
  with open(raw / 'train.jsonl', 'a') as f:
    f.write(json.dumps(row))
  with pytest.raises(ValueError, match=f'train.jsonl:41: .*{message}'):
    gsm8k.load('train', tmp_path / 'data', raw)


def test_a_wrong_split_says_what_is_valid(tmp_path):
  with pytest.raises(
    ValueError, match=r"split 'dev' must be .*'train', 'test'"
  ):
    gsm8k.load('dev', tmp_path / 'data', _write(tmp_path / 'raw'))
