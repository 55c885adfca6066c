"""Unified-Bench, protocol 1: an image, its caption, the image drawn from it.

The Unified-Score is the mean over backbones of 100 x the mean cosine of
source and drawing. Mirrors the Unified-Bench of PKU-YuanGroup/UAE: 100 images
`0.jpg` ..., a folder of drawings with the same names, and per backbone the
cosine of every file with `average`, `min` and `max`.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key, UInt8
from PIL import Image

from uae_jax.data.pipeline import ImageSource
from uae_jax.errors import UserError
from uae_jax.eval.benchmark import Score, mean_score

NAME = 'unified_bench'
MAIN = 'unified_score'
DRAWINGS = 'images'  # folder of them
COSINES = 'cosines'  # folder and file of the official layout
CONDITIONS = ('caption', 'hidden')
TAKEN = ('name', 'caption', 'image', 'error')  # keys of a row
# Backbones of the protocol, by what their folders are called. The first that
# fits counts: LongCLIP's names contain CLIP's.
BACKBONES = {
  'LongCLIP': r'long[-_ ]?clip',
  'DINO-v2': r'dino[-_ ]?v2',
  'DINO-v3': r'dino[-_ ]?v3',
  'CLIP': r'^clip',
}

Rows = Mapping[str, Mapping[str, Any]]
# (images, images) -> cosine of each pair
Compare = Callable[[Sequence[Any], Sequence[Any]], Float[np.ndarray, 'n']]
# At most a batch of images -> their captions, and what is drawn from them
Redraw = Callable[
  [Sequence[Any], Key[Array, '']],
  tuple[list[str], UInt8[np.ndarray, 'n R Q 3']],
]


def from_captions(
  describe: Callable[[Sequence[Any], Array], list[str]],
  draw: Callable[[Sequence[str], Array], np.ndarray],
) -> Redraw:
  """The redrawing whose decoder reads nothing but the plain caption."""

  def redraw(images, rng):
    words, noise = jax.random.split(rng)
    texts = describe(images, words)
    return texts, draw(texts, noise)

  return redraw


@dataclasses.dataclass(frozen=True)
class UnifiedBench:
  """A `Benchmark`: describes, redraws and compares every image of a folder.

  Attributes:
    source: the images.
    redraw: images -> captions and drawings; see `from_captions`.
    compares: what scores the pairs, by tower.
    conditioning: what the decoder reads: 'caption', the same for every model,
      or 'hidden', the captioner's own states at its caption.
  """

  source: ImageSource
  redraw: Redraw
  compares: Mapping[str, Compare]
  conditioning: str = 'caption'

  def __post_init__(self):
    if self.conditioning not in CONDITIONS:
      raise UserError(
        f'conditioning={self.conditioning!r} is none of {CONDITIONS}'
      )
    check_towers(self.compares)
    by_stem(names(self.source), self.source.folder)

  @property
  def settings(self) -> dict[str, Any]:
    """Towers, and what the decoder reads."""
    return dict(conditioning=self.conditioning, towers=[*self.compares])

  @functools.cached_property
  def items(self) -> list[str]:
    """The images' paths below their folder."""
    return names(self.source)

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows with `caption`, `image` and a cosine by tower."""
    index = {name: i for i, name in enumerate(self.items)}
    read = {name: self.source.read(index[name]) for name in names}
    images = {k: v['image'] for k, v in read.items() if v is not None}
    rows = {k: dict(name=k, error='cannot be read') for k in names}
    if images:
      sources = [*images.values()]
      texts, drawn = self.redraw(sources, rng)
      cosines = compared(self.compares, sources, [*drawn])
      for i, name in enumerate(images):
        image = f'{DRAWINGS}/{stem(name)}.png'
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn[i]).save(folder / image)
        rows[name] = dict(
          name=name, caption=texts[i], image=image, **cosines[i]
        )
    return [*rows.values()]

  def scores(self, rows: Rows) -> dict[str, Score]:
    """The Unified-Score and the score of each tower; see `scores`."""
    return scores(rows, [*self.compares])


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Two folders side by side.

  Attributes:
    references: the source images.
    images: what was made of them.
    at: name of a reference -> indices of the pair in both.
    missing: references that no image goes with.
    extra: images that go with no reference.
  """

  references: ImageSource
  images: ImageSource
  at: Mapping[str, tuple[int, int]]
  missing: Sequence[str]
  extra: Sequence[str]


@dataclasses.dataclass(frozen=True)
class FolderBench:
  """A `Benchmark`: compares the pairs of two folders, whoever drew them.

  Attributes:
    pairs: from `pair`.
    compares: what scores them, by tower.
  """

  pairs: Pairs
  compares: Mapping[str, Compare]

  def __post_init__(self):
    check_towers(self.compares)

  @property
  def settings(self) -> dict[str, Any]:
    """Towers."""
    return dict(towers=[*self.compares])

  @functools.cached_property
  def items(self) -> list[str]:
    """Names of the references that are paired."""
    return [*self.pairs.at]

  def run(
    self, names: Sequence[str], folder: Path, rng: Any = None
  ) -> list[dict[str, Any]]:
    """Rows with `image`, of its folder, and a cosine by tower."""
    del folder, rng
    rows, whole = {}, {}
    for name in names:
      first, second = self.pairs.at[name]
      both = dict(
        reference=self.pairs.references.read(first),
        image=self.pairs.images.read(second),
      )
      bad = [key for key, record in both.items() if record is None]
      rows[name] = dict(name=name, image=_name(self.pairs.images, second))
      if bad:
        rows[name]['error'] = f'{bad[0]} cannot be read'
      else:
        whole[name] = tuple(record['image'] for record in both.values())
    if whole:
      cosines = compared(self.compares, *map(list, zip(*whole.values())))
      for name, row in zip(whole, cosines, strict=True):
        rows[name] |= row
    return [*rows.values()]

  def scores(self, rows: Rows) -> dict[str, Score]:
    """The Unified-Score and the score of each tower; see `scores`."""
    return scores(rows, [*self.compares])


