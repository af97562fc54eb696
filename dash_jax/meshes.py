"""Which devices a run has, and what each does.

1. Processes join, if the launcher says so, and devices form a mesh.
2. With `mesh.sampler_devices` some of them sample while the others learn.
"""

import os
import re

import jax
import ml_collections

from dash_jax import checks, sharding


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
  sampling_mesh = make_sampling_mesh(config, mesh, devices)
  checks.check_mesh(
    config,
    sharding.num_batch_shards(mesh),
    sharding.num_batch_shards(sampling_mesh),
    len({device.process_index for device in devices}),
  )
  return mesh, sampling_mesh


def make_sampling_mesh(
  config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, devices: list
) -> jax.sharding.Mesh:
  """Returns the mesh that samples, beside that which learns.

  Raises:
    ValueError: the devices that sample do not divide; names the field.
  """
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
