"""Strings in scenes: three letters in a cell that no object has.

A string is an int array [5] with columns (row, col, three indices of
`LETTERS`), or all -1 where a scene has none. Letters are white bitmaps of 3x5
pixels with a column between them, so that a string is as wide as a cell.
"""

import functools

import numpy as np

from uae_jax.data.scenes import draw

COUNT = 3  # letters of a string
# At side 32. Any two letters differ in five pixels or more, none is a word of
# a prompt, and none of the first letters, by which options are called.
_BITMAPS = {
  'g': '.## #.. #.# #.# .##',
  'h': '#.# #.# ### #.# #.#',
  'j': '..# ..# ..# #.# .#.',
  'l': '#.. #.. #.. #.. ###',
  'p': '##. #.# ##. #.. #..',
  's': '.## #.. .#. ..# ##.',
  't': '### .#. .#. .#. .#.',
  'z': '### ..# .#. #.. ###',
}
LETTERS = tuple(_BITMAPS)
BITMAPS = np.array(
  [
    [[pixel == '#' for pixel in line] for line in text.split()]
    for text in _BITMAPS.values()
  ],
  float,
)
_HIGH, _WIDE = BITMAPS.shape[1:]
_STEP = _WIDE + 1
_INK = draw.PALETTE[[*draw.COLOURS].index('white')]


def sample(rng: np.random.Generator, scene: np.ndarray) -> np.ndarray:
  """A string [5] in a cell where the scene [n, 5] has nothing."""
  taken = scene[:, 3] * draw.GRID + scene[:, 4]
  cell = rng.choice(np.setdiff1d(np.arange(draw.GRID**2), taken))
  letters = rng.integers(len(LETTERS), size=COUNT)
  return np.array([*divmod(cell, draw.GRID), *letters], int)


def _cover(middle: float, pixels: int, side: int) -> np.ndarray:
  """How much of the image's pixels each of a bitmap's covers: [side, pixels].

  Args:
    middle: of the bitmap, in the image's pixels; moved in from an edge.
    pixels: of the bitmap in this direction.
    side: of the image.
  """
  scale = side / 32
  whole = pixels * scale
  start = np.clip(middle - whole / 2, 0, side - whole)
  edges = start + scale * np.arange(pixels + 1)
  at = np.arange(side)[:, None]
  shared = np.minimum(at + 1, edges[1:]) - np.maximum(at, edges[:-1])
  return np.maximum(shared, 0)


@functools.cache
def masks(side: int) -> np.ndarray:
  """Coverage in [0, 1] of every cell, place and letter: [9, 3, 8, side, side].

  Letters of one string share no pixel from side 32 on.
  """
  middles = draw.centres(side) + 0.5
  width = COUNT * _STEP - 1
  down = np.stack([_cover(y, _HIGH, side) for y in middles])
  right = np.stack([_cover(x, width, side) for x in middles])
  places = np.stack(
    [right[..., i * _STEP :][..., :_WIDE] for i in range(COUNT)]
  )
  out = np.einsum('ryh,lhw,pcxw->rcplyx', down, BITMAPS, places)
  out = out.reshape(draw.GRID**2, *out.shape[2:])
  out.flags.writeable = False
  return out


def render(image: np.ndarray, string: np.ndarray) -> np.ndarray:
  """The image, uint8 [side, side, 3], with a string [5] written onto it."""
  if string[0] < 0:
    return image
  row, col, *letters = string
  stencils = masks(len(image))[row * draw.GRID + col]
  cover = stencils[range(COUNT), letters].sum(0)[..., None]
  return np.round(image + cover * (_INK - image)).astype(np.uint8)


def nearest(contrast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The string that is nearest to what each cell shows.

  Letters of a string share no pixel, so each is the nearest at its place.

  Args:
    contrast: images [B, side, side, 3] in [0, 1], minus the background.

  Returns:
    Squared distances [B, 9], without what all templates share (the square of
    the image itself), and indices of letters [B, 9, 3].
  """
  stencils = masks(contrast.shape[1])
  shape = stencils.shape[:3]
  stencils = stencils.reshape(np.prod(shape), -1)
  ink = (_INK - draw.BACKGROUND) / 255
  likeness = (contrast @ ink).reshape(len(contrast), -1) @ stencils.T
  distance = ink @ ink * np.sum(stencils**2, -1) - 2 * likeness
  distance = distance.reshape(-1, *shape)
  return distance.min(-1).sum(-1), distance.argmin(-1)
