"""report.html: one self-contained page of a run, with nothing to download.

Reads what a workdir holds (config.json, metrics.jsonl, gallery/*.npz) and
fills report_template.html, which draws the curves and the gallery.
"""

import base64
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from uae_jax.errors import UserError

# Config keys of the page's head, in its order; a stage may lack some.
SHOWN = (
  'stage', 'rollout.bottleneck', 'rollout.environment', 'ckpt.policy',
  'ckpt.decoder', 'ckpt.reward', 'ckpt.judges',
  'rewards.reconstruction_weight', 'rewards.weights', 'rewards.text',
  'rewards.mine', 'pretrain.trainable',
  'tower.views', 'data.source', 'data.heldout', 'train.steps',
  'train.images', 'train.group_size', 'train.lr', 'train.seed',
  'grpo.caption_weight', 'grpo.image_weight', 'grpo.beta', 'grpo.image_beta',
  'rollout.temperature', 'rollout.guidance', 'model.renderer',
)  # fmt: skip
ROLES = {'ckpt.reward': 'training reward', 'ckpt.judges': 'held-out'}

# Panels and their series: metric -> legend. Those without values are left out.
CURVES = {
  'Reward': {'reward/mean': 'training', 'eval/reward': 'held-out images'},
  'Terms of the reward, unweighted': {
    'reward/text': 'caption and image', 'reward/mine': 'rewards.mine',
    'reward/length': 'length', 'reward/repetition': 'repetition',
  },
  'Unified-Score, held-out judges': {
    'eval/unified_score': 'own captions',
    'eval/full_unified_score': 'full captions',
  },
  'What captions get right': {
    'eval/attribute_precision': 'attribute precision',
    'eval/attribute_recall': 'attribute recall',
    'eval/object_precision': 'object precision',
  },
  'Which words are right': {
    'eval/colour_precision': 'colour',
    'eval/shape_precision': 'shape',
    'eval/size_precision': 'size',
    'eval/row_precision': 'row',
  },
  'Which shapes are said (a quarter each is true)': {
    'eval/said_circle': 'circle',
    'eval/said_square': 'square',
    'eval/said_triangle': 'triangle',
    'eval/said_cross': 'cross',
  },
  'Small objects and whole scenes': {
    'eval/small_object_recall': 'small, in the caption',
    'eval/exact_scene': 'scene redrawn exactly',
  },
  'Strings of letters': {
    'eval/glyph_recall': 'letters said',
    'eval/glyph_exact': 'string said exactly',
    'eval/glyph_redrawn': 'string redrawn exactly',
    'eval/full_glyph_redrawn': 'redrawn from full captions',
  },
  'Images drawn from text': {
    'eval/prompt_overall': 'short prompts right',
    'eval/full_exact_scene': 'full captions, exact',
    'eval/ceiling_exact_scene': 'image tokenizer, exact',
  },
  'KL to the start': {'policy/kl': 'captions', 'image/kl': 'image codes'},
  'Entropy, nats per token': {
    'policy/entropy': 'captions', 'image/entropy': 'image codes'
  },
  'Clipped tokens': {
    'policy/clip_frac_low': 'captions, low',
    'policy/clip_frac_high': 'captions, high',
    'image/clip_frac_low': 'codes, low',
    'image/clip_frac_high': 'codes, high',
  },
  'Reward inside a group': {
    'reward/std': 'standard deviation',
    'reward/zero_std': 'share of groups with none',
  },
  'Caption length, tokens': {
    'caption/length': 'sampled',
    'eval/caption_length': 'held-out, greedy',
  },
  'Loss': {
    'optim/loss': 'all', 'flow/loss': 'flow', 'caption/loss': 'caption',
    'code/loss': 'codes', 'eval/flow_loss': 'flow, held-out images',
  },
  'Image tokenizer': {'pixel/error': 'squared error'},
  'Accuracy': {
    'caption/accuracy': 'words', 'tower/accuracy': 'pairs',
    'code/accuracy': 'codes',
  },
  'Gradient norm': {'optim/grad_norm': 'norm'},
  'Step time, seconds': {'time/step': 'step'},
}  # fmt: skip
INTRO = (
  'Unified-GRPO report. A caption is written for each image, the image is '
  'redrawn from the caption, and the similarity of the two is the reward.'
)
POINTS = 400  # of one series; longer ones are averaged
THUMBNAIL = 256  # pixels, longest side of a picture on the page


