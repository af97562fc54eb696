"""SentencePiece tokenizers, and the door to all kinds."""

import random
import re

import pytest
import sentencepiece
import tokenizers

from dash_jax.data import tokenizer

TEXTS = [
  'Tom has 12 apples.\nHe eats 5.  How many are left?\n12 - 5 = 7\n#### 7',
  'A box holds 30 pens; 4 boxes hold 4 * 30 = 120 pens.\n#### 120',
] * 5

HARD = [
  '',
  ' ',
  '  two  spaces  ',
  '\n',
  ' \n\n x \n',
  'tab\tand\r\nreturn\r',
  'nul \x00 inside',
  '▁ the space mark ▁▁',
  '▅ ⁇ \ufffd',
  '\ufeffbom, \u200b zero width, \u202e right to left',
  'e\u0301 is not é; ﬁ ½ ① Å',
  '日本語 العربية हिन्दी 👩‍👩‍👧 \U0010ffff',
  '<s> </s> <unk> <0x41> <pad>',
  '007 3.14159 1,000,000 ٣٤',
]


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'trained.model'
  return tokenizer.train_sentencepiece(TEXTS, 320, path), path


def test_decode_undoes_encode(trained):
  """A text that came back changed would be rewarded for what nobody wrote."""
  model, _ = trained
  rng = random.Random(0)
  alphabet = ' \n\t\r\x00▁▅<>s/ap12é日😀\u200d\u0301\ufeff'
  texts = HARD + [
    ''.join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(500)
  ]
  texts += [
    ''.join(
      chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)]))
      for _ in range(8)
    )
    for _ in range(500)
  ]
  for text in texts:
    ids = model.encode(text)
    assert all(0 <= i < model.vocab_size for i in ids)
    assert model.decode(ids) == text


def test_saved_for_others_it_gives_the_same_ids(trained, tmp_path):
  """As a tokenizer.json, by another library's merges: on texts as it learned
  from, hard ones and random ones. Only the mark that stands for spaces itself
  cannot be told from one there."""
  model, _ = trained
  model.save(tmp_path, add_bos=False)
  saved = tokenizer.load('huggingface', str(tmp_path))
  rng = random.Random(1)
  alphabet = ' \n\t\rTomehasbx3012apples.=-+*é日😀\u200d'
  texts = (
    TEXTS
    + HARD
    + [
      ''.join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1000)
    ]
  )
  for text in texts:
    if '▁' not in text:
      assert saved.encode(text) == model.encode(text), text
    assert saved.decode(model.encode(text)) == text
  assert saved.stop_ids == model.stop_ids
  assert saved.bos_id == model.bos_id


def test_saved_with_bos_it_begins_every_text(trained, tmp_path):
  model, _ = trained
  model.save(tmp_path, add_bos=True)
  saved = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  text = TEXTS[0]
  assert saved.encode(text).ids == [model.bos_id, *model.encode(text)]


def test_a_model_with_rules_of_its_own_is_not_saved_wrongly(tmp_path):
  """Sentencepiece's defaults put a space in front and join double ones: with
  those the ids of the saved tokenizer would differ."""
  prefix = str(tmp_path / 'other')
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_prefix=prefix, model_type='bpe',
    vocab_size=320, byte_fallback=True, minloglevel=2,
  )  # fmt: skip
  model = tokenizer.load('sentencepiece', f'{prefix}.model')
  with pytest.raises(ValueError, match='changes spaces or characters'):
    model.save(tmp_path, add_bos=False)
  assert not (tmp_path / 'tokenizer.json').exists()


def test_same_texts_give_the_same_file(trained, tmp_path):
  """Two runs of one seed must agree on what every id means."""
  model, path = trained
  again = tmp_path / 'again.model'
  tokenizer.train_sentencepiece(TEXTS, 320, again)
  assert again.read_bytes() == path.read_bytes()
  loaded = tokenizer.load('sentencepiece', path)
  assert loaded.encode(TEXTS[0]) == model.encode(TEXTS[0])
  assert loaded.vocab_size == 320


