"""The plan of a run: what fits, how long a step takes at least, and why.

1. `make` describes the run on its devices, and finds how many rows are sampled
   and learned from at once: those of the config, or, with 'auto', the most that
   fit.
2. Each program's needs are estimated, or measured by compiling it.
3. Each program's work (work.py) and the device's rates give the least seconds
   that a step takes, and what they are spent on.
4. `suggest` looks for a config that fits, where this one does not.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

from dash_jax import checks
from dash_jax import config as config_lib
from dash_jax.planning import devices as devices_lib
from dash_jax.planning import estimate, measured, work
from dash_jax.planning import job as job_lib
from dash_jax.sampling import memory

_MOST_ROWS = 2**20  # that are looked for


@dataclasses.dataclass(frozen=True)
class Step:
  """What a program does in one optimizer step.

  Attributes:
    work: on one device.
    times: that it is called, or that its loop turns.
    seconds: that it takes at least.
    bound: what takes them.
  """

  work: work.Work
  times: float
  seconds: float
  bound: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run on its devices.

  Attributes:
    job: the run.
    rows: sampled at once, on all devices; 0 if none are.
    minibatch: rows of a minibatch.
    most_rows, most_minibatch: that fit by the estimate, 0 if none do.
    needs: estimated, by program.
    measured: by program; None where it does not fit, missing where it was not
      compiled.
    steps: by program.
  """

  job: job_lib.Job
  rows: int
  minibatch: int
  most_rows: int
  most_minibatch: int
  needs: dict[str, estimate.Needs]
  measured: dict[str, measured.Program | None]
  steps: dict[str, Step]

  def find_needs(self, name: str) -> estimate.Needs | None:
    """Returns what a program needs, as far as it is known best; None where a
    compiler found that it does not fit."""
    if name not in self.measured:
      return self.needs[name]
    program = self.measured[name]
    return program and program.needs

  def fits(self, name: str) -> bool:
    """Returns whether a device has room for a program."""
    needs = self.find_needs(name)
    return needs is not None and needs.total <= self.room

  @property
  def room(self) -> float:
    """Bytes of a device that programs may use."""
    return find_room(self.job)

  @property
  def all_fit(self) -> bool:
    """Whether every program finds the memory that it needs."""
    return all(self.fits(name) for name in self.needs)

  @property
  def overlaps(self) -> bool:
    """Whether sampling goes on while others learn."""
    config = self.job.config
    return self.job.samples_apart and config.algorithm.max_staleness > 0

  @property
  def step_s(self) -> float:
    """Seconds of an optimizer step, at least; 0 if rates are not known."""
    parts = self.sampling_s, self.learning_s
    return max(parts) if self.overlaps else sum(parts)

  @property
  def sampling_s(self) -> float:
    """Seconds that sampling the rows of a step takes, at least."""
    return self._sum(estimate.SAMPLING) - self._prepare_s

  @property
  def learning_s(self) -> float:
    """Seconds that learning from them takes, at least."""
    return self._sum(estimate.LEARNING) + self._prepare_s

  @property
  def _prepare_s(self):
    """Seconds that the devices that learn take to make weights ready for others."""
    return self._sum((estimate.PREPARE,)) if self.job.samples_apart else 0.0

  def find_longest(self, names: tuple[str, ...]) -> tuple[str, str] | None:
    """Returns which of some programs takes longest, and what bounds it; None if the
    run has none of them."""
    there = {name: self.steps[name] for name in names if name in self.steps}
    if not there:
      return None
    name = max(there, key=lambda name: there[name].seconds)
    return name, there[name].bound

  def _sum(self, names):
    return sum(s.seconds for name, s in self.steps.items() if name in names)

  @property
  def link_bytes(self) -> float:
    """Bytes that come into a device in a step, as they follow from the layout."""
    return sum(step.work.link_bytes for step in self.steps.values())

  def find_links(self, name: str) -> dict[str, float]:
    """Returns the bytes that a compiled program brings into a device in a step,
    by kind of collective; {} if it is not compiled."""
    program, times = self.measured.get(name), self.steps[name].times
    if program is None:
      return {}
    return {kind: size * times for kind, size in program.link_bytes.items()}

  @property
  def tokens(self) -> int:
    """Completion tokens of a step: every row has all it may have."""
    return self.job.num_rows * self.job.completion_len


def find_room(job: job_lib.Job) -> float:
  """Returns the bytes of a device that programs may use."""
  return job.devices.kind.memory * memory.USABLE


