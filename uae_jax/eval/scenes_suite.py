"""The drawn world as a benchmark: every score is against the exact truth.

Held-out scenes are described, redrawn and compared; short prompts are drawn
as GenEval asks them, and full captions, of three objects and more apart; of
four phrases the one that is true has to be found likelier than the others.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key
from PIL import Image

from uae_jax.data.pipeline import make_source
from uae_jax.data.scenes import detect, grammar, prompts, score
from uae_jax.eval.benchmark import (
  Score,
  mean_score,
  mean_scores,
  ratio_score,
)

HARD = 3  # objects of a prompt that has many attributes to keep apart
OPTIONS = 4

Images = Sequence[np.ndarray]  # uint8 [H W 3]
Describe = Callable[[Images, Array], list[str]]
Draw = Callable[[Sequence[str], Array], np.ndarray]
Compare = Callable[[Images, Images], np.ndarray]
# (images, options of each) -> log-likelihoods [n, OPTIONS]
Choose = Callable[[Images, Sequence[Sequence[str]]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class ScenesSuite:
  """See the module; implements `eval.benchmark.Benchmark`.

  Attributes:
    describe: images -> captions.
    draw: captions -> images, of `side`.
    compares: cosine of pairs by tower, none of them the reward.
    choose: None where the model cannot be asked.
    side: of scenes and drawings, in pixels.
    n: scenes.
    split: of `data.pipeline.make_source`.
    world: 'scenes', or 'glyphs' for scenes with a string in each; what is
      said and redrawn of it are three more scores, all others are of objects.
  """

  describe: Describe
  draw: Draw
  compares: Mapping[str, Compare]
  choose: Choose | None
  side: int
  n: int = 256
  split: str = 'heldout'
  world: str = 'scenes'

  @property
  def settings(self) -> dict[str, Any]:
    """See `Benchmark`."""
    return dict(
      scenes=self._source, side=self.side, towers=[*self.compares],
      conditioning='caption',
    )  # fmt: skip

  @property
  def _source(self) -> str:
    return f'{self.world}:{self.split}'

  @functools.cached_property
  def items(self) -> list[str]:
    """See `Benchmark`."""
    return [f'{i:05d}.png' for i in range(self.n)]

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """See `Benchmark`; redrawn scenes are left in `folder`."""
    source = make_source(self._source, side=self.side)
    records = [source[int(name[:5])] for name in names]
    images = [record['image'] for record in records]
    scenes = [record['truth'] for record in records]
    text = self.world == 'glyphs'
    strings = [record['glyphs'] if text else None for record in records]
    keys = iter(jax.random.split(rng, 3 + len(prompts.TASKS)))
    captions = self.describe(images, next(keys))
    redrawn = self.draw(captions, next(keys))
    cosines = {k: f(images, redrawn) for k, f in self.compares.items()}
    said = [grammar.describe(s, string=t) for s, t in zip(scenes, strings)]
    full = self.draw(said, next(keys))
    asked = [prompts.prompts(scene) for scene in scenes]
    prompted = [self.draw(list(p), next(keys)) for p in zip(*asked)]
    rows = []
    for i, (name, scene) in enumerate(zip(names, scenes)):
      Image.fromarray(redrawn[i]).save(folder / name)
      found = [detect.detect(images[i], text=text) for images in prompted]
      right = map(prompts.right, prompts.TASKS, asked[i], found)
      rows.append(
        {
          'name': name,
          'scene': scene.tolist(),
          'caption': captions[i],
          'redrawn': detect.detect(redrawn[i], text=text).tolist(),
          'full': detect.detect(full[i], text=text).tolist(),
          **{f'cosine/{k}': float(x[i]) for k, x in cosines.items()},
          **{f'prompt/{k}': bool(x) for k, x in zip(prompts.TASKS, right)},
        }
      )
      if text:
        (read,) = detect.read_strings(redrawn[i : i + 1]).tolist()
        rows[-1] |= {'glyphs': strings[i].tolist(), 'read': read}
    if self.choose is not None:
      self._ask(rows, images, scenes)
    return rows

  def _ask(self, rows, images, scenes) -> None:
    """Adds which of four phrases was the likeliest."""
    asked = [options(s, int(r['name'][:5])) for s, r in zip(scenes, rows)]
    likely = self.choose(images, [texts for texts, _ in asked])
    for row, (texts, answer), logp in zip(rows, asked, likely):
      row['options'], row['answer'] = texts, answer
      row['chosen'] = int(np.argmax(logp))

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """See `Benchmark`; cosines x 100, everything else is a share."""
    rows = [rows[name] for name in self.items]
    scenes = [np.array(row['scene']) for row in rows]
    column = lambda key: [row[key] for row in rows]
    out = {}
    if self.compares:
      cosine = lambda k: 100 * np.array(column(f'cosine/{k}'))
      cosines = {k: cosine(k) for k in self.compares}
      out['unified_score'] = mean_score(np.mean([*cosines.values()], 0))
      out |= {k: mean_score(x) for k, x in cosines.items()}
    out |= caption_table(column('caption'), scenes)
    exact = [_exact(*pair) for pair in zip(column('redrawn'), scenes)]
    out['exact_scene'] = mean_score(exact)
    if 'glyphs' in rows[0]:
      out |= glyph_table(rows)
    tasks = {k: column(f'prompt/{k}') for k in prompts.TASKS}
    tasks = mean_scores(tasks, overall='overall')
    out |= {f'prompt_{k}': x for k, x in tasks.items()}
    full = np.array([_exact(*pair) for pair in zip(column('full'), scenes)])
    out['full_exact_scene'] = mean_score(full)
    hard = np.array([len(scene) >= HARD for scene in scenes])
    if hard.any():
      out['hard_exact_scene'] = mean_score(full[hard])
    if 'chosen' in rows[0]:
      right = [row['chosen'] == row['answer'] for row in rows]
      out['choice'] = mean_score(right)
    return out


def _exact(found: Sequence[Sequence[int]], scene: np.ndarray) -> bool:
  """Every object right and none extra."""
  return sorted(map(tuple, found)) == sorted(map(tuple, scene.tolist()))


def caption_table(
  captions: Sequence[str], scenes: Sequence[np.ndarray]
) -> dict[str, Score]:
  """`data.scenes.score.caption_scores` that tables show, with intervals."""
  counts = [score.caption_counts(*pair) for pair in zip(captions, scenes)]
  share = lambda part, whole: ratio_score(
    [c[part] for c in counts], [c[whole] for c in counts]
  )
  return dict(
    attribute_recall=share('correct', 'truth'),
    attribute_precision=share('correct', 'said'),
    object_precision=share('right', 'mentions'),
    small_object_recall=share('small_said', 'small'),
    exact_caption=mean_score([c['exact'] for c in counts]),
    caption_words=mean_score([len(c.split()) for c in captions]),
  )


def glyph_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
  """`data.scenes.score`'s numbers of strings, with intervals."""
  strings = [np.array(row['glyphs']) for row in rows]
  captions = [row['caption'] for row in rows]
  counts = [score.glyph_counts(*pair) for pair in zip(captions, strings)]
  return dict(
    glyph_recall=ratio_score(
      [c['said'] for c in counts], [c['letters'] for c in counts]
    ),
    glyph_exact=mean_score([c['exact'] for c in counts]),
    glyph_redrawn=mean_score([row['read'] == row['glyphs'] for row in rows]),
  )


def options(scene: np.ndarray, index: int) -> tuple[list[str], int]:
  """Four phrases, of which one is of an object of the scene; which.

  The others differ from it in one attribute and are of no object there.

  Args:
    scene: [n, 5].
    index: of the scene; draws the object, the changes and the order.
  """
  rng = np.random.default_rng((7, index))
  true = scene[rng.integers(len(scene))]
  there, phrases = set(map(tuple, scene.tolist())), []
  while len(phrases) < OPTIONS - 1:
    other, column = true.copy(), rng.integers(len(grammar.NAMES))
    names = len(grammar.NAMES[column])
    other[column] = (other[column] + rng.integers(1, names)) % names
    phrase = grammar.describe(other[None])
    if tuple(other.tolist()) not in there and phrase not in phrases:
      phrases.append(phrase)
  answer = int(rng.integers(OPTIONS))
  phrases.insert(answer, grammar.describe(true[None]))
  return phrases, answer
