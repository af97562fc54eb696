"""The sampler's programs, compiled for every shape before the first call.

`Compiled` knows each program's arguments from the ladder alone, so that no call
can compile one: an argument of another shape would be an error.
"""

import concurrent.futures
import dataclasses
import functools
import os

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dash_jax import batches, sharding
from dash_jax.sampling import decoding as decoding_lib
from dash_jax.sampling import ladder, programs


class Compiled:
  """Compiled programs; each is called as the method of `programs.Programs`.

  Attributes:
    ladder: the shapes.
    largest: the rung whose caches are the largest.
    most_admitted: prompts of a shard that `admit` takes, at most.
    prepare, start: callables; `prepare` runs where the model's weights are, which
      may be on another mesh, `start` is of the first rung.
    admit: {number of prompts of a shard: callable}.
    decode: {rung: callable}.
  """

  def __init__(
    self,
    params: dict,
    run: programs.Programs,
    rungs: ladder.Ladder,
    admitted: tuple[int, ...],
  ):
    """Describes the programs; `compile` makes them ready.

    Args:
      params: shapes and layouts of the model's weights, which may be on another
        mesh than the one in use.
      run: what to compile.
      rungs: for which shapes.
      admitted: numbers of prompts of a shard that `admit` takes.
    """
    self.ladder = rungs
    self._run = run
    source = find_mesh(params)
    self._weights = _after(run.prepare, params, mesh=source)
    self._decoding = jax.tree.map(describe, decoding_lib.make_decoding(1.0))
    self._arrays = {
      rung: _after(functools.partial(run.start, rung)) for rung in rungs.rungs
    }
    first = rungs.rungs[0]
    self.largest = max(rungs.rungs, key=lambda rung: (rung.rows, rung.slots))
    self.most_admitted = max(admitted)
    self._lowered = {
      ('prepare',): _trace(run.prepare, (params,), mesh=source),
      ('start',): _trace(functools.partial(run.start, first), ()),
    }
    for num in admitted:
      self._lowered['admit', num] = self._trace_admit(first, num)
    for rung in rungs.rungs:
      self._lowered['decode', rung] = self._trace_decode(rung)
    for rung, more in rungs.longer.items():
      run_longer = functools.partial(run.lengthen, num_slots=more.slots)
      rings = self._arrays[rung][2]
      self._lowered['lengthen', rung] = _trace(
        run_longer, (rings.caches[0], rings.slot)
      )
    for rung, fewer in rungs.narrower.items():
      self._trace_narrow(rung, fewer)
    self._compiled = {}

  @property
  def cache_bytes(self) -> int:
    """Bytes of keys and values on one device, at most."""
    prompts, _, rings = self._arrays[self.largest]
    return sharding.count_bytes((prompts.caches, rings.caches))

  @property
  def weight_bytes(self) -> int:
    """Bytes of the weights that are sampled with, on one device."""
    return sharding.count_bytes(self._weights)

  def measure(self) -> int:
    """Returns the bytes that a device needs at most, weights and caches included;
    compiles the programs that take most."""
    decode, admit = ('decode', self.largest), ('admit', self.most_admitted)
    for name in decode, admit:
      self._compiled[name] = self._lowered.pop(name)().compile()
    rings = self._arrays[self.largest][2]
    return max(
      count_bytes(self._compiled[decode]),
      # Beside its arguments, `admit` has the rings, which may have grown.
      count_bytes(self._compiled[admit]) + sharding.count_bytes(rings),
      *(
        self._measure_move(rung, other)
        for steps in (self.ladder.longer, self.ladder.narrower)
        for rung, other in steps.items()
      ),
    )

  def _measure_move(self, rung, other):
    """Returns the bytes of the weights and of the caches of a rung, while these
    become those of another one."""
    (prompts, _, rings), (new_prompts, _, new_rings) = (
      self._arrays[rung],
      self._arrays[other],
    )
    count = sharding.count_bytes

    def count_both(old, new):
      layers = count(old[0]), count(new[0])
      return len(old) * max(layers) + min(layers)

    held = count(prompts) + count_both(rings.caches, new_rings.caches)
    if not keeps_prompts(rung, other):
      both = count_both(prompts.caches, new_prompts.caches)
      held = max(held, both + count(new_rings))
    return self.weight_bytes + held

  def lower(self, kind: str) -> dict:
    """Returns the lowered programs of a kind that are not compiled, by name."""
    return {
      name: lower() for name, lower in self._lowered.items() if name[0] == kind
    }

  def lower_one(self, *name) -> jax.stages.Lowered:
    """Returns one lowered program that is not compiled, as ('decode', rung)."""
    return self._lowered[name]()

  def _trace_admit(self, rung, num):
    run, rows = self._run, num * self._run.group_size
    new = batches.PromptBatch(
      _rows(num, run.prompt_len), _rows(num), _rows(num)
    )
    held_prompts, held_rows, _ = self._arrays[rung]
    args = (
      self._weights, held_prompts, held_rows, new, _rows(rows), _rows(num),
      _rows(rows), jax.eval_shape(jax.random.key, 0), self._decoding,
    )  # fmt: skip
    return _trace(run.admit, args, donate=(1, 2))

  def _trace_decode(self, rung):
    places = None
    if not rung.in_order:
      places = (_rows(rung.prompts * rung.places), _rows(rung.rows))
    number = jax.ShapeDtypeStruct((), np.int32)
    of_shards = jax.ShapeDtypeStruct((programs.num_shards(),), np.int32)
    args = (
      self._weights, *self._arrays[rung], places, _rows(rung.rows, dtype=bool),
      self._decoding, number, of_shards, number,
    )  # fmt: skip
    return _trace(self._run.decode, args, donate=(2, 3))

  def _trace_narrow(self, rung, fewer):
    prompts, rows, rings = self._arrays[rung]
    run, places = self._run, _rows(fewer.rows)
    found = {
      'narrow': (run.narrow, rows, places, _rows(fewer.rows, dtype=bool)),
      'pick_rings': (run.pick, rings.caches[0], places),
    }
    if not keeps_prompts(rung, fewer):
      places = _rows(fewer.prompts)
      found |= {
        'pick_lengths': (run.pick_lengths, prompts.lengths, places),
        'pick_prompts': (run.pick, prompts.caches[0], places),
      }
    for name, (program, *args) in found.items():
      self._lowered[name, rung] = _trace(program, args)

  def lengthen(
    self, rung: ladder.Rung, rings: programs.Rings
  ) -> programs.Rings:
    """Returns the rings of the next longer rung, and deletes those of `rung`."""
    caches = _change(rings.caches, self._compiled['lengthen', rung], rings.slot)
    return dataclasses.replace(rings, caches=caches)

  def narrow(
    self,
    rung: ladder.Rung,
    prompts: programs.Prompts,
    rows: programs.Rows,
    rings: programs.Rings,
    row: jax.Array,
    live: jax.Array,
    prompt: jax.Array | None,
  ) -> tuple[programs.Prompts, programs.Rows, programs.Rings]:
    """Returns the arrays of the next narrower rung, and deletes the caches that
    become others.

    Args:
      rung: that of the arrays.
      prompts, rows, rings: the arrays.
      row: i32[B], for each place the place it had.
      live: bool[B], whether it holds a row that goes on.
      prompt: i32[B], the place of its prompt, of which each row gets a copy; None
        if prompts stay.
    """
    run = self._compiled
    rows = run['narrow', rung](rows, row, live)
    caches = _change(rings.caches, run['pick_rings', rung], row)
    rings = dataclasses.replace(rings, caches=caches)
    if prompt is not None:
      prompts = programs.Prompts(
        run['pick_lengths', rung](prompts.lengths, prompt),
        _change(prompts.caches, run['pick_prompts', rung], prompt),
      )
    return prompts, rows, rings

  def compile(self) -> None:
    """Compiles the rest."""
    lowered = {name: lower() for name, lower in self._lowered.items()}
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      done = pool.map(lambda x: x.compile(), lowered.values())
      self._compiled |= dict(zip(lowered, done, strict=True))
    self._lowered = {}
    self.prepare = self._compiled['prepare',]
    self.start = self._compiled['start',]
    self.admit, self.decode = self._of('admit'), self._of('decode')

  def _of(self, kind):
    return {
      name[1]: run for name, run in self._compiled.items() if name[0] == kind
    }


