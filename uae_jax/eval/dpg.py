"""DPG-Bench: long prompts, and yes-no questions on what was drawn.

Hu et al. 2024 (ELLA), https://arxiv.org/abs/2403.05135, after `dpg_bench/` of
TencentQQGYLab/ELLA. Four images of a prompt are one 2x2 grid named by the
prompt's id. A question counts as no where one that it depends on does; the
score is a mean over questions, then crops, then prompts.

Two slips of the official script are not repeated: it forgets the first
question of the file, and with it that prompt; and it takes category scores
from the last crop alone, where these here are means over all of them.
Categories are of the answers as given, before dependencies, there and here.
"""

import csv
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Key, UInt8

from uae_jax.errors import UserError
from uae_jax.eval import drawing
from uae_jax.eval.benchmark import RESAMPLES, Score, mean_score

SOURCE = 'the folder dpg_bench of https://github.com/TencentQQGYLab/ELLA'
PROMPTS = 1065
COLUMNS = (
  'item_id', 'proposition_id', 'dependency', 'tuple',
  'question_natural_language',
)  # fmt: skip
CATEGORIES = ('global', 'entity', 'attribute', 'relation', 'other')
SIDE = 2  # images on a side of the grid

# (images, questions), of one length -> yes or no to each; None for neither
Answer = Callable[[Sequence[np.ndarray], Sequence[str]], Sequence[bool | None]]


