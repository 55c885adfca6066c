"""Scores captions and redrawn images against the scenes they describe."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from uae_jax.data.scenes import detect, draw, glyphs, grammar


def _ratio(part: float, whole: float) -> float:
  """0 of nothing is 0: a caption that says nothing has no precision."""
  return float(part / whole) if whole else 0.0


def objects(truth: np.ndarray) -> np.ndarray:
  """The scene [n, 5] of a padded truth array: rows of -1 left out."""
  truth = np.asarray(truth)
  return truth[truth[:, 0] >= 0]


def _match(agree: np.ndarray, said: np.ndarray) -> np.ndarray:
  """Each mention's own object [mentions, objects], at most one True a row.

  One-to-one, with the most agreeing attributes in all; among equals, the
  matching with the most mentions that are wrong in nothing.
  """
  own = np.zeros(agree.shape, bool)
  if agree.size:
    right = agree == said[:, None]
    rows, cols = linear_sum_assignment(100 * agree + right, maximize=True)
    own[rows, cols] = True
  return own


def caption_counts(caption: str, scene: np.ndarray) -> dict[str, np.ndarray]:
  """What `caption_scores` sums, of one caption and its scene [n, 5]."""
  mentions = grammar.parse(caption)
  values = np.array(
    [[-1 if v is None else v for v in m.values()] for m in mentions], int
  ).reshape(-1, len(grammar.ATTRIBUTES))
  surplus = np.array([m.surplus for m in mentions], int)
  same = values[:, None] == scene[None]  # [mentions, objects, 5]
  agree, said = same.sum(-1), (values >= 0).sum(-1) + surplus
  matched = same & _match(agree, said)[..., None]
  own = matched.sum((1, 2))  # agreeing attributes of each mention
  shapes = values[values[:, 0] >= 0, 0]
  clean = surplus == 0
  placed = same[..., [0, 1, 3, 4]].all(-1) & clean[:, None]
  small = scene[:, 2] == draw.SMALL
  exact = len(mentions) == len(scene) == np.sum(own == same.shape[-1])
  return dict(
    correct=own.sum(),
    truth=scene.size,
    said=said.sum(),
    right=np.sum((own == said) & (own > 0)),
    mentions=len(mentions),
    small=small.sum(),
    small_said=np.sum(placed.any(0) & small),
    exact=bool(exact and clean.all()),
    right_of=matched.sum((0, 1)),
    said_of=(values >= 0).sum(0),
    shapes=np.bincount(shapes, minlength=len(draw.SHAPES)),
  )


def caption_scores(
  captions: Sequence[str], scenes: Sequence[np.ndarray]
) -> dict[str, float]:
  """How much captions say, and how much of it is true.

  Mentions are matched to objects one-to-one, for the most agreeing attributes
  in all. A second mention of an object therefore has no object of its own:
  all its words count as wrong in both precisions. Sums run over all captions.

  Args:
    captions: N captions.
    scenes: N scenes [n, 5]; rows of -1 are padding.

  Returns:
    attribute_recall: correct attribute words / 5 x objects.
    attribute_precision: correct attribute words / attribute words said.
    object_precision: mentions wrong in nothing they say / mentions.
    small_object_recall: share of small objects whose colour, shape, row and
      column are all said in one mention (0 where no object is small).
    exact_caption: share of captions that say everything and nothing else.
    mentions: per caption.
    shape_precision, colour_precision, size_precision, row_precision,
      col_precision: attribute_precision of one kind of word.
    said_circle, said_square, said_triangle, said_cross: share of a word
      among the shape words said (0.25 each in the scenes).
  """
  counts = [
    caption_counts(caption, objects(scene))
    for caption, scene in zip(captions, scenes, strict=True)
  ]
  total = {key: sum(count[key] for count in counts) for key in counts[0]}
  by_kind = zip(
    grammar.ATTRIBUTES, total['right_of'], total['said_of'], strict=True
  )
  by_shape = zip(draw.SHAPES, total['shapes'], strict=True)
  return dict(
    attribute_recall=_ratio(total['correct'], total['truth']),
    attribute_precision=_ratio(total['correct'], total['said']),
    object_precision=_ratio(total['right'], total['mentions']),
    small_object_recall=_ratio(total['small_said'], total['small']),
    exact_caption=_ratio(total['exact'], len(counts)),
    mentions=_ratio(total['mentions'], len(counts)),
    **{f'{kind}_precision': _ratio(a, b) for kind, a, b in by_kind},
    **{f'said_{s}': _ratio(n, total['shapes'].sum()) for s, n in by_shape},
  )


def scene_scores(
  images: np.ndarray,
  scenes: Sequence[np.ndarray],
  jitter: int = 0,
  text: bool = False,
) -> dict[str, float]:
  """How much of the scenes is in the images, by the exact detector.

  Args:
    images: [N, side, side, 3], uint8 or float in [0, 1].
    scenes: N scenes [n, 5]; rows of -1 are padding.
    jitter: see `detect.detect_batch`.
    text: the same; a string counts as nothing here.

  Returns:
    exact_scene: share of images with every object right and none extra.
    object_recall: share of objects redrawn with all five attributes right.
    small_object_redrawn: the same of small objects (0 where none is small).
  """
  exact, hits, small = [], [], []
  found = detect.detect_batch(images, jitter, text)
  for seen, scene in zip(found, map(objects, scenes), strict=True):
    seen = set(map(tuple, seen.tolist()))
    hit = np.array([tuple(row) in seen for row in scene.tolist()], bool)
    exact.append(hit.all() and len(seen) == len(scene))
    hits.append(hit)
    small.append(scene[:, 2] == draw.SMALL)
  hits, small = np.concatenate(hits), np.concatenate(small)
  return dict(
    exact_scene=_ratio(sum(exact), len(exact)),
    object_recall=_ratio(hits.sum(), hits.size),
    small_object_redrawn=_ratio(hits[small].sum(), small.sum()),
  )


def glyph_counts(caption: str, string: np.ndarray) -> dict[str, int]:
  """What `glyph_scores` sums, of one caption and its string [5]."""
  texts = grammar.parse_text(caption)
  first = texts[0] if texts else grammar.Text()
  right = [a == b for a, b in zip(first.values(), string.tolist())]
  there = int(string[0] >= 0)
  alone = len(texts) == 1 and not first.surplus
  return dict(
    strings=there,
    letters=there * glyphs.COUNT,
    said=there * sum(right[2:]),
    exact=there * int(all(right) and alone),
  )


def glyph_scores(
  captions: Sequence[str], strings: Sequence[np.ndarray]
) -> dict[str, float]:
  """How much captions say of the strings in their scenes.

  Args:
    captions: N captions.
    strings: N strings [5]; those of -1 are none and are left out.

  Returns:
    glyph_recall: letters said at their place in the string / letters.
    glyph_exact: share of strings told with every letter and their cell, by
      one phrase that says nothing else.
  """
  counts = [glyph_counts(*pair) for pair in zip(captions, strings, strict=True)]
  total = {key: sum(count[key] for count in counts) for key in counts[0]}
  return dict(
    glyph_recall=_ratio(total['said'], total['letters']),
    glyph_exact=_ratio(total['exact'], total['strings']),
  )


def glyphs_redrawn(
  images: np.ndarray, strings: Sequence[np.ndarray]
) -> dict[str, float]:
  """`glyph_redrawn`: share of strings that are in the images, in their cell.

  Args:
    images: [N, side, side, 3], uint8 or float in [0, 1].
    strings: N strings [5]; those of -1 are none and are left out.
  """
  strings = np.asarray(strings)
  there = strings[:, 0] >= 0
  right = np.all(detect.read_strings(images) == strings, -1)
  return dict(glyph_redrawn=_ratio(right[there].sum(), there.sum()))
