"""GenEval's rules: what a detector saw and a specification -> right or wrong.

Ghosh et al. 2023, https://arxiv.org/abs/2310.11513. Constants, the order of
the checks and the reasons' format are those of `evaluation/evaluate_images.py`
in djghosh13/geneval. Nothing here knows a model.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

TASKS = (
  'single_object', 'two_object', 'counting', 'colors', 'position',
  'color_attr',
)  # fmt: skip
COLORS = (
  'red', 'orange', 'yellow', 'green', 'blue', 'purple', 'pink', 'brown',
  'black', 'white',
)  # fmt: skip
RELATIONS = ('left of', 'right of', 'above', 'below')
# COCO's classes in its order, as GenEval's `object_names.txt` spells them.
OBJECTS = (
  'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train',
  'truck', 'boat', 'traffic light', 'fire hydrant', 'stop sign',
  'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow',
  'elephant', 'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag',
  'tie', 'suitcase', 'frisbee', 'skis', 'snowboard', 'sports ball', 'kite',
  'baseball bat', 'baseball glove', 'skateboard', 'surfboard',
  'tennis racket', 'bottle', 'wine glass', 'cup', 'fork', 'knife', 'spoon',
  'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli', 'carrot',
  'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant',
  'bed', 'dining table', 'toilet', 'tv', 'laptop', 'computer mouse',
  'tv remote', 'computer keyboard', 'cell phone', 'microwave', 'oven',
  'toaster', 'sink', 'refrigerator', 'book', 'clock', 'vase', 'scissors',
  'teddy bear', 'hair drier', 'toothbrush',
)  # fmt: skip

THRESHOLD = 0.3  # a detection scores more than this
COUNTING_THRESHOLD = 0.9  # and more than this where objects are counted
MAX_OBJECTS = 16  # of one class in an image
MAX_OVERLAP = 1.0  # IoU from which the weaker of two is dropped; 1 is never
POSITION_MARGIN = 0.1  # of the summed sizes, taken off the centres' distance
POSITION_COSINE = 0.5  # what is left along an axis must exceed this


@dataclasses.dataclass(frozen=True)
class Detection:
  """One object in an image.

  Attributes:
    cls: one of `OBJECTS`.
    box: left, top, right, bottom in pixels.
    score: the detector's, in [0, 1].
    mask: its pixels, where the detector segments.
  """

  cls: str
  box: tuple[float, float, float, float]
  score: float
  mask: Bool[np.ndarray, 'H W'] | None = None


Found = Mapping[str, Sequence[Detection]]  # by class, the surest first
# (objects of one class, the class) -> colour of each
Colours = Callable[[Sequence[Detection], str], Sequence[str]]


def keep(
  detections: Sequence[Detection],
  tag: str,
  max_overlap: float = MAX_OVERLAP,
) -> dict[str, list[Detection]]:
  """The detections that count for a task, by class, the surest first."""
  threshold = COUNTING_THRESHOLD if tag == 'counting' else THRESHOLD
  out = {}
  for cls in OBJECTS:
    sure = [d for d in detections if d.cls == cls and d.score > threshold]
    # Of equals, the later comes first.
    sure = sorted(reversed(sure), key=lambda d: -d.score)[:MAX_OBJECTS]
    kept = []
    for d in sure:
      if max_overlap == 1 or all(
        overlap(d.box, other.box) < max_overlap for other in kept
      ):
        kept.append(d)
    if kept:
      out[cls] = kept
  return out


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
  """Intersection over union of boxes whose ends are pixels of theirs."""
  both = (*np.maximum(a[:2], b[:2]), *np.minimum(a[2:4], b[2:4]))
  shared = _area(both)
  whole = _area(a) + _area(b) - shared
  return shared / whole if whole else 0.0


def relations(a: Sequence[float], b: Sequence[float]) -> list[str]:
  """Where box a is, seen from box b; any of `RELATIONS`, at most two."""
  a, b = (np.asarray(box[:4], float).reshape(2, 2) for box in (a, b))
  offset = a.mean(0) - b.mean(0)
  margin = POSITION_MARGIN * (abs(a[1] - a[0]) + abs(b[1] - b[0]))
  left_over = np.maximum(abs(offset) - margin, 0) * np.sign(offset)
  if (abs(left_over) < 1e-3).all():
    return []
  dx, dy = left_over / np.linalg.norm(offset)
  holds = (
    dx < -POSITION_COSINE, dx > POSITION_COSINE,
    dy < -POSITION_COSINE, dy > POSITION_COSINE,
  )  # fmt: skip
  return [name for name, true in zip(RELATIONS, holds) if true]


def judge(
  found: Found, spec: Mapping[str, Any], colours: Colours
) -> tuple[bool, str]:
  """Whether an image is as specified, and what is wrong, a line each.

  Args:
    found: of `keep`.
    spec: a line of GenEval's metadata. All of `include` must hold; none of
      `exclude` may. Colours and positions are those of the surest objects.
    colours: asked only for objects of a wanted colour.
  """
  reasons, groups = [], []
  for need in spec.get('include', ()):
    objects = found.get(need['class'], ())[: need['count']]
    reason = _lacking(need, objects, groups, colours)
    groups.append(None if reason else objects)
    reasons += [reason] if reason else []
  for limit in spec.get('exclude', ()):
    cls, count = limit['class'], limit['count']
    seen = len(found.get(cls, ()))
    if seen >= count:
      reasons.append(f'expected {cls}<{count}, found {seen}')
  return not reasons, '\n'.join(reasons)


def details(found: Found) -> dict[str, list[list[float]]]:
  """Boxes with their scores, by class, as GenEval's results hold them."""
  return {
    cls: [[*map(float, d.box), float(d.score)] for d in objects]
    for cls, objects in found.items()
  }


