"""Scores a folder of images against their references: Unified-Bench.

`python -m uae_jax.tools.score --images=redrawn --references=photos
--towers=clip-vit-large-patch14,LongCLIP-L,dinov2-large,dinov3-vitl16
--out=scored`

Whoever drew the images: they pair with the references by name. Leaves
`results.jsonl` (name, image, cosine by tower), `cosines/TOWER.json` in the
layout of the official scorer, `unpaired.json`, `summary.json` for
`tools.tables`, and `sheet.html`. The same command goes on where it was
stopped.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
from absl import flags

from uae_jax.data.pipeline import ImageSource
from uae_jax.errors import UserError
from uae_jax.eval import sheet, unified_bench
from uae_jax.eval.benchmark import write_summary
from uae_jax.infer.options import Options
from uae_jax.infer.results import Results
from uae_jax.infer.scores import load_towers
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.train.writers import Progress

IMAGES = flags.DEFINE_string('images', None, 'Folder to score.', required=True)
REFERENCES = flags.DEFINE_string(
  'references', None, 'Folder of the source images.', required=True
)
TOWERS = flags.DEFINE_list('towers', None, 'Folders of towers that compare.',
                           required=True)  # fmt: skip
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
LABEL = flags.DEFINE_string(
  'label', None, 'What drew the images, for tables; the name of --images.'
)
REWARD = flags.DEFINE_list(
  'reward', [], 'Towers that were the training reward, for tables.'
)
CONDITIONING = flags.DEFINE_enum(
  'conditioning', None, unified_bench.CONDITIONS,
  'What the decoder read, where that is known, for tables.',
)  # fmt: skip
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
OPTIONS = cli.define_options(*cli.BOTH)
INTRO = (
  'Images beside their references. Names stand in the place of captions, '
  'which are not known.'
)


def main() -> None:
  """Scores what is not scored yet."""
  mesh_lib.use_compilation_cache()
  said = {k: v for k, v in OPTIONS().items() if v is not None}
  options = Options(**said)
  folder = Path(IMAGES.value).expanduser()
  pairs = unified_bench.pair(
    ImageSource(str(Path(REFERENCES.value).expanduser())),
    ImageSource(str(folder)),
  )
  mesh = mesh_lib.make_mesh(-1, SHARDS.value)
  compares = load_towers(TOWERS.value, mesh, options.dtype)
  bench = unified_bench.FolderBench(pairs, compares)
  unknown = sorted(set(REWARD.value) - set(compares))
  if unknown:
    raise UserError(f'--reward: {unknown} are none of {[*compares]}')
  settings = dict(
    images=IMAGES.value, references=REFERENCES.value, towers=TOWERS.value,
    dtype=options.dtype,
  )  # fmt: skip
  results = Results(Path(OUT.value), {'tool': 'score', **settings})
  stale = sorted(results.rows.keys() - set(bench.items))
  if stale:
    raise UserError(
      f'--out={OUT.value} has a score of {stale[0]}, which pairs with nothing '
      'now: choose another'
    )
  score(bench, results, options.batch)
  rows = {name: results.rows[name] for name in bench.items}
  scores = bench.scores(rows)
  out = results.folder
  unpaired = dict(references=pairs.missing, images=pairs.extra)
  part = out / 'unpaired.part'
  part.write_text(json.dumps(unpaired, indent=2, ensure_ascii=False) + '\n')
  os.replace(part, out / 'unpaired.json')
  unified_bench.write_official(out, rows, [*compares])
  sheet.write(out, Path(pairs.references.folder), [*compares], folder, INTRO)
  write_summary(
    out, unified_bench.NAME, LABEL.value or folder.resolve().name, scores,
    {**settings, **bench.settings, 'folders': TOWERS.value,
     'reward': REWARD.value, 'conditioning': CONDITIONING.value},
  )  # fmt: skip
  print(table(scores, REWARD.value))
  print(told(rows, pairs) + f': {out}')


def score(
  bench: unified_bench.FolderBench, results: Results, batch: int
) -> None:
  """Adds the rows that are missing, batch by batch."""
  towers = [*bench.compares]
  progress = Progress(len(bench.items), len(results.rows), 5, towers, 'image')
  for _, part in cli.batches(bench.items, batch, results.rows):
    start = time.perf_counter()
    rows = bench.run(part, results.folder)
    results.add([row for row in rows if row['name'] not in results.rows])
    good = [row for row in rows if 'error' not in row]
    shown = {
      t: float(np.mean([row[t] for row in good])) for t in towers if good
    }
    shown['time/step'] = (time.perf_counter() - start) / len(part)
    progress.update(len(results.rows), shown)


def table(scores, reward) -> str:
  """The scores as text."""
  lines = ['| score | value | 95 % interval | images |', '|---|---|---|---|']
  for name, s in scores.items():
    name += ' (reward)' if name in reward else ''
    between = f'{s.low:.2f} to {s.high:.2f}'
    lines.append(f'| {name} | {s.value:.2f} | {between} | {s.n} |')
  return '\n'.join(lines)


def told(rows, pairs) -> str:
  """How many pairs there are, and what is missing."""
  bad = sum('error' in row for row in rows.values())
  parts = [f'{len(rows) - bad} pairs']
  for n, text in (
    (bad, 'could not be read'),
    (len(pairs.missing), 'references without an image'),
    (len(pairs.extra), 'images without a reference'),
  ):
    if n:
      parts.append(f'{n} {text}')
  return ', '.join(parts)


if __name__ == '__main__':
  cli.run(main)
