"""What `benchmarks/plans.sh` found, as a table: plans_table.py [FOLDER]."""

import json
import sys
from pathlib import Path

GIB = 2**30
HEAD = (
  'plan', 'mesh', 'needs GiB', 'spare', 'Tflop hardware / model', 'HBM GB',
  'sends GB', 'update: Tflop', 'at least s',
)  # fmt: skip


def row(name: str, plan: dict) -> list[str]:
  """One plan, per device."""
  step = plan['programs']['train_step']
  mesh = ' x '.join(str(n) for n in plan['mesh'].values())
  update = plan['programs'].get('update')
  ratio = '' if update is None else flops(update)
  need, there = plan['peak_bytes'] / GIB, plan['hbm_bytes'] / GIB
  spare = 1 - need / there
  return [
    name, mesh, f'{need:.2f} of {there:.2f}', f'{100 * spare:.0f} %',
    flops(step), f'{step["bytes"] / 1e9:.0f}',
    f'{sum(step["sent"].values()) / 1e9:.0f}', ratio,
    f'{plan["step_seconds"]:.1f}',
  ]  # fmt: skip


def flops(program: dict) -> str:
  """Hardware and model flops, and their ratio."""
  hardware, model = program['flops'] / 1e12, program['model_flops'] / 1e12
  return f'{hardware:.0f} / {model:.0f} ({hardware / model:.2f})'


def main() -> None:
  """Prints the rows."""
  folder = Path(sys.argv[1] if len(sys.argv) > 1 else 'plans')
  print('| ' + ' | '.join(HEAD) + ' |')
  print('|' + '---|' * len(HEAD))
  for file in sorted(folder.glob('*.json')):
    cells = row(file.stem, json.loads(file.read_text()))
    print('| ' + ' | '.join(cells) + ' |')


if __name__ == '__main__':
  main()
