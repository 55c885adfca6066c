"""What was measured beside what the paper published, table by table.

`published.json` has the paper's tables: their columns, where a measured
number for each is found, and the published rows. Scores that no column is for
come as tables of their own, one a benchmark.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from uae_jax.errors import UserError
from uae_jax.eval import unified_bench
from uae_jax.eval.benchmark import SUMMARY, Summary, read_summary

PUBLISHED, MEASURED = 'published', 'measured'
SEED = re.compile(r'^(.+?)(?:-seed|#)(\d+)$')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One number and how sure it is; what is not known is None.

  Attributes:
    value: in the table's unit; over several seeds, their mean.
    digits: after the point.
    n: items it is a mean of; of the seed that has fewest.
    low: lower end of the 95 % interval over items.
    high: upper end.
    sd: sample standard deviation over seeds, in the interval's place.
    seeds: how many.
    reward: what was trained on is in it.
    gain: that the paper prints behind it.
    signed: a difference.
  """

  value: float
  digits: int = 3
  n: int | None = None
  low: float | None = None
  high: float | None = None
  sd: float | None = None
  seeds: int = 1
  reward: bool = False
  gain: float | None = None
  signed: bool = False

  def scaled(self, scale: float, digits: int) -> 'Cell':
    """In another unit."""
    times = {
      key: x * scale
      for key in ('value', 'low', 'high', 'sd')
      if (x := getattr(self, key)) is not None
    }
    return dataclasses.replace(self, digits=digits, **times)

  def __str__(self) -> str:
    show = lambda x: f'{x:.{self.digits}f}'
    text = f'{self.value:+g}' if self.signed else show(self.value)
    if self.sd is not None:
      text += f' ± {show(self.sd)} ({self.seeds} seeds, n={self.n})'
    elif self.n is not None:
      text += f' [{show(self.low)}, {show(self.high)}] n={self.n}'
    if self.gain is not None:
      text += f' ({self.gain:+g})'
    return text + (' (reward)' if self.reward else '')


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of a table.

  Attributes:
    label: of a model, or of a score.
    kind: published or measured.
    conditioning: what the decoder read; '' is not said.
    rewriting: were prompts rewritten: 'yes', 'no', or '' for not said.
    cells: by column.
  """

  label: str
  kind: str
  conditioning: str = ''
  rewriting: str = ''
  cells: Mapping[str, Cell] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Table:
  """One table.

  Attributes:
    name: short.
    title: of it.
    corner: what its rows are.
    columns: names.
    rows: lines.
  """

  name: str
  title: str
  corner: str
  columns: Sequence[str]
  rows: Sequence[Row]


@dataclasses.dataclass(frozen=True)
class Entry:
  """A benchmark of one model, all its seeds together.

  Attributes:
    benchmark: its name.
    label: of the model.
    conditions: conditioning and rewriting, as `Row` has them.
    cells: by score, in the benchmark's unit.
  """

  benchmark: str
  label: str
  conditions: tuple[str, str]
  cells: Mapping[str, Cell]


def find(folders: Sequence[Path]) -> dict[Path, Summary]:
  """Every summary at or below the folders, by its own folder.

  Raises:
    UserError: a folder has none, or one cannot be read.
  """
  out = {}
  for folder in folders:
    found = sorted(folder.rglob(SUMMARY)) if folder.is_dir() else []
    if not found:
      raise UserError(f'no {SUMMARY} below {folder}: run tools.evaluate first')
    for file in found:
      out[file.parent.resolve()] = read_summary(file.parent)
  return out


def merge(summaries: Mapping[Path, Summary]) -> list[Entry]:
  """Summaries whose labels differ in their seed only become one entry.

  Raises:
    UserError: two are of the same model, benchmark and conditions.
  """
  groups = {}
  for folder, summary in summaries.items():
    match = SEED.match(summary.label)
    label, seed = match.groups() if match else (summary.label, None)
    key = (summary.benchmark, label, seed is None, conditions(summary))
    group = groups.setdefault(key, {})
    if seed in group:
      raise UserError(
        f'{group[seed][0]} and {folder} are both {summary.label!r} of '
        f'{summary.benchmark}: give one another --label'
      )
    group[seed] = folder, summary
  out = []
  for (benchmark, label, _, said), group in groups.items():
    members = [summary for _, summary in group.values()]
    if len(members) == 1:
      label = members[0].label
    out.append(Entry(benchmark, label, said, _cells(members)))
  return out


def conditions(summary: Summary) -> tuple[str, str]:
  """(conditioning, rewriting) of a summary's settings."""
  said = {'conditioning': '', 'images': None, **summary.settings}
  rewriting = ''
  if 'rewrite' in said and said['rewrite'] is not None:
    rewriting = 'yes'
  elif 'rewrite' in said and not said['images']:  # what others drew may be
    rewriting = 'no'
  return said['conditioning'] or '', rewriting


def _cells(members: Sequence[Summary]) -> dict[str, Cell]:
  """Cells of one summary, or of several that differ in their seed."""
  out = {}
  for key in dict.fromkeys(k for m in members for k in m.scores):
    scores = [m.scores[key] for m in members if key in m.scores]
    reward = any(_rewarded(m, key) for m in members)
    n = min(score.n for score in scores)
    if len(scores) == 1:
      (s,) = scores
      out[key] = Cell(s.value, n=n, low=s.low, high=s.high, reward=reward)
      continue
    values = np.array([score.value for score in scores])
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    out[key] = Cell(mean, n=n, sd=sd, seeds=len(values), reward=reward)
  return out


