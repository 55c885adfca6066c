"""GenEval++: harder prompts of GenEval's kind, judged by a language model.

Ye et al. 2025 (Echo-4o), https://arxiv.org/abs/2508.09987. One image a
prompt, `1.jpg` ... by the line of the official file, right only if every
expectation holds. The expectations are put in words here; for numbers beside
published ones, draw only and run the official script with its own judge.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Key

from uae_jax.errors import UserError
from uae_jax.eval import drawing
from uae_jax.eval.benchmark import Score, mean_scores
from uae_jax.eval.geneval_rules import outline_problem

SOURCE = 'test_scripts/Geneval++.jsonl of https://github.com/yejy53/Echo-4o'
PROMPTS = 280
# Tag in the file -> name in the tables.
TASKS = {
  'color_attr': 'color',
  'counting': 'count',
  'color_count_attr': 'color/count',
  'color_spatial_attr': 'color/pos',
  'spatial_count_attr': 'pos/count',
  'size_spatial_attr': 'pos/size',
  'multi_object_count_attr': 'multi-count',
}
PARTS = {'left': 'left', 'right': 'right', 'above': 'upper', 'below': 'lower'}
SIZES = ('larger', 'smaller')
# What the official judge asks of every image beside its own expectations.
NATURAL = (
  'the image is one natural scene like a photograph: neither drawn nor '
  'stylized, no collage, no panels'
)
QUALITY = 95  # of the JPEG files

# (images, prompt, criteria) -> whether each criterion holds; None where the
# judge gives no answer
Judge = Callable[
  [Sequence[np.ndarray], str, Sequence[str]], Sequence[bool | None]
]


def read_prompts(
  file: str | Path, count: int = PROMPTS
) -> tuple[dict[str, Any], ...]:
  """What every prompt asks for, in the order of the official file.

  Raises:
    UserError: the file is missing, short or malformed.
  """
  rows = drawing.read_lines(Path(file), count, SOURCE)
  for n, row in enumerate(rows, 1):
    if wrong := _problem(row):
      raise UserError(f'{file}, object {n}: {wrong}; take {SOURCE}')
  return tuple(rows)


def criteria(spec: Mapping[str, Any]) -> list[str]:
  """The expectations of a prompt, each a sentence that holds or does not."""
  out = []
  for need in spec['include']:
    words = [str(need['count']), need.get('color'), need['class']]
    text = 'there is exactly ' if need['count'] == 1 else 'there are exactly '
    text += ' '.join(word for word in words if word)
    text += '' if need['count'] == 1 else ' objects'
    if size := need.get('size'):
      text += f', {size} than the other object'
    if region := need.get('region'):
      text += f', in the {PARTS[region]} part of the image'
    out.append(text)
  for limit in spec.get('exclude', ()):
    cls, most = limit['class'], limit['count'] - 1
    out.append(f'there are no more than {most} {cls} objects')
  return [*out, NATURAL]


@dataclasses.dataclass(frozen=True)
class GenEvalPP:
  """A `Benchmark`; an item is a prompt, named by its line, from 1 on.

  Attributes:
    prompts: of `read_prompts`.
    draw: draws; None where `images` are there.
    batch: texts it takes at once.
    judge: says which criteria hold; None only draws.
    images: a folder with `1.jpg` ..., made by whomever.
    rewrite: what is drawn in a prompt's place; the prompt is what is scored.
  """

  prompts: Sequence[Mapping[str, Any]]
  draw: drawing.Draw | None = None
  batch: int = 1
  judge: Judge | None = None
  images: Path | None = None
  rewrite: drawing.Rewrite | None = None

  def __post_init__(self):
    drawing.check_source(self.draw, self.images)
    drawing.check_rewrite(self.rewrite, [p['prompt'] for p in self.prompts])
    if self.images is not None:
      if self.judge is None:
        raise UserError(f'{self.images} can only be scored: name a judge')
      drawing.find(self.images, self.items)

  @functools.cached_property
  def settings(self) -> dict[str, Any]:
    """What decides how an item is made."""
    return dict(
      benchmark='genevalpp',
      prompts=drawing.digest(list(self.prompts)),
      images=self.images and str(self.images),
      rewrite=drawing.rewrite_setting(self.rewrite),
      scored=self.judge is not None,
    )

  @functools.cached_property
  def items(self) -> list[str]:
    """'1' ..."""
    return [str(n + 1) for n in range(len(self.prompts))]

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows of prompts; see `Benchmark.run`."""
    specs = [self.prompts[int(name) - 1] for name in names]
    texts = [drawing.rewritten(self.rewrite, s['prompt']) for s in specs]
    if self.draw is not None:
      pictures = drawing.draw_all(self.draw, texts, self.batch, rng)
      for name, picture in zip(names, pictures):
        file = folder / 'images' / f'{name}.jpg'
        drawing.save_image(file, picture, quality=QUALITY, subsampling=0)
    out = []
    for name, spec, text in zip(names, specs, texts):
      row = {'name': name, 'tag': spec['tag'], 'prompt': spec['prompt']}
      if self.rewrite is not None:
        row['drawn'] = text
      if self.judge is not None:
        row |= self._verdict(name, spec, folder)
      out.append(row)
    return out

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Mean of the sub-categories, and these, in [0, 1]; {} without a judge.

    As in the official script, an image without a verdict is wrong.
    """
    groups = {name: [] for name in TASKS.values()}
    for row in rows.values():
      if 'correct' in row:
        groups[TASKS[row['tag']]].append(row['correct'])
    return mean_scores(groups, 'overall')

  def _verdict(self, name, spec, folder) -> dict[str, Any]:
    root = folder / 'images' if self.images is None else self.images
    picture = drawing.try_read(drawing.find(root, [name])[name])
    if picture is None:
      return drawing.UNREAD
    asked = criteria(spec)
    said = self.judge([picture], spec['prompt'], asked)
    answers = [None if a is None else bool(a) for a in said]
    if len(answers) != len(asked):
      raise ValueError(f'{len(answers)} answers to {len(asked)} criteria')
    return dict(
      correct=all(answers),
      criteria=dict(zip(asked, answers)),
    )


def _problem(spec: Any) -> str:
  """What is wrong with a line of the file; '' if nothing."""
  if wrong := outline_problem(spec, TASKS):
    return wrong
  for i, need in enumerate(spec['include']):
    if need.get('region', 'left') not in PARTS:
      return f'object {i} has no region of {", ".join(PARTS)}'
    if need.get('size', 'larger') not in SIZES:
      return f'object {i} has no size of {", ".join(SIZES)}'
  return ''
