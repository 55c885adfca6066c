"""Benchmarks of a model, or of drawings that others made.

`python -m uae_jax.tools.evaluate --model=runs/umm1/export --benchmark=scenes
--towers=bundled:umm1/judge_clip,bundled:umm1/judge_views --out=evaluated`

| --benchmark | in --data | needs |
|---|---|---|
| scenes, glyphs | | towers |
| unified_bench | unified/*.jpg | towers |
| geneval | geneval/evaluation_metadata.jsonl | to be scored: detector, clip |
| genevalpp | genevalpp/Geneval++.jsonl | to be scored: judge |
| dpg | dpg/prompts/*.txt, dpg/dpg_bench.csv | to be scored: judge |
| mmb, mmmu, mmt | MMBench_DEV_EN.tsv, MMMU_DEV_VAL.tsv, MMT-Bench_VAL.tsv | |

Each leaves a folder of its name: rows, images in the official layout, and
`summary.json` for `tools.tables`. The same command goes on where it was
stopped. Several processes, started as for training, share the items; each
holds the whole model on its own devices.
"""

import time
from pathlib import Path

import jax
from absl import flags

from uae_jax.errors import UserError
from uae_jax.eval import sheet, unified_bench
from uae_jax.eval.benchmark import write_summary
from uae_jax.infer.results import Results
from uae_jax.sharding import hosts
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.tools import cli
from uae_jax.tools.benchmarks import BUILDERS, Bench
from uae_jax.train.writers import Nobody, Progress

MODEL = flags.DEFINE_string('model', '', 'Folder, bundled:NAME or ORG/NAME.')
NAMES = flags.DEFINE_list('benchmark', None, ', '.join(BUILDERS),
                          required=True)  # fmt: skip
DATA = flags.DEFINE_string('data', 'data', "Folder of the benchmarks' files.")
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)
LABEL = flags.DEFINE_string(
  'label', None, 'What tables call it; NAME-seedN is one seed of NAME.'
)
IMAGES = flags.DEFINE_string(
  'images', None, 'Drawings in the official layout, to be scored as they are.'
)
TOWERS = flags.DEFINE_list('towers', [], 'Folders of towers that compare.')
REWARD = flags.DEFINE_list(
  'reward', [], 'Towers that were the training reward, for tables.'
)
CONDITIONING = flags.DEFINE_enum(
  'conditioning', 'caption', unified_bench.CONDITIONS,
  "What the decoder reads of an image; hidden: the captioner's own states.",
)  # fmt: skip
DETECTOR = flags.DEFINE_string('detector', '', 'Folder of a COCO detector.')
CLIP = flags.DEFINE_string('clip', '', 'Folder of a CLIP, for colours.')
JUDGE = flags.DEFINE_string('judge', '', 'MODEL[@BASE_URL[@KEY_ENV]].')
REWRITE = flags.DEFINE_string('rewrite', '', 'JSON of rewritten prompts.')
SCENES = flags.DEFINE_integer('scenes', 256, 'Of the drawn world.')
SEED = flags.DEFINE_integer('seed', 0, 'Of sampling and noise.')
SHARDS = flags.DEFINE_integer('model_shards', 1, 'Devices that share weights.')
JOIN = cli.define_hosts()
OPTIONS = cli.define_options(*cli.CAPTION, *cli.DRAW, *cli.BOTH)


def main() -> None:
  """Runs every benchmark that is named, one after the other."""
  unknown = sorted(set(NAMES.value) - set(BUILDERS))
  if unknown:
    raise UserError(f'--benchmark: {unknown} are none of {[*BUILDERS]}')
  if bool(MODEL.value) == bool(IMAGES.value):
    raise UserError(
      'say --model=FOLDER, or --images=DIR for drawings of others'
    )
  JOIN()
  mesh_lib.use_compilation_cache()
  mesh = mesh_lib.make_mesh(-1, SHARDS.value, jax.local_devices())
  out = Path(OUT.value).expanduser()
  bench = Bench(
    model=MODEL.value,
    said=OPTIONS(),
    mesh=mesh,
    data=Path(DATA.value).expanduser(),
    images=Path(IMAGES.value).expanduser() if IMAGES.value else None,
    towers=TOWERS.value,
    conditioning=CONDITIONING.value,
    detector=DETECTOR.value,
    clip=CLIP.value,
    judge=JUDGE.value,
    cache=out / 'answers',
    rewrite=REWRITE.value,
    scenes=SCENES.value,
  )
  for name in NAMES.value:
    evaluate(name, bench, out / name)


def evaluate(name: str, bench: Bench, folder: Path) -> None:
  """Fills the folder of one benchmark."""
  benchmark, options = BUILDERS[name](bench)
  made = dict(
    tool='evaluate', model=bench.model, towers=bench.towers, seed=SEED.value,
    judge=bench.judge, detector=bench.detector, clip=bench.clip,
  )  # fmt: skip
  settings = {**made, **cli.settings(options), **benchmark.settings}
  process, many = jax.process_index(), jax.process_count()
  if process:
    hosts.wait(f'{name} opened')
  results = Results(folder, settings, process)
  if not process:
    hosts.wait(f'{name} opened')
  first = hosts.is_first()
  items = benchmark.items
  progress = Nobody()
  if first:
    print(f'{name}: {len(items)} items')
    progress = Progress(len(items), len(results.rows), 5, (), 'item')
  seed = jax.random.key(SEED.value)
  for i, part in cli.batches(items, options.batch, results.rows):
    if i % many != process:
      continue
    start = time.perf_counter()
    rows = benchmark.run(part, folder, jax.random.fold_in(seed, i))
    results.add([row for row in rows if row['name'] not in results.rows])
    seconds = (time.perf_counter() - start) / len(part) / many
    progress.update(len(results.rows), {'time/step': seconds})
  hosts.wait(f'{name} done')
  if not first:
    return
  results.read()
  rows = {item: results.rows[item] for item in items}
  scores = benchmark.scores(rows)
  reward = dict(reward=REWARD.value)
  if name == 'unified_bench':
    unified_bench.write_official(folder, rows, [*bench.compares])
    sheet.write(folder, bench.data / 'unified', [*bench.compares], bench.images)
  label = LABEL.value or bench.model or str(bench.images)
  write_summary(folder, name, label, scores, {**settings, **reward})
  progress.say(table(scores))
  progress.say(f'{name}: {cli.summary(results)}: {folder}')


def table(scores) -> str:
  """The scores as text."""
  if not scores:
    return 'drawn and not scored: see --help for what that needs'
  lines = ['| score | value | 95 % interval | n |', '|---|---|---|---|']
  for name, s in scores.items():
    lines.append(
      f'| {name} | {s.value:.4g} | {s.low:.4g} to {s.high:.4g} | {s.n} |'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  cli.run(main)
