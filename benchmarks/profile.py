"""Where the time of a step goes.

`python -m benchmarks.profile [--shape=middle] [--stage=step] [--steps=3]
[--out=DIR] [--json]`

Traces steps with jax.profiler and sums what each operation of the program
took, by the part of the algorithm that it is of (the named scopes of the
code). Beside it stand the matrix products of that part, counted from the
traced program, and their share of what a large matrix product reaches on this
device. `--out` keeps the trace, for `xprof` or https://ui.perfetto.dev.
"""

import argparse
import collections
import json
import re
import sys
import tempfile
import time
from pathlib import Path

# Not this folder: its profile.py is not Python's.
sys.path[0] = str(Path(__file__).parent.parent)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from benchmarks import shapes  # noqa: E402
from benchmarks.ours import Ours, done  # noqa: E402
from uae_jax.nn import kernels  # noqa: E402
from uae_jax.plan import model_flops  # noqa: E402
from uae_jax.sharding.mesh import make_mesh  # noqa: E402

# The first that is part of an operation's name.
PARTS = (
  'see', 'reference', 'gradient', 'optimizer', 'sample_captions', 'condition',
  'draw', 'reward', 'prefill',
)  # fmt: skip
OTHER = 'rest'


def part_of(name: str) -> str:
  """Of an operation's name, a path of scopes."""
  return next((p for p in PARTS if re.search(rf'\b{p}\b', name)), OTHER)


def names(text: str) -> dict[str, str]:
  """Instruction of a compiled module -> the scopes it comes from.

  A fusion that says nothing is what most of its instructions are.
  """
  found, body, inside = {}, None, collections.defaultdict(collections.Counter)
  for line in text.splitlines():
    opened = re.match(r'\s*%?([\w.\-]+) \(.*\{$', line)
    if opened:
      body = opened[1]
    one = re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = ', line)
    if not one:
      continue
    scope = re.search(r'op_name="([^"]*)"', line)
    calls = re.search(r'calls=%?([\w.\-]+)', line)
    if scope:
      inside[body][scope[1]] += 1
    if scope:
      found[one[1]] = scope[1]
    elif calls and inside[calls[1]]:
      found[one[1]] = inside[calls[1]].most_common(1)[0][0]
  return found


def spent(trace: Path, scopes: dict[str, str]) -> dict[str, dict[str, float]]:
  """Part -> operation -> seconds; loops are left to what is in them."""
  out = collections.defaultdict(lambda: collections.defaultdict(float))
  (file,) = trace.rglob('*.xplane.pb')
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      for event in line.events:
        op = dict(event.stats).get('hlo_op')
        if op is None or event.name.startswith('end:'):
          continue
        if re.match(r'while|call|conditional', op):
          continue
        scope = scopes.get(op, '')
        out[part_of(scope)][f'{op}: {scope[-90:]}'] += event.duration_ns / 1e9
  return out


def peak() -> float:
  """Operations per second of a large matrix product, the best of five."""
  dtype = jnp.bfloat16 if jax.default_backend() != 'cpu' else jnp.float32
  n = 8192 if jax.default_backend() != 'cpu' else 2048
  x = jnp.ones((n, n), dtype)
  product = jax.jit(lambda x: x @ x)
  done(product(x))
  best = float('inf')
  for _ in range(5):
    start = time.perf_counter()
    done(product(x))
    best = min(best, time.perf_counter() - start)
  return 2 * n**3 / best


def flops(fn, *args, loop: int) -> dict[str, float]:
  """Matrix products of a traced program by part."""
  by = collections.Counter()
  with kernels.use('xla'):  # nothing is computed twice
    scopes = model_flops.by_scope(fn, *args, loop=loop)
  for scope, count in scopes.items():
    by[part_of(scope)] += count
  return by


def main() -> None:
  """Traces, sums, prints."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shape', default='embedded', choices=shapes.SHAPES)
  parser.add_argument('--steps', type=int, default=3)
  parser.add_argument('--top', type=int, default=4)
  parser.add_argument('--weights', type=Path)
  parser.add_argument('--out', type=Path)
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  shape = shapes.SHAPES[args.shape]
  mesh = make_mesh(1, 1, jax.devices()[:1])
  with tempfile.TemporaryDirectory() as folder:
    weights = args.weights or Path(folder)
    trace = args.out or Path(folder) / 'trace'
    shape.write(weights)
    config = shape.config(weights)
    with jax.set_mesh(mesh), kernels.use(config.model.attention):
      run = Ours(shape, weights, mesh)
      inputs = run.state, run.batch, run.key
      text = run._step.lower(*inputs).compile().as_text()
      counted = flops(run.step_fn, *inputs, loop=config.rollout.length)
      run.step()
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # Python's own calls take time
      with jax.profiler.trace(str(trace), profiler_options=options):
        start = time.perf_counter()
        for _ in range(args.steps):
          run.step()
        wall = (time.perf_counter() - start) / args.steps
    found = spent(trace, names(text))
  best = peak()
  rows = {
    part: dict(
      seconds=sum(ops.values()) / args.steps, flops=counted.get(part, 0.0)
    )
    for part, ops in found.items()
  }
  print(
    f'{args.shape}: {wall:.3f} s a step; a large product reaches '
    f'{best / 1e9:.0f} Gflop/s'
  )
  print('| part | s | % | Gflop | of that rate |\n|---|---|---|---|---|')
  total = sum(row['seconds'] for row in rows.values())
  for part, row in sorted(rows.items(), key=lambda x: -x[1]['seconds']):
    rate = row['flops'] / row['seconds'] / best
    print(
      f'| {part} | {row["seconds"]:.3f} | {100 * row["seconds"] / total:.0f} | '
      f'{row["flops"] / 1e9:.1f} | {100 * rate:.0f} % |'
    )
    slowest = sorted(found[part].items(), key=lambda x: -x[1])
    for op, seconds in slowest[: args.top]:
      print(f'|   `{op}` | {seconds / args.steps:.4f} | | | |')
  if args.json:
    print(json.dumps(dict(step=wall, peak=best, parts=rows)))


if __name__ == '__main__':
  main()
