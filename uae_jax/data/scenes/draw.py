"""Draws scenes: objects of 4 shapes, 8 colours, 3 sizes on a 3x3 grid.

A scene is an int array [n, 5] with columns (shape, colour, size, row, col).
"""

import functools

import numpy as np

GRID = 3
SHAPES = ('circle', 'square', 'triangle', 'cross')
COLOURS = {
  'red': (225, 40, 40),
  'green': (40, 180, 70),
  'blue': (50, 90, 240),
  'yellow': (245, 225, 50),
  'magenta': (220, 50, 210),
  'cyan': (50, 215, 225),
  'orange': (250, 140, 30),
  'white': (245, 245, 245),
}
SIZES = {'small': 2.5, 'medium': 3.5, 'large': 4.5}  # radius at side 32
SMALL = 0
BACKGROUND = np.array((38, 38, 40), np.float32)
PALETTE = np.array(tuple(COLOURS.values()), np.float32)
_SUPERSAMPLE = 4


def sample_scene(rng: np.random.Generator, max_objects: int = 4) -> np.ndarray:
  """A scene [n, 5] of 1 to `max_objects` objects on distinct cells."""
  n = rng.integers(1, max_objects + 1)
  cells = np.sort(rng.choice(GRID * GRID, n, replace=False))
  kinds = rng.integers((len(SHAPES), len(COLOURS), len(SIZES)), size=(n, 3))
  return np.column_stack([kinds, cells // GRID, cells % GRID]).astype(int)


def edit(
  scene: np.ndarray, rng: np.random.Generator, max_objects: int = 4
) -> np.ndarray:
  """The scene with one thing changed: an attribute, a cell or an object."""
  scene = scene.copy()
  taken = set((scene[:, 3] * GRID + scene[:, 4]).tolist())
  free = [c for c in range(GRID * GRID) if c not in taken]
  one = rng.integers(len(scene))
  kind = rng.integers(6)
  if kind < 3:  # shape, colour or size
    names = (len(SHAPES), len(COLOURS), len(SIZES))[kind]
    scene[one, kind] = (scene[one, kind] + rng.integers(1, names)) % names
  elif kind == 3:
    scene[one, 3:] = divmod(int(rng.choice(free)), GRID)
  elif kind == 4 and len(scene) > 1:
    scene = np.delete(scene, one, 0)
  elif len(scene) < max_objects:
    extra = rng.integers((len(SHAPES), len(COLOURS), len(SIZES)))
    cell = divmod(int(rng.choice(free)), GRID)
    scene = np.vstack([scene, np.concatenate([extra, cell])])
  else:
    scene[one, 2] = (scene[one, 2] + 1) % len(SIZES)
  return scene[np.lexsort((scene[:, 4], scene[:, 3]))]


def centres(side: int) -> np.ndarray:
  """The pixel in the middle of each grid row (or column)."""
  return ((np.arange(GRID) + 0.5) * side / GRID).astype(int)


@functools.cache
def masks(side: int) -> np.ndarray:
  """Coverage in [0, 1] of every shape and size: [4, 3, box, box].

  `box` is odd and just holds a large object: boxes of neighbouring cells do
  not overlap, and an arm of a small cross has its own row of pixels.
  """
  scale = side / 32
  box = 2 * int(np.ceil(max(SIZES.values()) * scale - 0.5)) + 1
  n = box * _SUPERSAMPLE
  at = (np.arange(n) + 0.5) / _SUPERSAMPLE - box / 2
  out = np.zeros((len(SHAPES), len(SIZES), n, n), np.float32)
  for s, radius in enumerate(SIZES.values()):
    y, x = np.meshgrid(*[at / (radius * scale)] * 2, indexing='ij')
    square = np.maximum(abs(x), abs(y)) <= 1
    out[0, s] = x**2 + y**2 <= 1
    out[1, s] = square
    out[2, s] = square & (abs(x) <= (y + 1) / 2)
    out[3, s] = square & (np.minimum(abs(x), abs(y)) <= 0.3)
  shape = (*out.shape[:2], box, _SUPERSAMPLE, box, _SUPERSAMPLE)
  out = out.reshape(shape).mean((3, 5))
  out.flags.writeable = False
  return out


def render(
  scene: np.ndarray,
  side: int = 32,
  jitter: int = 0,
  rng: np.random.Generator | None = None,
) -> np.ndarray:
  """Draws a scene.

  Args:
    scene: [n, 5].
    side: of the image in pixels; everything scales with it.
    jitter: objects move by up to so many pixels in each direction.
    rng: draws the moves; needed only where `jitter` is not 0.

  Returns:
    uint8 [side, side, 3].
  """
  stencils, at = masks(side), centres(side)
  box = stencils.shape[-1]
  margin = box + jitter  # objects that leave the image are cut at its edge
  canvas = np.empty((side + 2 * margin,) * 2 + (3,), np.float32)
  canvas[:] = BACKGROUND
  moves = np.zeros((len(scene), 2), int)
  if jitter:
    moves = rng.integers(-jitter, jitter + 1, moves.shape)
  for (shape, colour, size, row, col), (down, right) in zip(scene, moves):
    top = margin + at[row] - box // 2 + down
    left = margin + at[col] - box // 2 + right
    view = canvas[top : top + box, left : left + box]
    view += stencils[shape, size][..., None] * (PALETTE[colour] - view)
  inside = canvas[margin : margin + side, margin : margin + side]
  return np.round(inside).astype(np.uint8)
