"""What the reward towers share, and the image half of CLIP on its own.

SigLIP, DINOv2 and DINOv3 live in `siglip.py`, `dinov2.py` and `dinov3.py`.
Letters: B images, D width, R image side in pixels, E embedding width.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from uae_jax.models.clip import VisionTower, patches


def whole_patches(
  pixels: Float[Array, 'B h w C'], patch: int
) -> Float[Array, 'B P F']:
  """`clip.patches` of any size: a strided convolution drops the rest too.

  384 pixels hold 27 patches of 14; the last 6 rows and columns are unseen.
  """
  rows, cols = (n // patch * patch for n in pixels.shape[1:3])
  return patches(pixels[:, :rows, :cols], patch)


class LayerScale(nn.Module):
  """x * scale, a learned gain per channel on a residual branch."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    return x * scale.astype(x.dtype)


class ImageCLIP(nn.Module):
  """The image half of CLIP: what a reward or a judge needs of it.

  Attributes:
    projection: width E of the shared space.
    vision: fields of `clip.VisionTower` but the projection.
  """

  projection: int
  vision: Mapping[str, Any]

  def setup(self):
    self.vision_tower = VisionTower(**self.vision, projection=self.projection)

  def image(self, pixels: Float[Array, 'B R R 3']) -> Float[Array, 'B E']:
    """Normalised pixels -> embedding, not unit length."""
    return self.vision_tower(pixels)

  __call__ = image
