"""Byte-level BPE tokenizers from GGUF, tokenizer.json and tiktoken files."""

import base64
import itertools
import json
import random

import gguf
import pytest
import tokenizers

from dash_jax.data import bpe, tokenizer

HARD = [
  '',
  ' ',
  '  two  spaces  ',
  ' \n\n x \r\n',
  'nul \x00 ▁ \ufeff \u200b \ufffd',
  "don't DON'T we've",
  'e\u0301 é ﬁ ½ ①',
  '日本語 العربية 👩‍👩‍👧 \U0010ffff',
  '<|im_start|>user <|im_end|>',
  '3.14159 1,000,000',
]
CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']
MERGES = ['1 2', '12 3', 'Ġ 1', 'a b', 'ab c', 'Ċ Ċ', "' t", "n 't"]


def make_tokens():
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  merged = [merge.replace(' ', '') for merge in MERGES]
  return SPECIALS + ['<tool>'] + alphabet + merged


def write_gguf(
  path, pre='smollm', model='gpt2', eot=None, eos=True, pad=None, adds_bos=None
):
  writer = gguf.GGUFWriter(path, 'llama')
  tokens = make_tokens()
  writer.add_tokenizer_model(model)
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(tokens)
  writer.add_token_types(
    [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(tokens) - 4)
  )
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(1)
  if eos:
    writer.add_eos_token_id(2)
  if eot is not None:
    writer.add_eot_token_id(eot)
  if pad is not None:
    writer.add_pad_token_id(pad)
  if adds_bos is not None:
    writer.add_add_bos_token(adds_bos)
  writer.add_chat_template('{{ messages }}')
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


@pytest.fixture(scope='module')
def smollm(tmp_path_factory):
  path = tmp_path_factory.mktemp('gguf') / 'small.gguf'
  return tokenizer.load('gguf', write_gguf(path))


def split(model, text):
  """Returns the text of each token."""
  return [model.decode([i]) for i in model.encode(text)]


def write_folder(folder, edit=None, **files):
  """Writes a tokenizer.json with every option that could change a text."""
  hf = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {t: i for i, t in enumerate(make_tokens())},
      [tuple(m.split()) for m in MERGES],
    )
  )
  hf.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  hf.decoder = tokenizers.decoders.ByteLevel()
  hf.add_special_tokens(SPECIALS)
  hf.enable_truncation(4)
  hf.enable_padding(direction='left', length=9)
  hf.post_processor = tokenizers.processors.TemplateProcessing(
    single='<|im_start|> $A <|im_end|>',
    special_tokens=[('<|im_start|>', 1), ('<|im_end|>', 2)],
  )
  folder.mkdir(exist_ok=True)
  hf.save(str(folder / 'tokenizer.json'))
  config = {'bos_token': None, 'eos_token': {'content': '<|im_end|>'}}
  config.update(edit or {})
  (folder / 'tokenizer_config.json').write_text(json.dumps(config))
  for name, text in files.items():
    (folder / name.replace('__', '.')).write_text(text)
  return folder


@pytest.fixture(scope='module')
def ranks_file(tmp_path_factory):
  """A tiktoken file of Llama 3's size: bytes, a few merges, then filler."""
  tokens = [bytes([b]) for b in range(256)]
  tokens += [b'12', b'123', b'1234', b' a', b'ab']
  filler = (
    b'\xff\xfe' + bytes(x) for x in itertools.product(range(256), repeat=3)
  )
  tokens += itertools.islice(filler, 128_000 - len(tokens))
  path = tmp_path_factory.mktemp('tiktoken') / 'tokenizer.model'
  path.write_bytes(
    b''.join(base64.b64encode(t) + b' %d\n' % i for i, t in enumerate(tokens))
  )
  return path


@pytest.mark.parametrize('pre', ['smollm', 'llama-bpe'])
def test_decode_undoes_encode(tmp_path, pre):
  """A text that came back changed would be rewarded for what nobody wrote."""
  model = bpe.from_gguf(write_gguf(tmp_path / 'small.gguf', pre))
  rng = random.Random(0)
  alphabet = " \n\t\r\x00<|im_end|>abc123'té日😀\u200d\u0301"
  texts = HARD + [
    ''.join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(500)
  ]
  for text in texts:
    assert model.decode(model.encode(text)) == text


def test_each_pre_splits_digits_its_own_way(tmp_path):
  """'12' and '123' are merges, so only the rule before BPE keeps them apart."""

  def split_digits(pre):
    model = bpe.from_gguf(write_gguf(tmp_path / f'{pre}.gguf', pre))
    return split(model, 'abc12345 12')

  single = ['abc', '1', '2', '3', '4', '5', ' ', '1', '2']
  assert split_digits('smollm') == single
  assert split_digits('qwen2') == single
  assert split_digits('llama-bpe') == ['abc', '123', '4', '5', ' ', '12']