def save_gallery(
  workdir: Path,
  step: int,
  *,
  source: UInt8[np.ndarray, 'n R R 3'],
  reconstruction: UInt8[np.ndarray, 'n R R 3'],
  captions: Sequence[str],
  scores: Float[np.ndarray, 'n k'],
  columns: Sequence[str],
) -> Path:
  """Writes gallery/step_XXXXXX.npz whole or not at all.

  Args:
    workdir: the run's folder.
    step: the evaluation's step.
    source: images.
    reconstruction: what was drawn from the captions.
    captions: n texts.
    scores: one row per image.
    columns: names of the k scores, the training reward first.

  Returns:
    The file.
  """
  path = workdir / 'gallery' / f'step_{step:06d}.npz'
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix('.part')
  with open(part, 'wb') as f:
    np.savez_compressed(
      f,
      source=source,
      reconstruction=reconstruction,
      captions=np.array(captions, np.str_),
      scores=scores,
      columns=np.array(columns, np.str_),
    )
  os.replace(part, path)
  return path


def write_report(workdir: Path) -> Path:
  """Writes report.html from what the workdir holds; returns its path.

  Raises:
    UserError: config.json, metrics.jsonl or a gallery is missing or corrupt.
  """
  config = read_config(workdir)
  rows = read_rows(workdir / 'metrics.jsonl')
  data = dict(
    title=workdir.name or 'run',
    intro=INTRO,
    config=[
      [key, _text(config[key]), ROLES[key] if key in ROLES else '']
      for key in SHOWN
      if key in config and config[key] != ''
    ],
    table=evaluation_table(rows, _names(config, 'ckpt.judges')),
    curves=curves(rows),
    gallery=gallery(sorted((workdir / 'gallery').glob('step_*.npz'))),
  )
  return write_page(workdir / 'report.html', data)


def write_page(path: Path, data: Mapping[str, Any]) -> Path:
  """Fills the template with `data`, whole or not at all; returns `path`."""
  template = resources.files('uae_jax.eval').joinpath('report_template.html')
  # Every < is written as an escape, so that no caption can end the script.
  text = json.dumps(data, allow_nan=False).replace('<', '\\u003c')
  part = path.with_suffix('.part')
  page = template.read_text('utf-8').replace('__DATA__', text)
  part.write_text(page, 'utf-8')
  os.replace(part, path)
  return path


def evaluation_table(
  rows: Sequence[Mapping[str, Any]], judges: Sequence[str]
) -> dict[str, Any] | None:
  """Every eval/ metric at the first, the best and the last evaluation.

  Best is the highest reward: what was trained on picks the step, so that the
  judges stay held out. Without rewards it is the last evaluation.

  Returns:
    `names` and `steps` of the three columns and `rows` of [name, note, three
    numbers], or None if nothing was evaluated.
  """
  scored = [r for r in rows if any(k.startswith('eval/') for k in r)]
  if not scored:
    return None
  keys = list(dict.fromkeys(k for r in scored for k in r if k[:5] == 'eval/'))
  first = ('eval/unified_score', 'eval/reward')
  keys.sort(key=lambda k: first.index(k) if k in first else len(first))
  rewarded = [r for r in scored if _number(r, 'eval/reward') is not None]
  best = (
    max(rewarded, key=lambda r: r['eval/reward']) if rewarded else scored[-1]
  )
  columns = (scored[0], best, scored[-1])
  notes = {'eval/reward': 'training reward', 'eval/unified_score': 'held-out'}
  notes |= {f'eval/{name}': 'held-out' for name in judges}
  return dict(
    names=['first', 'best', 'last'],
    steps=[r['step'] for r in columns],
    rows=[
      [
        k.removeprefix('eval/'),
        notes[k] if k in notes else '',
        *(_number(r, k) for r in columns),
      ]
      for k in keys
    ],
  )