def problem(spec: Any) -> str:
  """What is wrong with a line of metadata; '' if nothing."""
  if wrong := outline_problem(spec, TASKS):
    return wrong
  for i, need in enumerate([*spec['include'], *spec.get('exclude', ())]):
    if need['class'] not in OBJECTS:
      return f'object {i} is of no class of GenEval'
    if 'color' in need and need['color'] not in COLORS:
      return f'object {i} has no colour of GenEval'
    if 'position' in need and not _is_position(need['position'], i):
      return f'object {i} has a position that is none'
  return ''


def outline_problem(spec: Any, tags: Collection[str]) -> str:
  """The same, of what GenEval's and GenEval++'s lines have in common."""
  if not isinstance(spec, Mapping) or spec.get('tag') not in tags:
    return f'its tag is none of {", ".join(tags)}'
  if not isinstance(spec.get('prompt'), str) or not spec['prompt'].strip():
    return 'it has no prompt'
  include, exclude = spec.get('include'), spec.get('exclude', [])
  if not isinstance(include, list) or not include:
    return 'it includes nothing'
  if not isinstance(exclude, list):
    return 'exclude is no list'
  for i, need in enumerate([*include, *exclude]):
    if not isinstance(need, Mapping) or not isinstance(need.get('class'), str):
      return f'object {i} has no class'
    if not isinstance(need.get('count'), int) or need['count'] < 1:
      return f'object {i} has no count'
  return ''


def _lacking(need, objects, groups, colours) -> str:
  """The first thing wrong with one wanted class; '' if nothing."""
  cls, count = need['class'], need['count']
  if len(objects) < count:
    return f'expected {cls}>={count}, found {len(objects)}'
  if 'color' in need:
    color, seen = need['color'], list(colours(objects, cls))
    if seen.count(color) < count:
      every = ', '.join(f'{seen.count(c)} {c}' for c in COLORS if c in seen)
      return (
        f'expected {color} {cls}>={count}, found {seen.count(color)} {color};'
        f' and {every}'
      )
  if 'position' in need:
    where, target = need['position']
    if groups[target] is None:
      return f'no target for {cls} to be {where}'
    for a in objects:
      for b in groups[target]:
        true = relations(a.box, b.box)
        if where not in true:
          seen = ' and '.join(true)
          return f'expected {cls} {where} target, found {seen} target'
  return ''


def _area(box) -> float:
  """Of a box whose ends are pixels of its own."""
  return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def _is_position(position: Any, i: int) -> bool:
  """[relation, index of an object before the i-th]."""
  return (
    isinstance(position, list)
    and len(position) == 2
    and position[0] in RELATIONS
    and isinstance(position[1], int)
    and 0 <= position[1] < i
  )
