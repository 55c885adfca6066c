"""Reads scenes back from images: the nearest template in every cell.

Exact on drawn scenes and robust to the noise of a generative decoder, so it
gives redrawn images a ground truth without a learned judge.
"""

import functools
import itertools

import numpy as np

from uae_jax.data.scenes import draw, glyphs


@functools.cache
def _templates(side: int, jitter: int) -> tuple[np.ndarray, np.ndarray]:
  """Pixels minus background [K, window²·3] and kinds [K, 3]; 0 is empty.

  Every kind appears once for each move within `jitter`, so that all kinds
  and the empty cell are compared on the same pixels.
  """
  stencils = draw.masks(side)
  box = stencils.shape[-1]
  window = box + 2 * jitter
  colours = (draw.PALETTE - draw.BACKGROUND) / 255
  pixels, kinds = [np.zeros((window, window, 3))], [(-1, -1, -1)]
  ranges = (*stencils.shape[:2], len(colours), 2 * jitter + 1, 2 * jitter + 1)
  for shape, size, colour, y, x in itertools.product(*map(range, ranges)):
    one = np.zeros((window, window, 3))
    one[y : y + box, x : x + box] = (
      stencils[shape, size][..., None] * colours[colour]
    )
    pixels.append(one)
    kinds.append((shape, colour, size))
  return np.stack(pixels).reshape(len(pixels), -1), np.array(kinds)


def _contrast(images: np.ndarray) -> np.ndarray:
  """Images, uint8 or float in [0, 1], as floats minus the background."""
  images = np.asarray(images)
  scale = 255.0 if images.dtype == np.uint8 else 1.0
  return np.clip(images / scale, 0, 1) - draw.BACKGROUND / 255


def _nearest(images: np.ndarray, jitter: int) -> tuple[np.ndarray, np.ndarray]:
  """Distance [B, 9] to the best template of each cell, and its kind [B, 9, 3].

  The distance is squared and leaves out what all templates share.
  """
  side = images.shape[1]
  templates, kinds = _templates(side, jitter)
  half = draw.masks(side).shape[-1] // 2 + jitter
  window = 2 * half + 1
  images = np.pad(images, ((0, 0), (half, half), (half, half), (0, 0)))
  at = draw.centres(side)
  cells = np.stack(
    [images[:, y : y + window, x : x + window] for y in at for x in at], 1
  )
  cells = cells.reshape(len(images), len(at) ** 2, -1)
  distance = np.sum(templates**2, -1) - 2 * cells @ templates.T
  return distance.min(-1), kinds[np.argmin(distance, -1)]


def _strings(images: np.ndarray, shapes: np.ndarray) -> np.ndarray:
  """Strings [B, 5] of images for which shapes are so far [B, 9]."""
  distance, letters = glyphs.nearest(images)
  gain = shapes - distance
  rows, cell = np.arange(len(gain)), np.argmax(gain, -1)
  found = np.column_stack([*divmod(cell, draw.GRID), letters[rows, cell]])
  found[gain[rows, cell] <= 0] = -1
  return found


def read_strings(images: np.ndarray, jitter: int = 0) -> np.ndarray:
  """The string of each image, exact on drawn ones from side 32 on.

  A string is found where it is nearer than any shape and than an empty cell;
  of several such cells, where it is nearer by most.

  Args:
    images: see `detect_batch`.
    jitter: of the shapes that strings are told from.

  Returns:
    [B, 5] as in `glyphs`, rows of -1 where there is none.
  """
  images = _contrast(images)
  return _strings(images, _nearest(images, jitter)[0])


def detect_batch(
  images: np.ndarray, jitter: int = 0, text: bool = False
) -> list[np.ndarray]:
  """Scenes of images [B, side, side, 3], uint8 or float in [0, 1].

  Args:
    images: the images; values outside the range are clipped.
    jitter: look for objects that moved by up to so many pixels.
    text: a string may be there too, and its cell has no object.

  Returns:
    B scenes [n, 5], n from 0 to 9, in row-major order.
  """
  images = _contrast(images)
  distance, found = _nearest(images, jitter)
  cells = draw.GRID**2
  rows, cols = np.divmod(np.arange(cells), draw.GRID)
  where = np.broadcast_to(np.stack([rows, cols], -1), (len(found), cells, 2))
  scenes = np.concatenate([found, where], -1)
  if text:
    strings = _strings(images, distance)[:, None, :2]
    scenes[np.all(where == strings, -1)] = -1
  return [scene[scene[:, 0] >= 0] for scene in scenes]


def detect(
  image: np.ndarray, jitter: int = 0, text: bool = False
) -> np.ndarray:
  """The scene [n, 5] of one image [side, side, 3]; see `detect_batch`."""
  return detect_batch(np.asarray(image)[None], jitter, text)[0]
