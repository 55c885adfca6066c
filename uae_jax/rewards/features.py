"""Pixels as a tower wants them, on the device; unit-length embeddings."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def to_tower(
  images: Float[Array, 'N H W 3'],
  size: int,
  mean: Sequence[float],
  std: Sequence[float],
) -> Float[Array, 'N R R 3']:
  """[0, 1] images -> (x - mean) / std at `size` x `size`, as HF CLIP does.

  The shortest side is resized to `size` (bicubic with antialias; columns,
  then rows, each clamped to [0, 1] like PIL but not rounded to bytes), then
  the centre is cropped. Images of the right size keep their pixels.
  """
  height, width = images.shape[1:3]
  if (height, width) != (size, size):
    short = min(height, width)
    rows, cols = size * height // short, size * width // short
    for shape in ((height, cols), (rows, cols)):
      shape = (len(images), *shape, 3)
      images = jax.image.resize(images, shape, 'cubic', antialias=True)
      images = jnp.clip(images, 0, 1)
    top, left = (rows - size) // 2, (cols - size) // 2
    images = images[:, top : top + size, left : left + size]
  mean, std = (np.asarray(x, np.float32) for x in (mean, std))
  return (images - mean.astype(images.dtype)) / std.astype(images.dtype)


def unit(x: Float[Array, '*b E']) -> Float[Array, '*b E']:
  """x / |x| in fp32; a zero vector stays zero, with a finite gradient."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


@dataclasses.dataclass(frozen=True)
class Tower:
  """An image encoder with the pixels it expects.

  Attributes:
    module: has methods `image(pixels)` and, for CLIP, `text(ids)`.
    size: side in pixels.
    mean: per channel, of pixels in [0, 1].
    std: per channel.
  """

  module: Any
  size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]

  def embed(
    self, params: Any, images: Float[Array, 'N H W 3']
  ) -> Float[Array, 'N E']:
    """Images in [0, 1] -> embeddings, not unit length."""
    pixels = to_tower(images, self.size, self.mean, self.std)
    return self.module.apply({'params': params}, pixels, method='image')

  def embed_text(
    self, params: Any, ids: Int[Array, 'N L']
  ) -> Float[Array, 'N E']:
    """Token ids -> embeddings, not unit length."""
    return self.module.apply({'params': params}, ids, method='text')
