"""Weights & Biases, where `log.wandb` names a project and it is installed."""

import html
import importlib.util
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from uae_jax.errors import UserError

FILE = 'wandb.json'  # in the workdir: the run that a resumed one goes on with


def check(project: str) -> None:
  """Raises UserError where there is a project and no package."""
  if project and importlib.util.find_spec('wandb') is None:
    raise UserError(
      "log.wandb needs Weights & Biases: pip install 'uae_jax[wandb]', or set "
      "log.wandb=''"
    )


class WandbWriter:
  """The method names of `writers.MetricWriter`, sent to a project."""

  def __init__(self, folder: Path, project: str):
    """Starts a run, or goes on with that of the folder.

    Args:
      folder: the workdir.
      project: of W&B.

    Raises:
      UserError: W&B is not installed, or starts no run.
    """
    check(project)
    import wandb

    file = folder / FILE
    known = json.loads(file.read_text())['id'] if file.exists() else None
    try:
      self._run = wandb.init(
        project=project, name=folder.name, dir=str(folder), id=known,
        resume='allow',
      )  # fmt: skip
    except wandb.Error as e:
      raise UserError(f'log.wandb: {str(e).splitlines()[0]}') from None
    self._wandb = wandb
    file.write_text(json.dumps({'id': self._run.id}) + '\n')
    # Our own steps: W&B's never go back, those of a resumed run do.
    self._run.define_metric('*', step_metric='step')

  def truncate_after(self, step: int) -> None:
    """Drops nothing: W&B keeps what it was sent."""

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Numbers that are finite; W&B draws no others."""
    finite = {k: v for k, v in scalars.items() if math.isfinite(v)}
    self._run.log({'step': step, **finite})

  def write_images(
    self, step: int, images: Mapping[str, UInt8[np.ndarray, 'N R Q C']]
  ) -> None:
    """Pictures of a tag side by side."""
    shown = {
      tag: [self._wandb.Image(picture) for picture in pictures]
      for tag, pictures in images.items()
    }
    self._run.log({'step': step, **shown})

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Texts as they are."""
    shown = {
      tag: self._wandb.Html(f'<pre>{html.escape(text)}</pre>')
      for tag, text in texts.items()
    }
    self._run.log({'step': step, **shown})

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """The config of the run."""
    self._run.config.update(dict(hparams), allow_val_change=True)

  def flush(self) -> None:
    """W&B sends by itself."""

  def close(self) -> None:
    """Waits until everything is sent."""
    self._run.finish()