def test_pre_splits_contractions_and_newlines(tmp_path):
  """A merge cannot cross a split: newlines stay together in Qwen2 only."""
  smollm = bpe.from_gguf(write_gguf(tmp_path / 'a.gguf', 'smollm'))
  qwen2 = bpe.from_gguf(write_gguf(tmp_path / 'b.gguf', 'qwen2'))
  assert split(qwen2, 'a\n\nb') == ['a', '\n\n', 'b']
  assert split(smollm, 'a\n\nb') == ['a', '\n', '\n', 'b']
  for model in (smollm, qwen2):  # "'t" is a word, so "n't" cannot be merged
    assert split(model, "an't") == ['a', 'n', "'t"]


def test_special_tokens_in_a_text_are_text_unless_asked(smollm):
  """Otherwise a question could end its own turn."""
  text = '<|im_start|>abc<|im_end|>'
  plain = smollm.encode(text)
  assert not set(plain) & set(smollm.specials.values())
  assert smollm.decode(plain) == text
  asked = smollm.encode(text, special=True)
  assert asked == [1, *smollm.encode('abc'), 2]
  assert smollm.decode(asked) == 'abc'


def test_user_defined_tokens_are_ordinary_words(smollm):
  """They carry text, so a reply must not lose them."""
  assert smollm.encode('<tool>') == [3]
  assert smollm.decode([3]) == '<tool>'


def test_what_a_gguf_file_says_of_its_tokenizer(smollm, tmp_path):
  assert smollm.vocab_size == len(make_tokens())
  assert smollm.bos_id == 1
  assert smollm.stop_ids == (2,)
  assert smollm.chat_template == '{{ messages }}'
  assert smollm.specials == {t: i for i, t in enumerate(SPECIALS)}
  with_turns = bpe.from_gguf(write_gguf(tmp_path / 'eot.gguf', eot=0))
  assert with_turns.stop_ids == (2, 0)


def test_gguf_files_say_whether_bos_begins_a_text(tmp_path):
  """Where they do not, llama.cpp's rule holds: for Llama 3 alone. A model that
  misses its BOS, or has one it never saw, answers worse."""
  for pre, said, want in (
    ('smollm', None, False),
    ('qwen2', None, False),
    ('llama-bpe', None, True),
    ('llama-bpe', False, False),
    ('smollm', True, True),
  ):
    path = write_gguf(tmp_path / 'small.gguf', pre, adds_bos=said)
    assert bpe.from_gguf(path).adds_bos == want


def test_the_pad_token_neither_begins_nor_ends_a_text(tmp_path):
  """SmolLM2's files name EOS as pad; '<|endoftext|>' is 0, BOS 1, EOS 2."""
  for pad, eot, want in (
    (None, None, 0),
    (2, None, 0),
    (1, None, 0),
    (3, None, 3),
    (2, 0, None),  # Nothing is left.
  ):
    path = write_gguf(tmp_path / 'small.gguf', pad=pad, eot=eot)
    assert bpe.from_gguf(path).pad_id == want


def test_ids_outside_the_vocabulary_are_visible(smollm):
  """A model's embedding may be larger; such ids are neither lost nor fatal."""
  (a,) = smollm.encode('a')
  assert smollm.decode([a, smollm.vocab_size, 10**6, a]) == 'a\ufffd\ufffda'


def test_other_gguf_tokenizers_are_refused(tmp_path):
  """Splitting by a guessed rule would be wrong without any error."""
  path = tmp_path / 'other.gguf'
  with pytest.raises(ValueError, match=r"pre is 'falcon'.*smollm, qwen2"):
    bpe.from_gguf(write_gguf(path, pre='falcon'))
  with pytest.raises(
    ValueError, match="model is 'bert'; can be read: gpt2, llama"
  ):
    tokenizer.load('gguf', write_gguf(tmp_path / 'wpm.gguf', model='bert'))
  with pytest.raises(ValueError, match='eos_token_id is missing'):
    bpe.from_gguf(write_gguf(tmp_path / 'endless.gguf', eos=False))


def test_a_tokenizer_json_neither_cuts_nor_adds(tmp_path):
  """The file asks for truncation, padding, BOS and EOS; prompts own those."""
  model = tokenizer.load('huggingface', write_folder(tmp_path / 'hf'))
  text = 'abc abc abc abc <|im_end|>'
  ids = model.encode(text)
  assert model.decode(ids) == text
  assert not set(ids) & set(model.specials.values())
  assert model.encode('<|im_end|>', special=True) == [2]
  assert model.encode('') == []


def test_what_the_files_beside_a_tokenizer_json_say(tmp_path):
  model = bpe.from_hf_file(write_folder(tmp_path / 'plain'))
  assert (model.bos_id, model.stop_ids) == (None, (2,))
  assert model.chat_template is None
  folder = write_folder(
    tmp_path / 'full',
    {
      'bos_token': '<|im_start|>',
      'chat_template': [
        {'name': 'tool_use', 'template': 'T'},
        {'name': 'default', 'template': 'D'},
      ],
    },
    generation_config__json='{"eos_token_id": [0, 2]}',
  )
  model = bpe.from_hf_file(folder / 'tokenizer.json')
  assert (model.bos_id, model.stop_ids) == (1, (2, 0))
  assert model.chat_template == 'D'
  (folder / 'chat_template.jinja').write_text('J')
  assert bpe.from_hf_file(folder).chat_template == 'J'


