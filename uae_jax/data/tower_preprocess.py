"""Images as the reward towers see them, on the host, in numpy and PIL.

Mirrors Hugging Face's PIL image processors of CLIP, DINOv2 (Bit), SigLIP and
SigLIP 2, and the order of DINOv3's (rescale, then resize floats). Inside the
training step `rewards.features.Tower.pixels` does the same on the device.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from uae_jax.data.preprocess import to_rgb

RESAMPLE = {
  'linear': Image.Resampling.BILINEAR,
  'cubic': Image.Resampling.BICUBIC,
}


def tower_pixels(
  image: Image.Image | np.ndarray, tower: Any
) -> Float[np.ndarray, 'h w 3']:
  """One image -> normalised pixels.

  Args:
    image: of any mode and size, or uint8 [H, W, 3].
    tower: a `rewards.features.Tower`, whose geometry, resampling, mean and
      std are followed.
  """
  image = to_rgb(image)
  rows, cols = tower.resized(image.height, image.width)
  if tower.rounded:
    image = image.resize((cols, rows), RESAMPLE[tower.resample])
    x = np.asarray(image, np.float32) / 255
  else:
    x = np.asarray(image, np.float32) / 255
    x = resize_floats(x, rows, cols, tower.resample)
  x = x[tower.window(rows, cols)]
  return (x - np.float32(tower.mean)) / np.float32(tower.std)


def resize_floats(
  x: Float[np.ndarray, 'H W C'], rows: int, cols: int, resample: str
) -> Float[np.ndarray, 'h w C']:
  """PIL's filter on floats, channel by channel, never rounded to bytes."""
  planes = [Image.fromarray(x[..., c]) for c in range(x.shape[-1])]
  size = (cols, rows)
  planes = [np.asarray(p.resize(size, RESAMPLE[resample])) for p in planes]
  return np.stack(planes, -1)
