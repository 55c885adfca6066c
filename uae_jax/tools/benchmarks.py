"""The benchmarks of `tools.evaluate`: what each reads, and what it asks of.

A builder takes a `Bench` and gives an `eval.benchmark.Benchmark` with the
options of the model at work. What takes long to load is loaded when the first
benchmark wants it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from uae_jax.data.pipeline import ImageSource
from uae_jax.errors import UserError
from uae_jax.eval import (
  choice,
  dpg,
  drawing,
  geneval,
  genevalpp,
  judge_client,
  unified_bench,
  vqa_judge,
)
from uae_jax.eval.benchmark import Benchmark
from uae_jax.eval.scenes_suite import ScenesSuite
from uae_jax.infer import janus
from uae_jax.infer.ask import load_asker
from uae_jax.infer.autoencoder import Autoencoder
from uae_jax.infer.load import load
from uae_jax.infer.options import Options
from uae_jax.infer.scores import load_towers

Built = tuple[Benchmark, Options]


@dataclasses.dataclass(frozen=True)
class Bench:
  """What the command line says, and what is loaded of it.

  Attributes:
    model: folder or name; '' where there are drawings in its place.
    said: options of the model.
    mesh: where everything goes.
    data: folder of the benchmarks' files, one folder or file each.
    images: folder of drawings made by others, scored as they are.
    towers: folders of towers that compare.
    conditioning: what the decoder reads, 'caption' or 'hidden'.
    detector: folder of a detector, for GenEval.
    clip: folder of a CLIP that tells colours, for GenEval.
    judge: MODEL[@URL[@KEY_ENV]] of an endpoint that sees images.
    cache: folder of its answers.
    rewrite: file of rewritten prompts.
    scenes: how many of the drawn world.
  """

  model: str
  said: Mapping[str, Any]
  mesh: Mesh
  data: Path
  images: Path | None
  towers: Sequence[str]
  conditioning: str
  detector: str
  clip: str
  judge: str
  cache: Path
  rewrite: str
  scenes: int

  @functools.cached_property
  def autoencoder(self) -> Autoencoder:
    """The model, describing and drawing as far as it can."""
    self._needs('model', self.model)
    return load(self.model, self.mesh, self.said)

  @functools.cached_property
  def asker(self) -> Any:
    """The model, answering questions."""
    self._needs('model', self.model)
    return load_asker(self.model, self.mesh, self.said)

  @functools.cached_property
  def compares(self) -> dict[str, Any]:
    """Towers by name."""
    self._needs('towers', self.towers)
    return load_towers(self.towers, self.mesh)

  @functools.cached_property
  def vlm(self) -> judge_client.Judge | None:
    """The endpoint that answers questions about images."""
    if not self.judge:
      return None
    return judge_client.make_judge(self.judge, cache=self.cache)

  @functools.cached_property
  def rewrites(self) -> Mapping[str, str] | None:
    """Prompt -> what is drawn in its place."""
    return drawing.read_rewrites(self.rewrite) if self.rewrite else None

  def drawn(self) -> tuple[dict[str, Any], Options]:
    """Where the images of a text-to-image benchmark come from; options."""
    if self.images is not None:
      if self.rewrite:
        raise UserError('--rewrite is for drawing, and --images are drawn')
      return dict(images=self.images), Options()
    options = self.autoencoder.options
    drawn = dict(draw=self.autoencoder.draw, batch=options.batch)
    return {**drawn, 'rewrite': self.rewrites}, options

  def _needs(self, flag: str, value: Any) -> None:
    if not value:
      raise UserError(f'this benchmark needs --{flag}')


def scenes(bench: Bench) -> Built:
  """The drawn world; nothing is needed for it."""
  model = bench.autoencoder
  side = model.options.height
  if model.options.width != side:
    raise UserError('scenes are square: set --height and --width to one size')
  suite = ScenesSuite(
    model.describe, model.draw, bench.compares, _chooser(bench), side,
    bench.scenes,
  )  # fmt: skip
  return suite, model.options


def glyphs(bench: Bench) -> Built:
  """The drawn world with a string in every scene."""
  suite, options = scenes(bench)
  return dataclasses.replace(suite, world='glyphs'), options


def _chooser(bench: Bench) -> Any:
  """(images, options of each) -> log-likelihoods of the options."""

  def choose(images, options):
    text = bench.autoencoder.options.prompt
    questions = [
      choice.Question([image], text, texts)
      for image, texts in zip(images, options)
    ]
    return bench.asker.likelihood(questions)

  return choose


def unified(bench: Bench) -> Built:
  """`unified/`: the source images."""
  source = ImageSource(str(_there(bench.data / 'unified', 'its 100 images')))
  if bench.images is not None:
    pairs = unified_bench.pair(source, ImageSource(str(bench.images)))
    return unified_bench.FolderBench(pairs, bench.compares), Options()
  if bench.conditioning == 'hidden':
    from uae_jax.infer.hidden import load_redrawer

    redraw = load_redrawer(bench.model, bench.mesh, bench.said)
    options = redraw.options
  else:
    model = bench.autoencoder
    redraw = unified_bench.from_captions(model.describe, model.draw)
    options = model.options
  made = unified_bench.UnifiedBench(
    source, redraw, bench.compares, bench.conditioning
  )
  return made, options


def geneval_(bench: Bench) -> Built:
  """`geneval/evaluation_metadata.jsonl`; scored where a detector is named."""
  file = bench.data / 'geneval' / 'evaluation_metadata.jsonl'
  metadata, scorer = geneval.read_metadata(file), {}
  if bench.detector:
    from uae_jax.infer.detector import load_detector
    from uae_jax.infer.zero_shot import load_colours

    bench._needs('clip', bench.clip)
    colours = load_colours(bench.clip, bench.mesh)
    scorer = dict(detect=load_detector(bench.detector), colours=colours)
  drawn, options = bench.drawn()
  return geneval.GenEval(metadata, **drawn, **scorer), options


def genevalpp_(bench: Bench) -> Built:
  """`genevalpp/Geneval++.jsonl`; scored where a judge is named."""
  prompts = genevalpp.read_prompts(bench.data / 'genevalpp/Geneval++.jsonl')
  judge = None
  if bench.vlm is not None:
    judge = lambda images, prompt, criteria: vqa_judge.checklist(
      bench.vlm, [(images[0], prompt, criteria)]
    )[0]
  drawn, options = bench.drawn()
  return genevalpp.GenEvalPP(prompts, **drawn, judge=judge), options


def dpg_(bench: Bench) -> Built:
  """`dpg/prompts/*.txt` and `dpg/dpg_bench.csv`; likewise."""
  prompts = dpg.read_prompts(bench.data / 'dpg')
  answer = None if bench.vlm is None else vqa_judge.YesNo(bench.vlm)
  drawn, options = bench.drawn()
  return dpg.DPGBench(prompts, **drawn, answer=answer), options


def _choice(kind: str, file: str) -> Callable[[Bench], Built]:
  def build(bench):
    at = _there(bench.data / file, f'{file} of VLMEvalKit')
    form = 'direct' if bench.asker.kind in janus.KINDS else 'select'
    made = choice.Choice(kind, at, bench.asker.ask, form=form)
    return made, bench.asker.options

  return build


def _there(path: Path, what: str) -> Path:
  if not path.exists():
    raise UserError(f'{path} is missing: put {what} there')
  return path


BUILDERS = {
  'scenes': scenes,
  'glyphs': glyphs,
  'unified_bench': unified,
  'geneval': geneval_,
  'genevalpp': genevalpp_,
  'dpg': dpg_,
  'mmb': _choice('mmb', 'MMBench_DEV_EN.tsv'),
  'mmmu': _choice('mmmu', 'MMMU_DEV_VAL.tsv'),
  'mmt': _choice('mmt', 'MMT-Bench_VAL.tsv'),
}
