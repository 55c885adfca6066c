"""Results beside the paper's tables, as Markdown, CSV and a page.

`python -m uae_jax.tools.tables --results=runs/umm1/eval,scored --out=tables`

Every `summary.json` at or below the folders counts. Labels that end in
`-seed0`, `-seed1` ... or `#0`, `#1` ... are one model: mean and sample
standard deviation over seeds. Leaves `tables.md`, `tables.csv` and
`tables.html`, which needs nothing but itself.
"""

import csv
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from uae_jax.errors import UserError
from uae_jax.eval import tables
from uae_jax.eval.tables import Cell, Row, Table
from uae_jax.tools import cli

RESULTS = flags.DEFINE_list(
  'results', None, 'Folders of results, comma separated.', required=True
)
OUT = flags.DEFINE_string('out', None, 'Folder to fill.', required=True)

TITLE = 'Measured beside published'
NOTES = (
  'Published rows are those of {source}; measured ones were made here.',
  '[a, b] is the 95 % interval over n items; ± is the sample standard '
  'deviation over seeds.',
  '(reward): the backbone was the training reward, or is part of this mean, '
  'so that the score is not held out.',
  'Conditioning: what the decoder reads of an image, its caption or the '
  "captioner's hidden states. Rewriting: whether prompts were rewritten.",
)
FIELDS = (
  'table', 'row', 'kind', 'conditioning', 'rewriting', 'column', 'value', 'n',
  'low', 'high', 'sd', 'seeds', 'reward',
)  # fmt: skip
STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1c1d20;
  --soft: #5c6068; --line: #dcdee2; --own: #eaf1fd; }
@media (prefers-color-scheme: dark) { :root { --page: #16181c;
  --ink: #eceef1; --soft: #a3a9b3; --line: #363b43; --own: #1f2a3d; } }
body { margin: 0 auto; padding: 24px 20px 64px; max-width: 1120px;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 8px; }
h2 { font-size: 1.15rem; margin: 40px 0 8px; }
ul { color: var(--soft); padding-left: 20px; max-width: 80ch; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; }
th, td { text-align: left; padding: 6px 16px 6px 6px; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; }
tbody th { font-weight: 400; }
thead th { border-bottom: 1px solid var(--line); }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.measured { background: var(--own); }
.published { color: var(--soft); }
"""


def main() -> None:
  """Reads, merges, writes and prints."""
  if not RESULTS.value:
    raise UserError('--results names no folder')
  folders = [Path(name).expanduser() for name in RESULTS.value]
  made = tables.tables(tables.merge(tables.find(folders)))
  out = Path(OUT.value).expanduser()
  texts = {
    'tables.md': markdown(made), 'tables.csv': as_csv(made),
    'tables.html': page(made),
  }  # fmt: skip
  try:
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
      part = out / f'{name}.part'
      part.write_text(text, 'utf-8')
      os.replace(part, out / name)
  except OSError as e:
    raise UserError(f'--out={out} cannot be written: {e}') from None
  print(texts['tables.md'])
  print(*(out / name for name in texts), sep='\n')


def grid(table: Table) -> list[list[str]]:
  """All cells as text, the head first; columns that say nothing are left."""
  said = [
    key
    for key in ('conditioning', 'rewriting')
    if any(getattr(row, key) for row in table.rows)
  ]
  lines = [[table.corner, 'kind', *said, *table.columns]]
  for row in table.rows:
    known = [getattr(row, key) or '–' for key in said]
    lines.append([row.label, row.kind, *known, *map(str, _line(table, row))])
  return lines


def _line(table: Table, row: Row) -> list[Cell | str]:
  return [row.cells.get(column, '–') for column in table.columns]


def notes() -> list[str]:
  """What the marks mean."""
  source = tables.published()['source']
  return [note.format(source=source) for note in NOTES]


def markdown(made: Sequence[Table]) -> str:
  """All tables as Markdown."""
  parts = [f'# {TITLE}\n', *(f'- {note}' for note in notes())]
  for table in made:
    head, *lines = grid(table)
    parts += [f'\n## {table.title}\n', _bar(head), _bar(['---'] * len(head))]
    parts += map(_bar, lines)
  return '\n'.join(parts) + '\n'


def _bar(cells: Sequence[str]) -> str:
  return f'| {" | ".join(c.replace("|", chr(92) + "|") for c in cells)} |'


def as_csv(made: Sequence[Table]) -> str:
  """All cells of all tables, one a line."""
  text = io.StringIO()
  writer = csv.DictWriter(text, FIELDS, lineterminator='\n')
  writer.writeheader()
  for table in made:
    for row in table.rows:
      for column in table.columns:
        if column in row.cells:
          writer.writerow(_record(table, row, column))
  return text.getvalue()


def _record(table: Table, row: Row, column: str) -> dict[str, object]:
  cell = row.cells[column]
  return dict(
    table=table.name, row=row.label, kind=row.kind,
    conditioning=row.conditioning, rewriting=row.rewriting, column=column,
    value=cell.value, n=cell.n, low=cell.low, high=cell.high, sd=cell.sd,
    seeds=cell.seeds if cell.n is not None else None,
    reward='yes' if cell.reward else '',
  )  # fmt: skip


def page(made: Sequence[Table]) -> str:
  """All tables as HTML without scripts or anything to load."""
  body = [f'<h1>{TITLE}</h1>', _list(notes())]
  for table in made:
    head, *lines = grid(table)
    body += [
      f'<h2>{html.escape(table.title)}</h2>',
      '<div class="wide"><table>',
    ]
    cells = ''.join(f'<th scope="col">{html.escape(c)}</th>' for c in head)
    body += [f'<thead><tr>{cells}</tr></thead>', '<tbody>']
    for row, (label, *rest) in zip(table.rows, lines, strict=True):
      cells = ''.join(f'<td>{html.escape(c)}</td>' for c in rest)
      name = f'<th scope="row">{html.escape(label)}</th>'
      body.append(f'<tr class="{row.kind}">{name}{cells}</tr>')
    body.append('</tbody></table></div>')
  return '\n'.join(
    [
      '<!doctype html>', '<html lang="en">', '<head>',
      '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{TITLE}</title>', '<link rel="icon" href="data:,">',
      f'<style>{STYLE}</style>', '</head>', '<body>', *body, '</body>',
      '</html>', '',
    ]
  )  # fmt: skip


def _list(items: Sequence[str]) -> str:
  return f'<ul>{"".join(f"<li>{html.escape(x)}</li>" for x in items)}</ul>'


if __name__ == '__main__':
  cli.run(main)
