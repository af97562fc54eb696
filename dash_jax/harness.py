"""Tasks of lm-evaluation-harness, with replies of the project's own sampler.

    pip install -e '.[harness]'
    python -m dash_jax.harness --config=experiments/X.py --workdir=DIR \\
        --tasks=gsm8k,my_task [--include_path=FOLDER] [--num_fewshot=N] \\
        [--limit=N] [--step=N]

  1. The newest checkpoint's weights (or those of `--step`; without a checkpoint,
     those that the run starts from) become a model of the harness.
  2. The harness makes its tasks' requests. Each context goes into
     `data.template`: with '{question}' it is what the harness wrote, few shots
     included; with the run's own template it is asked as in training.
  3. Completions have room for `sampling.max_completion_len` tokens, contexts for
     `data.max_prompt_len`.
  4. The harness scores, and its table is printed.

A task whose YAML file, in `--include_path`, names files of this machine needs no
network.
"""

import jax
from absl import flags

from dash_jax import assemble, commands, evaluate, meshes, weights
from dash_jax.evaluating import texts

try:
  from lm_eval import evaluator, tasks, utils
  from lm_eval.api import model as harness_model
except ModuleNotFoundError as error:
  if __name__ != '__main__':
    raise
  commands.refuse(f"{error}: pip install -e '.[harness]'")


class HarnessModel(harness_model.LM):
  """A policy as the harness calls it; requests are its Instances."""

  def __init__(self, policy: texts.Policy):
    super().__init__()
    self._policy = policy

  def generate_until(self, requests, disable_tqdm=False) -> list[str]:
    """Returns a completion of each context."""
    del disable_tqdm
    return self._policy.complete(
      [self._make_prompt(*request.args) for request in requests]
    )

  def _make_prompt(self, context, options):
    most = self._policy.encoding.max_completion_len
    asked = options.get('max_gen_toks')
    stops = options.get('until') or ()
    temperature = float(options.get('temperature', 0.0))
    # Greedy is what the harness means where a task says nothing else.
    if not options.get('do_sample', temperature > 0):
      temperature = 0.0
    return texts.Prompt(
      context,
      stops=(stops,) if isinstance(stops, str) else tuple(stops),
      max_tokens=most if asked is None else min(int(asked), most),
      temperature=temperature,
      top_p=float(options.get('top_p', 1.0)),
    )

  def loglikelihood(self, requests, disable_tqdm=False):
    """Returns (log-probability, whether it is the likeliest) of continuations."""
    del disable_tqdm
    return self._policy.measure([request.args for request in requests])

  def loglikelihood_rolling(self, requests, disable_tqdm=False) -> list[float]:
    """Returns the log-probability of whole texts."""
    del disable_tqdm
    pairs = [('', request.args[0]) for request in requests]
    return [found for found, _ in self._policy.measure(pairs, plain=True)]


def main(config, workdir):
  given = flags.FLAGS
  if config.mesh.multi_host:
    raise ValueError(
      'mesh.multi_host=True: the harness runs in one process; set it to False'
    )
  with jax.set_mesh(meshes.connect(config)):
    encoding, model = assemble.build_encoding(config, workdir)
    params, step = weights.load_step(config, model, workdir, given.step)
    found = evaluator.simple_evaluate(
      model=HarnessModel(texts.Policy(config, encoding, model, params)),
      tasks=given.tasks,
      task_manager=tasks.TaskManager(include_path=given.include_path),
      num_fewshot=given.num_fewshot,
      limit=given.limit,
      random_seed=config.seed,
    )
  print(f'step {step}:')
  print(utils.make_table(found))


def _define_flags():
  flags.DEFINE_list('tasks', None, 'Names of tasks.', required=True)
  flags.DEFINE_string('include_path', None, 'A folder with tasks of your own.')
  flags.DEFINE_integer(
    'num_fewshot', None, 'Examples in front of each question.', lower_bound=0
  )
  flags.DEFINE_integer('limit', None, 'The first so many.', lower_bound=1)
  evaluate.define_step()


if __name__ == '__main__':
  _define_flags()
  commands.run(main)
