"""A question's text to prompt ids, through a template.

1. A plain template is a format string with '{question}' in it. It is encoded
   whole, with BOS in front if the tokenizer begins texts so.
2. The template 'chat' is a Jinja template: the one that came with the
   tokenizer or, where none did, the model family's (`complete`). It is
   rendered once (templates.py), with a mark in place of the question.
3. What stands before and after the mark is the template's own, so special
   tokens in it become their ids.
4. The question is plain text: whatever it says, it cannot end its turn or
   speak for the assistant. It is encoded together with the template's text
   up to the nearest special tokens, so that tokens join as in any text.
"""

import dataclasses
import functools
import secrets
import string

from dash_jax.data import bpe, templates, tokenizer

CHAT = 'chat'

# Whitespace that no template writes, around the mark: where it is gone, the
# template strips the question.
_SPACE = '\u2003'


@dataclasses.dataclass(frozen=True)
class Family:
  """How the chat models of a family were taught to read and to stop.

  Attributes:
    template: Jinja, for chats of any length: exported, others use it too.
    stops: the special tokens that end a reply, what ends a turn first.
  """

  template: str
  stops: tuple[str, ...]


def _write_chatml(default_system: str = '') -> str:
  """Returns ChatML, where a chat without a system message may get one."""
  default = (
    "{% if messages[0].role != 'system' %}"
    f'<|im_start|>system\n{default_system}<|im_end|>\n'
    '{% endif %}'
    if default_system
    else ''
  )
  return (
    default + '{% for m in messages %}'
    '<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{{ "\\n" }}'
    '{% endfor %}'
    '{% if add_generation_prompt %}<|im_start|>assistant{{ "\\n" }}{% endif %}'
  )


_LLAMA3_TURNS = (
  '{% for m in messages %}'
  '<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n'
  '{{ m.content | trim }}<|eot_id|>'
  '{% endfor %}'
  '{% if add_generation_prompt %}'
  '<|start_header_id|>assistant<|end_header_id|>{{ "\\n\\n" }}'
  '{% endif %}'
)
# From 3.1 on every chat has a system message, which says these two dates.
_LLAMA3_1 = (
  "{% if messages[0].role == 'system' %}"
  '{% set system = messages[0].content | trim %}'
  '{% set messages = messages[1:] %}'
  '{% endif %}'
  '{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\n'
  'Cutting Knowledge Date: December 2023\n'
  'Today Date: 26 Jul 2024\n\n'
  '{{ system }}<|eot_id|>' + _LLAMA3_TURNS
)
_LLAMA2 = (
  "{% if messages[0].role == 'system' %}"
  "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
  '{% set messages = messages[1:] %}'
  '{% endif %}'
  '{% for m in messages %}'
  "{% if m.role == 'user' %}"
  "{% set head = system | default('') if loop.first else '' %}"
  '{{ bos_token }}[INST] {{ (head + m.content) | trim }} [/INST]'
  '{% else %}'
  '{{ " " }}{{ m.content | trim }} {{ eos_token }}'
  '{% endif %}'
  '{% endfor %}'
)
# No space behind [INST] and [/INST]: sentencepiece puts one in front of a text
# by itself. The system message stands in the last turn.
_MISTRAL = (
  "{% if messages[0].role == 'system' %}"
  "{% set system = messages[0].content + '\n\n' %}"
  '{% set messages = messages[1:] %}'
  '{% endif %}'
  '{{ bos_token }}'
  '{% for m in messages %}'
  "{% if m.role == 'user' %}"
  "{% set head = system | default('') if loop.last else '' %}"
  '[INST]{{ head + m.content }}[/INST]'
  '{% else %}'
  '{{ m.content }}{{ eos_token }}'
  '{% endif %}'
  '{% endfor %}'
)
_LLAMA3_1_FAMILY = Family(
  _LLAMA3_1, ('<|eot_id|>', '<|end_of_text|>', '<|eom_id|>')
)

# By what the names of the presets begin with; the longest counts.
# Source: the tokenizer_config.json and generation_config.json of each family's
# instruct models; for Llama 2 and Mistral also llama/generation.py of Meta's
# release and mistral-common's tokenizer v3.
FAMILIES = {
  'smollm2_': Family(
    _write_chatml(
      'You are a helpful AI assistant named SmolLM, trained by Hugging Face'
    ),
    ('<|im_end|>',),
  ),
  'llama2_': Family(_LLAMA2, ('</s>',)),
  'llama3_': Family(
    '{{ bos_token }}' + _LLAMA3_TURNS, ('<|eot_id|>', '<|end_of_text|>')
  ),
  'llama3_1_': _LLAMA3_1_FAMILY,
  'llama3_2_': _LLAMA3_1_FAMILY,
  'llama3_3_': _LLAMA3_1_FAMILY,
  'mistral_': Family(_MISTRAL, ('</s>',)),
  'qwen2_5_': Family(
    _write_chatml(
      'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.'
    ),
    ('<|im_end|>', '<|endoftext|>'),
  ),
  'qwen3_': Family(_write_chatml(), ('<|im_end|>', '<|endoftext|>')),
}


