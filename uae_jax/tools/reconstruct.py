"""A folder of images -> captions -> images drawn from them -> similarities.

`python -m uae_jax.tools.reconstruct --model=runs/umm1/export --images=photos
--towers=bundled:umm1/judge_clip --out=redrawn`

Leaves the drawings under the images' names, `results.jsonl` (name, caption,
cosine by tower) and `sheet.html`. The same command goes on where it was
stopped.
"""

import time
from pathlib import Path

import jax
import numpy as np
from absl import flags
from PIL import Image

from uae_jax.data.pipeline import ImageSource
from uae_jax.eval import sheet
from uae_jax.infer.load import load
from uae_jax.infer.results import Results
from uae_jax.infer.scores import load_towers
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.train.writers import Progress

MODEL = flags.DEFINE_string(
  'model', None, 'Folder, bundled:NAME or ORG/REPOSITORY.', required=True
)
IMAGES = flags.DEFINE_string('images', None, 'Folder.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
TOWERS = flags.DEFINE_list('towers', [], 'Folders of towers that compare.')
SEED = flags.DEFINE_integer('seed', 0, 'Of sampling and noise.')
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
OPTIONS = cli.define_options(*cli.CAPTION, *cli.DRAW, *cli.BOTH)


def main() -> None:
  """Redraws what is not redrawn yet."""
  mesh_lib.use_compilation_cache()
  source = ImageSource(IMAGES.value)
  mesh = mesh_lib.make_mesh(-1, SHARDS.value)
  model = load(MODEL.value, mesh, OPTIONS())
  similarity = load_towers(TOWERS.value, mesh, model.options.dtype)
  names = cli.names(source)
  results = Results(
    Path(OUT.value),
    {'tool': 'reconstruct', 'model': MODEL.value, 'towers': TOWERS.value,
     'seed': SEED.value, **cli.settings(model.options)},
  )  # fmt: skip
  progress = Progress(len(names), len(results.rows), 5, similarity, 'image')
  seed = jax.random.key(SEED.value)
  for i, part in cli.batches(names, model.options.batch, results.rows):
    start = time.perf_counter()
    images = cli.read(source, names, part, results)
    row = {}
    if images:
      words, noise = jax.random.split(jax.random.fold_in(seed, i))
      texts = model.describe([*images.values()], words)
      drawn = model.draw(texts, noise)
      scores = {
        tower: compare([*images.values()], [*drawn])
        for tower, compare in similarity.items()
      }
      rows = []
      for n, (name, text) in enumerate(zip(images, texts)):
        file = results.folder / f'{name}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn[n]).save(file)
        cosines = {tower: float(x[n]) for tower, x in scores.items()}
        rows.append({'name': name, 'caption': text, **cosines})
      results.add([row for row in rows if row['name'] not in results.rows])
      row = {tower: float(np.mean(x)) for tower, x in scores.items()}
    row['time/step'] = (time.perf_counter() - start) / len(part)
    progress.update(len(results.rows), row)
  page = sheet.write(results.folder, Path(IMAGES.value), [*similarity])
  progress.say(f'{cli.summary(results)}: {page}')


if __name__ == '__main__':
  cli.run(main)
