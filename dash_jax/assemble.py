"""The parts of a run, built from its config.

  1. Processes join (if the launcher says so) and devices form a mesh.
  2. Questions are found; each process reads its share.
  3. The tokenizer is read, or trained on the training questions.
  4. Questions that cannot fit are errors or counted.

The model and its weights come from weights.py.
`train.py`, `steps.py` and `evaluate.py` use it; nothing below sees a ConfigDict.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable

import jax
import ml_collections
import numpy as np
from absl import logging

from dash_jax import batches, checks, judge, scoring, sharding, terms, weights
from dash_jax import config as config_lib
from dash_jax.data import chat, pieces, prompts, questions, tokenizer
from dash_jax.learning import optim
from dash_jax.model import gguf, hub, llama
from dash_jax.rewards import workers
from dash_jax.runs import checkpoint, sizes, watch
from dash_jax.sampling import decoding, sampler

TOKENIZER_NAME = 'tokenizer.model'


@dataclasses.dataclass(frozen=True)
class Encoding:
  """How questions become prompt tokens; see data/prompts.py."""

  tokenizer: tokenizer.Tokenizer
  template: str
  system: str
  max_prompt_len: int
  max_completion_len: int

  def _options(self):
    return {
      'template': self.template,
      'system': self.system,
      'max_prompt_len': self.max_prompt_len,
    }

  def encode(self, asked: list[batches.Question]) -> batches.PromptBatch:
    return prompts.encode(asked, self.tokenizer, **self._options())

  def encode_solutions(self, asked: list[batches.Question]) -> batches.Rollouts:
    return prompts.encode_solutions(
      asked,
      self.tokenizer,
      **self._options(),
      max_completion_len=self.max_completion_len,
    )

  def drop_too_long(
    self, asked: list[batches.Question], *, with_solutions: bool
  ) -> tuple[list[batches.Question], int]:
    return prompts.drop_too_long(
      asked,
      self.tokenizer,
      **self._options(),
      max_completion_len=self.max_completion_len if with_solutions else None,
    )

  def decode(self, tokens: np.ndarray) -> str:
    """Returns a completion as text, special tokens left out."""
    return self.tokenizer.decode(tokens.tolist())


@dataclasses.dataclass(frozen=True)
class Sampled:
  """Replies to questions, on the host.

  Attributes:
    asked: Q questions.
    rows: with `tokens` and the rest, of these.
    texts: B texts.
    scores: of the B rows.
    began_at: time.perf_counter() when sampling began.
    sample_s: seconds until the last reply was there.
    reward_s: seconds that were waited for the last score.
    terms: f32[B] by name, what the rewards are made of; {} if it is the scores
      alone.
    weighted: f32[B], the weighted sum of the terms, if there are such.
    replaced_rows, replaced_tokens: of groups that others took the place of.
  """

  asked: list[batches.Question]
  rows: batches.Rollouts
  texts: list[str]
  scores: workers.Scores
  began_at: float
  sample_s: float
  reward_s: float
  terms: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  weighted: np.ndarray | None = None
  replaced_rows: int = 0
  replaced_tokens: int = 0

  @property
  def rewards(self) -> np.ndarray:
    """f32[Q, G], what advantages are taken of."""
    rewards = self.scores.rewards if self.weighted is None else self.weighted
    return rewards.reshape(self.rows.lengths.shape)

  def find_mixed(self) -> np.ndarray:
    """Returns bool[Q], the groups whose rewards do not all agree."""
    rewards = self.rewards
    return (rewards != rewards[:, :1]).any(axis=1)

  def join(self, other: 'Sampled') -> 'Sampled':
    """Returns as many groups as there are here: those of both whose rewards do
    not agree, and of the others as many as are missing."""
    num, G = self.rows.lengths.shape
    mixed = np.concatenate([self.find_mixed(), other.find_mixed()])
    chosen = np.sort(np.argsort(~mixed, kind='stable')[:num])
    asked = [*self.asked, *other.asked]
    texts = [*self.texts, *other.texts]

    rows = jax.tree.map(
      lambda a, b: np.concatenate([a, b])[chosen], self.rows, other.rows
    )
    num_tokens = self.rows.lengths.sum() + other.rows.lengths.sum()

    def choose(a, b):
      return np.concatenate([a, b]).reshape(-1, G)[chosen].reshape(-1)

    return Sampled(
      asked=[asked[q] for q in chosen],
      rows=rows,
      texts=[texts[q * G + g] for q in chosen for g in range(G)],
      scores=workers.Scores(
        rewards=choose(self.scores.rewards, other.scores.rewards),
        timeouts=self.scores.timeouts + other.scores.timeouts,
        errors=self.scores.errors + other.scores.errors,
      ),
      began_at=self.began_at,
      sample_s=self.sample_s + other.sample_s,
      reward_s=self.reward_s + other.reward_s,
      terms=jax.tree.map(choose, self.terms, other.terms),
      weighted=jax.tree.map(choose, self.weighted, other.weighted),
      replaced_rows=self.replaced_rows + other.rows.lengths.size,
      replaced_tokens=self.replaced_tokens
      + int(num_tokens - rows.lengths.sum()),
    )


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a run is made of."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  encoding: Encoding
  model: llama.Llama
  stop_ids: tuple[int, ...]
  find_end: Callable[[np.ndarray], int] | None
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
    num_scored: int | None = None,
    check: Callable[[], None] | None = None,
    on_scored: scoring.OnScored | None = None,
  ) -> Callable[[], Sampled]:
    """Samples replies to this process's questions, on the mesh in use, and scores
    those that have finished while the others go on.

    Args:
      sampled_by: the sampler.
      prepared: the weights, of its `prepare`.
      asked: Q questions.
      key: the noise.
      how: the distribution.
      policy_step: stamped on every row.
      num_scored: score only the replies to so many of the questions.
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
        if num_scored is not None:
          rows = rows[rows < num_scored * sampled_by.group_size]
        scored.add(rows, made)
      on_error.pop_all()
    sampled_s = time.perf_counter() - start

    def finish():
      waits_from = time.perf_counter()
      with scored:
        texts, scores = scored.finish(check)
      return Sampled(
        asked=asked,
        rows=made.as_rollouts(prompts, policy_step),
        texts=texts,
        scores=scores,
        began_at=start,
        sample_s=sampled_s,
        reward_s=time.perf_counter() - waits_from,
      )

    return finish

  def weigh(self, sampled: Sampled) -> Sampled:
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
  def sizes(self) -> sizes.Sizes:
    """What 'auto' has found, of this process; cached."""
    section = self.config.mesh
    where = f'{sizes.describe_mesh()}, sampling: {section.sampler_devices}'
    # It may change, and other sizes fit with it.
    where += f', model.remat: {self.config.model.remat}'
    return sizes.Sizes(self.own_folder, where)

  @property
  def own_folder(self) -> pathlib.Path:
    """Where this process keeps what is its own: the workdir, if it is alone."""
    if jax.process_count() == 1:
      return self.workdir
    return self.workdir / f'host_{jax.process_index()}'


