"""The table of bad configs: what is set, and the whole error that it must be.

Where lists of names would grow with the project, the error's beginning stands
here, and ends in '..'.
"""

import pytest

from dash_jax import checks
from dash_jax import config as config_lib

BAD = [
  (
    {'sampling.temperature': 'hot'},
    "sampling.temperature='hot': must be of type finite float",
  ),
  (
    {'algorithm.batch_size': 256.0},
    'algorithm.batch_size=256.0: must be of type int',
  ),
  (
    {'algorithm.batch_size': True},
    'algorithm.batch_size=True: must be of type int',
  ),
  (
    {'algorithm.mask_truncated': 1},
    'algorithm.mask_truncated=1: must be of type bool',
  ),
  (
    {'data.path': None},
    'data.path=None: must be of type str',
  ),
  (
    {'sampling.temprature': 1.0},
    'config.sampling.temprature is unknown: fields of sampling are ..',
  ),
  (
    {'optim.lr': 1.0},
    'config.optim.lr is unknown: fields of optim are ..',
  ),
  (
    {'model.preset': 'llama9'},
    "model.preset='llama9': must be one of 'auto', ..",
  ),
  (
    {'model.dtype': 'float8'},
    "model.dtype='float8': must be one of 'float32', 'bfloat16'",
  ),
  (
    {'model.param_dtype': 'int8'},
    "model.param_dtype='int8': must be one of 'float32', 'bfloat16'",
  ),
  (
    {'data.source': 'gsm9k'},
    "data.source='gsm9k': must be one of 'word_problems', 'addition', "
    "'gsm8k', 'jsonl', 'reasoning_gym'",
  ),
  (
    {'data.tokenizer': 'bpe'},
    "data.tokenizer='bpe': must be one of 'trained', 'sentencepiece', "
    "'gguf', 'huggingface', 'tiktoken'",
  ),
  (
    {'data.too_long': 'cut'},
    "data.too_long='cut': must be one of 'error', 'drop'",
  ),
  (
    {'reward.style': 'gsm9k'},
    "reward.style='gsm9k': must be one of 'gsm8k', 'boxed', 'last_number'",
  ),
  (
    {'algorithm.name': 'ppo9'},
    "algorithm.name='ppo9': must be one of 'dash', 'grpo', 'sft'",
  ),
  (
    {'algorithm.normalizer': 'mean'},
    "algorithm.normalizer='mean': must be one of 'token', 'sequence', "
    "'constant'",
  ),
  (
    {'algorithm.denominator': 'all'},
    "algorithm.denominator='all': must be one of 'sampled', 'kept'",
  ),
  (
    {'optim.schedule': 'step'},
    "optim.schedule='step': must be one of 'constant', 'linear', 'cosine'",
  ),
  (
    {'model.preset': 'auto'},
    "model.preset='auto' takes the architecture of model.weights, which is "
    "''; name one of quickstart, ..",
  ),
  (
    {'lora.targets': 'q_proj,wq'},
    "lora.targets='q_proj,wq': must be some of "
    'q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head, each '
    'once, with commas between them',
  ),
  (
    {'lora.targets': 'q_proj,q_proj'},
    "lora.targets='q_proj,q_proj': must be some of "
    'q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head, each '
    'once, with commas between them',
  ),
  (
    {'lora.targets': ''},
    "lora.targets='': must be some of "
    'q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj,lm_head, each '
    'once, with commas between them',
  ),
  (
    {'lora.rank': -1},
    'lora.rank=-1: must be at least 0',
  ),
  (
    {'lora.alpha': 0.0},
    'lora.alpha=0.0: must be above 0',
  ),
  (
    {'lora.dropout': 1.0},
    'lora.dropout=1.0: must be in [0, 1)',
  ),
  (
    {'sampling.temperature': 0.0},
    'sampling.temperature=0.0: must be above 0, at least 1e-06: the rows '
    'of a group must differ (eval.temperature may be 0)',
  ),
  (
    {'sampling.temperature': -1.0},
    'sampling.temperature=-1.0: must be above 0, at least 1e-06: the rows '
    'of a group must differ (eval.temperature may be 0)',
  ),
  (
    {'sampling.top_p': 0.0},
    'sampling.top_p=0.0: must be in (0, 1]',
  ),
  (
    {'eval.top_p': 1.5},
    'eval.top_p=1.5: must be in (0, 1]',
  ),
  (
    {'sampling.top_k': -1},
    'sampling.top_k=-1: must be at least 0',
  ),
  (
    {'sampling.max_completion_len': 0},
    'sampling.max_completion_len=0: must be at least 1',
  ),
  (
    {'data.max_prompt_len': 0},
    'data.max_prompt_len=0: must be at least 1',
  ),
  (
    {'data.num_train': -5},
    'data.num_train=-5: must be at least 0',
  ),
  (
    {'algorithm.group_size': 1},
    'algorithm.group_size=1: must be at least 2',
  ),
  (
    {'algorithm.kl_coef': -0.1},
    'algorithm.kl_coef=-0.1: must be at least 0',
  ),
  (
    {'algorithm.filter_threshold': -1.0},
    'algorithm.filter_threshold=-1.0: must be at least 0 (0 drops the rows '
    'whose group agrees)',
  ),
  (
    {'optim.minibatch_size': 0},
    'optim.minibatch_size=0: must be at least 1',
  ),
  (
    {'optim.learning_rate': -1.0},
    'optim.learning_rate=-1.0: must be at least 0',
  ),
  (
    {'eval.num_questions': 0},
    'eval.num_questions=0: must be at least 1',
  ),
  (
    {'checkpoint.keep': 0},
    'checkpoint.keep=0: must be at least 1',
  ),
  (
    {'reward.timeout_s': 0.0},
    'reward.timeout_s=0.0: must be from 0.001 to 1000000 seconds',
  ),
  (
    {'reward.num_workers': 0},
    'reward.num_workers=0: must be at least 1',
  ),
  (
    {'reward.timeout_s': float('inf')},
    'reward.timeout_s=inf: must be of type finite float',
  ),
  (
    {'optim.learning_rate': float('nan')},
    'optim.learning_rate=nan: must be of type finite float',
  ),
  (
    {'reward.function': 'score'},
    "reward.function='score': must name a module and a function in it, as "
    "in 'my_module:score'",
  ),
  (
    {'algorithm.clip_low': 1.5},
    'algorithm.clip_low=1.5: must be at most 1, since a ratio of '
    'probabilities is never below 0',
  ),
  (
    {'data.template': 'Q: '},
    "data.template: the template 'Q: ' must be 'chat', or contain "
    "'{question}' once and no other field; it has none (write {{ and }} "
    'for braces)',
  ),
  (
    {'data.template': '{prompt}'},
    "data.template: the template '{prompt}' must be 'chat', or contain "
    "'{question}' once and no other field; it has ['prompt'] (write {{ and "
    '}} for braces)',
  ),
  (
    {'data.template': '{question} {0}'},
    "data.template: the template '{question} {0}' must be 'chat', or "
    "contain '{question}' once and no other field; it has ['question', "
    "'0'] (write {{ and }} for braces)",
  ),
  (
    {'data.template': '{question} {'},
    "data.template: the template '{question} {' is no format string: "
    "Single '{' encountered in format string",
  ),
  (
    {'data.template': '{question.a}'},
    "data.template: the template '{question.a}' must be 'chat', or contain "
    "'{question}' once and no other field; it has ['question.a'] (write {{ "
    'and }} for braces)',
  ),
  (
    {'data.template': '{question}{question}'},
    "data.template: the template '{question}{question}' must be 'chat', or "
    "contain '{question}' once and no other field; it has ['question', "
    "'question'] (write {{ and }} for braces)",
  ),
  (
    {'data.source': 'jsonl', 'data.path': 'all.jsonl'},
    "data.path='all.jsonl': must hold {split}, which becomes train and "
    'test: one file for both would test on what was trained',
  ),
  (
    {'data.source': 'reasoning_gym', 'data.path': ' '},
    "data.path='': must name a task of data.source='reasoning_gym', as "
    'chain_sum',
  ),
  (
    {'data.source': 'reasoning_gym', 'data.path': 'chain_sum'},
    "reward.function='dash_jax.rewards.answers:score_one' with "
    "data.source='reasoning_gym': its tasks have scorers of their own; take "
    "'dash_jax.rewards.procedural:score_one'",
  ),
  (
    {'algorithm.batch_size': 100},
    'algorithm.batch_size=100 does not divide by algorithm.group_size=8: '
    'take 96 or 104',
  ),
  (
    {'algorithm.batch_size': 4},
    'algorithm.batch_size=4 does not divide by algorithm.group_size=8: '
    'take 8 or 16',
  ),
  (
    {'algorithm.group_size': 7},
    'algorithm.batch_size=256 does not divide by algorithm.group_size=7: '
    'take 252 or 259',
  ),
  (
    {'algorithm.num_samples': 255},
    'algorithm.num_samples=255 is less than one step of 256 rows: take at '
    'least 256',
  ),
  (
    {'algorithm.num_samples': 1000},
    'algorithm.num_samples=1000 is not a whole number of steps of 256 '
    'rows: take 768 or 1024',
  ),
  (
    {'optim.warmup_steps': 80},
    'optim.warmup_steps=80: must be below the 80 updates of '
    'algorithm.num_samples=20480',
  ),
  (
    {'algorithm.sft_steps': 20},
    'optim.sft_warmup_steps=20: must be below algorithm.sft_steps=20',
  ),
  (
    {'algorithm.loss': 'ppo'},
    "algorithm.loss='ppo': must be one of 'clip', 'reinforce', 'gspo', "
    "'cispo', 'dpo', 'supervised'",
  ),
  (
    {'algorithm.baseline': 'mean'},
    "algorithm.baseline='mean': must be one of 'group_mean', "
    "'leave_one_out', 'none', 'critic'",
  ),
  (
    {'algorithm.scale': 'max'},
    "algorithm.scale='max': must be one of 'std', 'none', 'mean', 'batch'",
  ),
  (
    {'algorithm.filter': 'all'},
    "algorithm.filter='all': must be one of 'advantage', 'group', "
    "'largest', 'max_variance', 'none'",
  ),
  (
    {'algorithm.filter': 'none', 'algorithm.filter_threshold': 0.5},
    "algorithm.filter_threshold=0.5 with algorithm.filter='none', which keeps "
    'every row: take 0.0',
  ),
  (
    {'algorithm.filter': 'largest'},
    "algorithm.filter_rows=0 with algorithm.filter='largest': 'largest' "
    "and 'max_variance' need it, others take 0",
  ),
  (
    {'algorithm.filter_rows': 8},
    "algorithm.filter_rows=8 with algorithm.filter='advantage': 'largest' "
    "and 'max_variance' need it, others take 0",
  ),
  (
    {'algorithm.filter': 'max_variance', 'algorithm.filter_rows': 40},
    'algorithm.filter_rows=40: must be a multiple of the 32 groups of a '
    'step, the same number of rows for each: take 32 or 64',
  ),
  (
    {'algorithm.filter': 'largest', 'algorithm.filter_rows': 300},
    'algorithm.filter_rows=300: must be at most the 256 rows of a step',
  ),
  (
    {'algorithm.num_updates': 3},
    'algorithm.num_updates=3: must divide the 32 groups of a step',
  ),
  (
    {'algorithm.num_epochs': 0},
    'algorithm.num_epochs=0: must be at least 1',
  ),
  (
    {'algorithm.clip_dual': 0.5},
    'algorithm.clip_dual=0.5: must be above 1, or 0 for none',
  ),
  (
    {'algorithm.loss': 'dpo', 'algorithm.mask_truncated': True},
    "algorithm.mask_truncated=True with algorithm.loss='dpo', which has no "
    'use for it: take False',
  ),
  (
    {'algorithm.dpo_beta': 0.0},
    'algorithm.dpo_beta=0.0: must be above 0',
  ),
  (
    {'algorithm.dpo_beta': 0.5},
    "algorithm.dpo_beta=0.5 with algorithm.loss='clip', which has no use "
    'for it: take 0.1',
  ),
  (
    {'algorithm.importance_cap': 0.1},
    'algorithm.importance_cap=0.1: must be at least 1, or 0 for none',
  ),
  (
    {
      'algorithm.baseline': 'none',
      'algorithm.scale': 'batch',
      'algorithm.filter': 'max_variance',
      'algorithm.filter_rows': 64,
    },
    "algorithm.filter='max_variance' with algorithm.baseline='none' and "
    "algorithm.scale='batch', which compare no rows of a group: take "
    'another filter',
  ),
  (
    {
      'algorithm.name': 'grpo',
      'algorithm.filter': 'largest',
      'algorithm.filter_rows': 4,
    },
    "algorithm.filter='largest' with algorithm.name='grpo', which learns "
    "from every row: take 'advantage', or name dash",
  ),
  (
    {'algorithm.loss': 'supervised', 'algorithm.overlong_len': 8},
    "algorithm.overlong_len=8 with algorithm.loss='supervised', which has "
    'no use for it: take 0',
  ),
  (
    {'algorithm.loss': 'gspo', 'algorithm.importance_cap': 2.0},
    "algorithm.importance_cap=2.0 with algorithm.loss='gspo', which has no "
    'use for it: take 0.0',
  ),
  (
    {'algorithm.loss': 'supervised', 'algorithm.report_cosine': True},
    "algorithm.report_cosine=True with algorithm.loss='supervised', which "
    'has no use for it: take False',
  ),
  (
    {'algorithm.loss': 'reinforce', 'algorithm.clip_dual': 3.0},
    "algorithm.clip_dual=3.0 with algorithm.loss='reinforce', which has no "
    'use for it: take 0.0',
  ),
  (
    {'algorithm.baseline': 'none'},
    "algorithm.scale='std' with algorithm.baseline='none' divides a reward "
    "by next to nothing where a group agrees: take 'none', 'mean' or "
    "'batch'",
  ),
  (
    {'algorithm.gae_lambda': 0.9},
    "algorithm.gae_lambda=0.9 with algorithm.baseline='group_mean', which has no"
    ' use for it: take 1.0',
  ),
  (
    {'algorithm.kl_in': 'reward'},
    "algorithm.kl_in='reward' with algorithm.kl_coef=0: set it, or take 'loss'",
  ),
  (
    {'algorithm.filter': 'max_variance', 'algorithm.filter_rows': 32},
    "algorithm.filter_rows=32 with algorithm.filter='max_variance' leaves "
    'one row of each of the 32 groups, with nothing to compare it with: '
    'take 64 or more',
  ),
  (
    {'algorithm.name': 'grpo', 'algorithm.filter_threshold': 0.5},
    "algorithm.filter_threshold=0.5 with algorithm.name='grpo', which "
    'learns from every row: take 0.0, or name dash',
  ),
  (
    {'algorithm.scale': 'mean', 'algorithm.overlong_len': 3},
    "algorithm.scale='mean' divides by a group's mean reward, which "
    "algorithm.overlong_len lets fall to 0 and below: take 'std', 'none' "
    "or 'batch'",
  ),
  (
    {
      'algorithm.name': 'sft',
      'algorithm.sft_steps': 100,
      'optim.name': 'muon',
      'optim.moments': 'int8',
    },
    "optim.moments='int8' with optim.name='muon': only adamw and lion keep "
    "moments in fewer bits; take 'float32'",
  ),
  (
    {'algorithm.kl_coef': 0.1, 'algorithm.kl_estimator': 'k1'},
    "algorithm.kl_estimator='k1' with algorithm.kl_in='loss': its gradient is 0"
    " in the mean, whatever the reference; take 'k2', 'k3' or"
    " algorithm.kl_in='reward'",
  ),
  (
    {'algorithm.kl_in': 'both'},
    "algorithm.kl_in='both': must be one of 'loss', 'reward'",
  ),
  (
    {'algorithm.kl_estimator': 'k4'},
    "algorithm.kl_estimator='k4': must be one of 'k1', 'k2', 'k3'",
  ),
  (
    {'algorithm.overlong_len': 65},
    'algorithm.overlong_len=65: must be at most sampling.max_completion_len=64',
  ),
  (
    {'reward.format_weight': -1.0},
    'reward.format_weight=-1.0: must be at least 0 (0 leaves the term out, '
    'and length is below 0 as it is)',
  ),
  (
    {'reward.extra': 'a:f'},
    "reward.extra='a:f' with reward.extra_weight=0.0: set both, a "
    "function, as 'my_module:score' and a weight above 0, or neither",
  ),
  (
    {'reward.extra_weight': 1.0},
    "reward.extra='' with reward.extra_weight=1.0: set both, a function, "
    "as 'my_module:score' and a weight above 0, or neither",
  ),
  (
    {'reward.model_weight': 1.0},
    "reward.model='' with reward.model_weight=1.0: set both, a reward "
    "model, as 'hf:FOLDER' or 'hub:ORG/NAME' and a weight above 0, or "
    'neither',
  ),
  (
    {'reward.extra': 'score', 'reward.extra_weight': 1.0},
    "reward.extra='score': must name a module and a function in it, as in "
    "'my_module:score'",
  ),
  (
    {'reward.model': 'FOLDER', 'reward.model_weight': 1.0},
    "reward.model='FOLDER': must be '' (none), 'hf:FOLDER' or 'hub:ORG/NAME'",
  ),
  (
    {'reward.weight': 0.0},
    'reward.weight=0.0 leaves no reward: set it, or one of '
    'reward.format_weight, reward.length_weight, reward.extra_weight, '
    'reward.model_weight',
  ),
  (
    {'reward.length_weight': 0.1, 'algorithm.scale': 'mean'},
    "algorithm.scale='mean' divides by a group's mean reward, which "
    "reward.length_weight lets fall to 0 and below: take 'std', 'none' or "
    "'batch'",
  ),
  (
    {'optim.minibatch_size': 257},
    'optim.minibatch_size=257 is more than the 256 rows of a step: take at '
    'most 256',
  ),
  (
    {'algorithm.name': 'sft', 'algorithm.sft_steps': 0},
    "algorithm.sft_steps=0 with algorithm.name='sft': must be at least 1",
  ),
  (
    {'model.weights': 'model.gguf'},
    "model.weights='model.gguf': must be '' (random), 'hf:FOLDER', "
    "'hub:ORG/NAME', 'meta:FOLDER', 'gguf:PATH' or 'gguf:package:NAME'",
  ),
  (
    {'model.weights': 'gguf:'},
    "model.weights='gguf:': must be '' (random), 'hf:FOLDER', "
    "'hub:ORG/NAME', 'meta:FOLDER', 'gguf:PATH' or 'gguf:package:NAME'",
  ),
  (
    {'data.tokenizer': 'gguf'},
    "data.tokenizer='gguf' needs data.tokenizer_path, the file to read",
  ),
  (
    {'data.tokenizer_path': 'x.model'},
    "data.tokenizer='trained' is trained on the spot: data.tokenizer_path "
    'must be empty',
  ),
  (
    {'mesh.data': 1.5},
    'mesh.data=1.5: must be of type int',
  ),
  (
    {'mesh.fsdp': 'all'},
    "mesh.fsdp='all': must be of type int",
  ),
  (
    {'mesh.tensor': None},
    'mesh.tensor=None: must be of type int',
  ),
  (
    {'mesh.multi_host': 'yes'},
    "mesh.multi_host='yes': must be of type bool",
  ),
  (
    {'mesh.silent_s': 0.0},
    'mesh.silent_s=0.0: must be from 3 to 1000000 seconds',
  ),
  (
    {'mesh.stall_s': -1.0},
    'mesh.stall_s=-1.0: must be from 3 to 1000000 seconds',
  ),
  (
    {'mesh.silent_s': 30.0, 'mesh.stall_s': 35.0},
    'mesh.stall_s=35.0: must be more than mesh.silent_s=30.0 and 5 s, so that a'
    ' process that fails is not taken for a run that has stopped',
  ),
  (
    {'mesh.silent_s': 1000000000.0},
    'mesh.silent_s=1000000000.0: must be from 3 to 1000000 seconds',
  ),
  (
    {'mesh.sampler_devices': -1},
    'mesh.sampler_devices=-1: must be at least 0',
  ),
  (
    {'lora.rank': 4.0},
    'lora.rank=4.0: must be of type int',
  ),
  (
    {'lora.targets': ['q_proj']},
    "lora.targets=['q_proj']: must be of type str",
  ),
  (
    {'log.rollouts_every_samples': 0},
    'log.rollouts_every_samples=0: must be at least 1',
  ),
  (
    {'log.rollouts_every_samples': 'often'},
    "log.rollouts_every_samples='often': must be of type int",
  ),
  (
    {'checkpoint.every_samples': 0},
    'checkpoint.every_samples=0: must be at least 1',
  ),
  (
    {'checkpoint.keep': 2.5},
    'checkpoint.keep=2.5: must be of type int',
  ),
  (
    {'eval.every_samples': 0},
    'eval.every_samples=0: must be at least 1',
  ),
  (
    {'eval.temperature': -0.5},
    'eval.temperature=-0.5: must be at least 0',
  ),
  (
    {'eval.temperature': 1e-09},
    'eval.temperature=1e-09: must be 0 (the likeliest token), or at least '
    '1e-06',
  ),
  (
    {'eval.num_questions': 2147483648},
    'eval.num_questions=2147483648: must be at most 2147483647 in size, '
    'which 32 bits hold',
  ),
  (
    {'optim.name': 'sgd'},
    "optim.name='sgd': must be one of 'adamw', 'adafactor', 'lion', 'muon'",
  ),
  (
    {'optim.moments': 'int4'},
    "optim.moments='int4': must be one of 'float32', 'bfloat16', 'int8'",
  ),
  (
    {'optim.max_grad_norm': -1.0},
    'optim.max_grad_norm=-1.0: must be at least 0',
  ),
  (
    {'optim.weight_decay': 1e39},
    'optim.weight_decay=1e+39: must be 0, or 1.2e-38 to 3.4e+38 in size, '
    'which 32 bits hold',
  ),
  (
    {'optim.sft_batch_size': 0},
    'optim.sft_batch_size=0: must be at least 1',
  ),
  (
    {'optim.minibatch_size': 'many'},
    "optim.minibatch_size='many': must be an int or 'auto'",
  ),
  (
    {'optim.minibatch_size': 1.5},
    "optim.minibatch_size=1.5: must be an int or 'auto'",
  ),
  (
    {'optim.minibatch_size': 1000000000000000000000000000000},
    'optim.minibatch_size=1000000000000000000000000000000: must be at most '
    '2147483647 in size, which 32 bits hold',
  ),
  (
    {'optim.learning_rate': '1e-4'},
    "optim.learning_rate='1e-4': must be of type finite float",
  ),
  (
    {'optim.warmup_steps': -1},
    'optim.warmup_steps=-1: must be at least 0',
  ),
  (
    {'sampling.batch_size': 'all'},
    "sampling.batch_size='all': must be an int or 'auto'",
  ),
  (
    {'sampling.batch_size': 4},
    'sampling.batch_size=4 does not divide by algorithm.group_size=8: take '
    "8 or 16, or 'auto'",
  ),
  (
    {'sampling.temperature': 1e-39},
    'sampling.temperature=1e-39: must be 0, or 1.2e-38 to 3.4e+38 in size, '
    'which 32 bits hold',
  ),
  (
    {'sampling.temperature': 1e-08},
    'sampling.temperature=1e-08: must be above 0, at least 1e-06: the rows '
    'of a group must differ (eval.temperature may be 0)',
  ),
  (
    {'sampling.min_p': 1.5},
    'sampling.min_p=1.5: must be in [0, 1]',
  ),
  (
    {'sampling.min_completion_len': 65},
    'sampling.min_completion_len=65: must be at most '
    'sampling.max_completion_len=64',
  ),
  (
    {'sampling.attention': 'flash'},
    "sampling.attention='flash': must be one of 'plain', 'library', 'pallas'",
  ),
  (
    {'sampling.quantize_cache': '8'},
    "sampling.quantize_cache='8': must be of type bool",
  ),
  (
    {'sampling.attention': 'pallas', 'sampling.quantize_cache': True},
    "sampling.attention='pallas' reads no quantised cache: take 'plain', "
    'or sampling.quantize_cache=False',
  ),
  (
    {'sampling.max_completion_len': 1000000000000},
    'sampling.max_completion_len=1000000000000: must be at most 2147483647 '
    'in size, which 32 bits hold',
  ),
  (
    {'data.path': 'a\x00b'},
    "data.path='a\\x00b': must be text, without NUL and half surrogate pairs",
  ),
  (
    {'data.system': '\ud800'},
    "data.system='\\ud800': must be text, without NUL and half surrogate pairs",
  ),
  (
    {'data.system': 'x'},
    "data.system='x' with data.template='{question}\\n', which has no "
    "place for it: take 'chat', or leave it empty",
  ),
  (
    {'data.num_train': 'all'},
    "data.num_train='all': must be of type int",
  ),
  (
    {'data.max_prompt_len': 1099511627776},
    'data.max_prompt_len=1099511627776: must be at most 2147483647 in '
    'size, which 32 bits hold',
  ),
  (
    {'data.prompt_field': 7},
    'data.prompt_field=7: must be of type str',
  ),
  (
    {'model.remat': 'all'},
    "model.remat='all': must be one of 'attention', 'dots', 'layer'",
  ),
  (
    {'model.weights': 'file:x'},
    "model.weights='file:x': must be '' (random), 'hf:FOLDER', "
    "'hub:ORG/NAME', 'meta:FOLDER', 'gguf:PATH' or 'gguf:package:NAME'",
  ),
  (
    {'model.preset': {'a': 1}},
    'model.preset=a: 1: must be of type str',
  ),
  (
    {'model.weights': None},
    'model.weights=None: must be of type str',
  ),
  (
    {'reward.function': '..a:b'},
    "reward.function='..a:b': must name a module and a function in it, as "
    "in 'my_module:score'",
  ),
  (
    {'reward.function': '1.2:f'},
    "reward.function='1.2:f': must name a module and a function in it, as "
    "in 'my_module:score'",
  ),
  (
    {'reward.function': 'a b:f'},
    "reward.function='a b:f': must name a module and a function in it, as "
    "in 'my_module:score'",
  ),
  (
    {'reward.function': 'os.system'},
    "reward.function='os.system': must name a module and a function in it, "
    "as in 'my_module:score'",
  ),
  (
    {'reward.num_workers': 100000},
    'reward.num_workers=100000: must be at most 1024 processes',
  ),
  (
    {'reward.timeout_s': 1000000000.0},
    'reward.timeout_s=1000000000.0: must be from 0.001 to 1000000 seconds',
  ),
  (
    {'reward.weight': -1.0},
    'reward.weight=-1.0: must be at least 0 (0 leaves the term out, and '
    'length is below 0 as it is)',
  ),
  (
    {'reward.extra': 'a/b:f', 'reward.extra_weight': 1.0},
    "reward.extra='a/b:f': must name a module and a function in it, as in "
    "'my_module:score'",
  ),
  (
    {'algorithm.max_staleness': 1},
    'algorithm.max_staleness=1 with algorithm.importance_cap=0: rows of '
    'older weights need a bound on their importance weights, such as 2.0',
  ),
  (
    {'algorithm.max_staleness': -1},
    'algorithm.max_staleness=-1: must be at least 0',
  ),
  (
    {'algorithm.reference': 'moving'},
    "algorithm.reference='moving': must be one of 'frozen', 'periodic', 'ema'",
  ),
  (
    {'algorithm.kl_schedule': 'cosine'},
    "algorithm.kl_schedule='cosine': must be one of 'constant', 'linear', "
    "'adaptive'",
  ),
  (
    {'algorithm.discount': 2.0},
    'algorithm.discount=2.0: must be in [0, 1]',
  ),
  (
    {'algorithm.kl_coef': 1e-60},
    'algorithm.kl_coef=1e-60: must be 0, or 1.2e-38 to 3.4e+38 in size, '
    'which 32 bits hold',
  ),
  (
    {'algorithm.num_samples': 0},
    'algorithm.num_samples=0 is less than one step of 256 rows: take at '
    'least 256',
  ),
  (
    {'algorithm.sft_steps': -1},
    'algorithm.sft_steps=-1: must be at least 0',
  ),
  (
    {'algorithm.name': 7},
    'algorithm.name=7: must be of type str',
  ),
  (
    {'seed': 'one'},
    "seed='one': must be an integer from 0 to 2147483647",
  ),
  (
    {'seed': -1},
    'seed=-1: must be an integer from 0 to 2147483647',
  ),
  (
    {'seed': 1.5},
    'seed=1.5: must be an integer from 0 to 2147483647',
  ),
  (
    {'seed': True},
    'seed=True: must be an integer from 0 to 2147483647',
  ),
  (
    {'seed': 2147483648},
    'seed=2147483648: must be an integer from 0 to 2147483647',
  ),
  (
    {'mesh': 3},
    'config.mesh=3: must be a section, with the fields ..',
  ),
  (
    {'optim': None},
    'config.optim=None: must be a section, with the fields ..',
  ),
  (
    {'samplings': {}},
    'config.samplings is unknown: sections are ..',
  ),
]
# fmt: on


def _change(changes):
  """Returns the default config with some fields set, unchecked."""
  config = config_lib.default()
  for name, value in changes.items():
    section, _, field = name.partition('.')
    with config.ignore_type(), config.unlocked():
      if field:
        config[section][field] = value
      else:
        config[section] = value
  return config


@pytest.mark.parametrize(('changes', 'error'), BAD)
def test_a_bad_config_is_refused_by_name_and_with_a_way_out(changes, error):
  with pytest.raises(ValueError) as caught:  # noqa: PT011
    checks.check(_change(changes))
  begins, is_cut, _ = error.partition(' ..')
  found = str(caught.value)
  assert found.startswith(begins) if is_cut else found == error
