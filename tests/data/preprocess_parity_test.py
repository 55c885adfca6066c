"""Preprocessing against Hugging Face's PIL processors."""

import numpy as np
import pytest
from PIL import Image

from uae_jax.data import preprocess

pytest.importorskip('torch')
qwen = pytest.importorskip(
  'transformers.models.qwen2_vl.image_processing_pil_qwen2_vl'
)


def _photo(h, w):
  noise = np.random.default_rng(h).integers(0, 256, (9, 13, 3), np.uint8)
  return Image.fromarray(noise).resize((w, h), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
  'h, w', [(433, 701), (56, 56), (30, 200), (512, 96), (224, 308)]
)
def test_patches(h, w):
  image = _photo(h, w)
  bounds = dict(min_pixels=56 * 56, max_pixels=448 * 448)
  view = preprocess.PolicyView(patch=14, merge=2, window=112, **bounds)
  processor = qwen.Qwen2VLImageProcessorPil(**bounds)
  want = processor(images=image, return_tensors='np')
  got = view(image)
  np.testing.assert_allclose(
    got['patches'], want['pixel_values'], rtol=0, atol=1e-6
  )
  t, gh, gw = want['image_grid_thw'][0]
  assert t == 1
  np.testing.assert_array_equal(got['patch_hw'].max(0) + 1, (gh, gw))


def test_smart_resize():
  sizes = np.random.default_rng(0).integers(28, 2000, (300, 2))
  bounds = (56 * 56, 448 * 448)
  for h, w in sizes.tolist():
    if max(h, w) < 200 * min(h, w):
      got = preprocess.smart_resize(h, w, 28, *bounds)
      assert got == qwen.smart_resize(h, w, 28, *bounds)


@pytest.mark.parametrize(
  'h, w', [(433, 701), (701, 433), (100, 100), (90, 333)]
)
def test_square_view(h, w):
  from transformers import CLIPImageProcessorPil

  image = _photo(h, w)
  processor = CLIPImageProcessorPil(do_normalize=False)
  want = processor(images=image, return_tensors='np')['pixel_values'][0]
  got = preprocess.fitted_view(image, 224, 224) / np.float32(255)
  np.testing.assert_allclose(got.transpose(2, 0, 1), want, rtol=0, atol=1e-6)
