"""How a model is asked to describe and to draw.

Defaults of its family, then the folder's `umm.json`, then what the caller
says.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uae_jax.ckpt import hf
from uae_jax.errors import UserError

FILE = 'umm.json'
# Keys of umm.json beside the options: folders, relative to its own or bundled.
FOLDERS = ('policy', 'reader', 'decoder')


@dataclasses.dataclass(frozen=True)
class Options:
  """Everything that is not a weight.

  Attributes:
    prompt: what a captioner is asked.
    system: turn of the chat template before it; '' is none.
    max_pixels: of an image as the captioner sees it.
    length: caption budget in tokens, EOS included.
    temperature: 0 is greedy.
    top_k: tokens drawn from; 0 is all.
    top_p: probability mass drawn from.
    height: of a drawing in pixels.
    width: of a drawing in pixels.
    steps: of the decoder.
    shift: of its noise levels; None is what its scheduler's file says.
    guidance: classifier-free, or distilled where the decoder has it as input.
    negative: what guidance leads away from.
    image_temperature: of image codes, where an image is drawn by them.
    image_top_k: codes drawn from; 0 is all.
    image_top_p: probability mass drawn from.
    joint: the decoder also reads the prompt through its own text encoders,
      where the folder has them beside a captioner (UniWorld).
    dtype: of weights and activations.
    batch: images or captions at once.
  """

  prompt: str = 'Describe this image in detail.'
  system: str = ''
  max_pixels: int = 1280 * 28 * 28
  length: int = 512
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  height: int = 1024
  width: int = 1024
  steps: int = 28
  shift: float | None = None
  guidance: float = 3.5
  negative: str = ''
  image_temperature: float = 1.0
  image_top_k: int = 0
  image_top_p: float = 1.0
  joint: bool = False
  dtype: str = 'float32'
  batch: int = 8

  def __post_init__(self):
    for key in ('max_pixels', 'length', 'height', 'width', 'steps', 'batch'):
      if getattr(self, key) < 1:
        raise UserError(f'{key}={getattr(self, key)} must be at least 1')
    if self.dtype not in ('float32', 'bfloat16'):
      raise UserError(f'dtype={self.dtype!r} is neither float32 nor bfloat16')


def combine(
  family: Mapping[str, Any], folder: Path, said: Mapping[str, Any]
) -> Options:
  """The options of a folder.

  Args:
    family: defaults of this kind of model.
    folder: whose `umm.json` is read where there is one.
    said: by the caller; None stands for nothing.

  Raises:
    UserError: an unknown key, or a value that cannot be.
  """
  stored = read(folder)
  known = {field.name for field in dataclasses.fields(Options)}
  unknown = sorted(set(stored) - known - set(FOLDERS))
  if unknown:
    raise UserError(f'{folder / FILE}: unknown keys {unknown}')
  stored = {key: stored[key] for key in stored if key in known}
  said = {key: value for key, value in said.items() if value is not None}
  try:
    return Options(**{**family, **stored, **said})
  except TypeError as e:
    raise UserError(f'{folder / FILE}: {e}') from None


def read(folder: Path) -> dict[str, Any]:
  """The folder's `umm.json`; {} where there is none."""
  return hf.read_config(folder, FILE) if (folder / FILE).exists() else {}


def place(folder: Path, key: str) -> str:
  """Where one of `FOLDERS` is: beside umm.json, or where that says."""
  named = read(folder)
  name = named[key] if key in named else key
  if name.startswith('bundled:') or Path(name).is_absolute():
    return name
  return str(folder / name)