def connect(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
  """Joins the job's processes if `mesh.multi_host`, and returns the mesh of the
  devices that learn.

  On TPU pods, Slurm and similar launchers jax finds the others by itself;
  elsewhere COORDINATOR_ADDRESS, NUM_PROCESSES and PROCESS_ID name them.
  """
  if config.mesh.multi_host and not jax.distributed.is_initialized():
    named = _named_processes()
    try:
      jax.distributed.initialize(
        **named,
        # watch.py ends the run first, and says why.
        heartbeat_timeout_seconds=int(3 * config.mesh.silent_s) + 60,
      )
    except ValueError as error:
      raise ValueError(
        f'mesh.multi_host=True: {error} No launcher that jax knows says which'
        ' processes there are: set COORDINATOR_ADDRESS, NUM_PROCESSES and'
        ' PROCESS_ID, or mesh.multi_host=False'
      ) from error
  try:
    devices = jax.devices()
  except RuntimeError as error:
    raise ValueError(
      f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r}: jax finds no'
      f' devices: {error}'
    ) from error
  mesh, _ = make_meshes(config, devices)
  return mesh


def make_meshes(
  config: ml_collections.ConfigDict, devices: list
) -> tuple[jax.sharding.Mesh, jax.sharding.Mesh]:
  """Returns the meshes of the devices that learn and that sample, the same if all
  do both.

  Args:
    config: of a run.
    devices: of all processes.

  Raises:
    ValueError: they do not fit, or rows do not divide over them; names the field.
  """
  section = config.mesh
  learn, _ = sharding.split_devices(section.sampler_devices, devices)
  mesh = sharding.make_mesh(section.data, section.fsdp, section.tensor, learn)
  sampling_mesh = _make_sampling_mesh(config, mesh, devices)
  checks.check_mesh(
    config,
    sharding.num_batch_shards(mesh),
    sharding.num_batch_shards(sampling_mesh),
    len({device.process_index for device in devices}),
  )
  return mesh, sampling_mesh


