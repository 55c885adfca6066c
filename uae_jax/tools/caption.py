"""Captions for a folder of images.

`python -m uae_jax.tools.caption --model=Qwen/Qwen2.5-VL-3B-Instruct
--images=photos --out=captions`

Leaves `results.jsonl`: name, caption. The same command goes on where it was
stopped.
"""

import time
from pathlib import Path

import jax
from absl import flags

from uae_jax.data.pipeline import ImageSource
from uae_jax.infer.load import load
from uae_jax.infer.results import Results
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.train.writers import Progress

MODEL = flags.DEFINE_string(
  'model', None, 'Folder, bundled:NAME or ORG/REPOSITORY.', required=True
)
IMAGES = flags.DEFINE_string('images', None, 'Folder.', required=True)
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
SEED = flags.DEFINE_integer('seed', 0, 'Of the sampling.')
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
OPTIONS = cli.define_options(*cli.CAPTION, *cli.BOTH)


def main() -> None:
  """Captions what is not captioned yet."""
  mesh_lib.use_compilation_cache()
  source = ImageSource(IMAGES.value)
  mesh = mesh_lib.make_mesh(-1, SHARDS.value)
  model = load(MODEL.value, mesh, OPTIONS(), draws=False)
  names = cli.names(source)
  results = Results(
    Path(OUT.value),
    {'tool': 'caption', 'model': MODEL.value, 'seed': SEED.value,
     **cli.settings(model.options)},
  )  # fmt: skip
  progress = Progress(len(names), len(results.rows), 5, (), unit='image')
  seed = jax.random.key(SEED.value)
  for i, part in cli.batches(names, model.options.batch, results.rows):
    start = time.perf_counter()
    images = cli.read(source, names, part, results)
    if images:
      texts = model.describe([*images.values()], jax.random.fold_in(seed, i))
      results.add(
        [
          {'name': name, 'caption': text}
          for name, text in zip(images, texts)
          if name not in results.rows
        ]
      )
    seconds = (time.perf_counter() - start) / len(part)
    progress.update(len(results.rows), {'time/step': seconds})
  progress.say(f'{cli.summary(results)}: {results.file}')


if __name__ == '__main__':
  cli.run(main)