@dataclasses.dataclass(frozen=True)
class Question:
  """One question on a drawing.

  Attributes:
    text: as it is asked.
    category: broad and detailed, 'attribute - color'.
    parents: ids of the questions that it depends on.
  """

  text: str
  category: str
  parents: tuple[int, ...]

  @property
  def broad(self) -> str:
    """The broad category."""
    return self.category.split('-')[0].strip()


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A text to be drawn, and its questions by id, in their order."""

  text: str
  questions: Mapping[int, Question]


def read_prompts(folder: str | Path, count: int = PROMPTS) -> dict[str, Prompt]:
  """Prompts by id, from `prompts/ID.txt` and `dpg_bench.csv`.

  Raises:
    UserError: a file is missing or malformed, or a prompt has no questions.
  """
  folder = Path(folder)
  table = folder / 'dpg_bench.csv'
  try:
    questions = _read_table(table)
    files = sorted((folder / 'prompts').glob('*.txt'))
    texts = {file.stem: file.read_text('utf-8').strip() for file in files}
  except (OSError, UnicodeDecodeError):
    raise UserError(f'{folder} cannot be read: put {SOURCE} there') from None
  except (KeyError, ValueError, AttributeError, csv.Error):
    raise UserError(f'{table} is malformed: take {SOURCE}') from None
  if mute := sorted(texts.keys() - questions.keys()):
    raise UserError(f'{table} asks nothing of {mute[0]!r}: take {SOURCE}')
  if len(texts) != count or not all(texts.values()):
    full = sum(map(bool, texts.values()))
    raise UserError(f'{folder} has {full} of {count} prompts: take {SOURCE}')
  return {name: Prompt(texts[name], questions[name]) for name in texts}


def credited(
  questions: Mapping[int, Question], answers: Sequence[bool | None]
) -> dict[int, bool]:
  """Which questions count as yes.

  Args:
    questions: by id; parents that are not among them are passed over.
    answers: in the order of the questions; None is no yes.
  """
  yes = {i: answer is True for i, answer in zip(questions, answers)}
  # In the file's order: what a parent has lost, its children lose as well.
  for i, question in questions.items():
    yes[i] = yes[i] and all(
      yes.get(parent, True) for parent in question.parents
    )
  return yes


@dataclasses.dataclass(frozen=True)
class DPGBench:
  """A `Benchmark`; an item is a prompt, named by its id.

  Attributes:
    prompts: of `read_prompts`.
    draw: draws; None where `images` are there.
    batch: texts it takes at once.
    answer: answers questions; None only draws.
    images: a folder with `ID.png` (or .jpg ...), made by whomever.
    pictures: images of a prompt: 4 as a grid, or 1.
    rewrite: what is drawn in a prompt's place; the prompt is what is scored.
  """

  prompts: Mapping[str, Prompt]
  draw: drawing.Draw | None = None
  batch: int = 1
  answer: Answer | None = None
  images: Path | None = None
  pictures: int = SIDE**2
  rewrite: drawing.Rewrite | None = None

  def __post_init__(self):
    drawing.check_source(self.draw, self.images)
    texts = [prompt.text for prompt in self.prompts.values()]
    drawing.check_rewrite(self.rewrite, texts)
    if self.pictures not in (1, SIDE**2):
      raise UserError(f'DPG-Bench has 1 or {SIDE**2} images of a prompt')
    if self.images is not None:
      if self.answer is None:
        raise UserError(f'{self.images} can only be scored: name a judge')
      drawing.find(self.images, self.items)

  @functools.cached_property
  def settings(self) -> dict[str, Any]:
    """What decides how an item is made."""
    prompts = {k: dataclasses.asdict(v) for k, v in self.prompts.items()}
    return dict(
      benchmark='dpg',
      prompts=drawing.digest(prompts),
      pictures=self.pictures,
      images=self.images and str(self.images),
      rewrite=drawing.rewrite_setting(self.rewrite),
      scored=self.answer is not None,
    )

  @functools.cached_property
  def items(self) -> list[str]:
    """Ids of the prompts."""
    return [*self.prompts]

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows of prompts; see `Benchmark.run`."""
    prompts = [self.prompts[name].text for name in names]
    texts = [drawing.rewritten(self.rewrite, prompt) for prompt in prompts]
    if self.draw is not None:
      each = [text for text in texts for _ in range(self.pictures)]
      drawn = drawing.draw_all(self.draw, each, self.batch, rng)
      for i, name in enumerate(names):
        four = drawn[i * self.pictures : (i + 1) * self.pictures]
        drawing.save_image(folder / 'images' / f'{name}.png', grid(four))
    out = []
    for name, prompt, text in zip(names, prompts, texts):
      row = {'name': name, 'prompt': prompt}
      if self.rewrite is not None:
        row['drawn'] = text
      if self.answer is not None:
        root = folder / 'images' if self.images is None else self.images
        row |= self._answered(name, drawing.find(root, [name])[name])
      out.append(row)
    return out

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Mean of the prompts, then categories, broad ones first; of 100.

    A category is a mean over its questions; prompts are what its interval
    resamples. Nothing where nothing was answered.
    """
    done = {name: row for name, row in rows.items() if 'score' in row}
    if not done:
      return {}
    out = {'overall': mean_score([100 * r['score'] for r in done.values()])}
    found = {}  # category -> prompt -> whether each question was answered yes
    for name, row in done.items():
      questions = self.prompts[name].questions.values()
      for crop in row['answers']:
        for question, answer in zip(questions, crop):
          for category in {question.broad, question.category}:
            per_prompt = found.setdefault(category, {})
            per_prompt.setdefault(name, []).append(answer is True)
    broad = [c for c in CATEGORIES if c in found]
    for category in [*broad, *sorted(found.keys() - set(broad))]:
      out[category] = _pooled([*found[category].values()])
    return out

  def _answered(self, name: str, file: Path) -> dict[str, Any]:
    picture = drawing.try_read(file)
    if picture is None:
      return drawing.UNREAD
    crops = quarters(picture) if self.pictures > 1 else [picture]
    questions = self.prompts[name].questions
    texts = [question.text for question in questions.values()]
    said = self.answer(
      [crop for crop in crops for _ in texts], texts * len(crops)
    )
    if len(said) != len(texts) * len(crops):
      raise ValueError(f'{len(said)} answers to {len(texts) * len(crops)}')
    answers = [
      [None if a is None else bool(a) for a in said[i : i + len(texts)]]
      for i in range(0, len(said), len(texts))
    ]
    each = [np.mean([*credited(questions, a).values()]) for a in answers]
    crops = [*map(float, each)]
    return dict(score=float(np.mean(each)), crops=crops, answers=answers)


def grid(
  pictures: Sequence[UInt8[np.ndarray, 'H W 3']],
) -> UInt8[np.ndarray, 'h w 3']:
  """Four images in two rows; one stays itself."""
  if len(pictures) == 1:
    return pictures[0]
  rows = [pictures[i : i + SIDE] for i in range(0, SIDE**2, SIDE)]
  return np.concatenate([np.concatenate(row, 1) for row in rows], 0)


def quarters(
  picture: UInt8[np.ndarray, 'h w 3'],
) -> list[UInt8[np.ndarray, 'H W 3']]:
  """The images of a grid, row by row."""
  h, w = (n // SIDE for n in picture.shape[:2])
  return [
    picture[i * h : (i + 1) * h, j * w : (j + 1) * w]
    for i in range(SIDE)
    for j in range(SIDE)
  ]


def _pooled(values: Sequence[Sequence[bool]]) -> Score:
  """Percentage of all values; whole prompts are what is resampled."""
  rng = np.random.default_rng(0)
  yes, all_ = (np.array([f(v) for v in values]) for f in (sum, len))
  index = rng.integers(len(values), size=(RESAMPLES, len(values)))
  draws = 100 * yes[index].sum(1) / all_[index].sum(1)
  low, high = np.percentile(draws, [2.5, 97.5])
  value = 100 * yes.sum() / all_.sum()
  return Score(float(value), int(all_.sum()), float(low), float(high))


def _read_table(file: Path) -> dict[str, dict[int, Question]]:
  """Questions by prompt and id."""
  out = {}
  with file.open(encoding='utf-8-sig', newline='') as f:
    for row in csv.DictReader(f):
      item, number, parents, kind, text = (row[c].strip() for c in COLUMNS)
      out.setdefault(item, {})[int(number)] = Question(
        text=text,
        category=kind.split('(')[0].strip(' -'),
        # 0 is no question: it stands for none.
        parents=tuple(int(p) for p in parents.split(',') if int(p)),
      )
  return out
