"""A reward model that is read from a folder scores texts."""

import json

import numpy as np
import plain_llama
import pytest
import tiny_judge

from dash_jax import config as config_lib
from dash_jax import judge, weights

pytestmark = pytest.mark.usefixtures('mesh')


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('judge')
  return folder, tiny_judge.write(folder)


def configure(folder):
  config = config_lib.default()
  config.reward.model = f'hf:{folder}'
  config.reward.model_weight = 1.0
  config.data.template = '{question} ='
  return config


def test_a_score_is_that_of_question_reply_and_stop(written, monkeypatch):
  """As plain NumPy has it of each row alone, in calls that hold two rows of five;
  a reply that was cut has no stop token."""
  folder, params = written
  monkeypatch.setattr(judge, '_TOKENS_AT_ONCE', 2 * 128)
  asking = judge.load(configure(folder))
  prompts = ['1 + 2', '1 + 2', '30 + 4', '5 + 5', '5 + 5']
  replies = ['3', '4', ' 34', '', '10 ' * 9]
  truncated = [False, True, False, False, True]
  found = asking.score(prompts, replies, truncated)
  tok = asking.tokenizer
  expected = []
  for prompt, reply, cut in zip(prompts, replies, truncated, strict=True):
    ids = tok.encode(f'{prompt} =') + tok.encode(reply)
    ids = [tok.bos_id] * tok.adds_bos + ids + [tok.stop_ids[0]] * (not cut)
    x, w = plain_llama.hidden(params, tiny_judge.CONFIG, ids)
    expected.append((x[-1] @ w['score'])[0])
  np.testing.assert_allclose(found, expected, atol=1e-4)
  assert np.ptp(expected) > 0.1


def test_what_is_no_reward_model_is_refused(written, tmp_path):
  folder, _ = written
  with pytest.raises(FileNotFoundError, match=r'reward\.model'):
    judge.load(configure(tmp_path / 'none'))
  said = json.loads((folder / 'config.json').read_text())
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(said | {'architectures': ['LlamaForCausalLM']}))
  with pytest.raises(ValueError, match=r'python -m dash_jax\.reward_model'):
    judge.load(configure(tmp_path))
  two = {'id2label': {'0': 'good', '1': 'bad'}}
  path.write_text(json.dumps(said | two))
  with pytest.raises(ValueError, match='one label'):
    judge.load(configure(tmp_path))


def test_a_policy_is_no_reward_model(written):
  config = config_lib.default()
  config.model.update(preset='auto', weights=f'hf:{written[0]}')
  with pytest.raises(ValueError, match=r'goes to reward\.model'):
    weights.model_config(config)
