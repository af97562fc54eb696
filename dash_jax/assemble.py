"""The parts of a run, built from its config.

  1. Questions are found; each process reads its share.
  2. The tokenizer is read, or trained on the training questions (tokenizing.py).
  3. Questions that cannot fit are errors or counted.
  4. `Parts` samples and scores with what was made.

Devices come from meshes.py, the model and its weights from weights.py. `train.py`,
`steps.py` and `evaluate.py` use it; nothing in data/, model/, sampling/ and learning/
sees a ConfigDict.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from absl import logging

from dash_jax import (
  batches,
  checks,
  judge,
  meshes,
  refusals,
  scoring,
  sharding,
  terms,
  tokenizing,
  weights,
)
from dash_jax import config as config_lib
from dash_jax.data import questions
from dash_jax.learning import optim
from dash_jax.model import llama
from dash_jax.rewards import workers
from dash_jax.runs import sizes, watch
from dash_jax.sampling import decoding, sampler


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a run is made of.

  Attributes:
    config: checked.
    workdir: where the run keeps its files.
    encoding: text to tokens and back.
    model: the architecture; weights are passed beside it.
    stop_ids: tokens that end a reply; the first is learned as EOS.
    find_end: of `tokenizing.make_find_end`, None without `data.stop_text`.
    train_questions, test_questions: those that fit, the same in every process.
    pool: what scores replies.
    sampling_mesh: of this process's devices that sample.
  """

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  encoding: tokenizing.Encoding
  model: llama.Llama
  stop_ids: tuple[int, ...]
  find_end: Callable[[np.ndarray, int], int] | None
  train_questions: batches.Questions
  test_questions: batches.Questions
  pool: workers.Pool
  sampling_mesh: jax.sharding.Mesh

  def sample_and_score(
    self,
    sampled_by: sampler.Sampler,
    prepared: dict,
    asked: list[batches.Question],
    key: jax.Array,
    how: decoding.Decoding,
    policy_step: int = 0,
    check: Callable[[], None] | None = None,
    on_scored: scoring.OnScored | None = None,
  ) -> Callable[[], scoring.Sampled]:
    """Samples replies to this process's questions, on the mesh in use, and scores
    those that have finished while the others go on.

    Args:
      sampled_by: the sampler.
      prepared: the weights, of its `prepare`.
      asked: Q questions.
      key: the noise.
      how: the distribution.
      policy_step: stamped on every row.
      check: is called whenever tokens were drawn, and while scores are awaited;
        it may raise.
      on_scored: is called with rows that have their scores.

    Returns:
      What waits for the last scores, and returns all.
    """
    start = time.perf_counter()
    prompts = self.encoding.encode(asked)
    answers = [q.answer for q in asked]
    scored = scoring.Scoring(
      self.pool,
      self.encoding.decode,
      answers,
      sampled_by.group_size,
      on_scored,
    )
    with contextlib.ExitStack() as on_error:
      on_error.enter_context(scored)
      for rows, made in sampled_by.stream(
        prepared, prompts, key, how, find_end=self.find_end
      ):
        watch.mark()
        if check:
          check()
        scored.add(rows, made)
      on_error.pop_all()
    sampled_s = time.perf_counter() - start

    def finish():
      waits_from = time.perf_counter()
      with scored:
        texts, scores = scored.finish(check)
      return scoring.Sampled(
        asked=asked,
        rows=made.as_rollouts(prompts, policy_step),
        texts=texts,
        scores=scores,
        began_at=start,
        sample_s=sampled_s,
        reward_s=time.perf_counter() - waits_from,
      )

    return finish

  def weigh(self, sampled: scoring.Sampled) -> scoring.Sampled:
    """Returns replies with the rewards that `reward` makes of its terms."""
    section = self.config.reward
    if terms.is_plain(section):
      return sampled
    start = time.perf_counter()
    rows, scores = sampled.rows, sampled.scores
    values = {'verifier': scores.rewards} | scores.others
    values['length'] = terms.measure_length(
      rows.lengths.reshape(-1), self.encoding.max_completion_len
    )
    if section.model:
      G = rows.lengths.shape[1]
      values['model'] = self.judge.score(
        [q.prompt for q in sampled.asked for _ in range(G)],
        sampled.texts,
        rows.truncated.reshape(-1).tolist(),
      )
    values = {name: values[name] for name in terms.list_weights(section)}
    return dataclasses.replace(
      sampled,
      terms=values,
      weighted=terms.combine(section, values),
      reward_s=sampled.reward_s + time.perf_counter() - start,
    )

  @property
  def samples_apart(self) -> bool:
    """Whether sampling has devices of its own."""
    return bool(self.config.mesh.sampler_devices)

  def on_sampler(self, begin: Callable[[], Callable]) -> Callable:
    """Runs a function on the mesh that samples, and then what it returns. Where
    its devices are shared, the function has ended when this returns; else a
    thread goes on with one after the other.

    What runs there needs no other process: threads of two processes may begin
    what they do in different orders.

    Returns:
      What waits for what the second function returns, and returns it.
    """

    def run(function):
      with jax.set_mesh(self.sampling_mesh):
        return function()

    def run_all():
      try:
        return begin()()
      finally:
        watch.mark('')

    if self.samples_apart:
      return self._sampling_thread.submit(run, run_all).result
    return functools.partial(run, run(begin))

  def end_sampling(self) -> None:
    """Waits for what `on_sampler` has begun, and forgets what it has not."""
    self._sampling_thread.shutdown(cancel_futures=True)

  @functools.cached_property
  def _sampling_thread(self):
    return concurrent.futures.ThreadPoolExecutor(1, 'sampling')

  @functools.cached_property
  def judge(self) -> judge.Judge | None:
    """The reward model, if `reward` names one; cached."""
    with jax.set_mesh(self.sampling_mesh):
      return judge.load(self.config) if self.config.reward.model else None

  @functools.cached_property
  def train_sampler(self) -> sampler.Sampler:
    """What training samples with, compiled; cached."""
    return self._make_sampler(
      num_prompts=config_lib.sizes(self.config).num_questions
      // jax.process_count(),
      group_size=self.config.algorithm.group_size,
    )

  @functools.cached_property
  def eval_sampler(self) -> sampler.Sampler:
    """What evaluation samples with, one reply a question, compiled; cached."""
    num = -(-len(self.test_questions) // jax.process_count())
    return self._make_sampler(num_prompts=num, group_size=1)

  def _make_sampler(self, *, num_prompts, group_size):
    known, name = None, f'sampling.batch_size, {num_prompts} x {group_size}'
    if is_auto := self.config.sampling.batch_size == config_lib.AUTO:
      known = self.sizes.recall(name)
    made = make_sampler(
      self.config,
      self.model,
      self.sampling_mesh,
      num_prompts=num_prompts,
      group_size=group_size,
      batch_size=known,
    )
    if is_auto:
      self.sizes.note(name, made.batch_size)
    return made

  @functools.cached_property
  def sizes(self) -> sizes.Found:
    """What 'auto' has found, of this process; cached."""
    section = self.config.mesh
    where = f'{sizes.describe_mesh()}, sampling: {section.sampler_devices}'
    # It may change, and other sizes fit with it.
    where += f', model.remat: {self.config.model.remat}'
    return sizes.Found(self.own_folder, where)

  @property
  def own_folder(self) -> pathlib.Path:
    """Where this process keeps what is its own: the workdir, if it is alone."""
    if jax.process_count() == 1:
      return self.workdir
    return self.workdir / f'host_{jax.process_index()}'


def build(config: ml_collections.ConfigDict, workdir: str) -> Parts:
  """Returns the parts of a checked config; weights come from weights.py.

  Makes the workdir, and keeps the tokenizer there if it is trained.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  folder = pathlib.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  watch.mark('finding the questions')
  train = _load_questions(config, 'train', config.data.num_train)
  test = _load_questions(config, 'test', config.eval.num_questions)
  tok = tokenizing.load_tokenizer(config, folder) or tokenizing.train_tokenizer(
    config, folder, train
  )
  encoding = tokenizing.make_encoding(config, tok)
  watch.mark('checking the questions')
  train, test = (
    _fit(config, encoding, split, asked)
    for split, asked in (('train', train), ('test', test))
  )
  checks.check_num_questions(config, len(train))
  return _join(config, folder, encoding, _make_model(config, tok), train, test)


def build_to_evaluate(
  config: ml_collections.ConfigDict, workdir: str, path: str
) -> Parts:
  """Returns the parts of a run with other test questions, those of a JSONL file,
  and no training questions; makes nothing.

  Args:
    config: checked.
    workdir: of the run.
    path: the file, with the fields `data.prompt_field` and `data.answer_field`.

  Raises:
    ValueError, FileNotFoundError: names the field or the file, and what would be
      valid.
  """
  encoding, model = build_encoding(config, workdir)
  test = questions.load_jsonl(
    path, config.data.prompt_field, config.data.answer_field
  )
  test = _fit(config, encoding, 'test', test)
  none = batches.hold([])
  return _join(config, pathlib.Path(workdir), encoding, model, none, test)


def _join(config, folder, encoding, model, train, test):
  tok = encoding.tokenizer
  return Parts(
    config=config,
    workdir=folder,
    encoding=encoding,
    model=model,
    stop_ids=tokenizing.find_stop_ids(tok, config.data.stop_text),
    find_end=tokenizing.make_find_end(tok, config.data.stop_text),
    train_questions=train,
    test_questions=test,
    pool=workers.Pool(
      config.reward.function,
      kwargs={'style': config.reward.style},
      num_workers=config.reward.num_workers,
      timeout_s=config.reward.timeout_s,
      others=terms.list_functions(config.reward),
    ),
    # Of this process: none waits for another one's rows.
    sampling_mesh=sharding.local_mesh(
      meshes.make_sampling_mesh(config, jax.sharding.get_mesh(), jax.devices())
    ),
  )


def build_encoding(
  config: ml_collections.ConfigDict, workdir: str
) -> tuple[tokenizing.Encoding, llama.Llama]:
  """Returns how prompts become tokens, and the model, of a run that may not have
  begun; makes nothing.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  tok = tokenizing.load_tokenizer(config, pathlib.Path(workdir))
  if tok is None:
    raise ValueError(
      f'data.tokenizer={config.data.tokenizer!r}: the run in {workdir} has not'
      ' begun, so it has trained none; train first'
    )
  return tokenizing.make_encoding(config, tok), _make_model(config, tok)


def _make_model(config, tok):
  model = weights.make_model(config)
  architecture = model.config
  if tok.vocab_size > architecture.vocab_size:
    raise ValueError(
      f'the tokenizer {config.data.tokenizer_path or tokenizing.TOKENIZER_NAME!r} has'
      f' {tok.vocab_size} ids, but the embedding of'
      f' {config.model.weights or config.model.preset!r} has'
      f" {architecture.vocab_size} rows: choose the model's own data.tokenizer"
    )
  checks.check_model_on_mesh(
    architecture, jax.sharding.get_mesh().shape['tensor']
  )
  return model


def make_optimizer(config, learning_rate, total_steps, warmup_steps):
  """Returns the optimizer of a phase; all have the same state."""
  return optim.make_optimizer(
    optim.OptimConfig(
      learning_rate=learning_rate,
      schedule=config.optim.schedule,
      warmup_steps=warmup_steps,
      total_steps=total_steps,
      weight_decay=config.optim.weight_decay,
      max_grad_norm=config.optim.max_grad_norm,
      name=config.optim.name,
      moments=config.optim.moments,
    )
  )


def _load_questions(config, split, num):
  data = config.data
  if data.source == 'jsonl' and data.path:
    refusals.check_file('data.path', data.path.replace('{split}', split))
  field = 'data.num_train' if split == 'train' else 'eval.num_questions'
  # The held-out questions are the same for every seed.
  try:
    return questions.load(
      data.source,
      split,
      num=num or None,
      seed=config.seed if split == 'train' else 0,
      path=data.path,
      data_dir=data.data_dir,
      prompt_field=data.prompt_field,
      answer_field=data.answer_field,
      # What is held out is judged by answers alone, and may have no others.
      solution_field=data.solution_field if split == 'train' else '',
    )
  except batches.WrongNumber as error:
    raise ValueError(f'{field}={num}: {error}') from error


def _fit(config, encoding, split, asked):
  """Returns the questions that fit their slots, under `data.too_long`; each
  process reads and checks its share of them. Those that SFT trains on have
  solutions, and fit with them."""
  with_solutions = split == 'train' and config.algorithm.sft_steps > 0
  of_process = slice(jax.process_index(), None, jax.process_count())
  own = asked[of_process]

  def check(question):
    if with_solutions and not question.solution:
      raise ValueError(
        f'algorithm.sft_steps={config.algorithm.sft_steps}, but some training'
        ' questions have no solution: set data.solution_field, or sft_steps=0'
      )
    return question

  # A file of them is read once.
  lengths = encoding.measure(map(check, own), with_solutions=with_solutions)
  most = encoding.max_prompt_len, encoding.max_completion_len
  if config.data.too_long == 'error':
    lengths.check(*most)
    return asked
  fits = np.zeros(len(asked), bool)
  fits[of_process] = lengths.fit(*most)
  kept = asked[sharding.gather_hosts(fits).any(axis=0)]
  num_dropped = len(asked) - len(kept)
  if num_dropped:
    logging.warning(
      'data.too_long=drop: left out %d of %d %s questions, with more than'
      ' data.max_prompt_len=%d or sampling.max_completion_len=%d tokens',
      num_dropped,
      len(asked),
      split,
      config.data.max_prompt_len,
      config.sampling.max_completion_len,
    )
  if not len(kept):
    raise ValueError(
      f'no {split} question fits data.max_prompt_len='
      f'{config.data.max_prompt_len} and sampling.max_completion_len='
      f'{config.sampling.max_completion_len}: raise them'
    )
  return kept


def make_decoding(
  config: ml_collections.ConfigDict, stop_ids: tuple[int, ...]
) -> decoding.Decoding:
  """Returns the distribution that training samples from."""
  return decoding.make_decoding(
    config.sampling.temperature,
    config.sampling.top_p,
    config.sampling.top_k,
    min_p=config.sampling.min_p,
    min_len=config.sampling.min_completion_len,
    stop_ids=stop_ids,
  )


def make_sampler(
  config: ml_collections.ConfigDict,
  model: llama.Llama,
  mesh: jax.sharding.Mesh,
  *,
  num_prompts: int,
  group_size: int,
  batch_size: int | None = None,
) -> sampler.Sampler:
  """Returns a compiled sampler as the config has it; a `sampling.batch_size` is
  rounded down to whole groups on each shard, at least one, which changes no token.

  Args:
    config: of a run.
    model: its weights rest on the mesh in use.
    mesh: of the devices that sample.
    num_prompts, group_size: as `Sampler`'s, of this process.
    batch_size: as `Sampler`'s; None is the config's.
  """
  params = weights.abstract_params(model)
  at_once = batch_size or config.sampling.batch_size
  if not batch_size and at_once != config_lib.AUTO:
    unit = group_size * sharding.num_batch_shards(mesh)
    at_once = max(at_once // jax.process_count() // unit, 1) * unit
  with jax.set_mesh(mesh):
    return sampler.Sampler(
      model,
      params,
      num_prompts=num_prompts,
      group_size=group_size,
      max_prompt_len=config.data.max_prompt_len,
      max_completion_len=config.sampling.max_completion_len,
      batch_size=at_once,
      quantize_cache=config.sampling.quantize_cache,
      quantize_weights=config.sampling.quantize_weights,
      attention=config.sampling.attention,
      # A sampler that is slow has a set of weights for each step that is asked
      # for; where devices are shared, each is sampled with at once.
      num_waiting=config.algorithm.max_staleness
      if config.mesh.sampler_devices
      else 0,
    )
