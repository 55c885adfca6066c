"""Captions of scenes: `medium blue square top center , small red cross ...`.

Every word says one attribute, so a caption is read back word by word and
scored exactly. Four fully described objects are 23 words. A string of letters
comes last, `text g h z middle left`; three objects and it are 24.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from uae_jax.data.scenes import draw, glyphs

ROWS = ('top', 'middle', 'bottom')
COLS = ('left', 'center', 'right')
# In the columns of a scene: what each index is called.
NAMES = (draw.SHAPES, tuple(draw.COLOURS), tuple(draw.SIZES), ROWS, COLS)
ATTRIBUTES = ('shape', 'colour', 'size', 'row', 'col')
_SAID = ('size', 'colour', 'shape', 'row', 'col')  # in this order
_MEANING = {
  word: (attribute, index)
  for attribute, names in zip(ATTRIBUTES, NAMES)
  for index, word in enumerate(names)
}
TEXT = 'text'  # starts the phrase of a string
# In the order of their ids: what is new comes last.
WORDS = (*_MEANING, ',', TEXT, *glyphs.LETTERS)


@dataclasses.dataclass(frozen=True)
class Detail:
  """How much a caption says; each number is a probability per object."""

  keep_small: float = 1.0  # a small object is named
  keep_other: float = 1.0  # a larger object is named
  omit_size: float = 0.0
  omit_position: float = 0.0  # row and column together
  wrong_shape: float = 0.0  # another shape word instead
  keep_text: float = 1.0  # the string is told
  order: str = 'raster'  # of the objects, or 'random'


FULL = Detail()
# What web captions are like: short, vague, blind to small things.
PARTIAL = Detail(
  keep_small=0.2,
  keep_other=0.9,
  omit_size=0.55,
  omit_position=0.45,
  wrong_shape=0.08,
  keep_text=0.7,
)


@dataclasses.dataclass(frozen=True)
class Mention:
  """What a caption says of one object; None where it says nothing."""

  shape: int | None = None
  colour: int | None = None
  size: int | None = None
  row: int | None = None
  col: int | None = None
  surplus: int = 0  # attribute words beyond the first of their kind

  def values(self) -> tuple[int | None, ...]:
    """The attributes in the columns of a scene."""
    return tuple(vars(self)[name] for name in ATTRIBUTES)


@dataclasses.dataclass(frozen=True)
class Text:
  """What a caption says of a string; None where it says nothing."""

  letters: tuple[int, ...] = ()  # the first `glyphs.COUNT`
  row: int | None = None
  col: int | None = None
  surplus: int = 0  # words of the phrase beyond these

  def values(self) -> tuple[int | None, ...]:
    """In the columns of a string."""
    missing = (None,) * (glyphs.COUNT - len(self.letters))
    return (self.row, self.col, *self.letters, *missing)


def _phrase(row: np.ndarray, omit: set[str]) -> str:
  words = {
    attribute: names[value]
    for attribute, names, value in zip(ATTRIBUTES, NAMES, row)
  }
  return ' '.join(words[name] for name in _SAID if name not in omit)


def _text_phrase(string: np.ndarray) -> str:
  row, col, *letters = string
  said = (glyphs.LETTERS[i] for i in letters)
  return ' '.join((TEXT, *said, ROWS[row], COLS[col]))


def describe(
  scene: np.ndarray,
  rng: np.random.Generator | None = None,
  detail: Detail = FULL,
  string: np.ndarray | None = None,
) -> str:
  """The caption of a scene, complete unless `detail` says otherwise.

  A caption is never empty: where no object is kept, one is named by colour
  and shape alone.

  Args:
    scene: [n, 5], n > 0.
    rng: needed unless `detail` is full.
    detail: how much is said, and how well.
    string: [5] of the scene, told after all objects; of -1 as None is none.
  """
  there = string is not None and string[0] >= 0
  text = [_text_phrase(string)] if there else []
  if detail == FULL:
    return ' , '.join([*(_phrase(row, set()) for row in scene), *text])
  scene = scene.copy()
  phrases = []
  order = np.arange(len(scene))
  if detail.order == 'random':
    order = rng.permutation(order)
  for row in scene[order]:
    small = row[2] == draw.SMALL
    kept = rng.random() < (detail.keep_small if small else detail.keep_other)
    omit = set()
    if rng.random() < detail.omit_size:
      omit |= {'size'}
    if rng.random() < detail.omit_position:
      omit |= {'row', 'col'}
    if rng.random() < detail.wrong_shape:
      turn = rng.integers(1, len(draw.SHAPES))
      row[0] = (row[0] + turn) % len(draw.SHAPES)
    if kept:
      phrases.append(_phrase(row, omit))
  if not phrases:
    row = scene[rng.integers(len(scene))]
    phrases.append(_phrase(row, {'size', 'row', 'col'}))
  if text and rng.random() < detail.keep_text:
    phrases += text
  return ' , '.join(phrases)


def parse(caption: str) -> list[Mention]:
  """Reads any text: commas part the mentions, unknown words are skipped.

  The first word of an attribute counts; more of them in the same mention are
  its `surplus`. A mention without any attribute word is left out, and so is
  what `parse_text` reads.
  """
  mentions = []
  for phrase in caption.lower().split(','):
    said, surplus = {}, 0
    words = phrase.split()
    if words[:1] == [TEXT]:
      continue
    for word in words:
      if word not in _MEANING:
        continue
      attribute, value = _MEANING[word]
      surplus += attribute in said
      said.setdefault(attribute, value)
    if said:
      mentions.append(Mention(**said, surplus=surplus))
  return mentions


def parse_text(caption: str) -> list[Text]:
  """Strings that any text tells: the phrases between commas with `TEXT` first.

  Letters count in the order of saying, the first row and the first column
  word as the place.
  """
  texts = []
  for phrase in caption.lower().split(','):
    first, *words = phrase.split() or ['']
    if first == TEXT:
      letters = tuple(_indices(words, glyphs.LETTERS)[: glyphs.COUNT])
      row, col = (next(iter(_indices(words, n)), None) for n in (ROWS, COLS))
      told = len(letters) + (row is not None) + (col is not None)
      texts.append(Text(letters, row, col, len(words) - told))
  return texts


def _indices(words: Sequence[str], names: Sequence[str]) -> list[int]:
  """Of those words that are names, in order."""
  return [names.index(word) for word in words if word in names]
