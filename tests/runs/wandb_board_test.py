"""Weights & Biases is told what TensorBoard is, with a stand-in for its package."""

import sys
import types

import pytest

from dash_jax.runs import metrics, wandb_board


class Wandb(types.ModuleType):
  """Keeps what it is told, by run."""

  class Error(Exception):
    pass

  def __init__(self):
    super().__init__('wandb')
    self.runs = {}
    self.given = []

  def init(self, *, id, resume, **given):
    assert resume == 'allow'
    if given['project'] == 'forbidden':
      raise self.Error('no API key')
    self.given.append(given)
    told = self.runs.setdefault(id, [])
    return types.SimpleNamespace(
      log=told.append,
      define_metric=lambda *args, **kwargs: None,
      finish=lambda: told.append('finished'),
    )


@pytest.fixture
def wandb(monkeypatch):
  stand_in = Wandb()
  monkeypatch.setitem(sys.modules, 'wandb', stand_in)
  return stand_in


def test_it_gets_the_keys_and_values_of_tensorboard(
  tmp_path, wandb, monkeypatch
):
  board = wandb_board.Board('mine', tmp_path, {'seed': 3})
  shown = []
  with metrics.MetricsWriter(tmp_path, board=board) as writer:
    monkeypatch.setattr(
      writer._tensorboard, 'add_scalar', lambda *args: shown.append(args)
    )
    writer.write(1, {'phase': 'sft', 'loss': 2.0, 'step_s': 1})
    writer.write(2, {'phase': 'rl', 'loss': 0.5})
    evaluation = dict.fromkeys(metrics.EVAL_KEYS, 0)
    writer.write_eval(evaluation | {'step': 2, 'phase': 'rl', 'split': 'test'})
  ((*rows, end),) = wandb.runs.values()
  assert end == 'finished'
  assert rows[:2] == [
    {'sft/loss': 2.0, 'sft/step_s': 1.0, 'step': 1},
    {'rl/loss': 0.5, 'step': 2},
  ]
  assert shown == [
    (tag, value, row['step'])
    for row in rows
    for tag, value in row.items()
    if tag != 'step'
  ]
  assert 'rl/test_accuracy' in rows[2]
  (given,) = wandb.given
  assert given['config'] == {'seed': 3}
  assert (given['project'], given['name']) == ('mine', tmp_path.name)


def test_a_run_that_goes_on_is_the_same_there(tmp_path, wandb):
  for workdir in ('a', 'a', 'b'):
    (tmp_path / workdir).mkdir(exist_ok=True)
    wandb_board.Board('mine', tmp_path / workdir, {}).close()
  assert list(wandb.runs.values()) == [['finished'] * 2, ['finished']]


def test_what_it_refuses_is_bad_input(tmp_path, wandb):
  with pytest.raises(ValueError, match=r"log.wandb='forbidden': no API key"):
    wandb_board.Board('forbidden', tmp_path, {})


def test_without_the_package_the_extra_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(ModuleNotFoundError, match=r"pip install -e '.\[wandb\]'"):
    wandb_board.require()