def find_family(preset: str) -> Family | None:
  """Returns the family of a preset; None if it has no chat models."""
  names = [name for name in FAMILIES if preset.startswith(name)]
  return FAMILIES[max(names, key=len)] if names else None


def complete(tokenizer: tokenizer.Tokenizer, preset: str) -> None:
  """Gives a tokenizer what its file does not say of the chat format.

  That is the template, and the special tokens that end a reply. Those of the
  file come first, unless the template is the family's.

  Args:
    tokenizer: changed.
    preset: the model's, whose family is taken.
  """
  family = find_family(preset)
  if family is None:
    return
  known = [name for name in family.stops if name in tokenizer.specials]
  stop_ids = [tokenizer.specials[name] for name in known]
  if tokenizer.chat_template:
    stop_ids = [*tokenizer.stop_ids, *stop_ids]
  else:
    stop_ids += tokenizer.stop_ids
    tokenizer.chat_template = family.template
  tokenizer.stop_ids = tuple(dict.fromkeys(stop_ids))


def encode_prompt(
  question: str,
  tokenizer: tokenizer.Tokenizer,
  template: str,
  *,
  system: str = '',
) -> list[int]:
  """Returns the ids of one prompt.

  Args:
    question: the user's text. Special tokens in it are plain text.
    tokenizer: its chat template is used if `template` is 'chat'. It also says
      whether BOS stands in front of a plain template; chat templates write
      their own.
    template: 'chat', or a format string that contains '{question}'.
    system: the system message of a chat; '' leaves it to the template.

  Raises:
    ValueError: a template that does not take the question once, or a tokenizer
      without chat template that is asked for one.
  """
  if template == CHAT:
    frame = _render_chat(
      tokenizer.chat_template, system, _name_bos_and_eos(tokenizer)
    )
    if frame.strips_left:
      question = question.lstrip()
    if frame.strips_right:
      question = question.rstrip()
    *before, left = bpe.split_at_specials(frame.before, tokenizer.specials)
    right, *after = bpe.split_at_specials(frame.after, tokenizer.specials)
    return (
      tokenizer.encode(''.join(before), special=True)
      + tokenizer.encode(left + question + right)
      + tokenizer.encode(''.join(after), special=True)
    )
  if system:
    raise ValueError("a system message needs the template 'chat'")
  check_template(template)
  ids = tokenizer.encode(template.format(question=question))
  return [tokenizer.bos_id, *ids] if tokenizer.adds_bos else ids


@functools.lru_cache(maxsize=8)
def check_template(template: str) -> None:
  """Refuses what is neither 'chat' nor a format string of '{question}' alone.

  Raises:
    ValueError: says what the template has instead.
  """
  if template == CHAT:
    return
  try:
    fields = [f for _, f, _, _ in string.Formatter().parse(template)]
  except ValueError as error:
    raise ValueError(
      f'the template {template!r} is no format string: {error}'
    ) from error
  fields = [f for f in fields if f is not None]
  if fields != ['question']:
    raise ValueError(
      f"the template {template!r} must be 'chat', or contain '{{question}}' "
      f'once and no other field; it has {fields or "none"} (write {{{{ and }}}} '
      'for braces)'
    )


class _Frame:
  """What a chat template writes around the user's text."""

  def __init__(self, text: str, mark: str):
    if text.count(mark) != 1:
      raise ValueError(
        "the chat template must write the user's text exactly once; it wrote "
        f'it {text.count(mark)} times'
      )
    before, after = text.split(mark)
    self.strips_left = not before.endswith(_SPACE)
    self.strips_right = not after.startswith(_SPACE)
    self.before = before.removesuffix(_SPACE)
    self.after = after.removeprefix(_SPACE)


@functools.lru_cache(maxsize=8)
def _render_chat(
  template: str | None, system: str, names: tuple[tuple[str, str], ...]
) -> _Frame:
  if not template:
    raise ValueError(
      "the template is 'chat', but the tokenizer brings no chat template; "
      "write one with '{question}' in it"
    )
  # A question that held the mark could step out of its place.
  mark = secrets.token_hex(16)
  messages = [{'role': 'user', 'content': f'{_SPACE}{mark}{_SPACE}'}]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  text = templates.render(
    template, messages, add_generation_prompt=True, **dict(names)
  )
  return _Frame(text, mark)


def _name_bos_and_eos(tokenizer) -> tuple[tuple[str, str], ...]:
  """Returns the texts that chat templates know as bos_token and eos_token."""
  ids = {'bos_token': tokenizer.bos_id, 'eos_token': tokenizer.stop_ids[0]}
  texts = {i: text for text, i in tokenizer.specials.items()}
  return tuple((name, texts[i]) for name, i in ids.items() if i in texts)
