"""Pixels for a tower, unit vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from uae_jax.rewards.features import to_tower, unit

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def test_same_size_is_only_normalised():
  x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
  want = (x - np.float32(MEAN)) / np.float32(STD)
  np.testing.assert_allclose(to_tower(x, 8, MEAN, STD), want, rtol=1e-6)


@pytest.mark.parametrize('shape', [(32, 32), (40, 61), (61, 40), (9, 13)])
def test_resize_and_crop_are_those_of_pil(shape):
  """Within the two roundings to bytes that PIL makes."""
  rng = np.random.default_rng(0)
  height, width = shape
  bytes_ = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
  size, short = 14, min(shape)
  rows, cols = size * height // short, size * width // short
  pil = Image.fromarray(bytes_).resize((cols, rows), Image.Resampling.BICUBIC)
  top, left = (rows - size) // 2, (cols - size) // 2
  want = np.asarray(pil)[top : top + size, left : left + size]
  got = to_tower(bytes_[None] / np.float32(255), size, (0, 0, 0), (1, 1, 1))
  assert np.abs(np.asarray(got[0]) * 255 - want).max() <= 1.1


def test_unit_is_fp32_and_safe_at_zero():
  x = jnp.array([[3.0, 4.0], [0.0, 0.0], [1e-8, 0.0]], jnp.bfloat16)
  y = unit(x)
  assert y.dtype == jnp.float32
  np.testing.assert_allclose(y, [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)
  gradient = jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))
  assert np.isfinite(gradient).all()


def test_unit_keeps_a_nan_visible():
  assert np.isnan(unit(jnp.array([jnp.nan, 1.0]))).all()
