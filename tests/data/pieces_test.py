"""Sentencepiece tokenizers: trained, read, from GGUF, and saved for others."""

import random
import re

import gguf
import pytest
import sentencepiece
import tokenizers

from dash_jax.data import pieces, tokenizer

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
  return pieces.train(TEXTS, 320, path), path


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
  model.save(tmp_path)
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


def train_as_llama2(folder, **options):
  """Trains with the rules for text that Llama 2's and Mistral's models have."""
  prefix = str(folder / 'llama2')
  settings = {
    'vocab_size': 330,
    'model_type': 'bpe',
    'byte_fallback': True,
    'normalization_rule_name': 'identity',
    'remove_extra_whitespaces': False,
    'control_symbols': ['[INST]', '[/INST]'],
    'minloglevel': 2,
  }
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS), model_prefix=prefix, **settings | options
  )
  return f'{prefix}.model'


def test_llama2s_rules_are_saved_too(tmp_path):
  """It puts a space in front of each text, and BOS there where it adds one: so
  does the tokenizer.json, by another library's merges."""
  model = tokenizer.load('sentencepiece', train_as_llama2(tmp_path))
  assert model.adds_bos
  model.save(tmp_path)
  saved = tokenizer.load('huggingface', str(tmp_path))
  assert saved.adds_bos
  for text in TEXTS + HARD:
    if '▁' not in text:
      assert saved.encode(text) == model.encode(text), text
      assert saved.decode(model.encode(text)) == text
  read = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
  assert read.encode('Tom').ids == [model.bos_id, *model.encode('Tom')]


def test_a_model_with_rules_of_its_own_is_not_saved_wrongly(tmp_path):
  """Sentencepiece's defaults join double spaces and change characters: with
  those the ids of the saved tokenizer would differ."""
  path = train_as_llama2(
    tmp_path,
    normalization_rule_name='nmt_nfkc',
    remove_extra_whitespaces=True,
  )
  model = tokenizer.load('sentencepiece', path)
  with pytest.raises(ValueError, match='changes spaces or characters'):
    model.save(tmp_path)
  assert not (tmp_path / 'tokenizer.json').exists()


def write_gguf(path, source, **extra):
  """Writes what llama.cpp's converter does of a sentencepiece model."""
  model = sentencepiece.SentencePieceProcessor(model_file=source)
  ids = range(model.vocab_size())
  writer = gguf.GGUFWriter(path, 'llama')
  writer.add_tokenizer_model('llama')
  writer.add_token_list([model.id_to_piece(i) for i in ids])
  writer.add_token_scores([model.get_score(i) for i in ids])
  kinds = {
    gguf.TokenType.UNKNOWN: model.is_unknown,
    gguf.TokenType.CONTROL: model.is_control,
    gguf.TokenType.BYTE: model.is_byte,
  }
  writer.add_token_types(
    [
      next((k for k, holds in kinds.items() if holds(i)), gguf.TokenType.NORMAL)
      for i in ids
    ]
  )
  writer.add_bos_token_id(model.bos_id())
  writer.add_eos_token_id(model.eos_id())
  for name, value in extra.items():
    getattr(writer, name)(value)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return str(path)


@pytest.mark.parametrize('adds_space', [True, False])
def test_a_gguf_file_has_its_models_ids(tmp_path, adds_space):
  """The oracle is sentencepiece on the model that the file was made of."""
  source = train_as_llama2(tmp_path, add_dummy_prefix=adds_space)
  path = write_gguf(
    tmp_path / 'm.gguf', source, add_add_space_prefix=adds_space
  )
  model = tokenizer.load('gguf', path)
  original = sentencepiece.SentencePieceProcessor(model_file=source)
  rng = random.Random(2)
  alphabet = ' \n\tTomehasbx3012apples.=-+*é日😀'
  texts = [
    ''.join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(300)
  ]
  for text in texts + TEXTS + HARD:
    # Elsewhere the mark is spelled in bytes, so that it comes back.
    if adds_space or '▁' not in text:
      assert model.encode(text) == original.encode(text), text
    if not adds_space or '▁' not in text:
      assert model.decode(model.encode(text)) == text
  assert model.vocab_size == original.vocab_size()
  assert (model.bos_id, model.stop_ids) == (1, (2,))
  assert set(model.specials) == {'<unk>', '<s>', '</s>', '[INST]', '[/INST]'}


