"""The training loop in this process: every algorithm, noise, and restarts."""

import dataclasses

import numpy as np
import pytest
import tiny_run

from dash_jax import assemble, steps, tokenizing, train
from dash_jax import evaluate as evaluate_lib
from dash_jax.model import presets
from dash_jax.runs import jsonl


@pytest.fixture
def config(mesh, monkeypatch):
  return tiny_run.borrow(monkeypatch)


def keep_tokenizer(config, tmp_path):
  """Trains the tokenizer on the config's questions, and names it there."""
  made = tmp_path / 'made'
  assemble.build(config, str(made)).pool.close()
  config.data.tokenizer = 'sentencepiece'
  config.data.tokenizer_path = str(made / tokenizing.TOKENIZER_NAME)


def read(workdir, name):
  return list(jsonl.read(workdir / name))


def test_grpo_learns_from_one_whole_group_a_step(config, tmp_path):
  config.algorithm.name = 'grpo'
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = 16
  assert train.train(config, str(tmp_path))
  steps = read(tmp_path, 'metrics.jsonl')
  assert [row['phase'] for row in steps] == ['rl'] * 4
  for row in steps:
    assert row['sampled_rows'] == row['kept_rows'] == 4
    assert row['trained_tokens'] == row['sampled_tokens']
  assert any(row['grad_norm'] > 0.01 for row in steps)
  # The whole run samples less than one interval: the two ends are evaluated.
  evals = read(tmp_path, 'evals.jsonl')
  assert [(e['step'], e['phase']) for e in evals] == [(0, 'rl'), (4, 'rl')]


def test_sft_alone_lowers_its_loss(config, tmp_path, monkeypatch):
  config.algorithm.name = 'sft'
  config.algorithm.sft_steps = 12
  config.optim.sft_batch_size = 8
  config.optim.sft_learning_rate = 1e-2
  config.log.wandb = 'mine'
  told = []

  class Board:
    def __init__(self, project, workdir, fields):
      assert (project, fields['log']['wandb']) == ('mine', 'mine')

    def write(self, values, step):
      told.append((step, sorted(values)[0]))

    def close(self):
      told.append('closed')

  monkeypatch.setattr(train.wandb_board, 'require', lambda: None)
  monkeypatch.setattr(train.wandb_board, 'Board', Board)
  assert train.train(config, str(tmp_path))
  steps = read(tmp_path, 'metrics.jsonl')
  assert [row['phase'] for row in steps] == ['sft'] * 12
  assert told[0] == (1, 'sft/clip_fraction')
  assert told[-1] == 'closed'
  assert len(told) == 12 + 1 + 1  # and the evaluation
  losses = [row['loss'] for row in steps]
  # A random model of 304 ids begins near log(304) = 5.7 for each token.
  assert losses[0] == pytest.approx(np.log(304), abs=1.0)
  assert losses[-1] < losses[0] - 0.5
  evals = read(tmp_path, 'evals.jsonl')
  assert [(e['step'], e['phase']) for e in evals] == [(12, 'sft')]
  assert not (tmp_path / 'rollouts').exists()


def test_every_step_has_noise_of_its_own(config, tmp_path):
  """At learning rate 0 the weights stay, and eight questions are all there are:
  between the two steps only the noise differs."""
  # So few texts cannot fill the vocabulary, so it is learned from more.
  keep_tokenizer(config, tmp_path)
  config.data.num_train = 8
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = 64
  config.optim.learning_rate = 0.0
  assert train.train(config, str(tmp_path))
  replies = [
    {
      (row['uid'], row['sample']): row['completion']
      for row in read(tmp_path, f'rollouts/step_{step:06d}.jsonl')
    }
    for step in (1, 2)
  ]
  assert len(replies[0]) == 32
  assert replies[0].keys() == replies[1].keys()
  same = [replies[0][key] == replies[1][key] for key in replies[0]]
  assert np.mean(same) < 0.1


def test_a_finished_run_adds_only_what_is_missing(config, tmp_path):
  """A process may die between its last checkpoint and its last evaluation. The
  same command then evaluates, trains nothing, and asks nothing twice. The rows that
  drift is measured by are in the checkpoint."""
  assert train.train(config, str(tmp_path))
  steps = (tmp_path / 'metrics.jsonl').read_text()
  whole = read(tmp_path, 'evals.jsonl')
  assert train.train(config, str(tmp_path))
  assert read(tmp_path, 'evals.jsonl') == whole
  jsonl.write(tmp_path / 'evals.jsonl', whole[:-1])
  assert train.train(config, str(tmp_path))
  found = read(tmp_path, 'evals.jsonl')
  assert (tmp_path / 'metrics.jsonl').read_text() == steps
  for row in (*found, *whole):
    del row['eval_s']
  assert found == whole
  assert found[-1]['drift_kl'] != 0


def test_checkpoints_stay_as_the_config_says(config, tmp_path, monkeypatch):
  """The newest; the first behind each 96 rows, which are the third and the sixth;
  and the best of those that were evaluated, which is the first."""
  accuracies = iter([0.1, 0.9, 0.2, 0.9, 0.3, 0.4, 0.5, 0.6])
  evaluate = evaluate_lib.evaluate
  monkeypatch.setattr(
    evaluate_lib,
    'evaluate',
    lambda *args: evaluate(*args) | {'accuracy': next(accuracies)},
  )
  config.algorithm.sft_steps = 0
  config.algorithm.num_samples = 7 * 32
  config.checkpoint.every_samples = config.eval.every_samples = 32
  config.checkpoint.keep = 1
  config.checkpoint.keep_every_samples = 96
  config.checkpoint.keep_best = 1
  assert train.train(config, str(tmp_path))
  found = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
  assert found == {'1', '3', '6', '7'}