def curves(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Panels of series of [step, value]; what was never measured is absent."""
  panels = []
  for title, legend in CURVES.items():
    series = []
    for key, label in legend.items():
      points = [
        (r['step'], r[key]) for r in rows if _number(r, key) is not None
      ]
      if points:
        series.append(dict(name=label, points=thin(points)))
    if series:
      panels.append(dict(title=title, series=series))
  return panels


def thin(points: Sequence[tuple[int, float]]) -> list[list[float]]:
  """At most POINTS points: means of equal runs, at the step they end with."""
  parts = np.array_split(np.array(points, float), min(len(points), POINTS))
  return [[int(p[-1, 0]), float(p[:, 1].mean())] for p in parts]


def gallery(files: Sequence[Path]) -> dict[str, Any] | None:
  """The same images at the first and at the last evaluation, or None.

  Raises:
    UserError: a file cannot be read.
  """
  if not files:
    return None
  ends = [files[0], files[-1]] if len(files) > 1 else [files[0]]
  galleries = [read_gallery(file) for file in ends]
  items = [
    dict(
      source=data_uri(galleries[-1]['source'][i]),
      images=[data_uri(g['reconstruction'][i]) for g in galleries],
      captions=[str(g['captions'][i]) for g in galleries],
      scores=[_finite(g['scores'][i]) for g in galleries],
    )
    for i in range(min(len(g['source']) for g in galleries))
  ]
  steps = [f'step {int(f.stem.removeprefix("step_"))}' for f in ends]
  if len(steps) > 1:
    steps = [f'before, {steps[0]}', f'after, {steps[1]}']
  return dict(
    labels=steps,
    columns=[str(c) for c in galleries[-1]['columns']],
    items=items,
  )


def data_uri(image: UInt8[np.ndarray, 'R R 3']) -> str:
  """The image as a PNG inside a URI, made smaller if it is large."""
  picture = Image.fromarray(image)
  picture.thumbnail((THUMBNAIL, THUMBNAIL))
  out = io.BytesIO()
  picture.save(out, 'PNG', optimize=True)
  return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode()


def _finite(scores):
  return [float(x) if np.isfinite(x) else None for x in scores]


def _number(row, key):
  """The value, or None where it is absent or was not finite."""
  return row[key] if key in row else None


def _text(value):
  parts = value.split(',') if isinstance(value, str) else value
  return ', '.join(parts) if isinstance(parts, list) else str(value)


def _names(config, key):
  """Tower names in a comma-separated list of folders."""
  folders = config[key].split(',') if key in config else []
  return [Path(f.split(':')[-1]).name for f in folders if f]


def _flat(config, prefix=''):
  out = {}
  for key, value in config.items():
    nested = isinstance(value, Mapping)
    out |= _flat(value, f'{prefix}{key}.') if nested else {prefix + key: value}
  return out


def read_config(workdir: Path) -> dict[str, Any]:
  """A run's config, keyed by `section.key`.

  Raises:
    UserError: it is missing or corrupt.
  """
  return _flat(_read_json(workdir / 'config.json'))


def _read_json(path):
  try:
    return json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read ({e}): use a run's folder") from e


def read_rows(path: Path) -> list[dict[str, Any]]:
  """Rows of a file that may be growing: a torn last line is left out.

  Raises:
    UserError: it is missing or corrupt.
  """
  try:
    lines = path.read_text('utf-8').splitlines()
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read ({e}): use a run's folder") from e
  rows = []
  for i, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except ValueError as e:
      if i == len(lines):
        break
      raise UserError(f'{path} line {i} is not JSON: delete it') from e
    if not isinstance(row, dict) or 'step' not in row:
      raise UserError(f'{path} line {i} has no "step": delete it')
    rows.append(row)
  return rows


def read_gallery(path: Path) -> dict[str, np.ndarray]:
  """What `save_gallery` has written, by the names of its arguments.

  Raises:
    UserError: it cannot be read.
  """
  try:
    with np.load(path, allow_pickle=False) as f:
      return dict(f)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
    raise UserError(f'{path} cannot be read ({e}): delete it') from e
