"""The suites: which runs, on which model and task, and what each costs.

`make_grid` is the study's grid, the same for every `Task`. Every run goes on
from the seed's supervised start, which is made once, and changes the fields that
are named with it; `dash` changes none but how often it is evaluated. Seconds are
medians of three seeds, of 2026-11-30 on two CPU cores (jobs that are not timed on
one, beside another), divided by 2.8: as much slower was that machine than the one
of 2026-11-25, by the jobs that both have timed. run.py goes by what jobs have
really taken.
"""

import dataclasses
import importlib
import math
from collections.abc import Callable

from experiments.study import algorithms, comparisons, jobs

_NUM_REPLIES = 4  # to a question, of traces
_NEVER = 10**9


@dataclasses.dataclass(frozen=True)
class Task:
  """What the grid is laid over.

  Attributes:
    name: of the part.
    config: its file.
    num_samples: replies of a run.
    fields: that every run changes.
    one_question: that runs of one question a step change.
    num_evals: of runs whose time to an accuracy is read off.
    finer: how many times as many runs of one question a step have, each of whose
      steps is a fraction of the others'.
    sft_share: of a supervised run on as many rows as `dash` samples, the share
      that takes as long as `dash`.
    note: of the part.
    seconds: of each job by name, and of others by ''; {} where nobody knows.
  """

  name: str
  config: str
  num_samples: int
  fields: dict = dataclasses.field(default_factory=dict)
  one_question: dict = dataclasses.field(default_factory=dict)
  num_evals: int = 10
  finer: int = 1
  sft_share: float = 0.3
  note: str = ''
  seconds: dict = dataclasses.field(default_factory=dict)

  @property
  def settings(self):
    """Its config, with what every run changes."""
    name = self.config.removesuffix('.py').replace('/', '.')
    config = importlib.import_module(name).get_config()
    config.algorithm.num_samples = self.num_samples
    config.update_from_flattened_dict(jobs.name_fields(self.fields))
    return config