def make(
  config,
  devices: devices_lib.Devices,
  compiles: Callable[[int], bool] = lambda num_weights: False,
  report: Callable[[str], None] = lambda line: None,
) -> Plan:
  """Returns the plan of a checked config.

  Args:
    config: of the run.
    devices: that it runs on.
    compiles: whether to compile a model of so many weights.
    report: is told what is going on.

  Raises:
    ValueError, FileNotFoundError: names the field and what would be valid.
  """
  job = job_lib.make_job(config, devices)
  most_rows, most_minibatch = find_most(job)
  rows, minibatch = _find_sizes(job, most_rows, most_minibatch)
  found = {}
  shape = estimate.find_shape(job)
  num_weights = work.llama.count_params(job.model.config)
  if compiles(num_weights):
    found, rows, minibatch = _measure(job, rows, minibatch, report)
  return Plan(
    job=job,
    rows=rows,
    minibatch=minibatch,
    most_rows=most_rows,
    most_minibatch=most_minibatch,
    needs=estimate.estimate(job, rows, minibatch),
    measured=found,
    steps=_find_steps(job, shape, rows, minibatch),
  )


def _units(job):
  """Returns of how many rows what is sampled, and what is learned from at once,
  are multiples."""
  return job.group_size * job.sampling_shards, job.shards


def find_most(job: job_lib.Job) -> tuple[int, int]:
  """Returns the most rows that can be sampled, and learned from, at once by the
  estimate; 0 if none can."""
  room = find_room(job)
  unit, minibatch_unit = _units(job)

  def fits(names, rows, minibatch):
    needs = estimate.estimate(job, rows, minibatch)
    return all(needs[name].total <= room for name in names)

  rows = 0
  if job.samples:
    rows = _search(lambda n: fits(estimate.SAMPLING, n, minibatch_unit), unit)
  minibatch = _search(
    lambda n: fits((estimate.GRADIENT,), unit, n), minibatch_unit
  )
  return rows, minibatch


def _search(fits: Callable[[int], bool], unit: int) -> int:
  """Returns the largest multiple of `unit` that fits, 0 if there is none."""
  low, high = 0, unit
  while high < _MOST_ROWS and fits(high):
    low, high = high, 2 * high
  while high - low > unit:
    middle = (low + high) // 2 // unit * unit
    if fits(middle):
      low = middle
    else:
      high = middle
  return low


