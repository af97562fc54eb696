"""Alarms while a run goes on: each is shown once, and kept in alarms.jsonl.

They come from the files that the run writes (health.py says how), so that a run
that goes on knows what happened before, and `doctor` finds the same afterwards.
"""

import dataclasses
import os
import pathlib

import ml_collections

from dash_jax.runs import health, jsonl, metrics, progress

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
    # What the process before has shown.
    self._known = {}
    for alarm in self._read():
      self._known.setdefault(alarm.name, alarm)
    if self._known or self._path.exists():
      jsonl.write(self._path, [*map(dataclasses.asdict, self._known.values())])

  def look(self) -> None:
    """Shows what is new since the last call."""
    for alarm in self._read():
      if alarm.name in self._known:
        continue
      self._known[alarm.name] = alarm
      self._bars.warn(alarm.text)
      with open(self._path, 'a', encoding='utf-8', newline='\n') as file:
        file.write(jsonl.encode(dataclasses.asdict(alarm)))

  def _read(self):
    rows, evals = (
      [metrics.read_numbers(row) for row in tail.read()]
      for tail in (self._rows, self._evals)
    )
    return self._health.add_all(rows, evals)