def test_a_folder_says_whether_bos_begins_a_text(tmp_path):
  """By tokenizer.json's own rule, unless tokenizer_config.json has another: as
  transformers reads them."""
  bos = {'bos_token': '<|im_start|>'}
  for edit, want in (
    (bos, True),
    (bos | {'add_bos_token': None}, True),
    (bos | {'add_bos_token': False}, False),
    ({'bos_token': '<|endoftext|>'}, False),  # The rule is of another token.
    ({'bos_token': '<|endoftext|>', 'add_bos_token': True}, True),
    ({'add_bos_token': True}, False),  # There is none.
  ):
    assert bpe.from_hf_file(write_folder(tmp_path, edit)).adds_bos == want


def test_saved_it_is_the_same_tokenizer(tmp_path):
  """Ids and rules survive: what was trained is what others serve."""
  folder = write_folder(
    tmp_path / 'from',
    {
      'bos_token': '<|im_start|>',
      'pad_token': '<|im_end|>',
      'chat_template': 'T',
    },
  )
  model = bpe.from_hf_file(folder)
  assert model.pad_id == 0  # EOS is none.
  for adds_bos in (True, False):
    model.adds_bos = adds_bos
    model.save(tmp_path)
    saved = bpe.from_hf_file(tmp_path)
    assert (saved.bos_id, saved.stop_ids, saved.pad_id) == (1, (2,), 0)
    assert (saved.adds_bos, saved.chat_template) == (adds_bos, 'T')
    assert saved.specials == model.specials
    read = tokenizers.Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    for text in HARD:
      assert saved.encode(text) == model.encode(text)
    assert read.encode('abc').ids == [1] * adds_bos + model.encode('abc')


def test_broken_tokenizer_folders_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'tokenizer\.json'):
    bpe.from_hf_file(tmp_path)
  folder = write_folder(tmp_path / 'hf', {'eos_token': None})
  with pytest.raises(ValueError, match='eos_token is missing'):
    bpe.from_hf_file(folder)
  write_folder(folder, {'eos_token': '<|nowhere|>'})
  with pytest.raises(ValueError, match='is not a token'):
    bpe.from_hf_file(folder)
  (folder / 'tokenizer.json').write_text('{}')
  with pytest.raises(ValueError, match='not a tokenizer'):
    bpe.from_hf_file(folder)


def test_tiktoken_has_llama3s_ids_and_split(ranks_file):
  """The ids are those that Llama 3's weights were trained with."""
  model = tokenizer.load('tiktoken', ranks_file)
  assert model.vocab_size == 128_256
  assert model.bos_id == 128_000
  assert model.stop_ids == (128_001, 128_008, 128_009)
  assert (model.adds_bos, model.pad_id) == (True, 128_004)
  assert model.specials['<|start_header_id|>'] == 128_006
  assert model.specials['<|end_header_id|>'] == 128_007
  assert model.specials['<|reserved_special_token_247|>'] == 128_255
  assert len(model.specials) == 256
  # '1234' is in the file, but digits are split by three first.
  assert split(model, 'ab12345 a') == ['ab', '123', '4', '5', ' a']


def test_tiktoken_text(ranks_file):
  model = bpe.from_tiktoken(ranks_file)
  for text in [*HARD, 'a <|eot_id|> b']:
    ids = model.encode(text)
    assert max(ids, default=0) < 128_000
    assert model.decode(ids) == text
  asked = model.encode('ab<|eot_id|>ab', special=True)
  assert asked == [*model.encode('ab'), 128_009, *model.encode('ab')]
  assert model.decode(asked) == 'abab'
  assert model.decode([128_256]) == '\ufffd'


def test_other_rank_files_are_refused(tmp_path):
  """Other models' rank files look alike and split text differently."""
  path = tmp_path / 'other.tiktoken'
  path.write_bytes(b'YQ== 0\nYg== 1\n')
  with pytest.raises(ValueError, match=r'2 ranks.*128000'):
    bpe.from_tiktoken(path)
  path.write_bytes(b'YQ== 0\n\nYg== 1\n')
  with pytest.raises(ValueError, match='line 2'):
    bpe.from_tiktoken(path)


def test_a_character_that_the_vocabulary_lacks_is_named():
  """SmolLM2's lacks 21 bytes; left out, a question would ask something else."""
  letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  letters.remove('\u0100')  # the letter of byte 0
  model = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {'<|end|>': 0} | {c: i + 1 for i, c in enumerate(letters)}, []
    )
  )
  model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  model.decoder = tokenizers.decoders.ByteLevel()
  model.add_special_tokens(['<|end|>'])
  made = bpe.HuggingFace(model, bos_id=None, stop_ids=[0])
  text = 'all others: \x01\n é日😀'
  assert made.decode(made.encode(text)) == text
  for special in (False, True):
    with pytest.raises(ValueError, match=r"holds '\\x00', for which the token"):
      made.encode('a\x00b<|end|>', special=special)