def _rewarded(summary: Summary, key: str) -> bool:
  """Is the training reward this tower, or one of the towers averaged here?"""
  said = {'reward': [], **summary.settings}['reward'] or []
  names = said.split(',') if isinstance(said, str) else said
  names = {Path(name.split(':')[-1]).name for name in names}
  if key == unified_bench.MAIN:
    return bool(names & set(summary.scores))
  return key in names


def tables(entries: Sequence[Entry]) -> list[Table]:
  """The paper's tables, then those of scores that none of them shows."""
  out, shown = [], set()
  for spec in published()['tables']:
    rows = [_published(row, spec) for row in spec['rows']]
    out.append(
      Table(
        spec['name'],
        spec['title'],
        'model',
        [column['name'] for column in spec['columns']],
        rows + _measured(entries, spec, shown),
      )
    )
  by_benchmark = {}
  for entry in entries:
    by_benchmark.setdefault(entry.benchmark, []).append(entry)
  for name, group in by_benchmark.items():
    if any((id(e), key) not in shown for e in group for key in e.cells):
      out.append(_all_scores(name, group))
  return out


def published() -> dict[str, Any]:
  """What the paper says; see `published.json`."""
  file = resources.files('uae_jax.eval').joinpath('published.json')
  return json.loads(file.read_text('utf-8'))


def _published(row: Mapping[str, Any], spec: Mapping[str, Any]) -> Row:
  row = dict(gains={}, rewriting=None, reward=[], signed=False) | dict(row)
  cells = {}
  for column in spec['columns']:
    name = column['name']
    if name in row['values']:
      mean = column['score'] == unified_bench.MAIN and row['reward']
      cells[name] = Cell(
        row['values'][name],
        digits=column['digits'],
        reward=bool(mean) or name in row['reward'],
        gain=row['gains'].get(name),
        signed=row['signed'],
      )
  rewriting = {None: '', True: 'yes', False: 'no'}[row['rewriting']]
  return Row(row['label'], PUBLISHED, '', rewriting, cells)


def _measured(entries, spec, shown) -> list[Row]:
  """One row a label, more where it was measured under several conditions.

  Args:
    entries: of all models.
    spec: of the table.
    shown: (entry, score) that have a place; added to.
  """
  rows = {}
  for entry in sorted(entries, key=lambda e: e.conditions):
    cells = {}
    for column in spec['columns']:
      key = place(entry, column)
      if key is not None:
        cell = entry.cells[key].scaled(column['scale'], column['digits'])
        cells[column['name']] = cell
        shown.add((id(entry), key))
    if cells:
      own = rows.setdefault(entry.label, [])
      _join(own, Row(entry.label, MEASURED, *entry.conditions, cells))
  labels = dict.fromkeys(entry.label for entry in entries)
  return [row for label in labels if label in rows for row in rows[label]]


def _join(rows: list[Row], new: Row) -> None:
  """Adds to the first row that neither has its columns nor contradicts it."""
  for i, row in enumerate(rows):
    pairs = (
      (row.conditioning, new.conditioning),
      (row.rewriting, new.rewriting),
    )
    agree = all(a == b or not a or not b for a, b in pairs)
    if agree and not set(row.cells) & set(new.cells):
      said = [a or b for a, b in pairs]
      rows[i] = Row(row.label, row.kind, *said, {**row.cells, **new.cells})
      return
  rows.append(new)


def place(entry: Entry, column: Mapping[str, Any]) -> str | None:
  """Which of an entry's scores a column of the paper shows, if any.

  A tower has its backbone's column where it is the only one of that kind;
  the Unified-Score has one where it is a mean of exactly the four backbones.
  """
  if entry.benchmark != column['benchmark']:
    return None
  names = {key: key for key in entry.cells}
  if entry.benchmark == unified_bench.NAME:
    towers = [key for key in entry.cells if key != unified_bench.MAIN]
    kinds = [unified_bench.backbone(tower) for tower in towers]
    names = {
      tower: kind
      for tower, kind in zip(towers, kinds, strict=True)
      if kinds.count(kind) == 1
    }
    if sorted(map(str, kinds)) == sorted(unified_bench.BACKBONES):
      names[unified_bench.MAIN] = unified_bench.MAIN
  places = {name: key for key, name in names.items()}
  return places.get(column['score'])


def _all_scores(benchmark: str, entries: Sequence[Entry]) -> Table:
  """Rows are scores, columns are models."""
  columns = {}
  for entry in entries:
    conditioning, rewriting = entry.conditions
    name = ', '.join(
      [entry.label]
      + [f'{conditioning} conditioning'] * bool(conditioning)
      + ['rewritten prompts'] * (rewriting == 'yes')
    )
    if name in columns:  # a label without a seed beside the same with some
      name += ', seeds'
    columns[name] = entry
  rows = []
  for key in dict.fromkeys(k for e in entries for k in e.cells):
    cells = {n: e.cells[key] for n, e in columns.items() if key in e.cells}
    large = any(abs(cell.value) > 1.5 for cell in cells.values())
    cells = {n: c.scaled(1, 2 if large else 3) for n, c in cells.items()}
    rows.append(Row(key, MEASURED, cells=cells))
  title = f'{benchmark}, every score'
  return Table(f'{benchmark}_scores', title, 'score', [*columns], rows)
