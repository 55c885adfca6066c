"""The run against the same loop in transformers and diffusers.

`python -m benchmarks.vs_torch [--shapes=embedded,middle] [--repeats=5]
[--json] [--out=DIR]`

Both sides read the same weights, images and prompts, and take the same
numbers of captions, tokens and Euler steps; what they make of the same
captions is compared first. Each runs in a process of its own, one at a time,
stage by stage in turn. Shown are medians of the repeats, the spread between
their quartiles, and peer's time / ours. `--out` keeps results.json and
ratios.png; `--json` ends with one object:
{shape: {rollout_ratio, sampler_ratio, reward_ratio, update_ratio, step_ratio,
best_step_ratio, …}}, ratios to the peer in the shape's own dtype, the last to
its fastest.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

# Not this folder: its profile.py is not Python's.
sys.path[0] = str(Path(__file__).parent.parent)

from benchmarks import worker  # noqa: E402
from benchmarks.shapes import SHAPES  # noqa: E402

STAGES = {
  'rollout': 'rollout', 'draw': 'sampler', 'reward': 'reward',
  'update': 'update', 'step': 'step',
}  # fmt: skip
RATES = {'rollout': 'tokens', 'draw': 'images'}  # per second
DTYPES = ('float32', 'bfloat16')


def measure(name: str, folder: Path, repeats: int) -> dict:
  """Runs a shape on all sides, in turn."""
  shape = SHAPES[name]
  weights = folder / name
  weights.mkdir(parents=True, exist_ok=True)
  env = dict(os.environ, HF_HUB_OFFLINE='1', TRANSFORMERS_VERBOSITY='error')
  shape.write(weights)
  ours = worker.Worker(
    'benchmarks.ours', name, str(weights), str(weights), env=env
  )
  sides = {'ours': ours}
  for dtype in DTYPES:
    sides[dtype] = worker.Worker(
      'benchmarks.torch_peer', ours.about['given'], dtype, env=env
    )
  rows = {side: {stage: [] for stage in STAGES} for side in sides}
  for i in range(repeats):
    for stage in STAGES:
      for side, run in sides.items():
        rows[side][stage].append(run(stage))
    print(f'{name}: {i + 1} of {repeats}', file=sys.stderr, flush=True)
  for run in sides.values():
    run.close()
  about = {side: run.about for side, run in sides.items()}
  return dict(about=about, sides={k: summary(v) for k, v in rows.items()})


def summary(rows: dict) -> dict:
  """Medians of one side, by stage."""
  out = {}
  for stage, found in rows.items():
    seconds = [row['seconds'] for row in found]
    low, middle, high = statistics.quantiles(seconds, n=4)
    out[stage] = dict(
      seconds=middle, spread=(high - low) / middle, all=seconds,
      peak_bytes=max(row['peak_bytes'] for row in found),
    )  # fmt: skip
    if stage in RATES:
      n = statistics.mean(row[RATES[stage]] for row in found)
      out[stage][f'{RATES[stage]}_per_second'] = n / middle
  return out


def ratios(found: dict, dtype: str) -> dict:
  """Peer's time / ours."""
  mine = {k: v['seconds'] for k, v in found['sides']['ours'].items()}
  peer = lambda kind, stage: found['sides'][kind][stage]['seconds']
  out = {
    f'{name}_ratio': peer(dtype, stage) / mine[stage]
    for stage, name in STAGES.items()
  }
  for stage, name in STAGES.items():
    best = min(peer(kind, stage) for kind in DTYPES)
    out[f'best_{name}_ratio'] = best / mine[stage]
  return out


def table(name: str, found: dict) -> str:
  """Markdown: a row for each stage."""
  about = found['about']
  head = ['', *(f'torch {d}' for d in DTYPES), 'ours', 'ratio', 'to the best']
  lines = [
    f'{name}: {about["ours"]["device"]}, jax {about["ours"]["version"]}, torch '
    f'{about["float32"]["version"]} (drawing {about["float32"]["draws"]}, '
    f'{about["bfloat16"]["draws"]}); differ by at most '
    + ', '.join(
      f'{v:.1e} ({k})' for k, v in about['float32']['agrees'].items()
    ),
    '',
    f'| {" | ".join(head)} |',
    '|' + '---|' * len(head),
  ]
  for stage, called in STAGES.items():
    cells = [called]
    for side in (*DTYPES, 'ours'):
      row = found['sides'][side][stage]
      rate = ''.join(
        f', {row[k]:.3g} {k.split("_")[0]}/s'
        for k in row if k.endswith('per_second')
      )  # fmt: skip
      cells.append(f'{row["seconds"]:.3g} s ± {50 * row["spread"]:.0f} %{rate}')
    ratio = found['ratios']
    cells += [f'{ratio[f"{called}_ratio"]:.2f}']
    cells += [f'{ratio[f"best_{called}_ratio"]:.2f}']
    lines.append(f'| {" | ".join(cells)} |')
  peaks = [
    f'{found["sides"][side]["step"]["peak_bytes"] / 2**30:.2f} GiB'
    for side in (*DTYPES, 'ours')
  ]
  lines.append(f'| peak memory | {" | ".join(peaks)} | | |')
  return '\n'.join(lines)


def plot(results: dict, file: Path) -> None:
  """Ratios as bars, by stage and shape."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(
    1, len(results), figsize=(4.5 * len(results), 3.2), squeeze=False
  )
  for axis, (name, found) in zip(axes[0], results.items()):
    called = list(STAGES.values())
    for i, (prefix, label) in enumerate(
      [('', 'same dtype'), ('best_', "peer's best dtype")]
    ):
      heights = [found['ratios'][f'{prefix}{c}_ratio'] for c in called]
      places = [x + 0.38 * i for x in range(len(called))]
      bars = axis.bar(places, heights, 0.36, label=label)
      axis.bar_label(bars, fmt='%.1f', fontsize=8)
    axis.axhline(1, color='grey', linewidth=0.8)
    axis.set_xticks([x + 0.19 for x in range(len(called))], called)
    axis.set_title(name)
  axes[0, 0].set_ylabel("peer's time / ours")
  axes[0, -1].legend(fontsize=8)
  figure.tight_layout()
  figure.savefig(file, dpi=120)


def main() -> None:
  """Measures, prints, keeps."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--shapes', default='embedded,middle')
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--out', type=Path)
  parser.add_argument('--json', action='store_true')
  args = parser.parse_args()
  if args.repeats < 2:
    parser.error('--repeats: at least 2')
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    for name in args.shapes.split(','):
      if name not in SHAPES:
        parser.error(f'--shapes: {name!r} is none of {[*SHAPES]}')
      found = measure(name, Path(folder), args.repeats)
      kind = SHAPES[name].changes.get('model.dtype', 'float32')
      found['ratios'] = ratios(found, kind)
      results[name] = found
      print(table(name, found) + '\n', flush=True)
  if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'results.json').write_text(json.dumps(results, indent=1))
    plot(results, args.out / 'ratios.png')
  if args.json:
    print(json.dumps({k: v['ratios'] for k, v in results.items()}))


if __name__ == '__main__':
  main()
