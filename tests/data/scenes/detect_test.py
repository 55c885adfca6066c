"""The detector reads back what was drawn, through noise."""

import numpy as np
import pytest

from uae_jax.data.scenes import detect, draw


def _world(n, **kwargs):
  rng = np.random.default_rng(0)
  scenes = [draw.sample_scene(rng) for _ in range(n)]
  return scenes, np.stack([draw.render(s, **kwargs) for s in scenes])


def _same(found, scenes):
  return np.mean([np.array_equal(a, b) for a, b in zip(found, scenes)])


def test_exact_on_drawn_scenes():
  scenes, images = _world(2000)
  assert _same(detect.detect_batch(images), scenes) == 1


@pytest.mark.parametrize('side', [16, 48, 64])
def test_exact_at_other_sides(side):
  scenes, images = _world(200, side=side)
  assert _same(detect.detect_batch(images), scenes) == 1


def test_exact_under_noise():
  scenes, images = _world(2000)
  noise = np.random.default_rng(1).normal(0, 12 / 255, images.shape)
  assert _same(detect.detect_batch(images / 255 + noise), scenes) >= 0.999


def test_finds_moved_objects():
  scenes, images = _world(300, jitter=1, rng=np.random.default_rng(2))
  assert _same(detect.detect_batch(images, jitter=1), scenes) > 0.98
  assert _same(detect.detect_batch(images), scenes) < 0.9


def test_one_image_and_no_object():
  assert detect.detect(draw.render(np.zeros((0, 5), int))).shape == (0, 5)
  scene = np.array([(3, 2, 0, 2, 2)])
  np.testing.assert_array_equal(detect.detect(draw.render(scene)), scene)