def names(source: ImageSource) -> list[str]:
  """The images' paths below their folder, with / between parts."""
  return [_name(source, i) for i in range(len(source))]


def _name(source, index):
  return Path(os.path.relpath(source.paths[index], source.folder)).as_posix()


def stem(name: str) -> str:
  """A path without its extension, which may be of any case."""
  return name.rpartition('.')[0]


def by_stem(names: Sequence[str], folder: str) -> dict[str, int]:
  """Path without extension -> index.

  Raises:
    UserError: two differ in their extension only.
  """
  out = {}
  for i, name in enumerate(names):
    first = out.setdefault(stem(name), i)
    if first != i:
      raise UserError(
        f'{names[first]} and {name} below {folder} differ in their extension '
        'only: rename one'
      )
  return out


def pair(references: ImageSource, images: ImageSource) -> Pairs:
  """Pairs two folders by path, whatever the extensions.

  An image may also carry its reference's whole name and an extension of its
  own, `0.jpg.png`, as tools.reconstruct names them.

  Raises:
    UserError: nothing pairs, or a path stands for two files.
  """
  theirs, ours = names(references), names(images)
  index, whole = by_stem(theirs, references.folder), {}
  by_name = {name: i for i, name in enumerate(theirs)}
  for key, second in by_stem(ours, images.folder).items():
    first = by_name[key] if key in by_name else index.get(key)
    if first is None:
      continue
    if first in whole:
      raise UserError(
        f'{ours[whole[first]]} and {ours[second]} below {images.folder} both '
        f'go with {theirs[first]}: remove one'
      )
    whole[first] = second
  if not whole:
    raise UserError(
      f'no names in common: {references.folder} has {theirs[0]}, '
      f'{images.folder} has {ours[0]}'
    )
  seconds = set(whole.values())
  return Pairs(
    references,
    images,
    {theirs[i]: (i, whole[i]) for i in sorted(whole)},
    [name for i, name in enumerate(theirs) if i not in whole],
    [name for i, name in enumerate(ours) if i not in seconds],
  )


def check_towers(compares: Mapping[str, Any]) -> None:
  """Refuses none, and names that a row or the scores need.

  Raises:
    UserError: in those cases.
  """
  taken = [name for name in compares if name in (*TAKEN, MAIN)]
  if taken:
    raise UserError(f'no tower can be called {taken[0]!r}: rename its folder')
  if not compares:
    raise UserError('name one tower or more: nothing else can be scored with')


def compared(
  compares: Mapping[str, Compare],
  first: Sequence[Any],
  second: Sequence[Any],
) -> list[dict[str, float]]:
  """Cosines by tower of every pair."""
  columns = {t: compare(first, second) for t, compare in compares.items()}
  return [
    {tower: float(x[i]) for tower, x in columns.items()}
    for i in range(len(first))
  ]


def scores(rows: Rows, towers: Sequence[str]) -> dict[str, Score]:
  """100 x the mean cosine: over all towers, then by tower.

  Images are the independent unit: towers are averaged within an image before
  images are resampled. Rows with an `error` are left out; {} if none is left.
  """
  good = [row for row in rows.values() if 'error' not in row]
  if not good:
    return {}
  table = 100 * np.array([[row[tower] for tower in towers] for row in good])
  by_tower = {t: mean_score(x) for t, x in zip(towers, table.T, strict=True)}
  return {MAIN: mean_score(table.mean(1)), **by_tower}


def official(rows: Rows, tower: str) -> dict[str, float]:
  """Cosine by file, then `average`, `min` and `max`; rows with errors apart."""
  good = {k: row[tower] for k, row in rows.items() if 'error' not in row}
  values = np.array([*good.values()])
  return good | dict(
    average=float(values.mean()),
    min=float(values.min()),
    max=float(values.max()),
  )


def write_official(
  folder: Path, rows: Rows, towers: Sequence[str]
) -> list[Path]:
  """Leaves `cosines/TOWER.json` for each, and all in `cosines.json`.

  Args:
    folder: of the benchmark's output.
    rows: by name.
    towers: whose cosines they have.

  Raises:
    UserError: all rows have an `error`.
  """
  if all('error' in row for row in rows.values()):
    raise UserError(f'none of {len(rows)} images can be scored: see {folder}')
  whole = {tower: official(rows, tower) for tower in towers}
  (folder / COSINES).mkdir(exist_ok=True)
  files = {folder / COSINES / f'{t}.json': x for t, x in whole.items()}
  files[folder / f'{COSINES}.json'] = whole
  for file, data in files.items():
    part = file.with_name(file.name + '.part')
    part.write_text(json.dumps(data, indent=2, ensure_ascii=False) + '\n')
    os.replace(part, file)
  return [*files]


def backbone(tower: str) -> str | None:
  """Which backbone of the protocol a tower's name says it is."""
  for name, pattern in BACKBONES.items():
    if re.search(pattern, tower, re.IGNORECASE):
      return name
  return None
