"""Pixels as a tower wants them, on the device; unit-length embeddings.

Images are resized, cropped and normalised inside the step as the hub's image
processors do on the host; `data.tower_preprocess` is the same in PIL.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def resize(
  images: Float[Array, 'N H W C'],
  rows: int,
  cols: int,
  resample: str,
  rounded: bool,
) -> Float[Array, 'N h w C']:
  """Antialiased resize as PIL's: columns, then rows.

  Pillow from 13 on takes the rows first where an image shrinks far more in
  height than in width, which changes few bytes and never a square image's.

  Args:
    images: in [0, 1].
    rows: wanted height.
    cols: wanted width.
    resample: 'linear' or 'cubic' (a = -1/2).
    rounded: PIL keeps bytes, so each pass is clamped and rounded to them;
      the gradient passes the rounding as if it were not there.
  """
  for shape in ((images.shape[1], cols), (rows, cols)):
    if shape != images.shape[1:3]:
      full = (len(images), *shape, images.shape[3])
      images = jax.image.resize(images, full, resample, antialias=True)
      if rounded:
        images = jnp.clip(images, 0, 1)
        # Ties go up in PIL; the margin is for sums that just miss them.
        whole = jnp.floor(images * 255 + (0.5 + 1e-4)) / 255
        images = images + jax.lax.stop_gradient(whole - images)
  return images


def unit(x: Float[Array, '*b E']) -> Float[Array, '*b E']:
  """x / |x| in fp32; a zero vector stays zero, with a finite gradient."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


@dataclasses.dataclass(frozen=True)
class Tower:
  """An image encoder with the pixels it expects.

  Attributes:
    module: has methods `image(pixels)` and, where there is a text tower,
      `text(ids)`.
    size: side in pixels of what the tower sees; of one patch where `fit` is
      'patches'.
    mean: per channel, of pixels in [0, 1].
    std: per channel.
    fit: 'crop' resizes the shortest side to `short` and crops the centre
      (CLIP, DINOv2); 'stretch' gives up the aspect ratio (SigLIP, DINOv3);
      'patches' keeps it, with at most `max_patches` (SigLIP 2 NaFlex).
    short: of 'crop'; None for `size`.
    resample: 'cubic' or 'linear', with antialias.
    rounded: resizes bytes, as PIL does, and not floats (DINOv3).
    max_patches: of 'patches'.
  """

  module: Any
  size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  fit: str = 'crop'
  short: int | None = None
  resample: str = 'cubic'
  rounded: bool = True
  max_patches: int | None = None

  def resized(self, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) that an image has after the resize, before the crop."""
    if self.fit == 'stretch':
      return self.size, self.size
    if self.fit == 'patches':
      return most_patches(height, width, self.size, self.max_patches)
    short, least = self.short or self.size, min(height, width)
    return short * height // least, short * width // least

  def window(self, rows: int, cols: int) -> tuple[slice, slice]:
    """What the tower sees of a resized image."""
    if self.fit != 'crop':
      return slice(rows), slice(cols)
    top, left = (rows - self.size) // 2, (cols - self.size) // 2
    return slice(top, top + self.size), slice(left, left + self.size)

  def pixels(self, images: Float[Array, 'N H W 3']) -> Float[Array, 'N h w 3']:
    """Images in [0, 1] -> what the module takes.

    Images of the right size keep their pixels.
    """
    rows, cols = self.resized(*images.shape[1:3])
    x = resize(images, rows, cols, self.resample, self.rounded)
    down, across = self.window(rows, cols)
    mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
    x = x[:, down, across] - mean.astype(x.dtype)
    return x / std.astype(x.dtype)

  def embed(
    self, params: Any, images: Float[Array, 'N H W 3']
  ) -> Float[Array, 'N E']:
    """Images in [0, 1] -> embeddings, not unit length."""
    pixels = self.pixels(images)
    return self.module.apply({'params': params}, pixels, method='image')

  def embed_text(
    self, params: Any, ids: Int[Array, 'N L']
  ) -> Float[Array, 'N E']:
    """Token ids -> embeddings, not unit length."""
    return self.module.apply({'params': params}, ids, method='text')


def most_patches(
  height: int, width: int, patch: int, limit: int
) -> tuple[int, int]:
  """The largest (rows, columns) of about this shape in `limit` patches.

  Both are whole patches; the scale is found by halving [1e-6, 100] down to
  1e-5, as transformers' Siglip2ImageProcessor does.
  """

  def scaled(scale: float) -> tuple[int, int]:
    cover = lambda n: max(1, math.ceil(n * scale / patch)) * patch
    return cover(height), cover(width)

  low, high = 1e-6, 100.0
  while high - low >= 1e-5:
    middle = (low + high) / 2
    rows, cols = scaled(middle)
    if rows * cols <= limit * patch**2:
      low = middle
    else:
      high = middle
  return scaled(low)
