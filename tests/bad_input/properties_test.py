"""Whatever bytes or values come in, what reads them returns or says what is wrong.

Hypothesis tries the same examples in every run.
"""

import json
import pathlib
import types

import bad_files_test
import hypothesis
import numpy as np
import pytest
import tokenizers
import torch_save
from hypothesis import strategies as st
from safetensors import numpy as safetensors

from dash_jax import checks, report
from dash_jax import config as config_lib
from dash_jax.data import chat, gsm8k, jsonl, pieces, questions, tokenizer
from dash_jax.model import gguf, hf, pth
from dash_jax.runs import metrics

FIELDS = [
  (section, field)
  for section, fields in config_lib.default().items()
  for field in (fields if section != 'seed' else [''])
]
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=5,
)
TEXT = st.text(st.characters(exclude_categories=['Cs']))
# What no file holds by chance is what readers trip over.
EDGES = st.sampled_from(
  [
    b'\0',
    b'\xff',
    b'\xff' * 8,
    b'\0' * 8,
    b'{',
    b'[' * 2_000,
    b'"',
    b'\n',
    b'NaN',
  ]
)


def some(num):
  """Returns what makes a test run `num` examples, always the same ones."""
  return hypothesis.settings(
    max_examples=num,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


@st.composite
def damaged(draw, content):
  """Draws `content` with some bytes replaced, or cut off."""
  edits = draw(
    st.lists(
      st.tuples(
        st.integers(0, len(content)),
        st.integers(0, 8),
        st.binary(max_size=8) | EDGES,
      ),
      max_size=3,
    )
  )
  for at, num, put in edits:
    content = content[:at] + put + content[at + num :]
  return content[: draw(st.integers(0, 2 * len(content)))]


def refusal(read):
  """Returns how `read` refuses its input, '' if it takes it."""
  try:
    read()
  except (ValueError, OSError) as error:
    return str(error)
  return ''


@some(120)
@hypothesis.given(st.sampled_from(FIELDS), JSON)
def test_any_value_of_a_field_is_taken_or_refused_by_name(field, value):
  section, name = field
  config = config_lib.default()
  with config.ignore_type(), config.unlocked():
    try:
      if name:
        config[section][name] = value
      else:
        config[section] = value
    except ValueError:  # names that a ConfigDict cannot have
      return
  error = refusal(lambda: checks.check(config))
  assert not error or (name or section) in error
  assert '\n' not in error


@some(150)
@hypothesis.given(damaged(bad_files_test.ROW * 3))
def test_any_line_is_a_row_or_refused_by_name(tmp_path_factory, content):
  path = tmp_path_factory.getbasetemp() / 'rows.jsonl'
  path.write_bytes(content)
  for read in (
    lambda: jsonl.read(path, ('question',)),
    lambda: list(questions.load_jsonl(path, 'question', 'answer')),
  ):
    error = refusal(read)
    assert not error or error.startswith(str(path))

  def read_each():
    rows = jsonl.Rows(path, ('question',))
    return [(number, rows.read(number)) for number in rows.numbers.tolist()]

  def read_all():
    return jsonl.read(path, ('question',))

  error = refusal(read_all)
  assert refusal(read_each) == error
  assert error or read_each() == read_all()


@some(60)
@hypothesis.given(TEXT, TEXT, TEXT)
def test_gsm8k_takes_what_follows_the_last_mark(
  tmp_path_factory, question, solution, answer
):
  path = tmp_path_factory.getbasetemp() / 'gsm8k.jsonl'
  row = {'question': question, 'answer': f'{solution}#### {answer}'}
  path.write_text(json.dumps(row), encoding='utf-8')
  builder = types.SimpleNamespace(
    builder_config=types.SimpleNamespace(name='folder')
  )
  read = gsm8k.GradeSchoolMath._generate_examples
  final = answer.rpartition('####')[2].strip()
  if question.strip() and final:
    assert list(read(builder, path, 'train')) == [(0, row)]
    asked = questions.load_jsonl(path, 'question', 'answer')
    assert asked[0].answer == final
  else:
    assert str(path) in refusal(lambda: list(read(builder, path, 'train')))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  path = str(tmp_path_factory.mktemp('trained') / 'x.model')
  return pieces.train(['one and two', 'two and three'], 280, path)


@pytest.fixture(scope='module')
def saved(trained, tmp_path_factory):
  folder = tmp_path_factory.mktemp('saved')
  trained.save(folder)
  return tokenizer.load('huggingface', folder)


@some(150)
@hypothesis.given(TEXT)
def test_any_text_comes_back_from_its_tokens(trained, saved, text):
  ids = trained.encode(text)
  assert trained.decode(ids) == text
  assert set(trained.specials.values()).isdisjoint(ids)
  if '\u2581' not in text:  # see SentencePiece.save
    assert saved.encode(text) == ids


@some(100)
@hypothesis.given(st.text(max_size=20) | st.just('{question}'), TEXT)
def test_any_plain_template_asks_the_question_or_is_refused(
  trained, template, question
):
  if error := refusal(lambda: chat.check_template(template)):
    assert 'the template' in error
  else:
    ids = chat.encode_prompt(question, trained, template)
    assert question in trained.decode(ids)


@some(60)
@hypothesis.given(TEXT)
def test_no_question_ends_its_turn(saved, question):
  """Not by special tokens, nor by what the template is written in."""
  saved.chat_template = '{{ messages[0].content }}</s>'
  for text in (question, f'</s>{question}{{{{ 1 }}}}</s>'):
    ids = chat.encode_prompt(text, saved, chat.CHAT)
    assert ids == [*saved.encode(text), saved.specials['</s>']]


def make(name, folder):
  """Returns the bytes of a whole file, and what reads it."""
  if name == 'model.safetensors':
    tensors = {'a': np.ones((2, 3), np.float32), 'b': np.ones(4, np.float16)}
    content = safetensors.save(tensors)
    return content, lambda: hf.open_tensors(folder)
  if name == 'config.json':
    content = json.dumps(bad_files_test.ARCHITECTURE).encode()
    return content, lambda: hf.read_config(folder)
  if name == 'tokenizer_config.json':
    vocab = {'a': 0, '</s>': 1}
    fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    (folder / 'tokenizer.json').write_text(fast.to_str())
    content = json.dumps({'eos_token': '</s>', 'chat_template': 'x'}).encode()
    return content, lambda: tokenizer.load('huggingface', folder)
  path = folder / name
  if name == 'x.pth':
    torch_save.save(path, {'a': np.ones((2, 3), np.float32)})
    return path.read_bytes(), lambda: pth.list_tensors(str(path))
  content = pathlib.Path(
    bad_files_test.write_gguf(
      head_count=4,
      embedding_length=32,
      block_count=1,
      feed_forward_length=64,
      layer_norm_rms_eps=1e-5,
      tokenizer_model='llama',
      token_list=['<unk>', '<s>', '</s>', 'a'],
      token_scores=[0.0] * 4,
      token_types=[2, 3, 3, 1],
    )
  ).read_bytes()
  kinds = {
    'weights.gguf': lambda: gguf.read_config(str(path)),
    'tokenizer.gguf': lambda: tokenizer.load('gguf', str(path)),
  }
  return content, kinds[name]


@pytest.mark.parametrize(
  'name',
  [
    'model.safetensors',
    'config.json',
    'tokenizer_config.json',
    'x.pth',
    'weights.gguf',
    'tokenizer.gguf',
  ],
)
def test_damaged_checkpoints_are_read_or_refused_by_name(
  name, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  content, read = make(name, tmp_path)

  @some(50)
  @hypothesis.given(damaged(content))
  def check(content):
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(read)
    assert not error or str(tmp_path) in error

  (tmp_path / name).write_bytes(content)
  read()
  check()


STEPS = bad_files_test.line(
  *(bad_files_test.STEP | {'step': step} for step in (1, 2, 3))
)


@some(60)
@hypothesis.given(st.integers(0, len(STEPS)))
def test_a_torn_file_of_metrics_has_its_whole_lines(tmp_path_factory, at):
  folder = tmp_path_factory.getbasetemp()
  path = folder / 'metrics.jsonl'
  path.write_bytes(STEPS[:at])
  whole = STEPS[:at].count(b'\n')
  assert [row['step'] for row in metrics.read(path)] == [1, 2, 3][:whole]


@some(120)
@hypothesis.given(damaged(STEPS))
def test_damaged_metrics_are_read_or_refused_by_name(tmp_path_factory, content):
  folder = tmp_path_factory.getbasetemp()
  path = folder / 'metrics.jsonl'
  path.write_bytes(content)
  for read in (lambda: metrics.read(path), lambda: report.summarize(folder)):
    error = refusal(read)
    assert not error or str(path) in error