def _make_sampling_mesh(config, mesh, devices):
  num, tensor = config.mesh.sampler_devices, mesh.shape['tensor']
  if not num:
    return mesh
  if num % tensor:
    raise ValueError(
      f'mesh.sampler_devices={num}: must be a multiple of mesh.tensor={tensor},'
      ' over which both sides split the model'
    )
  _, sample = sharding.split_devices(num, devices)
  return sharding.make_mesh(1, -1, tensor, sample)


def _named_processes():
  """Returns what the environment says of the job's processes, if anything."""
  address = os.environ.get('COORDINATOR_ADDRESS')
  if not address:
    return {}
  if not re.fullmatch(r'\S+:\d{1,5}', address):
    raise ValueError(
      f'COORDINATOR_ADDRESS={address!r}: must be a host and a port, as'
      ' localhost:1234'
    )
  numbers = {}
  for argument in ('num_processes', 'process_id'):
    text = os.environ.get(argument.upper(), '')
    if not text.isdecimal():
      raise ValueError(
        f'{argument.upper()}={text!r} beside COORDINATOR_ADDRESS={address!r}:'
        ' must be a number'
      )
    numbers[argument] = int(text)
  if numbers['process_id'] >= numbers['num_processes']:
    raise ValueError(
      f'PROCESS_ID={numbers["process_id"]}: must be from 0 to'
      f' NUM_PROCESSES={numbers["num_processes"]} less 1'
    )
  return {'coordinator_address': address} | numbers


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
  tok = load_tokenizer(config, folder) or _train_tokenizer(
    config, folder, train
  )
  encoding = _make_encoding(config, tok)
  watch.mark('checking the questions')
  train, test = (
    _fit(config, encoding, split, asked)
    for split, asked in (('train', train), ('test', test))
  )
  checks.check_num_questions(config, len(train))
  return _join(config, folder, encoding, _make_model(config, tok), train, test)


def build_to_judge(
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
    stop_ids=find_stop_ids(tok, config.data.stop_text),
    find_end=make_find_end(tok, config.data.stop_text),
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
      _make_sampling_mesh(config, jax.sharding.get_mesh(), jax.devices())
    ),
  )


