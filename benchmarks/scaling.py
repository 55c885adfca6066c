"""How the time of a step grows, and what of it is the host's.

`python -m benchmarks.scaling [--repeats=5] [--out=DIR] [--json]`

The embedded run with more captions, longer captions, more images and more
Euler steps, one after the other: medians, and how far they are from a straight
line. Then the run's own loop for a while: the time that its process spends on
data, dispatch and logs, per step. A program that is compiled twice is an error.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

# Not this folder: its profile.py is not Python's.
sys.path[0] = str(Path(__file__).parent.parent)

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import shapes  # noqa: E402
from benchmarks.ours import Ours  # noqa: E402
from uae_jax.nn import kernels  # noqa: E402
from uae_jax.sharding.mesh import (  # noqa: E402
  make_mesh,
  use_compilation_cache,
)
from uae_jax.train.loop import to_batch  # noqa: E402
from uae_jax.train.writers import MetricWriter  # noqa: E402

# Captions are as long as they come; the budget is what the update pays for.
GROWS = {
  'train.group_size': (4, 8, 16),
  'rollout.length': (24, 48, 72),
  'train.images': (12, 24, 48),
  'rollout.draw_steps': (1, 2, 4),
}


def run_of(changes, mesh) -> Ours:
  """The embedded run with other settings."""
  shape = dataclasses.replace(shapes.SHAPES['embedded'], changes=changes)
  return Ours(shape, Path(), mesh)


def step_seconds(run: Ours, repeats: int) -> float:
  """Median of a few steps, after one that compiles."""
  run.step()
  found = []
  for _ in range(repeats):
    start = time.perf_counter()
    programs = run.step()['programs']
    found.append(time.perf_counter() - start)
  if programs != 1:
    raise RuntimeError(f'the step was compiled {programs} times')
  return statistics.median(found)


def host_seconds(run: Ours, mesh, steps: int) -> tuple[float, float]:
  """(of the process itself, of a whole step), medians of the loop."""
  data = run.parts.train_data(run.config, mesh)
  own, whole = [], []
  with tempfile.TemporaryDirectory() as folder:
    writer = MetricWriter(Path(folder))
    pending = None
    for i in range(steps):
      start = time.perf_counter()
      batch = to_batch(next(data), mesh)
      key = jax.random.fold_in(run.key, i)
      run.state, metrics = run._step(run.state, batch, key)
      sent = time.perf_counter()
      if pending is not None:
        pending = jax.device_get(pending)
        back = time.perf_counter()
        writer.write_scalars(i, {k: float(v) for k, v in pending.items()})
        own.append(sent - start + time.perf_counter() - back)
        whole.append(time.perf_counter() - start)
      pending = metrics
    jax.block_until_ready(pending)
    writer.close()
  return statistics.median(own), statistics.median(whole)


def bend(sizes, seconds) -> float:
  """Largest distance from the straight line through them, of the largest."""
  line = np.polyval(np.polyfit(sizes, seconds, 1), sizes)
  return float(np.abs(line - seconds).max() / max(seconds))


def plot(found, file: Path) -> None:
  """Seconds against size, by what grows."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, len(found), figsize=(11, 2.6), sharey=True)
  for axis, (key, row) in zip(axes, found.items()):
    axis.plot(row['sizes'], row['seconds'], 'o-')
    axis.set_xlabel(key)
    axis.set_xlim(0)
    axis.set_ylim(0)
  axes[0].set_ylabel('seconds a step')
  figure.tight_layout()
  figure.savefig(file, dpi=120)


def main() -> None:
  """Measures, prints, keeps."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--steps', type=int, default=30)
  parser.add_argument('--out', type=Path)
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  use_compilation_cache()
  mesh = make_mesh(1, 1, jax.devices()[:1])
  found = {}
  print('| grows | sizes | s a step | off a line |\n|---|---|---|---|')
  with jax.set_mesh(mesh), kernels.use('auto'):
    for key, sizes in GROWS.items():
      seconds = [
        step_seconds(run_of({key: size}, mesh), args.repeats) for size in sizes
      ]
      found[key] = dict(sizes=sizes, seconds=seconds, bend=bend(sizes, seconds))
      shown = ', '.join(f'{s:.2f}' for s in seconds)
      print(
        f'| {key} | {", ".join(map(str, sizes))} | {shown} | '
        f'{100 * found[key]["bend"]:.0f} % |',
        flush=True,
      )
    own, whole = host_seconds(run_of({}, mesh), mesh, args.steps)
  print(
    f'host: {1000 * own:.1f} ms of {1000 * whole:.0f} ms a step '
    f'({100 * own / whole:.1f} %)'
  )
  if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    plot(found, args.out / 'scaling.png')
  if args.json:
    print(json.dumps(dict(grows=found, host_seconds=own, step_seconds=whole)))


if __name__ == '__main__':
  main()
