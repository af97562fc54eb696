"""Every field of a run, its default, and the sizes that follow from them.

An experiment's `get_config()` starts from `default()` and changes fields;
`--config.section.field=value` changes more. checks.py refuses what cannot run.
"""

import dataclasses

import ml_collections
from ml_collections import config_dict

AUTO = 'auto'  # a size that is found out, or an architecture that is read


def default() -> ml_collections.ConfigDict:
  """Returns every field with its default; unknown fields cannot be added."""
  section = ml_collections.ConfigDict
  return ml_collections.ConfigDict(
    {
      'seed': 0,
      'model': section(
        {
          'preset': 'quickstart',  # 'auto': what model.weights is
          # '' starts from random weights; 'hf:FOLDER' reads a Hugging Face
          # folder, 'hub:ORG/NAME[@REVISION]' downloads one, 'meta:FOLDER' reads
          # one of Meta's, 'gguf:PATH' a file; PATH may be 'package:NAME'.
          'weights': '',
          'dtype': 'float32',  # activations, and the sampler's weights
          'param_dtype': 'float32',  # the weights that are trained
          # What is computed again for the gradient: 'attention', all but the
          # products ('dots'), or the whole 'layer'.
          'remat': 'attention',
        }
      ),
      'lora': section(
        {
          'rank': 0,  # 0 trains all weights, and no adapters
          'alpha': 16.0,
          'dropout': 0.0,
          'targets': 'q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj',
        }
      ),
      'mesh': section(
        {
          'data': 1,
          'fsdp': -1,  # -1: the devices that the others leave
          'tensor': 1,
          # Devices of each process that sample while the others learn; 0: all
          # do both in turn.
          'sampler_devices': 0,
          'multi_host': False,  # call jax.distributed.initialize
          # The run ends where a process has not been heard of for so long, or
          # none has gone on.
          'silent_s': 30.0,
          'stall_s': 1800.0,
        }
      ),
      'data': section(
        {
          'source': 'word_problems',
          'path': '',
          'data_dir': '',
          'prompt_field': 'question',
          'answer_field': 'answer',
          'solution_field': '',
          'num_train': 20_000,  # 0 takes all there are
          'tokenizer': 'trained',  # 'trained': sentencepiece, on the spot
          'tokenizer_path': '',
          'template': '{question}\n',  # 'chat': the model's own template
          'system': '',
          'stop_text': '',  # also end a completion once it holds this text
          'max_prompt_len': 64,
          'too_long': 'error',  # or 'drop': leave such questions out, counted
        }
      ),
      'sampling': section(
        {
          # Rows decoded at once; those beyond wait. 'auto': as many as fit.
          'batch_size': config_dict.FieldReference(AUTO, field_type=object),
          'max_completion_len': 64,
          'min_completion_len': 0,  # before which no stop id is drawn
          'temperature': 1.0,
          'top_p': 1.0,
          'top_k': 0,
          'min_p': 0.0,
          'quantize_cache': False,  # 8 bits of keys and values
          'quantize_weights': False,  # 8 bits of every matrix
          # 'library' prefills by jax.nn.dot_product_attention (cuDNN on GPUs),
          # 'pallas' decodes by a kernel for TPUs.
          'attention': 'plain',
        }
      ),
      'reward': section(
        {
          'style': 'gsm8k',
          'function': 'dash_jax.rewards.answers:score_one',
          'timeout_s': 5.0,
          'num_workers': 1,
          # What the parts of a reward count in its sum (terms.py).
          'weight': 1.0,  # of `function`, the verifier
          'format_weight': 0.0,
          'length_weight': 0.0,
          'extra': '',  # another function, as 'my_module:score'
          'extra_weight': 0.0,
          'model': '',  # a reward model: 'hf:FOLDER' or 'hub:ORG/NAME'
          'model_weight': 0.0,
        }
      ),
      'algorithm': section(
        {
          'name': 'dash',
          'batch_size': 256,  # rows sampled for one optimizer step
          'group_size': 8,
          'num_samples': 20_480,  # completions sampled by the whole run
          # What a row is compared with, and what the difference is divided by.
          'baseline': 'group_mean',
          'scale': 'std',
          'loss': 'clip',
          'clip_low': 0.2,
          'clip_high': 0.2,
          'clip_dual': 0.0,  # bounds the loss of negative advantages; 0 is off
          'importance_cap': 0.0,  # truncated importance sampling; 0 is off
          'dpo_beta': 0.1,
          'normalizer': 'constant',
          'denominator': 'sampled',
          # Which rows are learned from.
          'filter': 'advantage',
          'filter_threshold': 0.0,
          'filter_rows': 0,  # to keep of a step, for 'largest', 'max_variance'
          'refill_rounds': 0,  # sampled again where groups carry no signal
          'mask_truncated': False,
          'overlong_len': 0,  # last tokens over which a penalty grows to 1
          'report_cosine': False,  # of filtered and full gradient, at their cost
          'kl_coef': 0.0,
          'kl_estimator': 'k3',
          'kl_in': 'loss',
          'kl_schedule': 'constant',
          'kl_target': 0.0,  # nats a token, for 'adaptive'
          # Where the policy that the KL is taken to goes.
          'reference': 'frozen',
          'reference_every': 0,  # steps, for 'periodic'
          'reference_decay': 0.0,  # for 'ema'
          # What later rewards count, a token on, of a critic and REINFORCE++; and
          # later errors of a critic.
          'discount': 1.0,
          'gae_lambda': 1.0,
          'value_coef': 0.5,
          'entropy_coef': 0.0,
          'num_epochs': 1,  # passes over a step's rows
          'num_updates': 1,  # of the weights in a pass
          # Optimizer steps that sampling may be ahead of learning; 0 is on-policy.
          'max_staleness': 0,
          'sft_steps': 0,  # a supervised warm start before sampling begins
        }
      ),
      'optim': section(
        {
          # Full-length rows that a minibatch has room for; shorter ones are
          # packed. 'auto': as many as fit.
          'minibatch_size': config_dict.FieldReference(32, field_type=object),
          'name': 'adamw',
          'moments': 'float32',  # what the optimizer's state rests in
          'learning_rate': 1e-4,
          'grpo_learning_rate': 3e-5,  # the baseline takes many small steps
          'schedule': 'linear',
          'warmup_steps': 0,
          'weight_decay': 0.0,
          'max_grad_norm': 1.0,
          # What becomes of the run where a loss or gradient is not finite; the
          # weights stay as they were.
          'nonfinite': 'stop',
          'sft_learning_rate': 1e-3,
          'sft_batch_size': 32,
          'sft_warmup_steps': 20,
        }
      ),
      'eval': section(
        {
          'num_questions': 256,
          'every_samples': 5_120,
          'temperature': 0.0,
          'top_p': 1.0,
        }
      ),
      'checkpoint': section(
        {
          'every_samples': 5_120,
          'keep': 2,  # the newest
          'keep_every_samples': 0,  # and one of so many samples; 0 is none
          'keep_best': 0,  # and so many of the highest accuracies
        }
      ),
      'log': section(
        {
          'rollouts_every_samples': 2_560,
          'wandb': '',  # a project of Weights & Biases; '' is none
        }
      ),
    }
  )


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Row counts that follow from a config.

  Attributes:
    batch_size: rows sampled per optimizer step, B.
    num_questions: questions per optimizer step, Q.
    minibatch_size: full rows that a minibatch has room for, or 'auto'.
    rl_steps: steps of the RL phase.
    updates: changes of the weights in one of them.
    learning_rate: of the RL phase.
    filter_threshold: -1 keeps every row.
  """

  batch_size: int
  num_questions: int
  minibatch_size: int | str
  rl_steps: int
  updates: int
  learning_rate: float
  filter_threshold: float


def sizes(config: ml_collections.ConfigDict) -> Sizes:
  """Returns the sizes of the algorithm that `config` names.

  'dash' samples `algorithm.batch_size` rows, filters them, and learns
  from minibatches. 'grpo' is the paper's baseline: every optimizer step
  samples one question's group, and learns from all of it. Both sample
  `algorithm.num_samples` completions.
  """
  algorithm = config.algorithm
  if algorithm.name == 'grpo':
    batch_size = minibatch_size = algorithm.group_size
    learning_rate, threshold = config.optim.grpo_learning_rate, -1.0
  else:
    batch_size = algorithm.batch_size
    minibatch_size = config.optim.minibatch_size
    learning_rate = config.optim.learning_rate
    threshold = algorithm.filter_threshold
  steps = 0 if algorithm.name == 'sft' else algorithm.num_samples // batch_size
  return Sizes(
    batch_size=batch_size,
    num_questions=batch_size // algorithm.group_size,
    minibatch_size=minibatch_size,
    rl_steps=steps,
    updates=algorithm.num_epochs * algorithm.num_updates,
    learning_rate=learning_rate,
    filter_threshold=threshold,
  )