def test_what_a_gguf_file_says_of_its_model(tmp_path):
  """And llama.cpp's defaults for what it does not say."""
  source = train_as_llama2(tmp_path)
  model = tokenizer.load('gguf', write_gguf(tmp_path / 'a.gguf', source))
  original = sentencepiece.SentencePieceProcessor(model_file=source)
  assert model.encode('Tom') == original.encode('Tom')  # with a space in front
  assert (model.adds_bos, model.chat_template, model.pad_id) == (True, None, 0)
  path = write_gguf(
    tmp_path / 'b.gguf',
    source,
    add_add_bos_token=False,
    add_eot_token_id=4,
    add_pad_token_id=3,
    add_chat_template='{{ messages }}',
  )
  model = tokenizer.load('gguf', path)
  assert (model.adds_bos, model.stop_ids) == (False, (2, 4))
  assert (model.chat_template, model.pad_id) == ('{{ messages }}', 3)
  path = write_gguf(tmp_path / 'c.gguf', source, add_eos_token_id=300)
  with pytest.raises(ValueError, match='no EOS'):
    tokenizer.load('gguf', path)


def test_bos_begins_texts_of_models_that_have_it(trained, tmp_path):
  """A trained model has none, and its file says so after it is read again."""
  model, path = trained
  for own in (model, tokenizer.load('sentencepiece', path)):
    assert (own.bos_id, own.adds_bos) == (None, False)
  other = tokenizer.load('sentencepiece', train_as_llama2(tmp_path))
  assert (other.bos_id, other.adds_bos) == (1, True)


def test_the_pad_token_neither_begins_nor_ends_a_text(tmp_path):
  """EOS as pad would teach others' trainers to leave it out of the loss."""
  for pad, id_ in (('<s>', 0), ('</s>', 0), ('[INST]', 3)):
    path = train_as_llama2(tmp_path, pad_piece=pad)
    model = tokenizer.load('sentencepiece', path)
    assert model.pad_id == id_
    model.save(tmp_path)
    assert tokenizer.load('huggingface', str(tmp_path)).pad_id == id_


def test_same_texts_give_the_same_file(trained, tmp_path):
  """Two runs of one seed must agree on what every id means."""
  model, path = trained
  again = tmp_path / 'again.model'
  pieces.train(TEXTS, 320, again)
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
  (eos,), reserved = model.stop_ids, model.specials['<reserved>']
  text = '<reserved>apples</s>'
  plain = model.encode(text)
  assert reserved not in plain
  assert eos not in plain
  assert model.decode(plain) == text
  asked = model.encode(text, special=True)
  assert asked == [reserved, *model.encode('apples'), eos]
  assert model.decode(asked) == 'apples'


def test_ids_outside_the_vocabulary_are_visible(trained):
  """A model's embedding may be larger; such ids are neither lost nor fatal."""
  model, _ = trained
  a, b = model.encode('1')[0], model.encode('2')[0]
  assert model.decode([a, model.vocab_size, 10**6, b]) == '1\ufffd\ufffd2'


def test_a_line_with_a_reserved_character_is_not_skipped(tmp_path):
  """The trainer drops such lines; here they are all there is to learn from."""
  texts = ['banana▅banana\x00banana'] * 3
  model = pieces.train(texts, 265, tmp_path / 'm.model')
  assert len(model.encode('banana')) < len('banana')


def test_a_long_line_is_not_skipped(tmp_path):
  """The trainer's own limit is 4,192 bytes."""
  model = pieces.train(['banana ' * 2000], 265, tmp_path / 'm.model')
  assert len(model.encode('banana')) < len('banana')


def test_vocab_size_errors_name_sizes_that_work(tmp_path):
  path = tmp_path / 'm.model'
  with pytest.raises(ValueError, match='too small') as small:
    pieces.train(TEXTS, 270, path)
  least = int(re.search(r'at least (\d+)', str(small.value))[1])
  with pytest.raises(ValueError, match='too large') as large:
    pieces.train(TEXTS, 5000, path)
  low, most = map(
    int, re.search(r'valid: (\d+) to (\d+)', str(large.value)).groups()
  )
  assert low == least
  for size in (least, most):
    model = pieces.train(TEXTS, size, path)
    assert model.vocab_size == size
  for size in (least - 1, most + 1):
    with pytest.raises(ValueError, match=f'vocab_size {size} is too'):
      pieces.train(TEXTS, size, path)


def test_empty_texts_are_refused(tmp_path):
  with pytest.raises(ValueError, match='empty'):
    pieces.train(['', '\n'], 300, tmp_path / 'm.model')


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
