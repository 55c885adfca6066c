"""Images from prompts.

`python -m uae_jax.tools.generate --model=bundled:umm1 --out=drawn
--prompt='large red circle top left'`

`--prompts=FILE` reads one prompt a line, or a `.jsonl` whose objects have a
`prompt`. `--reference=IMAGE` joins every prompt, for folders that read images
to draw (UniWorld). Leaves `00000.png` ... and `results.jsonl`: name, prompt.
The same command goes on where it was stopped.
"""

import time
from pathlib import Path

import jax
from absl import flags
from PIL import Image

from uae_jax.data.preprocess import read_image
from uae_jax.infer.load import load
from uae_jax.infer.results import Results
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.train.writers import Progress

MODEL = flags.DEFINE_string(
  'model', None, 'Folder, bundled:NAME or ORG/REPOSITORY.', required=True
)
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
PROMPT = flags.DEFINE_multi_string('prompt', [], 'What to draw; may repeat.')
PROMPTS = flags.DEFINE_string('prompts', None, 'File of prompts.')
REFERENCE = flags.DEFINE_multi_string(
  'reference', [], 'Image that the prompts speak of; may repeat.'
)
EACH = flags.DEFINE_integer('each', 1, 'Drawings of every prompt.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the noise.')
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
OPTIONS = cli.define_options('system', 'length', *cli.DRAW, *cli.BOTH)


def main() -> None:
  """Draws what is not drawn yet."""
  mesh_lib.use_compilation_cache()
  prompts = [
    prompt
    for prompt in cli.read_prompts(PROMPTS.value, PROMPT.value)
    for _ in range(EACH.value)
  ]
  mesh = mesh_lib.make_mesh(-1, SHARDS.value)
  references = [read_image(path) for path in REFERENCE.value]
  model = load(
    MODEL.value, mesh, OPTIONS(), describes=False, references=references
  )
  results = Results(
    Path(OUT.value),
    {'tool': 'generate', 'model': MODEL.value, 'seed': SEED.value,
     'prompts': prompts, 'reference': REFERENCE.value,
     **cli.settings(model.options)},
  )  # fmt: skip
  names = [f'{i:05d}.png' for i in range(len(prompts))]
  texts = dict(zip(names, prompts))
  progress = Progress(len(names), len(results.rows), 5, (), unit='image')
  seed = jax.random.key(SEED.value)
  for i, part in cli.batches(names, model.options.batch, results.rows):
    start = time.perf_counter()
    rng = jax.random.fold_in(seed, i)
    images = model.draw([texts[name] for name in part], rng)
    for name, image in zip(part, images):
      Image.fromarray(image).save(results.folder / name)
    results.add(
      [
        {'name': name, 'prompt': texts[name]}
        for name in part
        if name not in results.rows
      ]
    )
    seconds = (time.perf_counter() - start) / len(part)
    progress.update(len(results.rows), {'time/step': seconds})
  progress.say(f'{cli.summary(results)}: {results.folder}')


if __name__ == '__main__':
  cli.run(main)
