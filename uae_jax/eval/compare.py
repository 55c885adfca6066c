"""Several runs side by side: one table, and one panel a metric."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uae_jax.errors import UserError
from uae_jax.eval import report

# Panels, where any of the runs has the metric.
METRICS = {
  'eval/unified_score': 'Unified-Score, held-out judges',
  'eval/reward': 'Reward, held-out images',
  'eval/attribute_precision': 'Attribute precision of captions',
  'eval/small_object_recall': 'Small objects in captions',
  'eval/exact_scene': 'Scenes redrawn exactly',
  'eval/glyph_exact': 'Strings said exactly',
  'eval/glyph_redrawn': 'Strings redrawn exactly',
  'eval/prompt_overall': 'Short prompts drawn right',
  'eval/full_exact_scene': 'Full captions drawn exactly',
  'eval/full_unified_score': 'Full captions drawn, held-out judges',
  'eval/flow_loss': 'Flow matching, held-out images',
  'reward/mean': 'Reward, training',
  'policy/kl': 'KL of captions to the start',
  'image/kl': 'KL of image codes to the start',
}


def read(folders: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
  """Rows of metrics.jsonl by run.

  Raises:
    UserError: fewer than two runs, two of one name, or no evaluation.
  """
  names = [folder.resolve().name for folder in folders]
  if len(names) < 2 or len(set(names)) < len(names):
    raise UserError(f'name two or more runs of different names, not {names}')
  runs = {
    name: report.read_rows(folder / 'metrics.jsonl')
    for name, folder in zip(names, folders, strict=True)
  }
  for name, rows in runs.items():
    if report.evaluation_table(rows, ()) is None:
      raise UserError(f'{name} was never evaluated: leave it out')
  return runs


def table(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
  """Every eval/ metric: first of the first run, then the last of each."""
  tables = [report.evaluation_table(rows, ()) for rows in runs.values()]
  values = [
    {key: (first, last) for key, _, first, _, last in t['rows']} for t in tables
  ]
  keys = list(dict.fromkeys(key for t in values for key in t))
  cell = lambda t, key, i: t[key][i] if key in t else None
  return dict(
    names=['start', *runs],
    steps=[tables[0]['steps'][0], *(t['steps'][-1] for t in tables)],
    rows=[
      [key, '', cell(values[0], key, 0), *(cell(t, key, 1) for t in values)]
      for key in keys
    ],
  )


def curves(
  runs: dict[str, list[dict[str, Any]]],
  metrics: Mapping[str, str] = METRICS,
) -> list[dict[str, Any]]:
  """A panel a metric that any run has, as `report.curves`; series are runs.

  Args:
    runs: rows by run.
    metrics: titles of the panels.
  """
  panels = []
  for key, title in metrics.items():
    points = {
      name: [(r['step'], r[key]) for r in rows if r.get(key) is not None]
      for name, rows in runs.items()
    }
    series = [
      dict(name=name, points=report.thin(at))
      for name, at in points.items()
      if at
    ]
    if series:
      panels.append(dict(title=title, series=series))
  return panels


def write(folders: Sequence[Path], out: Path) -> Path:
  """Writes the page and returns its path; see `read` for what it raises."""
  runs = read(folders)
  configs = [report.read_config(folder) for folder in folders]
  keys = list(dict.fromkeys(key for config in configs for key in config))
  said = lambda config, key: str(config[key]) if key in config else '–'
  differing = [
    [key, ' | '.join(said(c, key) for c in configs), '']
    for key in keys
    if len({said(c, key) for c in configs}) > 1
  ]
  data = dict(
    title=' | '.join(runs),
    intro='Runs side by side. Settings in which they differ, in this order:',
    config=differing,
    table=table(runs),
    curves=curves(runs),
    gallery=None,
  )
  return report.write_page(out, data)


def markdown(runs: dict[str, list[dict[str, Any]]]) -> str:
  """The table as text."""
  t = table(runs)
  show = lambda x: '' if x is None else f'{x:.3f}'
  lines = [
    ['metric', *t['names']],
    ['---'] * (len(t['names']) + 1),
    ['step', *map(str, t['steps'])],
    *([row[0], *map(show, row[2:])] for row in t['rows']),
  ]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