def _find_sizes(job, most_rows, most_minibatch):
  """Returns the rows that are sampled, and learned from, at once."""
  unit, minibatch_unit = _units(job)

  def choose(asked, most, unit):
    if asked != config_lib.AUTO:
      return min(asked, job.num_rows)
    # Of a run that does not fit, the least is shown.
    return min(max(most, unit), -(-job.num_rows // unit) * unit)

  rows = 0
  if job.samples:
    rows = choose(job.config.sampling.batch_size, most_rows, unit)
  size = job.phase.minibatch_size
  return rows, choose(size, most_minibatch, minibatch_unit)


def _measure(job, rows, minibatch, report):
  """Compiles the programs; where a size is 'auto', a smaller one if it does not
  fit.

  Returns:
    The programs, None for one that does not fit, and the two sizes.
  """
  unit, minibatch_unit = _units(job)
  room, found = find_room(job), {}

  def shrink(compile_all, size, unit, asked):
    while True:
      try:
        programs = compile_all(size)
        need = max(program.needs.total for program in programs.values())
      except MemoryError:
        programs, need = None, 2 * room
      if need <= room or asked != config_lib.AUTO or size <= unit:
        return programs, size
      size = max(int(size * min(room / need, 0.9)) // unit * unit, unit)

  if rows:
    report(f'compiling what samples {rows} rows at once')
    programs, rows = shrink(
      lambda n: measured.compile_sampler(job, n),
      rows,
      unit,
      job.config.sampling.batch_size,
    )
    found |= programs or dict.fromkeys(estimate.SAMPLING)
  report(f'compiling what learns from {minibatch} rows at once')
  programs, minibatch = shrink(
    lambda n: {estimate.GRADIENT: measured.compile_gradient(job, n)},
    minibatch,
    minibatch_unit,
    job.phase.minibatch_size,
  )
  found |= programs or {estimate.GRADIENT: None}
  report('compiling what changes the weights')
  programs, _ = shrink(
    lambda _: {estimate.UPDATE: measured.compile_update(job)}, 0, 0, None
  )
  found |= programs or {estimate.UPDATE: None}
  return found, rows, minibatch


def _find_steps(job, shape, rows, minibatch):
  """Returns what each program does in an optimizer step, all rows full and kept."""
  kind, phase = job.devices.kind, job.phase
  works = {}
  if rows:
    sampling = estimate.find_shape(job, job.sampling_mesh)
    own = rows // sampling.shards
    waves = -(-job.num_rows // rows)
    prompts = job.num_rows // job.group_size // sampling.shards
    calls = -(-prompts // sampling.count_admitted(own))
    works = {
      estimate.PREPARE: (work.prepare_work(shape), 1),
      estimate.ADMIT: (work.prefill_work(sampling, prompts, calls), calls),
      estimate.DECODE: (
        work.decode_work(sampling, own, waves),
        waves * (job.completion_len - 1),
      ),
    }
  passes = phase.updates / phase.updates_a_pass
  num = -(-job.num_rows // minibatch) * passes
  one = work.minibatch_work(shape, minibatch // job.shards)
  works[estimate.GRADIENT] = one * num, num
  update = work.update_work(shape) * phase.updates
  works[estimate.UPDATE] = update, phase.updates
  return {
    name: Step(done, times, *done.bound(kind))
    for name, (done, times) in works.items()
  }


# What to try where a run does not fit, and what each costs: changes of no number
# little, rounding more, other learning most.
_CHANGES = {
  ('optim.minibatch_size', config_lib.AUTO): 1,
  ('sampling.batch_size', config_lib.AUTO): 1,
  ('model.remat', 'layer'): 1,
  ('mesh.tensor', 2): 2,
  ('mesh.tensor', 4): 2,
  ('mesh.tensor', 8): 2,
  ('sampling.quantize_cache', True): 5,
  ('sampling.quantize_weights', True): 6,
  ('optim.moments', 'bfloat16'): 6,
  ('model.param_dtype', 'bfloat16'): 6,
  ('lora.rank', 16): 30,
}
_MOST_CHANGES = 4


def suggest(plan: Plan, config) -> dict | None:
  """Returns the least changes of fields with which a run fits by the estimate,
  None if none of those that are known do.

  Args:
    plan: that does not fit.
    config: that it was made of.
  """
  devices = plan.job.devices
  # Where programs were compiled, estimates that were too small are corrected.
  ratios = [
    plan.measured[name].needs.total / plan.needs[name].total
    for name in plan.needs
    if plan.measured.get(name)
  ]
  fits = functools.partial(_fits, config, devices, max([1.0, *ratios]))
  useful = [
    c
    for c in _CHANGES
    # Not what the config refuses, which would hide the others below.
    if _get(config, c[0]) != c[1] and _make_job(config, devices, [c])
  ]
  candidates = [
    chosen
    for num in range(1, _MOST_CHANGES + 1)
    for chosen in itertools.combinations(useful, num)
    if len(dict(chosen)) == num  # one value a field
  ]
  candidates.sort(key=lambda chosen: sum(_CHANGES[c] for c in chosen))
  if not any(map(fits, _list_most(useful))):
    return None
  return next((dict(chosen) for chosen in candidates if fits(chosen)), None)


def _list_most(changes):
  """Returns all changes at once, with each that says how a mesh is split."""
  others = [c for c in changes if c[0] != 'mesh.tensor']
  meshes = [[c] for c in changes if c[0] == 'mesh.tensor']
  return [others + mesh for mesh in [[], *meshes]]


def _get(config, field):
  section, name = field.split('.')
  return config[section][name]


def _make_job(config, devices, changes):
  """Returns the run with changes of fields; None if there can be no such."""
  changed = config.copy_and_resolve_references()
  with changed.ignore_type():  # a size may be 'auto'
    for field, value in changes:
      section, name = field.split('.')
      changed[section][name] = value
      if field == 'mesh.tensor':
        changed.mesh.fsdp = -1
  try:
    checks.check(changed)
    return job_lib.make_job(changed, devices)
  except ValueError:
    return None


def _fits(config, devices, ratio, changes):
  job = _make_job(config, devices, changes)
  try:
    needs = job and estimate.estimate(job, *_find_sizes(job, 0, 0))
  except ValueError:  # no sizes that can run
    return False
  return bool(job) and all(
    n.total * ratio <= find_room(job) for n in needs.values()
  )


def count_devices(plan: Plan) -> int:
  """Returns how many devices the run needs at least, if all that can be split
  were split evenly: what rests, and the gradient."""
  held, devices = estimate.hold(plan.job), len(plan.job.devices.devices)
  gradient = estimate.count_gradient(plan.job)
  return -(-int((held.total + gradient) * devices) // int(plan.room))


def list_programs(plan: Plan) -> Iterator[str]:
  """Yields the names of programs in the order of a step."""
  for name in (*estimate.SAMPLING, *estimate.LEARNING):
    if name in plan.needs:
      yield name
