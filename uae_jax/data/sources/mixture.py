"""Several sources in fixed proportions, by grain's own mixing."""

import re
from collections.abc import Sequence
from typing import Any

import grain

from uae_jax.data.preprocess import Example
from uae_jax.errors import UserError

_PART = re.compile(r'\s*([0-9.]+(?:e-?\d+)?)\s*\*\s*(.+?)\s*')


def parse(text: str) -> list[tuple[float, str]]:
  """`0.7*images:a,0.3*parquet:b` -> weights and URIs.

  A comma separates parts only where a weight follows it.

  Raises:
    UserError: a part is not WEIGHT*URI, or its weight is not positive.
  """
  out = []
  for part in re.split(r',(?=\s*[0-9.]+(?:e-?\d+)?\s*\*)', text):
    match = _PART.fullmatch(part)
    try:
      weight = float(match.group(1)) if match else 0.0
    except ValueError:
      weight = 0.0
    if weight <= 0 or match.group(2).startswith('mix:'):
      raise UserError(
        f'mix:{text}: {part!r} is not WEIGHT*URI, such as 0.5*images:DIR'
      )
    out.append((weight, match.group(2)))
  return out


class Mixture:
  """Sources in fixed proportions, each in its own order.

  As a source it is read in order, once, until a part has run out; a loader
  repeats and shuffles each part by itself (`ordered`).

  Attributes:
    parts: the sources.
    weights: their shares, of any sum.
  """

  def __init__(self, parts: Sequence[Any], weights: Sequence[float]):
    self.parts, self.weights = tuple(parts), tuple(weights)
    ranges = [
      grain.MapDataset.range(len(part)).map(lambda i, k=k: (k, i))
      for k, part in enumerate(parts)
    ]
    self._places = grain.MapDataset.mix(ranges, self.weights)

  def __len__(self) -> int:
    return len(self._places)

  def _place(self, index: int) -> tuple[Any, int]:
    which, at = self._places[index]
    return self.parts[which], at

  def read(self, index: int) -> Example | None:
    """The record; None if it cannot be used."""
    part, at = self._place(index)
    return part.read(at)

  def __getitem__(self, index: int) -> Example:
    """The record, or the one of its source that stands in for it."""
    part, at = self._place(index)
    return part[at]


def ordered(
  source: Any, seed: int, shuffle: bool, records: int
) -> grain.MapDataset:
  """About `records` records of a source, epoch after epoch.

  Args:
    source: the records.
    seed: of each epoch's order; a mixture's parts have seeds of their own.
    shuffle: off keeps the source's order.
    records: at least one epoch.
  """
  if isinstance(source, Mixture):
    parts = [
      ordered(part, seed + i, shuffle, records)
      for i, part in enumerate(source.parts)
    ]
    return grain.MapDataset.mix(parts, source.weights)
  rows = grain.MapDataset.source(source).seed(seed)
  rows = rows.shuffle() if shuffle else rows
  return rows.repeat(max(1, records // len(source)))
