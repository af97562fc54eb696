"""Every experiment can start, on every mesh that it says it runs on."""

import functools
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from dash_jax import assemble, batches, checks, sharding, weights
from dash_jax import config as config_lib
from dash_jax.data import prompts, questions
from dash_jax.learning import learner, losses, packing
from dash_jax.model import llama, presets
from dash_jax.sampling import compiled, decoding, ladder, programs

_FOLDER = pathlib.Path(__file__).parent.parent / 'experiments'
_FILES = {
  path.stem: path
  for path in sorted(_FOLDER.glob('*.py'))
  if 'def get_config' in path.read_text(encoding='utf-8')
}
_LLAMA3 = ('llama3_8b_gsm8k', 'llama3_8b_math')


def _load(name):
  """Loads an experiment as --config=FILE does: by its path."""
  spec = importlib.util.spec_from_file_location(name, _FILES[name])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class _Bytes:
  """A tokenizer whose ids are the text's bytes."""

  vocab_size = 256
  bos_id = 0
  adds_bos = True
  stop_ids = (1,)
  chat_template = (
    '{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}'
  )
  specials = {}  # noqa: RUF012

  def encode(self, text, special=False):
    del special
    return list(text.encode())

  def decode(self, ids):
    return bytes(ids).decode()


def _shard_bytes(x):
  """Returns what one device holds of an abstract array."""
  shape = x.sharding.shard_shape(x.shape)
  return functools.reduce(lambda a, b: a * b, shape, x.dtype.itemsize)


def _mesh_sizes(name):
  """Returns the meshes that the docstring names, (data, fsdp, tensor)."""
  found = re.findall(r'mesh (\d+) x (\d+) x (\d+)', _load(name).__doc__)
  return [tuple(map(int, sizes)) for sizes in found]


def test_all_published_runs_are_here():
  """The tests below are about the files they mean to be about."""
  assert {
    'quickstart',
    'smollm2_addition',
    'smollm2_gsm8k',
    *_LLAMA3,
  } <= set(_FILES)


@pytest.mark.parametrize('name', _FILES)
@pytest.mark.parametrize('algorithm', ['dash', 'grpo'])
def test_config_passes_its_check(name, algorithm):
  """What `check` passes is not refused later for its fields; and the paper's
  baseline samples as many rows, so the two can be compared."""
  config = _load(name).get_config()
  config.algorithm.name = algorithm
  checks.check(config)
  sizes = config_lib.sizes(config)
  assert sizes.rl_steps * sizes.batch_size == config.algorithm.num_samples


@pytest.mark.parametrize('name', _FILES)
def test_docstring_has_the_command(name):
  """The file alone says how to run it, and names itself and no other."""
  text = _load(name).__doc__
  assert 'python -m dash_jax.main' in text
  assert set(re.findall(r'--config=(\S+)', text)) == {f'experiments/{name}.py'}
  # Overrides in it are of fields that there are.
  config = _load(name).get_config()
  for section, field in re.findall(r'--config\.(\w+)\.(\w+)=', text):
    assert field in config[section], f'{section}.{field}'


@pytest.mark.parametrize('name', _FILES)
def test_prompts_hold_their_question(name):
  """The template takes the question, behind the BOS of a tokenizer with one."""
  data = _load(name).get_config().data
  question = batches.Question(prompt='How many?', answer='3', uid=7)
  batch = prompts.encode(
    [question],
    _Bytes(),
    template=data.template,
    system=data.system,
    max_prompt_len=1_000,
  )
  ids = batch.tokens[0, -batch.lengths[0] :].tolist()
  assert ids[0] == _Bytes.bos_id
  assert question.prompt in _Bytes().decode(ids[1:])


@pytest.mark.parametrize('name', _FILES)
def test_warm_start_has_solutions(name, tmp_path):
  """A run that begins with SFT reads solutions from its source."""
  config = _load(name).get_config()
  data = config.data
  files = {'path': ''}
  if data.source == 'jsonl':
    files = {'path': str(tmp_path / '{split}.jsonl')}
    (tmp_path / 'train.jsonl').write_text(
      '{"problem": "a", "solution": "\\\\boxed{3}", "answer": "3"}\n'
    )
  elif data.source == 'gsm8k':
    files = {'path': str(tmp_path), 'data_dir': str(tmp_path / 'prepared')}
    for split in ('train', 'test'):
      (tmp_path / f'{split}.jsonl').write_text(
        '{"question": "a", "answer": "It is 3.\\n#### 3"}\n'
      )
  asked = questions.load(
    data.source,
    'train',
    num=1,
    prompt_field=data.prompt_field,
    answer_field=data.answer_field,
    solution_field=data.solution_field,
    **files,
  )
  assert asked[0].prompt
  assert asked[0].answer
  if config.algorithm.sft_steps:
    assert asked[0].solution


