"""Pixels for a tower, unit vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.photographs import photographs
from uae_jax.data.tower_preprocess import tower_pixels
from uae_jax.rewards.features import Tower, most_patches, resize, unit

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

# What each family's image processor does, without the normalisation.
VIEWS = {
  'clip': Tower(None, 224, ZERO, ONE),
  'dinov2': Tower(None, 224, ZERO, ONE, short=256),
  'siglip': Tower(None, 384, ZERO, ONE, fit='stretch'),
  'siglip2': Tower(None, 256, ZERO, ONE, fit='stretch', resample='linear'),
  'dinov3': Tower(
    None, 224, ZERO, ONE, fit='stretch', resample='linear', rounded=False
  ),
  'naflex': Tower(
    None, 16, ZERO, ONE, fit='patches', resample='linear', max_patches=256
  ),
}


def test_same_size_is_only_normalised():
  x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
  want = (x - np.float32(MEAN)) / np.float32(STD)
  for fit in ('crop', 'stretch'):
    got = Tower(None, 8, MEAN, STD, fit=fit).pixels(x)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize('shape', [(32, 32), (40, 61), (61, 40), (9, 13)])
@pytest.mark.parametrize('resample', ['cubic', 'linear'])
def test_resize_and_crop_are_those_of_pil(shape, resample):
  """Noise is the worst case: one byte where a sum lies between two."""
  rng = np.random.default_rng(0)
  height, width = shape
  bytes_ = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
  size, short = 14, min(shape)
  rows, cols = size * height // short, size * width // short
  pil = {'cubic': Image.Resampling.BICUBIC, 'linear': Image.Resampling.BILINEAR}
  pil = Image.fromarray(bytes_).resize((cols, rows), pil[resample])
  top, left = (rows - size) // 2, (cols - size) // 2
  want = np.asarray(pil)[top : top + size, left : left + size]
  tower = Tower(None, size, ZERO, ONE, resample=resample)
  got = tower.pixels(bytes_[None] / np.float32(255))
  assert np.abs(np.asarray(got[0]) * 255 - want).max() <= 1.001


@pytest.mark.parametrize('name', VIEWS)
def test_device_and_host_see_the_same_photographs(name):
  """At most one byte apart, and that in few pixels; floats to rounding."""
  tower = VIEWS[name]
  for label, photo in photographs().items():
    want = tower_pixels(photo, tower)
    got = np.asarray(tower.pixels(photo[None] / np.float32(255))[0])
    assert got.shape == want.shape
    apart = np.abs(got - want) * 255
    if not tower.rounded:
      assert apart.max() <= 5e-3, label
    elif rows_first(tower, *photo.shape[:2]):
      assert apart.mean() <= 0.2 and apart.max() <= 11, label
    else:
      assert apart.mean() <= 0.01 and apart.max() <= 1.001, label


def rows_first(tower, height, width):
  """Whether Pillow 13 takes the rows first."""
  rows, cols = tower.resized(height, width)
  return height - rows > max(0, 2 * (width - cols))


def test_most_patches_fills_the_limit_and_keeps_the_shape():
  assert most_patches(433, 701, 16, 256) == (192, 320)
  assert most_patches(224, 224, 16, 256) == (256, 256)
  for h, w in np.random.default_rng(0).integers(10, 2000, (50, 2)).tolist():
    rows, cols = most_patches(h, w, 14, 100)
    assert rows % 14 == cols % 14 == 0 and rows * cols <= 100 * 14**2
    assert (rows + 14) * (cols + 14) > 100 * 14**2
    # Each side is rounded up by less than a patch.
    assert (rows - 14) / h <= cols / w and (cols - 14) / w <= rows / h


def test_the_gradient_passes_the_rounding():
  x = np.random.default_rng(0).uniform(0.1, 0.9, (1, 12, 9, 3))
  x, weight = x.astype(np.float32), np.arange(48.0).reshape(1, 4, 4, 3)
  total = lambda rounded: jax.grad(
    lambda x: jnp.sum(resize(x, 4, 4, 'linear', rounded) * weight)
  )(x)
  np.testing.assert_allclose(total(True), total(False), rtol=1e-5, atol=1e-5)
  assert np.abs(total(True)).max() > 0.1


def test_unit_is_fp32_and_safe_at_zero():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-8, 0.0]], jnp.bfloat16)
  y = unit(x)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
  gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))
  assert np.isfinite(gradient).all()


def test_unit_keeps_a_nan_visible():
  assert np.isnan(unit(jnp.array([jnp.nan, 1.0]))).all()
