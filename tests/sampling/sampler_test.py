"""The sampler against whole forwards of the learner's model, and row by row
against a plain one."""

import copy
import dataclasses
import gc
import logging

import jax
import jax.numpy as jnp
import numpy as np
import plain_sampler
import pytest

from dash_jax import batches, sharding
from dash_jax.learning import reading
from dash_jax.model import kernels, llama
from dash_jax.runs import compiles
from dash_jax.sampling import compiled, decoding, sampler

V = 600  # blocks of 256, 256 and 88
P, G, C = 7, 4, 70  # rings of 35 and of 70 slots
Q = 6
# 24 rows at once leave by 12 and 8; 16 of 32 at once are refilled. What needs a
# sampler of its own takes one of few rungs: each program costs half a second.
AT_ONCE = {'num_prompts': 6}
REFILLED = {'num_prompts': 8, 'batch_size': 16}
FEW = {'num_prompts': 4, 'max_completion_len': 40}
ONE_RUNG = {'num_prompts': 2, 'max_completion_len': 32}
WAVES = {'num_prompts': 13, 'group_size': 1, 'max_completion_len': 40}
STOPS = tuple(range(5, V, 21))

_samplers = {}
_measured = {}


@pytest.fixture(scope='module', autouse=True)
def _forget_samplers():
  yield
  _samplers.clear()
  _measured.clear()


@pytest.fixture
def tiny(tiny):
  return dataclasses.replace(tiny, vocab_size=V)


def make_prompts(num=Q, seed=0):
  rng = np.random.default_rng(seed)
  lengths = rng.integers(1, P + 1, num).astype(np.int32)
  tokens = rng.integers(0, V, (num, P)).astype(np.int32)
  return batches.PromptBatch(
    tokens, lengths, 100 + np.arange(num, dtype=np.int32)
  )


def get_sampler(params, config, *, dtype=jnp.float32, **options):
  """Returns a compiled sampler; those of one device are kept for other tests."""
  defaults = {'group_size': G, 'max_prompt_len': P, 'max_completion_len': C}
  options = AT_ONCE | defaults | options
  shape = tuple(jax.sharding.get_mesh().shape.values())
  name = (config, dtype, *sorted(options.items()))
  model = llama.Llama(config, dtype=dtype)
  if shape != (1, 1, 1):
    return sampler.Sampler(model, params, **options)
  if name not in _samplers:
    _samplers[name] = sampler.Sampler(model, params, **options)
  return _samplers[name]


def run(
  params, config, prompts, *, seed=0, options=AT_ONCE, limits=None,
  find_end=None, **settings,
):  # fmt: skip
  settings = {'temperature': 1.0} | settings
  return get_sampler(params, config, **options).sample(
    params,
    prompts,
    jax.random.key(seed),
    decoding.make_decoding(**settings),
    policy_step=3,
    limits=limits,
    find_end=find_end,
  )


@pytest.fixture
def params(mesh, tiny):
  return llama.init_params(tiny, jax.random.key(1), jnp.float32)


def assert_equal(found, expected, atol=1e-5):
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.lengths, expected.lengths)
  np.testing.assert_array_equal(found.truncated, expected.truncated)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=atol)


def test_greedy_decode_equals_argmax_of_full_forwards(params, tiny):
  """Each greedy token is recomputed by a forward over all tokens before it,
  so a wrong cache slot, position or mask changes some token."""
  prompts = make_prompts()
  rows = run(params, tiny, prompts, temperature=0.0)
  tokens = np.concatenate([prompts.tokens, rows.tokens[:, 0]], axis=1)
  mask = np.concatenate([prompts.mask, rows.mask[:, 0]], axis=1)
  model = llama.Llama(tiny)
  apply = jax.jit(
    lambda p, t, m: model.apply(
      {'params': p}, model.apply({'params': p}, t, m), method='logits'
    )
  )
  logits = np.asarray(apply(params, tokens, mask))
  expected = logits[:, P - 1 : -1].argmax(-1)
  for sample in range(G):
    np.testing.assert_array_equal(rows.tokens[:, sample], expected)