def _change(caches, run, *args):
  """Returns the caches of all layers that a program makes of others. These are
  deleted one by one, so that no more than one layer is there twice."""
  made = []
  for cache in caches:
    made.append(jax.block_until_ready(run(cache, *args)))
    for x in jax.tree.leaves(cache):
      x.delete()
  return tuple(made)


def keeps_prompts(rung: ladder.Rung, fewer: ladder.Rung) -> bool:
  """Returns whether prompts stay where they are when rows become fewer."""
  return (rung.prompts, rung.places) == (fewer.prompts, fewer.places)


def count_bytes(compiled) -> int:
  """Returns what a device needs for a compiled program with its arguments."""
  memory = compiled.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


def _rows(*shape, dtype=np.int32):
  """Describes an array split over rows; shape[0] is of one shard."""
  spec = sharding.SAMPLE.spec('batch', *(None,) * (len(shape) - 1))
  return jax.ShapeDtypeStruct(
    (shape[0] * programs.num_shards(), *shape[1:]),
    dtype,
    sharding=NamedSharding(jax.sharding.get_mesh(), spec),
  )


def find_mesh(params: dict) -> jax.sharding.Mesh:
  """Returns the mesh that weights, or their descriptions, are on."""
  layout = jax.tree.leaves(params)[0].sharding
  return getattr(layout, 'mesh', jax.sharding.get_mesh())


def describe(x) -> jax.ShapeDtypeStruct:
  """Returns the shape, type and layout of an array, or of what has them."""
  return jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=getattr(x, 'sharding', None)
  )


def _after(function, *args, mesh=None):
  """Describes what a function that runs on a mesh, or the one in use, leaves on
  the one in use."""
  with jax.set_mesh(mesh or jax.sharding.get_mesh()):
    made = jax.eval_shape(function, *args)
  mesh = jax.sharding.get_mesh()

  def place(x):
    # Scalars carry no layout: every device holds them.
    spec = x.sharding.spec if x.sharding else PartitionSpec()
    return jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
    )

  return jax.tree.map(place, made)


def _trace(function, args, donate=(), mesh=None):
  """Returns a function that lowers another for these arguments, on a mesh or the
  one in use."""

  def lower():
    with jax.set_mesh(mesh or jax.sharding.get_mesh()):
      return jax.jit(function, donate_argnums=donate).lower(*args)

  return lower
