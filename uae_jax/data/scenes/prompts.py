"""Text-to-image prompts in the manner of GenEval, scored by the detector.

Ghosh et al. 2023, https://arxiv.org/abs/2310.11513, asks for one object, for
two, for objects by number, colour, place and whose colour is whose. Here every
scene gives one prompt to each task, and what was drawn is read back exactly.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from uae_jax.data.scenes import detect, grammar
from uae_jax.data.scenes.score import objects

# GenEval's, by its names.
TASKS = (
  'single_object', 'two_object', 'counting', 'colors', 'position', 'color_attr',
)  # fmt: skip


def prompts(scene: np.ndarray) -> tuple[str, ...]:
  """One prompt to each of `TASKS`.

  Args:
    scene: [n, 5], n > 0; rows of -1 are padding.
  """
  scene = objects(scene)
  first, second = scene[0], scene[-1]
  kind = _said(first, 'colour', 'shape')
  return (
    _said(first, 'shape'),
    f'{_said(first, "shape")} , {_said(second, "shape")}',
    ' , '.join([kind] * len(scene)),
    kind,
    _said(first, 'colour', 'shape', 'row', 'col'),
    f'{kind} , {_said(second, "colour", "shape")}',
  )


def _said(row: np.ndarray, *attributes: str) -> str:
  values = dict(zip(grammar.ATTRIBUTES, row, strict=True))
  names = dict(zip(grammar.ATTRIBUTES, grammar.NAMES, strict=True))
  return ' '.join(names[key][values[key]] for key in attributes)


def right(task: str, prompt: str, found: np.ndarray) -> bool:
  """Whether the objects found are what the prompt asks for.

  Every mention needs an object of its own that agrees with all it says.
  Further objects are forgiven, but in `counting`, which is of all objects.

  Args:
    task: of `TASKS`.
    prompt: its words.
    found: [n, 5], what the detector sees.
  """
  wanted = [
    np.array([-1 if v is None else v for v in mention.values()])
    for mention in grammar.parse(prompt)
  ]
  if (
    len(found) < len(wanted) or task == 'counting' and len(found) > len(wanted)
  ):
    return False
  agrees = [[np.all((w < 0) | (w == row)) for row in found] for w in wanted]
  return any(
    all(agrees[i][j] for i, j in enumerate(order))
    for order in itertools.permutations(range(len(found)), len(wanted))
  )


def prompt_scores(
  images: np.ndarray, scenes: Sequence[np.ndarray], text: bool = False
) -> dict[str, float]:
  """Share of prompts that were drawn right.

  Args:
    images: [N, len(TASKS), side, side, 3], drawn after `prompts` of each
      scene.
    scenes: N scenes [n, 5]; rows of -1 are padding.
    text: see `detect.detect_batch`.

  Returns:
    One share for each task, and `overall`, their mean (as GenEval's).
  """
  hits = np.zeros((len(scenes), len(TASKS)), bool)
  for i, (drawn, scene) in enumerate(zip(images, scenes, strict=True)):
    found = detect.detect_batch(drawn, text=text)
    for j, prompt in enumerate(prompts(scene)):
      hits[i, j] = right(TASKS[j], prompt, found[j])
  shares = dict(zip(TASKS, hits.mean(0).tolist(), strict=True))
  return {**shares, 'overall': float(hits.mean())}
