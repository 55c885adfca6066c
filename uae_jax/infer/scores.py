"""Similarity of two images, by tower."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from uae_jax import zoo
from uae_jax.ckpt import maps_vit
from uae_jax.data.tower_preprocess import tower_pixels
from uae_jax.errors import UserError
from uae_jax.rewards.features import Tower, unit

BATCH = 16  # images that a tower sees at once

# (images, images) -> cosine of each pair
Compare = Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, 'n']]


def load_towers(
  names: Sequence[str], mesh: Mesh, dtype: str = 'float32'
) -> dict[str, Compare]:
  """Towers by the last part of their name.

  Images may be of any size: the hub's own preprocessing runs on the host.

  Raises:
    UserError: a folder is missing or holds no tower, or two go by one name.
  """
  out = {}
  for name in names:
    short = Path(name.split(':')[-1]).name
    if short in out:
      raise UserError(f'two towers are called {short!r}: rename one folder')
    folder = zoo.resolve(name)
    model = zoo.tower_from_folder(folder)
    tower = Tower(model.module, **maps_vit.read_view(folder))
    params = zoo.weights(model, folder, mesh, dtype=dtype)
    out[short] = _compare(tower, params)
  return out


def _compare(tower: Tower, params: Any) -> Compare:
  @jax.jit
  def embed(params, pixels):
    return unit(tower.module.apply({'params': params}, pixels, method='image'))

  def embed_all(images):
    pixels = [tower_pixels(image, tower) for image in images]
    out = {}
    for part in _batches([x.shape for x in pixels]):
      rows = embed(params, np.stack([pixels[i] for i in part]))
      out |= dict(zip(part, np.asarray(rows)))
    return np.stack([out[i] for i in range(len(pixels))])

  def compare(first, second):
    if len(first) != len(second):
      raise ValueError(f'{len(first)} images beside {len(second)}')
    if not len(first):
      return np.zeros(0, np.float32)
    both = embed_all([*first, *second])
    return np.sum(both[: len(first)] * both[len(first) :], -1)

  return compare


def _batches(shapes: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
  """Indices of equal shapes: towers that keep the aspect ratio have several.

  The last stands for what a power of two lacks, so that programs are few.
  """
  for shape in dict.fromkeys(shapes):
    same = [i for i, other in enumerate(shapes) if other == shape]
    for start in range(0, len(same), BATCH):
      part = same[start : start + BATCH]
      full = 2 ** (len(part) - 1).bit_length()
      yield part + part[-1:] * (full - len(part))
