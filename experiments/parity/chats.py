"""Compares chat prompts of every preset with transformers' apply_chat_template.

1. For each preset a small tokenizer of its family's kind is trained, with the
   family's special tokens and template. transformers gets it as we save it.
2. Every question, with and without a system message, must have equal ids.
3. Where a question spells special tokens, transformers reads them as such.
   Ours must differ there, and hold the question's letters.
"""

import io
import pathlib
import tempfile

import sentencepiece
import tokenizers
import transformers

from dash_jax.data import bpe, chat, pieces, tokenizer
from dash_jax.model import presets
from experiments.parity.report import Report

# By what presets begin with: BOS, EOS, and the rest.
_SPECIALS = {
  'smollm2': ('<|im_start|>', '<|im_end|>', '<|endoftext|>'),
  'llama2': ('<s>', '</s>', '<unk>'),
  'llama3': (
    '<|begin_of_text|>',
    '<|end_of_text|>',
    '<|eot_id|>',
    '<|eom_id|>',
    '<|start_header_id|>',
    '<|end_header_id|>',
  ),
  'mistral': ('<s>', '</s>', '<unk>', '[INST]', '[/INST]'),
  'qwen': ('<|endoftext|>', '<|im_end|>', '<|im_start|>'),
}
_QUESTIONS = (
  'What is 12 + 30?',
  '  leading and trailing  ',
  '\n\nnewlines\t\n',
  '?\n',
  'é e\u0301 日本語 👩\u200d👧 \u00a0\u2003x\u2003',
  '{{ bos_token }}{% if x %} <user> & "quotes" \\n',
)
_SYSTEMS = ('', 'Be brief.', '  Think.\n')
# What the merges are learned from, with runs of newlines and spaces.
_TEXTS = (
  'What is 12 + 30? Think in steps.\n\n#### 42\n\n  You are a user.\n\n\nSystem',
)


def make_tokenizer(preset: str) -> tokenizer.Tokenizer:
  """Returns a small tokenizer of the family's kind, with its specials."""
  specials = next(s for n, s in _SPECIALS.items() if preset.startswith(n))
  if '<s>' in specials:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(_TEXTS),
      model_writer=model,
      model_type='bpe',
      vocab_size=300,
      byte_fallback=True,
      # As Llama 2's and Mistral's.
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      control_symbols=list(specials[3:]),
      minloglevel=2,
    )
    return pieces.SentencePiece(model.getvalue())
  trained = tokenizers.Tokenizer(tokenizers.models.BPE())
  trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  trained.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=340,
    special_tokens=list(specials),
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  trained.train_from_iterator(_TEXTS, trainer)
  return bpe.HuggingFace(
    trained, bos_id=0, stop_ids=[1], adds_bos=preset.startswith('llama')
  )


def ask(tokenizer, question: str, system: str) -> list[int]:
  """Returns the prompt ids of transformers' tokenizer; system may be ''."""
  messages = [{'role': 'user', 'content': question}]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  return tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=False
  )


def check_chats(report: Report) -> None:
  for preset in presets.PRESETS:
    if chat.find_family(preset) is None:
      continue
    ours = make_tokenizer(preset)
    chat.complete(ours, preset)
    with tempfile.TemporaryDirectory() as folder:
      ours.save(pathlib.Path(folder))
      theirs = transformers.AutoTokenizer.from_pretrained(folder)
    num_equal = num_plain = 0
    attack = f'a{"".join(ours.specials)}b'
    for system in _SYSTEMS:
      for question in (*_QUESTIONS, attack):
        want = ask(theirs, question, system)
        got = chat.encode_prompt(question, ours, 'chat', system=system)
        if question != attack:
          num_equal += got == want
          continue
        specials = set(ours.specials.values())
        harmless = chat.encode_prompt('ab', ours, 'chat', system=system)
        num_plain += (
          got != want
          and attack in ours.decode(got)
          and [i for i in got if i in specials]
          == [i for i in harmless if i in specials]
        )
    total = len(_SYSTEMS) * len(_QUESTIONS)
    begins = ours.encode('a')
    if ours.adds_bos:
      begins = [ours.bos_id, *begins]
    same_bos = theirs('a')['input_ids'] == begins
    same_pad = theirs.pad_token_id == ours.pad_id
    report.add(
      f'{preset} chat prompts',
      num_equal == total and num_plain == len(_SYSTEMS) and same_bos
      and same_pad,
      f'{num_equal} of {total} have equal ids; special tokens in a question are'
      f' text in {num_plain} of {len(_SYSTEMS)}; the rule of BOS is'
      f' {"" if same_bos else "not "}the same, the pad token is'
      f' {"" if same_pad else "not "}the same',
    )  # fmt: skip
