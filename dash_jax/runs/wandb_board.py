"""Weights & Biases, beside TensorBoard: the same keys, on its own pages.

The package is an extra. A run's id is kept in its workdir, so that a run that
goes on is the same run there. Steps that are done again after a kill are told
again, with the same numbers.
"""

import os
import pathlib
import uuid

from dash_jax.runs import jsonl

ID_NAME = 'wandb_id.txt'


def require() -> None:
  """Refuses to go on without the package.

  Raises:
    ModuleNotFoundError: it is not installed.
  """
  try:
    import wandb  # noqa: F401
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "log.wandb needs the package wandb: pip install -e '.[wandb]'"
    ) from error


class Board:
  """A run's page."""

  def __init__(self, project: str, workdir: str | os.PathLike, config: dict):
    """Begins, or goes on with, the run of a workdir.

    Args:
      project: its name there.
      workdir: the run's folder, which keeps the id.
      config: all fields, shown there.

    Raises:
      ValueError: it cannot be begun, as without a login.
    """
    import wandb

    path = pathlib.Path(workdir).absolute() / ID_NAME
    if not path.exists():
      jsonl.replace(path, uuid.uuid4().hex)
    try:
      self._run = wandb.init(
        project=project,
        id=path.read_text(encoding='utf-8'),
        resume='allow',
        name=path.parent.name,
        dir=str(path.parent),
        config=config,
      )
    except wandb.Error as error:
      raise ValueError(f'log.wandb={project!r}: {error}') from error
    # Its own count of steps only grows, and would lose what is told again.
    self._run.define_metric('*', step_metric='step')

  def write(self, values: dict[str, float], step: int) -> None:
    """Shows numbers of one step."""
    self._run.log(values | {'step': step})

  def close(self) -> None:
    """Waits until all is sent, or kept for `wandb sync` where it is offline."""
    self._run.finish()