def build_encoding(
  config: ml_collections.ConfigDict, workdir: str
) -> tuple[Encoding, llama.Llama]:
  """Returns how prompts become tokens, and the model, of a run that may not have
  begun; makes nothing.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  tok = load_tokenizer(config, pathlib.Path(workdir))
  if tok is None:
    raise ValueError(
      f'data.tokenizer={config.data.tokenizer!r}: the run in {workdir} has not'
      ' begun, so it has trained none; train first'
    )
  return _make_encoding(config, tok), _make_model(config, tok)


def _make_encoding(config, tok):
  return Encoding(
    tokenizer=tok,
    template=config.data.template,
    system=config.data.system,
    max_prompt_len=config.data.max_prompt_len,
    max_completion_len=config.sampling.max_completion_len,
  )


def _make_model(config, tok):
  model = weights.make_model(config)
  architecture = model.config
  if tok.vocab_size > architecture.vocab_size:
    raise ValueError(
      f'the tokenizer {config.data.tokenizer_path or TOKENIZER_NAME!r} has'
      f' {tok.vocab_size} ids, but the embedding of'
      f' {config.model.weights or config.model.preset!r} has'
      f" {architecture.vocab_size} rows: choose the model's own data.tokenizer"
    )
  checks.check_model_on_mesh(
    architecture, jax.sharding.get_mesh().shape['tensor']
  )
  return model


def load_tokenizer(
  config: ml_collections.ConfigDict, folder: pathlib.Path
) -> tokenizer.Tokenizer | None:
  """Returns the tokenizer that the config names or the run has trained; None
  if it is yet to be trained."""
  if config.data.tokenizer != 'trained':
    tok = tokenizer.load(config.data.tokenizer, find_tokenizer(config))
    if config.data.template == chat.CHAT:
      chat.complete(tok, config.model.preset)
    return tok
  path = folder / TOKENIZER_NAME
  # One that a refused start left behind may be of other texts. Nobody looks for
  # one that process 0 is yet to train: NFS remembers for a while what is not there.
  if checkpoint.has_begun(folder) and path.exists():
    return tokenizer.load('sentencepiece', str(path))
  return None


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


def find_tokenizer(config: ml_collections.ConfigDict) -> str:
  """Returns the file or folder of a tokenizer that is not trained."""
  path = gguf.resolve(hub.find(config.data.tokenizer_path))
  checks.check_file('data.tokenizer_path', path)
  return path


def _load_questions(config, split, num):
  data = config.data
  if data.source == 'jsonl' and data.path:
    checks.check_file('data.path', data.path.replace('{split}', split))
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


def _train_tokenizer(config, folder, train):
  """Trains it in process 0, which alone reads all questions, for all."""
  watch.mark('training the tokenizer')
  path = folder / TOKENIZER_NAME
  if jax.process_index() == 0:
    _write_tokenizer(config, path, train)
  sharding.wait_for_all()
  return tokenizer.load('sentencepiece', str(path))


def _write_tokenizer(config, path, train):
  vocab_size = weights.model_config(config).vocab_size
  texts = [
    config.data.template.format(question=q.prompt) + q.solution for q in train
  ]
  # Whole or not at all.
  with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
    made = pathlib.Path(scratch) / TOKENIZER_NAME
    try:
      pieces.train(texts, vocab_size, str(made))
    except ValueError as error:
      raise ValueError(
        f'data.tokenizer={config.data.tokenizer!r}: {error}. The vocab_size is'
        " model.preset's, the texts are data.num_train questions"
      ) from error
    made.rename(path)


def _fit(config, encoding, split, asked):
  """Returns the questions that fit their slots, under `data.too_long`; each
  process reads and checks its share of them. Those that SFT trains on have
  solutions, and fit with them."""
  with_solutions = split == 'train' and config.algorithm.sft_steps > 0
  own = list(asked[jax.process_index() :: jax.process_count()])
  if with_solutions and not all(q.solution for q in own):
    raise ValueError(
      f'algorithm.sft_steps={config.algorithm.sft_steps}, but some training'
      ' questions have no solution: set data.solution_field, or sft_steps=0'
    )
  if config.data.too_long == 'error':
    if with_solutions and own:
      encoding.encode_solutions(own)
    elif own:
      encoding.encode(own)
    return asked
  fitting = []
  if own:
    found, _ = encoding.drop_too_long(own, with_solutions=with_solutions)
    fitting = [q.uid for q in found]
  fits = sharding.gather_hosts(np.isin(asked.uids, fitting))
  kept = asked[fits.any(axis=0)]
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


def find_stop_ids(tok: tokenizer.Tokenizer, stop_text: str) -> tuple[int, ...]:
  """Returns the ids that end a reply; of `stop_text` too if it is one token."""
  extra = tok.encode(stop_text) if stop_text else []
  return (*tok.stop_ids, *(extra if len(extra) == 1 else ()))


def make_find_end(
  tok: tokenizer.Tokenizer, stop_text: str
) -> Callable[[np.ndarray], int] | None:
  """Returns what finds the end of a reply that holds `stop_text`, if there is
  one: the number of tokens up to the one that completes the text, else 0."""
  if not stop_text:
    return None

  def find_end(tokens):
    def holds(length):
      return stop_text in tok.decode(tokens[:length].tolist())

    if not holds(len(tokens)):
      return 0
    return bisect.bisect_left(range(len(tokens)), True, lo=1, key=holds)

  return find_end


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


def fit_batch_size(
  config: ml_collections.ConfigDict, unit: int
) -> ml_collections.ConfigDict:
  """Returns the config with a sampling.batch_size of whole prompts of a call that
  training does not make, which changes no token.

  Args:
    config: of a run.
    unit: rows of which the size must be a multiple.
  """
  config = config.copy_and_resolve_references()
  at_once = config.sampling.batch_size
  if at_once != config_lib.AUTO:
    config.sampling.batch_size = max(at_once // unit, 1) * unit
  return config


def make_sampler(
  config: ml_collections.ConfigDict,
  model: llama.Llama,
  mesh: jax.sharding.Mesh,
  *,
  num_prompts: int,
  group_size: int,
  batch_size: int | None = None,
) -> sampler.Sampler:
  """Returns a compiled sampler as the config has it.

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
    at_once //= jax.process_count()
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
