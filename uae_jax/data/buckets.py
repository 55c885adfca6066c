"""Batches of one shape: images of like aspect are read together.

The order of a run is cut into windows of `WINDOW` batches. The images of a
window are sorted by width / height and fill its batches, which come in an
order of their own; a batch has the shape that is nearest to its middle image.
Nothing is lost or repeated, and what is at a place depends on the place alone:
runs resume, and processes agree without talking.
"""

import collections
import threading
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from uae_jax.data.preprocess import Example
from uae_jax.data.sources.mixture import Mixture
from uae_jax.errors import UserError

WINDOW = 8  # batches
KEPT = 4  # windows whose plan is remembered


def parse(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
  """`('512x512', '448x576')`, height x width -> pairs.

  Raises:
    UserError: one is no such thing.
  """
  out = []
  for name in names:
    sides = str(name).lower().split('x')
    if len(sides) != 2 or not all(x.isdecimal() and int(x) for x in sides):
      raise UserError(
        f'data.buckets: {name!r} is not HEIGHTxWIDTH, such as 448x576'
      )
    out.append((int(sides[0]), int(sides[1])))
  return tuple(out)


class Sizes:
  """(height, width) of a source's images, by index, pixels left alone."""

  def __init__(self, source: Any):
    self._source = source

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> tuple[int, int]:
    return self._source.size(index)


def sizes(source: Any) -> Any:
  """The sizes of a source, or of a mixture's, in its order."""
  if isinstance(source, Mixture):
    return Mixture([sizes(part) for part in source.parts], source.weights)
  return Sizes(source)


class Bucketed:
  """The records of an order, so that a batch's are of one shape.

  Every record has `bucket`, the (height, width) of its batch.
  """

  def __init__(
    self,
    records: grain.MapDataset,
    shapes: grain.MapDataset,
    buckets: Sequence[tuple[int, int]],
    *,
    batch: int,
    seed: int,
  ):
    """Reads nothing yet.

    Args:
      records: in the order of the run.
      shapes: (height, width) of each, in the same order.
      buckets: the shapes that there are.
      batch: rows of all processes together.
      seed: of the order of a window's batches.
    """
    self._records, self._shapes = records, shapes
    self._buckets, self._batch, self._seed = tuple(buckets), batch, seed
    self._rows = WINDOW * batch
    self._plans: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._records) // self._rows * self._rows

  def __getitem__(self, index: int) -> Example:
    window, at = divmod(int(index), self._rows)
    order, shapes = self._plan(window)
    record = self._records[window * self._rows + int(order[at])]
    return {**record, 'bucket': shapes[at // self._batch]}

  def _plan(self, window: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Which row of a window comes when, and the shape of each batch."""
    with self._lock:
      if window not in self._plans:
        start = window * self._rows
        found = [self._shapes[start + i] for i in range(self._rows)]
        aspects = np.log([w / h for h, w in found])
        batches = np.argsort(aspects, kind='stable').reshape(WINDOW, -1)
        rng = np.random.default_rng((self._seed, window))
        batches = rng.permutation(batches)
        middle = np.median(aspects[batches], axis=1)
        self._plans[window] = (
          batches.reshape(-1), [nearest(self._buckets, x) for x in middle]
        )  # fmt: skip
        if len(self._plans) > KEPT:
          self._plans.popitem(last=False)
      return self._plans[window]


def nearest(
  buckets: Sequence[tuple[int, int]], aspect: float
) -> tuple[int, int]:
  """The shape whose width / height is nearest to e^`aspect`."""
  return min(buckets, key=lambda hw: abs(np.log(hw[1] / hw[0]) - aspect))
