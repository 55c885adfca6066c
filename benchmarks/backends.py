"""Runs of one config on several backends: are their curves those of seeds?

`python -m benchmarks.backends --runs=cpu=runs/umm1,H200=runs/a,H200=runs/b
--out=docs/h200.png`

Prints the held-out reward and Unified-Score at every evaluation, run by run,
and how far apart the training rewards of the first backend and of the others
are, beside how far apart seeds of one backend are; draws the curves.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

SMOOTH = 10  # steps
SHOWN = {'eval/reward': '{:.3f}', 'eval/unified_score': '{:.1f}'}


def read(folder: Path) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
  """Training reward by step, and held-out rows by step."""
  rewards, heldout = {}, {}
  for line in (folder / 'metrics.jsonl').read_text().splitlines():
    row = json.loads(line)
    if 'reward/mean' in row:
      rewards[row['step']] = row['reward/mean']
    if 'eval/reward' in row:
      heldout[row['step']] = {key: row[key] for key in SHOWN}
  return rewards, heldout


def smooth(rewards: dict[int, float]) -> np.ndarray:
  """Means over `SMOOTH` steps."""
  values = np.array([rewards[step] for step in sorted(rewards)])
  return np.convolve(values, np.ones(SMOOTH) / SMOOTH, 'valid')


def apart(pairs) -> float:
  """Mean distance of two curves, of the pair for which it is largest; or 0."""
  gaps = [np.abs(a - b).mean() for a, b in pairs]
  return float(max(gaps, default=0.0))


def main() -> None:
  """Reads, prints, draws."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--runs', required=True)
  parser.add_argument('--out', type=Path)
  args = parser.parse_args()
  runs = [run.split('=', 1) for run in args.runs.split(',')]
  found = [(label, *read(Path(folder))) for label, folder in runs]
  steps = sorted(set.intersection(*(set(heldout) for _, _, heldout in found)))
  print('| held-out reward, Unified-Score |', ' | '.join(map(str, steps)), '|')
  print('|---' * (len(steps) + 1) + '|')
  for label, _, heldout in found:
    cells = [
      ', '.join(f.format(heldout[s][k]) for k, f in SHOWN.items())
      for s in steps
    ]
    print(f'| {label} |', ' | '.join(cells), '|')
  curves = {}
  for label, rewards, _ in found:
    curves.setdefault(label, []).append(smooth(rewards))
  one, *others = curves.values()
  between = apart(itertools.product(one, itertools.chain(*others)))
  within = apart(
    pair for rows in curves.values() for pair in itertools.combinations(rows, 2)
  )
  print(
    f'\ntraining rewards differ by {between:.4f} at most between backends, '
    f'by {within:.4f} between seeds of one (means over steps)'
  )
  if args.out:
    draw(curves, args.out)


def draw(curves: dict[str, list[np.ndarray]], file: Path) -> None:
  """The curves, a colour for each backend."""
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  figure, axis = plt.subplots(figsize=(7, 3.4))
  for i, (label, rows) in enumerate(curves.items()):
    for j, row in enumerate(rows):
      axis.plot(row, color=f'C{i}', linewidth=1, label=None if j else label)
  axis.set_xlabel('step')
  axis.set_ylabel(f'reward, mean of {SMOOTH} steps')
  axis.legend()
  figure.tight_layout()
  figure.savefig(file, dpi=110)


if __name__ == '__main__':
  main()