@pytest.mark.parametrize('name', _LLAMA3)
def test_large_runs_name_their_meshes(name):
  assert (1, 8, 1) in _mesh_sizes(name)


@pytest.mark.parametrize('name', _FILES)
def test_rows_divide_over_the_meshes_it_names(name):
  """One device where the docstring names no mesh."""
  config = _load(name).get_config()
  preset = presets.PRESETS[config.model.preset]
  for data, fsdp, tensor in _mesh_sizes(name) or [(1, 1, 1)]:
    checks.check_mesh(config, data * fsdp, data * fsdp, num_hosts=1)
    checks.check_model_on_mesh(preset, tensor)


def _abstract_run(config):
  """Returns model, optimizer and the abstract state of a config's run."""
  model = llama.Llama(
    weights.model_config(config),
    dtype=jnp.dtype(config.model.dtype),
    param_dtype=jnp.dtype(config.model.param_dtype),
    remat=config.model.remat,
  )
  optimizer = assemble.make_optimizer(config, 1e-6, 10, 0)
  return model, optimizer, learner.abstract_state(model, optimizer)


def _abstract(shape, dtype, *axes):
  sharding_ = jax.sharding.NamedSharding(
    jax.sharding.get_mesh(), sharding.SAMPLE.spec(*axes)
  )
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding_)


def _flatten(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


@pytest.mark.parametrize('name', _LLAMA3)
def test_programs_build_on_eight_devices(name):
  """Tracing goes through every shape and, since the mesh is explicit, every
  layout of the sampler and the learner, and holds no array of the model. The
  state is split evenly, and an update returns it in the layout it came in: a
  moment that lost its axis would not fit a device."""
  config = _load(name).get_config()
  config.model.weights = ''  # The preset stands for the file.
  sizes = config_lib.sizes(config)
  G, P = config.algorithm.group_size, config.data.max_prompt_len
  C = config.sampling.max_completion_len
  B, b, Q = sizes.batch_size, sizes.minibatch_size, sizes.num_questions
  with jax.set_mesh(sharding.make_mesh(1, 8, 1)):
    model, optimizer, state = _abstract_run(config)
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert total > 3 * 4 * 8e9  # Weights and two moments in float32.
    on_one = sum(map(_shard_bytes, jax.tree.leaves(state)))
    assert on_one < 1.001 * total / 8

    how = decoding.make_decoding(
      config.sampling.temperature,
      config.sampling.top_p,
      config.sampling.top_k,
      stop_ids=(128_001, 128_009),
    )
    made = compiled.Compiled(
      state.params,
      programs.Programs(
        model, prompt_len=P, group_size=G, quantize_cache=False,
        quantize_weights=False, attention='plain', width=128,
      ),
      # One rung: the others are of the same layers.
      ladder.Ladder(
        (ladder.Rung(B // 8, C, Q // 8, G, in_order=True),), {}, {}
      ),
      (Q // 8,),
    )  # fmt: skip
    for kind in ('prepare', 'admit', 'decode'):
      assert len(made.lower(kind)) == 1
    # A token's keys and values in bf16; a device has an eighth of the rows.
    token = 2 * model.config.num_layers * model.config.num_kv_heads
    token *= model.config.head_dim * 2
    assert made.cache_bytes * 8 == (Q * P + B * C) * token

    minibatch, *_ = packing.make_empty(packing.make_room(b, G, P, C))
    minibatch = jax.tree.map(
      lambda x: _abstract(x.shape, x.dtype, 'batch', None), minibatch
    )
    new_state, metrics = jax.eval_shape(
      functools.partial(
        learner.update,
        model=model,
        optimizer=optimizer,
        objective=losses.Objective(kl_coef=config.algorithm.kl_coef),
      ),
      state,
      [minibatch],
      how,
    )
  assert metrics['loss'].shape == ()
  before, after = _flatten(state), _flatten(new_state)
  assert before.keys() == after.keys()
  for path, x in before.items():
    assert after[path].shape == x.shape, path
    assert after[path].dtype == x.dtype, path
    assert after[path].sharding.spec == x.sharding.spec, path