def use_jsonl(config, tmp_path, rows):
  for split in ('train', 'test'):
    jsonl.write(tmp_path / f'{split}.jsonl', rows)
  config.data.source = 'jsonl'
  config.data.path = str(tmp_path / '{split}.jsonl')
  config.data.num_train = 0


def test_a_missing_file_is_named_by_its_field(config, tmp_path):
  config.data.source = 'jsonl'
  config.data.path = str(tmp_path / 'gone_{split}.jsonl')
  with pytest.raises(
    FileNotFoundError, match=r'data\.path=.*gone_train\.jsonl'
  ):
    assemble.build(config, str(tmp_path))
  config.data.source = 'addition'
  config.data.tokenizer = 'huggingface'
  config.data.tokenizer_path = str(tmp_path / 'gone.json')
  with pytest.raises(FileNotFoundError, match=r'data\.tokenizer_path=.*gone'):
    assemble.build(config, str(tmp_path))


def test_an_empty_data_set_is_refused(config, tmp_path):
  use_jsonl(config, tmp_path, [])
  with pytest.raises(ValueError, match=r'train\.jsonl: no rows'):
    assemble.build(config, str(tmp_path))


def test_prompts_that_do_not_fit_are_errors_or_dropped(config, tmp_path):
  config.data.max_prompt_len = 9
  with pytest.raises(ValueError, match=r'data\.max_prompt_len=\d+ would fit'):
    assemble.build(config, str(tmp_path))
  config.data.too_long = 'drop'
  with pytest.raises(ValueError, match=r'no train question fits.*raise'):
    assemble.build(config, str(tmp_path))


def test_sft_needs_solutions(config, tmp_path):
  keep_tokenizer(config, tmp_path)
  rows = [{'question': f'{i} + {i} =', 'answer': 2 * i} for i in range(9)]
  use_jsonl(config, tmp_path, rows)
  with pytest.raises(ValueError, match=r'data\.solution_field, or sft_steps=0'):
    assemble.build(config, str(tmp_path))


def test_a_stop_text_ends_a_reply(config, tmp_path):
  """Behind the token that completes it, wherever that token begins; a text of
  one token is a stop id besides."""
  config.data.stop_text = '12 = '
  parts = assemble.build(config, str(tmp_path))
  parts.pool.close()
  tok = parts.encoding.tokenizer
  tokens = np.array(tok.encode('3 + 12 = 15 and 12 = 4'))
  n = parts.find_end(tokens, 0)
  assert '12 = ' in tok.decode(tokens[:n].tolist())
  assert '12 = ' not in tok.decode(tokens[: n - 1].tolist())
  assert parts.find_end(tokens[: n - 1], 0) == 0
  assert parts.stop_ids == tok.stop_ids
  digit = tok.encode('+')
  assert len(digit) == 1
  assert tokenizing.find_stop_ids(tok, '+') == (*tok.stop_ids, *digit)
  assert tokenizing.make_find_end(tok, '') is None


def test_a_larger_tokenizer_than_the_model_is_refused(
  config, tmp_path, monkeypatch
):
  keep_tokenizer(config, tmp_path)
  small = dataclasses.replace(presets.PRESETS['quickstart'], vocab_size=300)
  monkeypatch.setitem(presets.PRESETS, 'quickstart', small)
  with pytest.raises(
    ValueError, match=r'has 304 ids, but the embedding .* 300 rows'
  ):
    assemble.build(config, str(tmp_path))


def test_a_refused_start_leaves_nothing_that_a_corrected_one_would_use(
  config, tmp_path
):
  """The tokenizer was trained before a prompt was refused; with other questions
  it is trained anew, as in a new folder."""
  refused, fresh = tmp_path / 'refused', tmp_path / 'fresh'
  config.data.max_prompt_len = 9
  with pytest.raises(ValueError, match=r'data\.max_prompt_len'):
    assemble.build(config, str(refused))
  config.data.max_prompt_len = 64
  config.data.num_train = 90
  for workdir in (refused, fresh):
    assemble.build(config, str(workdir)).pool.close()
  made = [
    (w / tokenizing.TOKENIZER_NAME).read_bytes() for w in (refused, fresh)
  ]
  assert made[0] == made[1]


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    (
      {'data__num_train': 7, 'optim__sft_batch_size': 8},
      r'optim\.sft_batch_size asks 8 .* only 7',
    ),
    (
      {'data__num_train': 7, 'algorithm__sft_steps': 0},
      r'algorithm\.batch_size=32 in groups of 4 asks 8 .* only 7',
    ),
  ],
)
def test_too_few_questions_for_a_step_are_refused_before_it(
  config, tmp_path, changes, named
):
  keep_tokenizer(config, tmp_path)
  for name, value in changes.items():
    section, field = name.split('__')
    config[section][field] = value
  with pytest.raises(ValueError, match=named):
    assemble.build(config, str(tmp_path))


def test_what_fails_at_work_is_not_called_bad_input(
  config, tmp_path, monkeypatch
):
  """Commands turn a ValueError into one line: a fault in the third step must
  keep its traceback. The steps before it stay on record."""
  config.algorithm.sft_steps = 4
  take_step = steps.take_step

  def fail(parts, phase, room, fed, state, step, *args, **kwargs):
    if step == 2:
      raise ValueError('out of shape')
    return take_step(parts, phase, room, fed, state, step, *args, **kwargs)

  with monkeypatch.context() as patched:
    patched.setattr(steps, 'take_step', fail)
    with pytest.raises(RuntimeError, match='checkpoint, step 0') as error:
      train.train(config, str(tmp_path))
  assert str(error.value.__cause__) == 'out of shape'
  assert len(read(tmp_path, 'metrics.jsonl')) == 2
