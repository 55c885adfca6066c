"""Scenes: valid, deterministic, drawn where they say, at any size."""

import numpy as np
import pytest

from uae_jax.data.scenes import draw


def test_scenes_are_valid_and_sorted():
  rng = np.random.default_rng(0)
  counts = set()
  for _ in range(500):
    scene = draw.sample_scene(rng)
    cells = scene[:, 3] * draw.GRID + scene[:, 4]
    assert np.all(np.diff(cells) > 0)
    assert np.all(scene >= 0) and np.all(scene.max(0) < (5, 9, 4, 4, 4))
    assert scene[:, 0].max() < 4 and scene[:, 1].max() < 8
    counts.add(len(scene))
  assert counts == {1, 2, 3, 4}


def test_same_seed_same_scene():
  one, two = (draw.sample_scene(np.random.default_rng(7)) for _ in range(2))
  np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize('side', [16, 32, 48, 64])
def test_objects_lie_in_their_cells(side):
  scene = np.array([(1, 7, 2, 0, 2), (1, 7, 0, 2, 0)])  # white squares
  bright = draw.render(scene, side).mean(-1) > 128
  third = side / draw.GRID
  for (*_, row, col), radius in zip(scene, (4.5, 2.5)):
    rows = slice(int(row * third), int((row + 1) * third) + 1)
    cols = slice(int(col * third), int((col + 1) * third) + 1)
    area = bright[rows, cols].sum()
    bright[rows, cols] = False
    assert abs(np.sqrt(area) - 2 * radius * side / 32) <= 1
  assert not bright.any()


def test_small_shapes_differ_by_more_than_antialiasing():
  small = draw.masks(32)[:, draw.SMALL]
  gaps = abs(small[:, None] - small[None]).sum((-1, -2))
  assert gaps[~np.eye(4, dtype=bool)].min() > 2.5  # whole pixels


def test_jitter_moves_whole_objects():
  scene = np.array([(0, 0, 0, 1, 1)])
  still = draw.render(scene)
  moved = draw.render(scene, jitter=2, rng=np.random.default_rng(0))
  assert not np.array_equal(still, moved)
  np.testing.assert_array_equal(
    np.sort(still.reshape(-1, 3), 0), np.sort(moved.reshape(-1, 3), 0)
  )


def test_an_empty_scene_is_background():
  image = draw.render(np.zeros((0, 5), int))
  assert image.shape == (32, 32, 3)
  assert np.all(image == draw.BACKGROUND)