def find_pair(tokens, seen=0):
  """Returns where the first two neighbours below 75 end, 0 without them. Of what
  was seen before it looks at the last token alone."""
  begin = max(seen - 1, 0)
  low = tokens[begin:] < 75
  pairs = low[:-1] & low[1:]
  return begin + int(pairs.argmax()) + 2 if pairs.any() else 0


WAYS = (
  (plain_sampler.Settings(stop_ids=STOPS), None),
  (plain_sampler.Settings(temperature=0.0, stop_ids=STOPS[:9]), find_pair),
  (
    plain_sampler.Settings(temperature=0.7, top_p=0.9, stop_ids=STOPS),
    find_pair,
  ),
  (
    plain_sampler.Settings(
      temperature=1.4, top_k=20, min_len=3, stop_ids=STOPS
    ),
    None,
  ),
  (plain_sampler.Settings(min_p=0.3, stop_ids=STOPS[:9]), find_pair),
  (
    plain_sampler.Settings(
      temperature=1.2,
      top_k=400,
      top_p=0.8,
      min_p=0.2,
      min_len=9,
      stop_ids=STOPS,
    ),
    find_pair,
  ),
)


@pytest.mark.parametrize('seed', range(len(WAYS)))
def test_rows_are_those_of_a_plain_sampler(params, tiny, seed):
  """Random workloads, token for token against one row at a time in float64:
  lengths, limits, stop ids, ends that the host finds, temperatures and supports,
  with rows that wait, take others' places and move as the batch narrows and
  rings grow. A draw within 1e-6 of an edge could go either way; no such row came
  in any seed."""
  rng = np.random.default_rng(seed)
  num = int(rng.integers(3, 9))
  settings, find_end = WAYS[seed]
  prompts = make_prompts(num, seed)
  limits = rng.integers(1, C + 1, (num, G)).astype(np.int32)
  both = [
    run(
      params, tiny, prompts, seed=seed, options=options, limits=limits,
      find_end=find_end, **dataclasses.asdict(settings),
    )
    for options in (AT_ONCE, REFILLED)
  ]  # fmt: skip
  host = jax.device_get(params)
  for q, g in np.ndindex(num, G):
    tokens, logprobs = plain_sampler.sample_row(
      host, tiny, prompts.tokens[q, P - prompts.lengths[q] :],
      jax.random.key(seed), prompts.uids[q], g, limits[q, g], settings,
    )  # fmt: skip
    end = find_end(np.array(tokens), 0) if find_end else 0
    n = end or len(tokens)
    for rows in both:
      assert rows.lengths[q, g] == n
      assert rows.tokens[q, g, :n].tolist() == tokens[:n]
      np.testing.assert_allclose(
        rows.logprobs[q, g, :n], logprobs[:n], atol=1e-4
      )
      assert (rows.tokens[q, g, n:] == 0).all()
      assert (rows.logprobs[q, g, n:] == 0).all()
      ended = end > 0 or tokens[-1] in settings.stop_ids
      assert rows.truncated[q, g] == (not ended)
  assert (both[0].policy_step == 3).all()


@pytest.mark.parametrize(
  'settings',
  [
    {},
    {'temperature': 0.6},
    {'temperature': 1.3, 'top_p': 0.8},
    {'temperature': 0.9, 'top_k': 6},
    {'temperature': 1.7, 'top_p': 0.9, 'top_k': 9},
    {'min_p': 0.05, 'min_len': 9, 'stop_ids': STOPS},
  ],
)
def test_learner_and_sampler_agree_on_logprobs(params, tiny, settings):
  """The sampler's figures come from the cache one token at a time, the
  learner's from whole rows: equal only if both see the same distribution."""
  settings = {'temperature': 1.0} | settings
  rows = run(params, tiny, make_prompts(), **settings)
  how = decoding.make_decoding(**settings)
  found = reading.completion_logprobs(llama.Llama(tiny), params, rows, how)
  assert rows.logprobs.std() > 0.1
  np.testing.assert_allclose(rows.logprobs, found, atol=1e-5)


