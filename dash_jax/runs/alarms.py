"""Alarms while a run goes on: each is shown once, and kept in alarms.jsonl.

They come from the files that the run writes (health.py says how), so that a run
that goes on knows what happened before, and `doctor` finds the same afterwards.
The memory of the host alone is looked at as it is: it is of a process, and the
same run in another one has another.
"""

import dataclasses
import os
import pathlib

import ml_collections

from dash_jax.runs import health, jsonl, metrics, progress
from dash_jax.sampling import memory

ALARMS_NAME = 'alarms.jsonl'


class Alarms:
  """The alarms of a run that goes on. Of a job's processes one has them."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    config: ml_collections.ConfigDict,
    bars: progress.Progress,
  ):
    """
    Args:
      workdir: the run's folder, whose files end where the run goes on from.
      config: of the run.
      bars: where alarms are shown.
    """
    workdir = pathlib.Path(workdir)
    self._path = workdir / ALARMS_NAME
    self._bars = bars
    self._health = health.Health(config)
    self._rows = jsonl.Tail(workdir / metrics.METRICS_NAME)
    self._evals = jsonl.Tail(workdir / metrics.EVALS_NAME)
    # What processes before this have shown.
    self._known = {}
    for alarm in self._find_new():
      self._known.setdefault(alarm.name, alarm)
    for alarm in read(workdir):
      if alarm.step <= self._health.step:
        self._known.setdefault(alarm.name, alarm)
    if self._path.exists() or self._known:
      rows = sorted(self._known.values(), key=lambda alarm: alarm.step)
      jsonl.write(self._path, [dataclasses.asdict(alarm) for alarm in rows])

  def look(self) -> None:
    """Shows what is new since the last call."""
    for alarm in self._find_new(memory.find_host_share()):
      if alarm.name in self._known:
        continue
      self._known[alarm.name] = alarm
      self._bars.warn(alarm.text)
      with open(self._path, 'a', encoding='utf-8', newline='\n') as file:
        file.write(jsonl.encode(dataclasses.asdict(alarm)))

  def _find_new(self, host_share=None):
    rows, evals = (
      [metrics.read_numbers(row) for row in tail.read()]
      for tail in (self._rows, self._evals)
    )
    if rows and host_share is not None:
      rows[-1]['host_memory_fraction'] = host_share
    return self._health.add_all(rows, evals)


def read(workdir: str | os.PathLike) -> list[health.Alarm]:
  """Returns what a run has shown.

  Raises:
    ValueError: a line before the last of alarms.jsonl is not an alarm.
  """
  path = pathlib.Path(workdir) / ALARMS_NAME
  if not path.exists():
    return []
  try:
    return [health.Alarm(**row) for row in jsonl.read(path)]
  except TypeError as error:
    raise ValueError(f'{path} holds what is no alarm: {error}') from error
