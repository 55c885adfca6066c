"""How fast each source gives images, and whether a step waits for them.

`python -m benchmarks.loading [--images=256] [--seconds=5] [--threads=2]
[--shape=embedded|middle] [--steps=20] [--json]`

Makes a folder of JPEGs of 640 x 480, smooth as photographs are, writes it
again in every other storage, and reads each: decoded alone, by one thread, and
as shuffled batches for Qwen2.5-VL (448 x 448 pixels) beside a drawing of 512.
Then the loop of a run on that folder: how much of a step is spent waiting for
data.
"""

import argparse
import dataclasses
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Not this folder: its profile.py is not Python's.
sys.path[0] = str(Path(__file__).parent.parent)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks import shapes, stores  # noqa: E402
from benchmarks.ours import Ours  # noqa: E402
from uae_jax import zoo  # noqa: E402
from uae_jax.data import pipeline, preprocess, tokenize  # noqa: E402
from uae_jax.nn import kernels  # noqa: E402
from uae_jax.sharding.mesh import (  # noqa: E402
  make_mesh,
  use_compilation_cache,
)
from uae_jax.train.loop import to_batch  # noqa: E402

BATCH = 16
WARM = 3  # steps that compile and fill the buffer


def photographs(n: int) -> list[stores.Item]:
  """Seeded JPEGs: soft shapes, and noise as of a camera."""
  rng = np.random.default_rng(0)
  out = []
  for i in range(n):
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    soft = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 6, soft.shape)
    pixels = np.clip(soft + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'JPEG', quality=90)
    out.append(stores.Item(f'{i:05d}.jpg', file.getvalue(), f'photo {i}'))
  return out


def example() -> pipeline.MakeExample:
  """What a run of a real size makes of a photograph."""
  tokenizer = tokenize.load_tokenizer(zoo.resolve('bundled:umm1/processors'))
  template = tokenize.Template.from_tokenizer(tokenizer, tokenize.PROMPT)
  view = preprocess.PolicyView(14, 2, 112, 448 * 448, 448 * 448)
  read = lambda image: preprocess.prefix_of(image, view, template)
  return pipeline.MakeExample(read, image_side=512)


def rate(step, images: int, seconds: float) -> float:
  """Images a second of a call that gives some, for about so long."""
  step()
  start, calls = time.perf_counter(), 0
  while time.perf_counter() - start < seconds:
    step()
    calls += 1
  return images * calls / (time.perf_counter() - start)


def measure(uri: str, cache: str, threads: int, seconds: float) -> dict:
  """One row: seconds to open, images a second decoded, and as batches."""
  start = time.perf_counter()
  source = pipeline.make_source(uri, cache=cache)
  opened = time.perf_counter() - start
  order = iter(np.random.default_rng(0).integers(0, len(source), 10**6))
  decoded = rate(lambda: source[int(next(order))], 1, seconds)
  loader = pipeline.make_loader(
    source, example(), batch=BATCH, seed=0, threads=threads
  )
  batches = rate(lambda: next(loader), BATCH, seconds)
  return dict(opened=opened, decoded=decoded, batches=batches)


def waiting(
  name: str, folder: Path, uri: str, mesh, threads: int, steps: int
) -> tuple[float, float]:
  """(for data, whole) seconds of a step of a shape, means of the loop."""
  shape = shapes.SHAPES[name]
  shape.write(folder)
  changes = {**shape.changes, 'data.source': uri, 'data.threads': threads}
  run = Ours(dataclasses.replace(shape, changes=changes), folder, mesh)
  data = run.parts.train_data(run.config, mesh)
  waits, whole, pending = [], [], None
  for i in range(steps + WARM):
    start = time.perf_counter()
    host = next(data)
    waits.append(time.perf_counter() - start)
    key = jax.random.fold_in(run.key, i)
    run.state, metrics = run._step(run.state, to_batch(host, mesh), key)
    if pending is not None:
      jax.block_until_ready(pending)
    pending = metrics
    whole.append(time.perf_counter() - start)
  return statistics.mean(waits[WARM:]), statistics.mean(whole[WARM:])


def main() -> None:
  """Writes, measures, prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--images', type=int, default=256)
  parser.add_argument('--seconds', type=float, default=5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--shape', default='embedded', choices=[*shapes.SHAPES])
  parser.add_argument('--steps', type=int, default=20)
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  use_compilation_cache()
  found = {}
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    os.environ['TFDS_DATA_DIR'] = str(root / 'tfds')
    items = photographs(args.images)
    uris = {k: stores.write(k, root / k, items) for k in stores.WRITERS}
    half = f'mix:0.5*{uris["images"]},0.5*{uris["webdataset"]}'
    print('| source | opened, s | decoded, images/s | batches, images/s |')
    print('|---|---|---|---|')
    for kind, uri in (uris | {'mix': half}).items():
      row = measure(uri, str(root / 'cache'), args.threads, args.seconds)
      found[kind] = row
      print(
        f'| {kind} | {row["opened"]:.2f} | {row["decoded"]:.0f} | '
        f'{row["batches"]:.0f} |',
        flush=True,
      )
    mesh = make_mesh(1, 1, jax.devices()[:1])
    with jax.set_mesh(mesh), kernels.use('auto'):
      wait, whole = waiting(
        args.shape, root / 'weights', uris['images'], mesh, args.threads,
        args.steps,
      )  # fmt: skip
  print(
    f'{args.shape} waits {1000 * wait:.1f} ms of {1000 * whole:.0f} ms a step '
    f'({100 * wait / whole:.1f} %)'
  )
  if args.json:
    print(json.dumps(dict(sources=found, wait=wait, step=whole)))


if __name__ == '__main__':
  main()