def test_in_bf16_the_sampler_is_near_the_learner(params, tiny):
  """Both cast the same weights, and differ by the rounding of activations."""
  prompts = make_prompts()
  half = get_sampler(params, tiny, dtype=jnp.bfloat16, **ONE_RUNG)
  how = decoding.make_decoding(1.0)
  rows = half.sample(params, prompts, jax.random.key(0), how)
  model = llama.Llama(tiny, dtype=jnp.bfloat16)
  found = reading.completion_logprobs(model, params, rows, how)
  gap = np.abs(rows.logprobs - found)
  assert 0 < gap.mean() < 0.02


def test_rows_of_a_group_differ_and_keys_decide(params, tiny):
  prompts = make_prompts()
  first = run(params, tiny, prompts, seed=0).tokens
  for group in first:
    assert len({row.tobytes() for row in group}) == G
  again = run(params, tiny, prompts, seed=0).tokens
  np.testing.assert_array_equal(first, again)
  other = run(params, tiny, prompts, seed=1).tokens
  assert (first != other).mean() > 0.5


@pytest.mark.parametrize('options', [AT_ONCE, REFILLED])
def test_a_row_does_not_depend_on_the_rest_of_the_batch(params, tiny, options):
  """Reversing the prompts reverses the rows, and a half of them gives half of
  the rows: noise follows the uid."""
  prompts = make_prompts()
  straight = run(params, tiny, prompts, stop_ids=STOPS)
  for order in (slice(None, None, -1), slice(1, None, 2)):
    some = jax.tree.map(lambda x, order=order: x[order], prompts)
    found = run(params, tiny, some, options=options, stop_ids=STOPS)
    expected = jax.tree.map(lambda x, order=order: x[order], straight)
    assert_equal(found, expected)


def test_waves_with_one_sample_a_prompt(params, tiny):
  """As evaluation has them: every row brings a prompt of its own along."""
  prompts = make_prompts(13)
  whole = run(params, tiny, prompts, options=WAVES, stop_ids=STOPS)
  for size in (9, 1):
    waves = WAVES | {'batch_size': size}
    assert_equal(
      run(params, tiny, prompts, options=waves, stop_ids=STOPS), whole
    )


def test_prompts_that_run_a_few_at_a_time_are_the_same(
  params, tiny, monkeypatch
):
  """As many long ones do, of which all at once would take much memory."""
  prompts = make_prompts()
  whole = run(params, tiny, prompts, stop_ids=STOPS)
  monkeypatch.setattr(sampler, 'PREFILL_TOKENS', 3 * P)
  options = {'num_prompts': 4, 'group_size': 2}
  parts = get_sampler(params, tiny, **options)
  assert set(parts._compiled.admit) == {3}
  found = run(params, tiny, prompts, options=options, stop_ids=STOPS)
  for name in ('tokens', 'lengths', 'truncated'):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(whole, name)[:, :2]
    )


def test_prompt_padding_is_never_seen(params, tiny):
  """Other ids in the padding leave every sampled token as it was."""
  prompts = make_prompts()
  slots = np.arange(P)[None] < P - prompts.lengths[:, None]
  assert slots.any()
  changed = np.where(slots, V - 1 - prompts.tokens, prompts.tokens)
  other = dataclasses.replace(prompts, tokens=changed)
  np.testing.assert_array_equal(
    run(params, tiny, prompts).tokens, run(params, tiny, other).tokens
  )


@pytest.mark.parametrize('options', [AT_ONCE, REFILLED])
def test_no_call_compiles(params, tiny, options):
  """Not with other settings, seeds, stop ids or limits, nor with other numbers
  of prompts, which fill or overfill the batch."""
  timed = get_sampler(params, tiny, **options)
  keys = [jax.random.key(i) for i in range(4)]
  plan = [
    (3, {}, None),
    (6, {'temperature': 0.5, 'stop_ids': STOPS}, None),
    (9, {'top_k': 3, 'top_p': 0.8, 'min_p': 0.1}, 20),
    (13, {'temperature': 0.0, 'min_len': 4, 'stop_ids': (1,)}, 33),
  ]
  before = compiles.count()
  for key, (num, settings, limit) in zip(keys, plan, strict=True):
    how = decoding.make_decoding(**({'temperature': 1.0} | settings))
    limits = None if limit is None else np.full((num, G), limit)
    rows = timed.sample(params, make_prompts(num), key, how, limits=limits)
    assert rows.lengths.min() >= 1
  assert compiles.count() == before