class _Grid:
  """Makes jobs of a task, one after another."""

  def __init__(self, task):
    self.task, self.config = task, task.settings
    self.jobs = []
    algorithm = self.config.algorithm
    self.num_samples = algorithm.num_samples
    self.often = {'eval.every_samples': self.num_samples // task.num_evals}
    self.common = {
      'num_samples': self.num_samples,
      # Nothing is shown but curves: a checkpoint to go on from is enough.
      'checkpoint.keep': 1,
      'eval.every_samples': self.num_samples // 2,
      'log.rollouts_every_samples': self.num_samples // 2,
    } | task.fields
    self.start = {'name': 'sft', 'checkpoint.every_samples': _NEVER}
    self.needs = ()
    if algorithm.sft_steps:
      self._make_start()

  def _make_start(self):
    start = '{folder}/start'
    sft_rows = (
      self.config.algorithm.sft_steps * self.config.optim.sft_batch_size
    )
    self.add('start', self.start, replies=sft_rows)
    self.add_other(
      'exported', 'dash_jax.export', (f'--workdir={start}',), needs=('start',)
    )
    # Not in place: what is above shares what it was.
    self.common = self.common | {
      'sft_steps': 0,
      'model.weights': 'hf:{folder}/exported',
    }
    if self.config.data.tokenizer == 'trained':
      self.common |= {
        'data.tokenizer': 'sentencepiece',
        'data.tokenizer_path': f'{start}/tokenizer.model',
      }
    self.needs = ('start', 'exported')

  def add(self, name, fields, questions=(), **rest):
    """Adds a run that changes these fields."""
    rest = {
      'needs': self.needs,
      'replies': fields.get('num_samples', self.num_samples),
      'seconds': self._find_seconds(name),
    } | rest
    self.jobs.append(
      jobs.Job(
        name,
        config=self.task.config,
        fields=fields,
        shared=self.common,
        questions=tuple(questions),
        **rest,
      )
    )

  def add_other(self, name, module, flags, needs, shared=None, questions=()):
    """Adds a command that is no run, with a config if it shares fields."""
    self.jobs.append(
      jobs.Job(
        name,
        module,
        config='' if shared is None else self.task.config,
        shared=shared or {},
        flags=flags,
        needs=needs,
        questions=tuple(questions),
        seconds=self._find_seconds(name),
      )
    )

  def add_traces(self, name, of, shared, questions):
    """Adds the replies of a run that is finished.

    Args:
      name: of the job.
      of: of the run.
      shared: fields that it changed.
      questions: that it is for.
    """
    asked = self.num_samples // _NUM_REPLIES
    self.add_other(
      name,
      'dash_jax.traces',
      (
        f'--workdir={{folder}}/{of}',
        f'--replies={_NUM_REPLIES}',
        f'--questions={asked}',
      ),
      needs=tuple(dict.fromkeys((*self.needs, of))),
      shared=shared,
      questions=questions,
    )

  def add_reward_model(self, questions):
    """Adds a reward model, of pairs that the start has sampled."""
    # As it was made: the supervised phase is behind its checkpoint.
    shared = {
      name: value
      for name, value in self.common.items()
      if name not in ('sft_steps', 'model.weights')
      and not name.startswith('data.tokenizer')
    } | self.start
    self.add_traces('pairs', 'start', shared, questions)
    self.add_other(
      'reward_model',
      'dash_jax.reward_model',
      (
        '--workdir={folder}/start',
        '--pairs={folder}/pairs/pairs.jsonl',
        '--epochs=4',
      ),
      needs=(*self.needs, 'pairs'),
      # It begins with weights that know much, and has few pairs.
      shared=shared
      | {'optim.sft_learning_rate': 0.3 * self.config.optim.sft_learning_rate},
      questions=questions,
    )

  def _find_seconds(self, name):
    seconds = self.task.seconds
    return seconds.get(name, seconds.get(''))


def _make_grid(task):
  """Returns a grid of the paper's schedule: its rate falls from the first step. A
  warm-up of so many steps would take another share of each run's replies."""
  grid = _Grid(task)
  grid.common = grid.common | {'optim.warmup_steps': 0}
  return grid


def make_grid(task: Task) -> jobs.Part:
  """Returns every run of the study on a task."""
  grid = _make_grid(task)
  _add_baselines(grid)
  _add_filtered_grpo(grid)
  _add_sizes(grid)
  _add_variants(grid)
  _add_imitation(grid)
  _add_filters(grid)
  _add_rewards(grid)
  _add_parts(grid)
  return _make_part(grid)


def make_baselines(task: Task) -> jobs.Part:
  """Returns the runs that compare DASH with GRPO, and no more."""
  grid = _make_grid(task)
  _add_baselines(grid)
  return _make_part(grid)


def _make_part(grid):
  """Returns its jobs; those whose seconds claims are about are timed."""
  found = (
    dataclasses.replace(job, is_timed=job.name in comparisons.TIMED)
    for job in grid.jobs
  )
  return jobs.Part(grid.task.name, tuple(found), grid.task.note)


def _add_baselines(grid):
  """Adds DASH and GRPO, of a question a step and of the same batch."""
  often = grid.often
  grid.add('dash', often, (1, 3, 4, 5, 6, 7, 9))
  grid.add('unfiltered', often | {'filter': 'none'}, (1, 6, 9))
  grid.add('grpo', _make_one_question(grid) | {'name': 'grpo'}, (1,))


def _make_one_question(grid):
  often = {
    'eval.every_samples': grid.often['eval.every_samples'] // grid.task.finer
  }
  return often | grid.task.one_question


def _add_filtered_grpo(grid):
  algorithm, optim = grid.config.algorithm, grid.config.optim
  fields = {
    'batch_size': algorithm.group_size,
    'optim.minibatch_size': algorithm.group_size,
    'optim.learning_rate': optim.grpo_learning_rate,
  }
  grid.add('grpo_filtered', _make_one_question(grid) | fields, (1,))


def _add_sizes(grid):
  grid.add_other(
    'sizes', 'experiments.study.sizes', (), grid.needs, grid.common, (2,)
  )


def _add_imitation(grid):
  grid.add_traces('traces', 'long_kl_0', grid.common | _make_long(grid), (3,))
  steps = grid.num_samples // grid.config.optim.sft_batch_size
  for suffix, share in (('', 1.0), ('_short', grid.task.sft_share)):
    num = max(round(share * steps), 1)
    fields = {'name': 'sft', 'sft_steps': num}
    fields['optim.sft_warmup_steps'] = min(
      grid.config.optim.sft_warmup_steps, num // 4
    )
    rows = num * grid.config.optim.sft_batch_size
    grid.add(f'sft_data{suffix}', fields, (3,), replies=rows)
    grid.add(
      f'sft_traces{suffix}', fields | algorithms.OF_TRACES, (3,),
      needs=(*grid.needs, 'traces'), replies=rows,
    )  # fmt: skip
  grid.add(
    'rejection',
    grid.often | {'loss': 'supervised', 'normalizer': 'token'},
    (3,),
  )


def _add_variants(grid):
  """PPO, KL and staleness."""
  grid.add('ppo_multi', grid.often | {'num_epochs': 3}, (4,))
  num_questions = grid.config.algorithm.batch_size
  num_questions //= grid.config.algorithm.group_size
  num_updates = math.gcd(32, num_questions)
  grid.add('ppo_mini', grid.often | {'num_updates': num_updates}, (4,))
  for name, fields in {
    'kl_0.04': {'kl_coef': 0.04},
    'kl_0.1': {'kl_coef': 0.1},
    'kl_0.1_linear': {'kl_coef': 0.1, 'kl_schedule': 'linear'},
  }.items():
    grid.add(name, fields, (5,))
  for name, kl_coef in {'long_kl_0': 0.0, 'long_kl_0.04': 0.04}.items():
    grid.add(name, _make_long(grid) | {'kl_coef': kl_coef}, (5,))
  for steps in comparisons.STALENESS:
    # As old as they may be, rows are corrected alike.
    fields = {'max_staleness': steps, 'importance_cap': 2.0}
    grid.add(f'stale_{steps}', fields, (8,))


def _make_long(grid):
  return {
    'num_samples': 5 * grid.num_samples,
    'eval.every_samples': grid.num_samples,
  }


def _add_filters(grid):
  """Not whole groups: where rewards are 0 and 1, they are the threshold 0."""
  batch_size, G = (
    grid.config.algorithm.batch_size,
    grid.config.algorithm.group_size,
  )
  rules = {
    name: {'filter_threshold': threshold} if threshold else {}
    for name, threshold in comparisons.THRESHOLDS.items()
    # As large as the advantage of one right reply alone, but for an epsilon.
    if threshold < (G - 1) / math.sqrt(G) - 1e-3
  } | {
    'filter_largest': {'filter': 'largest', 'filter_rows': batch_size // 4},
    'filter_pods': {'filter': 'max_variance', 'filter_rows': batch_size // 2},
  }
  num = comparisons.SHORT_STEPS * batch_size
  short = {
    'num_samples': num,
    'eval.num_questions': 16,
    'eval.every_samples': num,
    'report_cosine': True,
  }
  for name, fields in rules.items():
    if name != 'dash':
      grid.add(name, fields, (6,))
    grid.add(f'cosine_{name}', short | fields, (6,), is_short=True)


def _add_rewards(grid):
  grid.add_reward_model((7,))
  grid.add('reward_format', {'reward.format_weight': 0.1}, (7,))
  grid.add('reward_length', {'reward.length_weight': 0.1}, (7,))
  for name, fields in {
    'with_reward_model': {},
    'reward_model_alone': {'reward.weight': 0.0, 'reward.model_weight': 1.0},
  }.items():
    grid.add(
      name, algorithms.WITH_MODEL | fields, (7,),
      needs=(*grid.needs, 'reward_model'),
    )  # fmt: skip
  for size in comparisons.GROUP_SIZES:
    if size != grid.config.algorithm.group_size:
      grid.add(f'group_{size}', {'group_size': size}, (7,))


def _add_parts(grid):
  for part in comparisons.PARTS:
    if part != 'filtering':
      grid.add(
        f'without_{part}', {}, (9,), module=jobs.WITHOUT,
        flags=(f'--part={part}',),
      )  # fmt: skip


def make_algorithms(task: Task) -> jobs.Part:
  """Returns a run of each of algorithms.ALGORITHMS."""
  grid = _Grid(task)
  grid.common |= {'eval.every_samples': grid.num_samples}
  grid.add_reward_model(())
  for title, fields in algorithms.ALGORITHMS.items():
    needs = ('traces',) * ('{folder}/traces' in str(fields))
    needs += ('reward_model',) * ('{folder}/reward_model' in str(fields))
    grid.add(algorithms.name(title), fields, needs=(*grid.needs, *needs))
    if title == 'DASH':
      grid.add_traces('traces', 'dash', grid.common, ())
  return jobs.Part(task.name, tuple(grid.jobs))


_QUICKSTART = Task(
  'quickstart',
  'experiments/quickstart.py',
  num_samples=5_120,
  fields={
    'eval.num_questions': 512,
    'checkpoint.every_samples': _NEVER,
    # With the quickstart's rate, three times this, two steps reach the end, and
    # all runs are alike behind them.
    'optim.learning_rate': 3e-5,
    'optim.grpo_learning_rate': 1e-5,
  },
  num_evals=20,  # one a step of `dash`
  finer=4,
  note='half of the worked solutions skip the work and state the answer alone;'
  ' rates are a third of experiments/quickstart.py',
  seconds={
    '': 31,
    'start': 158,
    'exported': 1,
    'dash': 47,
    'unfiltered': 52,
    'grpo': 125,
    'grpo_filtered': 120,
    'sizes': 34,
    'traces': 11,
    'sft_data': 52,
    'sft_traces': 59,
    'sft_data_short': 21,
    'sft_traces_short': 21,
    'rejection': 50,
    'ppo_multi': 69,
    'ppo_mini': 53,
    'long_kl_0': 114,
    'long_kl_0.04': 133,
    'pairs': 9,
    'reward_model': 68,
    'with_reward_model': 40,
    'reward_model_alone': 41,
    'without_packing': 34,
    'without_sharing': 41,
    'without_sampled_sharing': 30,
    'without_stopping': 28,
  }
  | dict.fromkeys(('kl_0.04', 'kl_0.1', 'kl_0.1_linear'), 40)
  | dict.fromkeys((f'stale_{steps}' for steps in comparisons.STALENESS), 34)
  | dict.fromkeys((f'cosine_{name}' for name in comparisons.FILTERS), 11)
  | dict.fromkeys((n for n in comparisons.FILTERS if n != 'dash'), 22),
)
_ADDITION = Task(
  'smollm2_addition',
  'experiments/smollm2_addition.py',
  num_samples=2_048,
  fields={'checkpoint.every_samples': _NEVER},
  num_evals=8,  # one a step of `dash`
  seconds={'dash': 164, 'unfiltered': 182, 'grpo': 227},
)
_LLAMA3_8B = Task(
  'llama3_8b_gsm8k',
  'experiments/llama3_8b_gsm8k.py',
  num_samples=15_360,
  # One question is not split over devices, but the model is.
  one_question={'mesh.fsdp': 1, 'mesh.tensor': -1},
)


@dataclasses.dataclass(frozen=True)
class Suite:
  """What one command runs.

  Attributes:
    title: of its page.
    make_parts: returns its parts.
    at_once: jobs at work, of those that are not timed.
  """

  title: str
  make_parts: Callable[[], tuple[jobs.Part, ...]]
  at_once: int = 1


SUITES = {
  'cpu': Suite(
    'quickstart, and SmolLM2-135M on addition: two CPU cores',
    lambda: (make_grid(_QUICKSTART), make_baselines(_ADDITION)),
    at_once=2,
  ),
  'smollm2': Suite(
    'SmolLM2-135M on GSM8K: one GPU',
    lambda: (
      make_grid(
        Task(
          'smollm2_gsm8k', 'experiments/smollm2_gsm8k.py', num_samples=32_768
        )
      ),
    ),
  ),
  'qwen2_5_1_5b': Suite(
    "Qwen2.5 1.5B, the paper's family, on GSM8K: one GPU of 80 GB",
    lambda: (
      make_grid(
        Task(
          'qwen2_5_1_5b_gsm8k',
          'experiments/qwen2_5_1_5b_gsm8k.py',
          num_samples=15_360,
        )
      ),
    ),
  ),
  'llama3_8b': Suite(
    'Llama-3 8B on GSM8K: 8 GPUs of 80 GB, or 4 chips of a TPU v5p',
    lambda: (make_grid(_LLAMA3_8B),),
  ),
  'algorithms': Suite(
    'every algorithm on the quickstart, from one start: two CPU cores',
    lambda: (
      make_algorithms(
        dataclasses.replace(
          _QUICKSTART, num_samples=algorithms.NUM_SAMPLES, fields={}, seconds={}
        )
      ),
    ),
  ),
}
