"""A question's text to prompt ids, through a template.

  1. A plain template is a format string with '{question}' in it. It is encoded
     whole, with BOS in front where asked.
  2. The template 'chat' is the Jinja template that came with the tokenizer. It
     is rendered once, with a mark in place of the question.
  3. What stands before and after the mark is the template's own, so special
     tokens in it become their ids. The question between them is plain text:
     whatever it says, it cannot end its turn or speak for the assistant.

The three are encoded apart, so a question that begins with whitespace may get
other ids there than transformers gives it.
"""

import functools
import secrets
import string

import jinja2
import jinja2.sandbox

from dash_jax.data import tokenizer

CHAT = 'chat'

# Whitespace that no template writes, around the mark: where it is gone, the
# template strips the question.
_SPACE = '\u2003'


def encode_prompt(
  question: str,
  tokenizer: tokenizer.Tokenizer,
  template: str,
  *,
  add_bos: bool = False,
  system: str = '',
) -> list[int]:
  """Returns the ids of one prompt.

  Args:
    question: the user's text. Special tokens in it are plain text.
    tokenizer: its chat template is used if `template` is 'chat'.
    template: 'chat', or a format string that contains '{question}'.
    add_bos: whether BOS stands in front of a plain template. Chat templates
      write their own.
    system: the system message of a chat; '' leaves it to the template.

  Raises:
    ValueError: a template that does not take the question once, a tokenizer
      without chat template or BOS that is asked for one.
  """
  if template == CHAT:
    if add_bos:
      raise ValueError(
        "add_bos is for plain templates: the template 'chat' writes its own BOS"
      )
    frame = _render_chat(
      tokenizer.chat_template, system, _name_bos_and_eos(tokenizer)
    )
    if frame.strips_left:
      question = question.lstrip()
    if frame.strips_right:
      question = question.rstrip()
    return (
      tokenizer.encode(frame.before, special=True)
      + tokenizer.encode(question)
      + tokenizer.encode(frame.after, special=True)
    )
  if system:
    raise ValueError("a system message needs the template 'chat'")
  check_template(template)
  ids = tokenizer.encode(template.format(question=question))
  if not add_bos:
    return ids
  if tokenizer.bos_id is None:
    raise ValueError('add_bos is set, but the tokenizer has no BOS')
  return [tokenizer.bos_id, *ids]


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
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols']
  )
  environment.globals['raise_exception'] = _raise_exception
  # A question that held the mark could step out of its place.
  mark = secrets.token_hex(16)
  messages = [{'role': 'user', 'content': f'{_SPACE}{mark}{_SPACE}'}]
  if system:
    messages.insert(0, {'role': 'system', 'content': system})
  try:
    text = environment.from_string(template).render(
      messages=messages, add_generation_prompt=True, **dict(names)
    )
  except jinja2.TemplateError as error:
    raise ValueError(f'the chat template failed: {error}') from error
  return _Frame(text, mark)


def _raise_exception(message: str):
  raise jinja2.TemplateError(message)


def _name_bos_and_eos(tokenizer) -> tuple[tuple[str, str], ...]:
  """Returns the texts that chat templates know as bos_token and eos_token."""
  ids = {'bos_token': tokenizer.bos_id, 'eos_token': tokenizer.stop_ids[0]}
  texts = {i: text for text, i in tokenizer.specials.items()}
  return tuple((name, texts[i]) for name, i in ids.items() if i in texts)