@pytest.mark.parametrize('options', [AT_ONCE, REFILLED])
def test_rows_are_handed_out_as_they_finish(params, tiny, options):
  """Each row once, complete, and the first before the last has begun to end."""
  made = get_sampler(params, tiny, **options)
  stream = made.stream(
    made.prepare(params), make_prompts(8), jax.random.key(0),
    decoding.make_decoding(1.0, stop_ids=STOPS),
  )  # fmt: skip
  seen, times = [], 0
  for rows, made in stream:
    times += bool(rows.size)
    finished = made.finished.reshape(-1)
    assert finished[rows].all()
    assert not set(rows) & set(seen)
    seen += rows.tolist()
    assert sorted(seen) == np.flatnonzero(finished).tolist()
    if times == 1:
      assert not finished.all()
  assert sorted(seen) == list(range(8 * G))
  assert times > 3


def test_rows_end_where_the_host_finds_their_end(params, tiny):
  """As at a text that is no token: the row keeps what the end was found behind,
  is not truncated, and whatever the device drew beyond is gone. It does not
  matter when the host looks."""
  prompts = make_prompts(8)
  free = run(params, tiny, prompts)
  for options in (AT_ONCE, REFILLED):
    rows = run(params, tiny, prompts, options=options, find_end=find_pair)
    assert 0 < rows.truncated.sum() < rows.truncated.size
    for row in np.ndindex(8, G):
      n = find_pair(free.tokens[row]) or C
      assert rows.lengths[row] == n
      assert rows.truncated[row] == (find_pair(free.tokens[row]) == 0)
      np.testing.assert_array_equal(rows.tokens[row][:n], free.tokens[row][:n])
      assert (rows.tokens[row][n:] == 0).all()
      assert (rows.logprobs[row][n:] == 0).all()


def test_too_little_memory_means_smaller_waves(
  params, tiny, monkeypatch, caplog
):
  """Memory runs out in the third decode of 24 rows, when some have finished, and
  there is no room for 12 either: the rows are as if it had not, none is handed
  out twice, and a message says what to set. The arrays that did not fit are gone
  before the room for others is looked at."""
  prompts = make_prompts()
  whole = run(params, tiny, prompts, stop_ids=STOPS)
  small = copy.copy(get_sampler(params, tiny))
  small._compiled = copy.copy(small._compiled)
  calls, tried = [], []

  def fail_later(program):
    def call(*args):
      calls.append(1)
      if len(calls) > 2:
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')
      return program(*args)

    return call

  def count_held():
    return sum(x.nbytes for x in jax.live_arrays())

  def find_room():
    tried.append((small.batch_size, count_held()))
    return 0

  small._compiled.decode = {
    rung: fail_later(program)
    for rung, program in small._compiled.decode.items()
  }
  monkeypatch.setattr(sampler.memory, 'find_room', find_room)
  how = decoding.make_decoding(1.0, stop_ids=STOPS)
  key = jax.random.key(0)
  prepared = small.prepare(params)
  before = count_held()
  seen = []
  with caplog.at_level(logging.WARNING):
    for part in small.stream(prepared, prompts, key, how):
      seen += part[0].tolist()
  assert sorted(seen) == list(range(Q * G))
  assert_equal(part[1].as_rollouts(prompts, 3), whole)
  assert tried == [(12, before)]
  assert small.batch_size == G
  assert 'going on with 4. sampling.batch_size=4 begins so' in caplog.text


