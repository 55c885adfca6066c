"""Similarity of two images, by tower."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from uae_jax import zoo
from uae_jax.ckpt import maps_vit
from uae_jax.data.tower_preprocess import tower_pixels
from uae_jax.rewards.features import Tower, unit

# (images, images) -> cosine of each pair
Compare = Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, 'n']]


def load_towers(
  names: Sequence[str], mesh: Mesh, dtype: str = 'float32'
) -> dict[str, Compare]:
  """Towers by the last part of their name.

  Images may be of any size: the hub's own preprocessing runs on the host.

  Raises:
    UserError: a folder is missing or holds no tower.
  """
  out = {}
  for name in names:
    folder = zoo.resolve(name)
    model = zoo.tower_from_folder(folder)
    tower = Tower(model.module, **maps_vit.read_view(folder))
    params = zoo.weights(model, folder, mesh, dtype=dtype)
    out[Path(name.split(':')[-1]).name] = _compare(tower, params)
  return out


def _compare(tower: Tower, params: Any) -> Compare:
  @jax.jit
  def embed(params, pixels):
    return unit(tower.module.apply({'params': params}, pixels, method='image'))

  def one(image):
    # One by one: towers that keep the aspect ratio see each at its own size.
    return np.asarray(embed(params, tower_pixels(image, tower)[None]))[0]

  def compare(first, second):
    pairs = zip(first, second, strict=True)
    return np.array([one(a) @ one(b) for a, b in pairs])

  return compare