def test_common_numbers_are_one_token_and_newlines_are_their_own(trained):
  """'12' is frequent here, '97' is not; a newline joins nothing, so a solution
  begins with the same ids whatever stands before it."""
  model, _ = trained
  for text in ('12', '\n', *'0123456789'):
    assert len(model.encode(text)) == 1
  assert model.encode('97') == [model.encode(c)[0] for c in '97']
  newline = model.encode('\n')
  parts = [*model.encode('120'), *newline, *newline, *model.encode('12')]
  assert model.encode('120\n\n12') == parts


def test_it_learned_from_the_texts(trained):
  model, _ = trained
  assert len(model.encode('apples')) < len('apples')


def test_special_tokens_in_a_text_are_text_unless_asked(trained):
  """Otherwise a question could end itself."""
  model, _ = trained
  bos, (eos,) = model.bos_id, model.stop_ids
  text = '<s>apples</s>'
  plain = model.encode(text)
  assert bos not in plain
  assert eos not in plain
  assert model.decode(plain) == text
  asked = model.encode(text, special=True)
  assert asked == [bos, *model.encode('apples'), eos]
  assert model.decode(asked) == 'apples'


def test_ids_outside_the_vocabulary_are_visible(trained):
  """A model's embedding may be larger; such ids are neither lost nor fatal."""
  model, _ = trained
  a, b = model.encode('1')[0], model.encode('2')[0]
  assert model.decode([a, model.vocab_size, 10**6, b]) == '1\ufffd\ufffd2'


def test_a_line_with_a_reserved_character_is_not_skipped(tmp_path):
  """The trainer drops such lines; here they are all there is to learn from."""
  texts = ['banana▅banana\x00banana'] * 3
  model = tokenizer.train_sentencepiece(texts, 265, tmp_path / 'm.model')
  assert len(model.encode('banana')) < len('banana')


def test_a_long_line_is_not_skipped(tmp_path):
  """The trainer's own limit is 4,192 bytes."""
  model = tokenizer.train_sentencepiece(
    ['banana ' * 2000], 265, tmp_path / 'm.model'
  )
  assert len(model.encode('banana')) < len('banana')


def test_vocab_size_errors_name_sizes_that_work(tmp_path):
  path = tmp_path / 'm.model'
  with pytest.raises(ValueError, match='too small') as small:
    tokenizer.train_sentencepiece(TEXTS, 270, path)
  least = int(re.search(r'at least (\d+)', str(small.value))[1])
  with pytest.raises(ValueError, match='too large') as large:
    tokenizer.train_sentencepiece(TEXTS, 5000, path)
  low, most = map(
    int, re.search(r'valid: (\d+) to (\d+)', str(large.value)).groups()
  )
  assert low == least
  for size in (least, most):
    model = tokenizer.train_sentencepiece(TEXTS, size, path)
    assert model.vocab_size == size
  for size in (least - 1, most + 1):
    with pytest.raises(ValueError, match=f'vocab_size {size} is too'):
      tokenizer.train_sentencepiece(TEXTS, size, path)


def test_empty_texts_are_refused(tmp_path):
  with pytest.raises(ValueError, match='empty'):
    tokenizer.train_sentencepiece(['', '\n'], 300, tmp_path / 'm.model')


def test_bad_files_are_refused(tmp_path):
  with pytest.raises(ValueError, match='valid: sentencepiece, gguf, huggingf'):
    tokenizer.load('wordpiece', tmp_path)
  missing = tmp_path / 'missing.model'
  with pytest.raises(FileNotFoundError, match=r'missing\.model'):
    tokenizer.load('sentencepiece', missing)
  broken = tmp_path / 'broken.model'
  broken.write_text('no model')
  with pytest.raises(ValueError, match='not a sentencepiece model'):
    tokenizer.load('sentencepiece', broken)


def test_a_model_without_eos_is_refused(tmp_path):
  """Its replies could never end."""
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS),
    model_prefix=str(tmp_path / 'endless'),
    vocab_size=60,
    model_type='bpe',
    eos_id=-1,
    minloglevel=2,
  )
  with pytest.raises(ValueError, match='no EOS'):
    tokenizer.load('sentencepiece', tmp_path / 'endless.model')