def test_too_little_memory_for_shards_of_which_one_has_fewer(mesh, tiny):
  """Five prompts on two: the place that is left stays empty when the rows are begun
  again, fewer at once."""
  prompts = make_prompts(5)
  how = decoding.make_decoding(1.0, stop_ids=STOPS)
  devices = jax.devices()[:2]
  with jax.set_mesh(jax.make_mesh((1, 2, 1), sharding.AXES, devices=devices)):
    params = llama.init_params(tiny, jax.random.key(1), jnp.float32)
    made = get_sampler(params, tiny, **ONE_RUNG | {'num_prompts': 5})
    whole = made.sample(params, prompts, jax.random.key(0), how)

    def fail(*unused):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')

    made._compiled.decode = dict.fromkeys(made._compiled.decode, fail)
    parts = made.stream(made.prepare(params), prompts, jax.random.key(0), how)
    *rows, (last, found) = parts
    seen = [row for part, _ in rows for row in part] + last.tolist()
  assert made.batch_size < 6 * G
  assert sorted(seen) == list(range(5 * G))
  assert_equal(found.as_rollouts(prompts, 0), whole)


def make_auto(params, config, num_prompts=Q, **options):
  return sampler.Sampler(
    llama.Llama(config), params, num_prompts=num_prompts, group_size=G,
    max_prompt_len=P, max_completion_len=C, **options,
  )  # fmt: skip


@pytest.fixture
def sizes(monkeypatch):
  """Samplers are not compiled, and measured once for each ladder."""
  right = compiled.Compiled.measure

  def measure(self):
    rungs = self.ladder.rungs
    if rungs not in _measured:
      _measured[rungs] = right(self)
    return _measured[rungs]

  monkeypatch.setattr(compiled.Compiled, 'compile', lambda self: None)
  monkeypatch.setattr(compiled.Compiled, 'measure', measure)


