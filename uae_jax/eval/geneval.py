"""GenEval: are the objects there, as many, of that colour, in that place?

Ghosh et al. 2023, https://arxiv.org/abs/2310.11513. A folder is laid out as
the generator of djghosh13/geneval leaves it and `results.jsonl` has the fields
of its evaluator, so that either side can be replaced by the official one:
without a detector the images are only drawn; with `images` only scored.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Key, UInt8

from uae_jax.errors import UserError
from uae_jax.eval import drawing, geneval_rules
from uae_jax.eval.benchmark import Score, mean_score, mean_scores
from uae_jax.eval.geneval_rules import Detection

SOURCE = (
  'prompts/evaluation_metadata.jsonl of https://github.com/djghosh13/geneval'
)
PROMPTS = 553
SAMPLES = 4  # images of a prompt
GRID_GAP = 2  # pixels around every image of grid.png

# images -> what is in each
Detect = Callable[[Sequence[np.ndarray]], Sequence[Sequence[Detection]]]
# (image, objects of one class in it, the class) -> colour of each
ColoursOf = Callable[[np.ndarray, Sequence[Detection], str], Sequence[str]]


def read_metadata(
  file: str | Path, count: int = PROMPTS
) -> tuple[dict[str, Any], ...]:
  """What every prompt asks for, in the order of the official file.

  Raises:
    UserError: the file is missing, short or malformed.
  """
  rows = drawing.read_lines(Path(file), count, SOURCE)
  for n, row in enumerate(rows, 1):
    if wrong := geneval_rules.problem(row):
      raise UserError(f'{file}, object {n}: {wrong}; take {SOURCE}')
  return tuple(rows)


@dataclasses.dataclass(frozen=True)
class GenEval:
  """A `Benchmark`; an item is an image, named by its path in the layout.

  Attributes:
    metadata: of `read_metadata`.
    draw: draws; None where `images` are there.
    batch: texts it takes at once.
    detect: finds objects; None only draws.
    colours: of objects; needed to score.
    images: a folder in the official layout, made by whomever.
    samples: images of a prompt, where they are drawn.
    rewrite: what is drawn in a prompt's place; the prompt is what is scored.
  """

  metadata: Sequence[Mapping[str, Any]]
  draw: drawing.Draw | None = None
  batch: int = 1
  detect: Detect | None = None
  colours: ColoursOf | None = None
  images: Path | None = None
  samples: int = SAMPLES
  rewrite: drawing.Rewrite | None = None

  def __post_init__(self):
    drawing.check_source(self.draw, self.images)
    drawing.check_rewrite(self.rewrite, [m['prompt'] for m in self.metadata])
    if (self.detect is None) != (self.colours is None):
      raise UserError('GenEval is scored by a detector and a CLIP together')
    if self.images is not None and self.detect is None:
      raise UserError(f'{self.images} can only be scored: name a detector')
    if self.images is not None:
      existing(self.images, self.metadata)  # says now what is wrong with it

  @functools.cached_property
  def settings(self) -> dict[str, Any]:
    """What decides how an item is made."""
    return dict(
      benchmark='geneval',
      metadata=drawing.digest(list(self.metadata)),
      samples=len(self.items) // len(self.metadata),
      images=self.images and str(self.images),
      rewrite=drawing.rewrite_setting(self.rewrite),
      scored=self.detect is not None,
    )

  @functools.cached_property
  def items(self) -> list[str]:
    """`00000/samples/00000.png` ..."""
    if self.images is not None:
      return existing(self.images, self.metadata)
    return [
      f'{i:05d}/samples/{j:05d}.png'
      for i in range(len(self.metadata))
      for j in range(self.samples)
    ]

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows of images; see `Benchmark.run`."""
    prompts = [self._spec(name)['prompt'] for name in names]
    texts = [drawing.rewritten(self.rewrite, prompt) for prompt in prompts]
    if self.draw is not None:
      pictures = drawing.draw_all(self.draw, texts, self.batch, rng)
      for name, picture in zip(names, pictures):
        drawing.save_image(folder / name, picture)
      for index in dict.fromkeys(name.split('/')[0] for name in names):
        self._finish(folder / index)
    rows = [self._row(name, text) for name, text in zip(names, texts)]
    return rows if self.detect is None else self._scored(rows, folder)

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Mean of the tasks, the tasks, right images, prompts with a right one.

    In [0, 1]; a prompt is the independent unit. Nothing without a detector.
    """
    prompts = {}  # (task, metadata) -> verdicts on its images
    for row in rows.values():
      if 'correct' in row:
        key = row['tag'], row['metadata']
        prompts.setdefault(key, []).append(row['correct'])
    if not prompts:
      return {}
    tasks = {task: [] for task in geneval_rules.TASKS}
    for (task, _), verdicts in prompts.items():
      tasks[task].append(np.mean(verdicts))
    right = [np.mean(verdicts) for verdicts in prompts.values()]
    return dict(
      **mean_scores(tasks, 'overall'),
      images=mean_score(right),
      prompts=mean_score([any(verdicts) for verdicts in prompts.values()]),
    )

  def _spec(self, name: str) -> Mapping[str, Any]:
    return self.metadata[int(name.split('/')[0])]

  def _row(self, name: str, text: str) -> dict[str, Any]:
    spec = self._spec(name)
    row = {'name': name, 'filename': name}
    row |= {key: spec[key] for key in ('tag', 'prompt')}
    return row if self.rewrite is None else {**row, 'drawn': text}

  def _finish(self, folder: Path) -> None:
    """Writes what lies beside the samples of a prompt."""
    spec = self.metadata[int(folder.name)]
    file = folder / 'metadata.jsonl'
    part = file.with_suffix('.part')
    part.write_text(json.dumps(spec))
    os.replace(part, file)
    samples = [folder / f'samples/{j:05d}.png' for j in range(self.samples)]
    if all(sample.exists() for sample in samples):
      pictures = [drawing.try_read(sample) for sample in samples]
      drawing.save_image(folder / 'grid.png', grid(pictures))

  def _scored(self, rows, folder) -> list[dict[str, Any]]:
    root = self.images or folder
    pictures = [drawing.try_read(root / row['name']) for row in rows]
    read = [picture for picture in pictures if picture is not None]
    seen = iter(self.detect(read) if read else [])
    out = []
    for row, picture in zip(rows, pictures):
      if picture is None:
        out.append(row | drawing.UNREAD)
        continue
      spec = self._spec(row['name'])
      found = geneval_rules.keep(next(seen), spec['tag'])
      colours = functools.partial(self.colours, picture)
      correct, reason = geneval_rules.judge(found, spec, colours)
      # The official results hold these two as strings of JSON.
      strings = dict(
        metadata=json.dumps(spec),
        details=json.dumps(geneval_rules.details(found)),
      )
      out.append({**row, 'correct': correct, 'reason': reason, **strings})
    return out


def existing(folder: Path, metadata: Sequence[Mapping[str, Any]]) -> list[str]:
  """The images of a folder in the official layout.

  Raises:
    UserError: a prompt has none, or another number than the first, or the
      folder was made from other metadata.
  """
  names, number = [], None
  for i, spec in enumerate(metadata):
    below = folder / f'{i:05d}'
    samples = sorted(
      f.name
      for f in below.glob('samples/*')
      if re.fullmatch(r'\d+\.png', f.name)
    )
    number = len(samples) if number is None else number
    if not samples or len(samples) != number:
      raise UserError(
        f'{below}/samples has {len(samples)} images, expected '
        f'{number or SAMPLES}: 0000.png ... for every prompt'
      )
    said = below / 'metadata.jsonl'
    if said.exists() and _asks(_read_said(said)) != _asks(spec):
      raise UserError(f'{said} does not ask what line {i + 1} of metadata asks')
    names += [f'{below.name}/samples/{sample}' for sample in samples]
  return names


def grid(
  pictures: Sequence[UInt8[np.ndarray, 'H W 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """A row of images with black gaps, as torchvision's `make_grid`."""
  gap = [(GRID_GAP, GRID_GAP), (GRID_GAP, 0), (0, 0)]
  row = np.concatenate([np.pad(p, gap) for p in pictures], 1)
  return np.pad(row, [(0, 0), (0, GRID_GAP), (0, 0)])


def _read_said(file: Path) -> Any:
  try:
    return json.loads(file.read_text('utf-8'))
  except (OSError, ValueError):
    raise UserError(f'{file} is not a line of GenEval metadata') from None


def _asks(spec: Any) -> Any:
  """Metadata without its words, which a rewriting generator may change."""
  keys = ('tag', 'include', 'exclude')
  return [spec.get(k) or [] for k in keys] if isinstance(spec, dict) else None