def measure(params, config, rows):
  """Returns the bytes that a sampler of so many rows says it needs."""
  return make_auto(params, config, rows // G)._compiled.measure()


@pytest.mark.parametrize(
  ('share', 'waiting'), [(1.0, 0), (0.9, 0), (0.5, 0), (0.0, 0), (0.5, 2)]
)
def test_auto_takes_what_fits(params, tiny, monkeypatch, sizes, share, waiting):
  """Beside the weights, and those that wait, there is room for a share of what 24
  rows need: so many rows are taken, but for those of two prompts, and one prompt
  at least."""
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  room = weights + share * (measure(params, tiny, 24) - weights)
  monkeypatch.setattr(
    sampler.memory, 'find_room', lambda: room + waiting * weights
  )
  made = make_auto(params, tiny, num_waiting=waiting)
  rows = made.batch_size
  if rows > G:
    assert made._compiled.measure() <= room
    assert rows >= 24 * share - 2 * G
  else:
    assert share == 0


def test_a_compiler_that_finds_too_little_memory_counts(
  params, tiny, monkeypatch
):
  """As TPU's does: the size does not fit. Other errors are not hidden."""
  monkeypatch.setattr(compiled.Compiled, 'compile', lambda self: None)

  def fail(message):
    def measure(self):
      raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(compiled.Compiled, 'measure', measure)
    return make_auto(params, tiny)

  assert fail('RESOURCE_EXHAUSTED: Ran out of memory in hbm').batch_size == 4
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    fail('INTERNAL: broken')


def test_a_size_that_does_not_compile_is_halved(
  params, tiny, monkeypatch, caplog
):
  """Whole prompts of it, and a message says what to set; one prompt is the
  least."""
  room = 8

  def compile_few(self):
    if self.ladder.rungs[0].rows > room:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: hbm\nof 16 GiB')

  monkeypatch.setattr(compiled.Compiled, 'compile', compile_few)
  assert make_auto(params, tiny, batch_size=20).batch_size == 8
  assert 'with 20 rows decoded at once: going on with 8' in caplog.text
  caplog.clear()
  assert make_auto(params, tiny, batch_size=8).batch_size == 8
  assert not caplog.text
  room = 3
  with pytest.raises(
    ValueError, match=r'not even one prompt .*: RESOURCE.*hbm$'
  ):
    make_auto(params, tiny, batch_size=8)


def test_room_is_what_the_machine_has_and_does_not_hold_yet(mesh):
  """Arrays that are made take of it what they hold."""
  before = sampler.memory.find_room()
  x = jax.block_until_ready(jnp.zeros(2**24, jnp.float32))
  assert before - sampler.memory.find_room() == pytest.approx(
    x.nbytes / len(jax.local_devices())
  )
  assert 0 < before < 2**50


def test_the_peak_is_that_of_the_caches_and_more(params, tiny, sizes):
  """Rows' rings grow with the rows, by what their slots hold."""
  few, many = measure(params, tiny, 8), measure(params, tiny, 24)
  ring = 2 * tiny.num_layers * tiny.num_kv_heads * tiny.head_dim * C * 4
  assert many - few > 16 * ring


def test_a_move_has_but_one_layer_twice_and_is_measured_so(
  params, tiny, monkeypatch
):
  """Rings that get longer, rows that become fewer, and prompts of which each row
  that is left gets its own."""
  wait, peaks = jax.block_until_ready, []

  def count_live():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())

  def record(x):
    peaks.append(count_live())
    return wait(x)

  def put(x):
    return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)

  monkeypatch.setattr(jax, 'block_until_ready', record)
  for options in (AT_ONCE, WAVES):
    made = get_sampler(params, tiny, **options)._compiled
    for rung, other in (
      *made.ladder.longer.items(), *made.ladder.narrower.items()
    ):  # fmt: skip
      before = count_live()
      prompts, rows, rings = jax.tree.map(put, made._arrays[rung])
      peaks.clear()
      if other.slots > rung.slots:
        found = prompts, rows, made.lengthen(rung, rings)
      else:
        of_prompts = None
        if not compiled.keeps_prompts(rung, other):
          of_prompts = jnp.zeros(other.prompts, jnp.int32)
        places = jnp.zeros(other.rows, jnp.int32)
        found = made.narrow(
          rung, prompts, rows, rings, places, places > 0, of_prompts
        )
      caches = made._measure_move(rung, other) - made.weight_bytes
      small = sum(x.nbytes for x in jax.tree.leaves((rows, prompts.lengths)))
      assert caches <= max(peaks) - before <= caches + 3 * small
      for x, like in zip(
        *map(jax.tree.leaves, (found, made._arrays[other])), strict=True
      ):
        assert (x.shape, x.dtype) == (like.shape, like.dtype)
      del found, prompts, rows, rings


def test_prompts_are_kept_once_for_their_rows(params, tiny):
  """Cache memory is Q * P + B * C slots, not B * (P + C)."""
  made = get_sampler(params, tiny)
  rung = max(made._compiled.ladder.rungs, key=lambda r: (r.rows, r.slots))
  start = made._programs.start
  prompts, _, rings = jax.eval_shape(lambda: start(rung))
  slot = 2 * tiny.num_layers * tiny.num_kv_heads * tiny.head_dim

  def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))

  assert count(prompts.caches) == Q * P * slot
  assert count(rings.caches) == Q * G * C * slot


@pytest.mark.parametrize(
  ('shape', 'options'),
  [
    ((2, 2, 2), {'num_prompts': 16}),
    ((2, 2, 2), {'num_prompts': 16, 'batch_size': 16}),
    ((1, 2, 4), {'num_prompts': 4}),
    ((1, 8, 1), {'num_prompts': 8}),
  ],
)  # fmt: skip
def test_any_mesh_samples_the_same_tokens(mesh, params, shape, tiny, options):
  """data x fsdp x tensor meshes against one device, float32: with batches that
  narrow, with rows that are refilled in every shard, with shards that end at
  different times, and with some that have fewer prompts, or none."""
  prompts = make_prompts(16)
  alone = run(params, tiny, prompts, stop_ids=STOPS)
  with jax.set_mesh(jax.make_mesh(shape, sharding.AXES)):
    params = llama.init_params(tiny, jax.random.key(1), jnp.float32)
    made = get_sampler(params, tiny, **options)
    for num in (16, 13, 1):
      split = made.sample(
        params,
        jax.tree.map(lambda x, num=num: x[:num], prompts),
        jax.random.key(0),
        decoding.make_decoding(1.0, stop_ids=STOPS),
      )
      assert_equal(split, jax.tree.map(lambda x, num=num: x[:num], alone))


@pytest.mark.parametrize(
  ('attention', 'function', 'options'),
  [
    ('library', 'attend_by_library', ONE_RUNG | {'max_completion_len': C}),
    ('pallas', 'attend_ring', REFILLED),
  ],
)
def test_any_attention_samples_the_same_tokens(
  params, tiny, monkeypatch, attention, function, options
):
  """And is asked to: the library for prompts, the kernel for rows in order and
  for others."""
  right, asked = getattr(kernels, function), []
  monkeypatch.setattr(
    kernels, function, lambda *args: asked.append(1) or right(*args)
  )
  prompts = make_prompts(8)
  plain = run(params, tiny, prompts, stop_ids=STOPS)
  assert not asked
  other = run(
    params, tiny, prompts, options=options | {'attention': attention},
    stop_ids=STOPS,
  )  # fmt: skip
  assert_equal(other, plain)
  assert asked


def test_eight_bits_cost_little_and_are_seen(params, tiny):
  """The gap to the learner is there, and small, so that ratios stay near 1; each
  kind of rounding adds its own. Waves change nothing."""
  how = decoding.make_decoding(1.0)
  gaps = {}
  for name, options in (
    ('quantize_cache', FEW),
    ('quantize_weights', ONE_RUNG),
  ):
    options = options | {name: True}
    rows = run(params, tiny, make_prompts(), options=options)
    found = reading.completion_logprobs(llama.Llama(tiny), params, rows, how)
    gaps[name] = np.abs(rows.logprobs - found).mean()
    if name == 'quantize_cache':
      waves = options | {'batch_size': 8}
      refilled = run(params, tiny, make_prompts(), options=waves)
      np.testing.assert_array_equal(refilled.tokens, rows.tokens)
  assert 1e-4 < gaps['quantize_cache'] < 0.02
  assert 1e-4 < gaps['quantize_weights'] < 0.02


def test_sizes_that_do_not_fit_are_refused(params, tiny):
  made = get_sampler(params, tiny)
  how = decoding.make_decoding(1.0)
  wide = make_prompts()
  wide = dataclasses.replace(wide, tokens=np.pad(wide.tokens, ((0, 0), (2, 0))))
  with pytest.raises(ValueError, match='prompts of 9 slots: must have 7'):
    made.sample(params, wide, jax.random.key(0), how)
  for bad in (np.full((Q, G), C + 1), np.zeros((Q, G), int), np.ones(Q, int)):
    with pytest.raises(ValueError, match=r'limits must be \(6, 4\) .* 1 to 70'):
      made.sample(params, make_prompts(), jax.random.key(0), how, limits=bad)
  with pytest.raises(ValueError, match='whole numbers, not float64'):
    made.sample(
      params,
      make_prompts(),
      jax.random.key(0),
      how,
      limits=np.full((Q, G), 1.5),
    )
  with pytest.raises(ValueError, match='no prompts: give at least one'):
    made.sample(params, make_prompts(0), jax.random.key(0), how)
  empty = dataclasses.replace(make_prompts(), lengths=np.zeros(Q, np.int32))
  with pytest.raises(ValueError, match='prompt lengths must be from 1 to 7'):
    made.sample(params, empty, jax.random.key(0), how)
  with pytest.raises(
    ValueError, match=r'sampling\.batch_size=6: .* take 4, or'
  ):
    get_sampler(params, tiny, batch_size=6)


def test_programs_hold_what_they_say(params, tiny):
  """Bytes of a compiled program are at least those of its arguments."""
  made = get_sampler(params, tiny)._compiled
  weights = sum(x.nbytes for x in jax.tree.leaves(params))
  for program in made.decode.values():
    assert compiled.count_bytes(program) > weights
