"""What every benchmark gives the command that runs it, and what it leaves.

A benchmark has items, makes a row of each, and turns all rows into scores.
It knows no model: what describes, draws, answers or compares is given to it.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Key

from uae_jax.errors import UserError

SUMMARY = 'summary.json'
RESAMPLES = 2000  # of a bootstrap


@dataclasses.dataclass(frozen=True)
class Score:
  """One number of a table.

  Attributes:
    value: in the benchmark's own unit.
    n: items it is a mean of.
    low: lower end of the 95 % interval.
    high: upper end.
  """

  value: float
  n: int
  low: float
  high: float


class Benchmark(Protocol):
  """What `tools.evaluate` runs.

  Attributes:
    settings: what decides how an item is made, beside the model's options.
    items: names of the items, each that of one row.
  """

  settings: Mapping[str, Any]
  items: Sequence[str]

  def run(
    self, names: Sequence[str], folder: Path, rng: Key[Array, '']
  ) -> list[dict[str, Any]]:
    """Rows of a batch of items; what a row names is in `folder` by then.

    Args:
      names: at most a batch of `items`.
      folder: of the output.
      rng: of this batch, the same whenever it is made.

    Returns:
      JSON objects with a `name` each; with an `error` where an item cannot be
      had.
    """

  def scores(self, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """All rows by name -> the numbers of the table, the main one first."""


def mean_score(values: Sequence[float]) -> Score:
  """The mean of independent items; its interval by the bootstrap."""
  return mean_scores({'': values})['']


def mean_scores(
  groups: Mapping[str, Sequence[float]], overall: str = ''
) -> dict[str, Score]:
  """Mean of every group, and the mean of these means.

  Intervals are percentiles of resampled items, drawn within each group.

  Args:
    groups: values of independent items, by group; an empty group is left out.
    overall: name of the mean of means, which comes first; '' is none.
  """
  rng = np.random.default_rng(0)
  groups = {k: np.asarray(v, float) for k, v in groups.items() if len(v)}
  draws = {
    k: v[rng.integers(len(v), size=(RESAMPLES, len(v)))].mean(1)
    for k, v in groups.items()
  }
  out = {}
  if overall and groups:
    value = float(np.mean([v.mean() for v in groups.values()]))
    n = sum(map(len, groups.values()))
    out[overall] = _score(value, n, np.mean([*draws.values()], 0))
  for k, v in groups.items():
    out[k] = _score(float(v.mean()), len(v), draws[k])
  return out


def ratio_score(parts: Sequence[float], wholes: Sequence[float]) -> Score:
  """Sum of parts / sum of wholes, as recall is; `n` is the sum of wholes.

  Items are resampled with both of theirs; 0 of nothing is 0.
  """
  parts, wholes = np.asarray(parts, float), np.asarray(wholes, float)
  rng = np.random.default_rng(0)
  rows = rng.integers(len(parts), size=(RESAMPLES, len(parts)))
  share = lambda part, whole: part / np.where(whole, whole, 1)
  value = float(share(parts.sum(), wholes.sum()))
  draws = share(parts[rows].sum(1), wholes[rows].sum(1))
  return _score(value, int(wholes.sum()), draws)


def _score(value: float, n: int, draws: np.ndarray) -> Score:
  low, high = np.percentile(draws, [2.5, 97.5])
  return Score(value, n, float(low), float(high))


def write_summary(
  folder: Path,
  benchmark: str,
  label: str,
  scores: Mapping[str, Score],
  settings: Mapping[str, Any],
) -> Path:
  """Leaves `summary.json`, which `tools.tables` reads.

  Args:
    folder: of the benchmark's output.
    benchmark: its name.
    label: what the model is called in tables.
    scores: by name, the main one first.
    settings: how they came about.
  """
  data = dict(
    benchmark=benchmark,
    label=label,
    scores={k: dataclasses.asdict(v) for k, v in scores.items()},
    settings=dict(settings),
  )
  file = folder / SUMMARY
  part = file.with_suffix('.part')
  part.write_text(json.dumps(data, indent=2) + '\n')
  os.replace(part, file)
  return file


@dataclasses.dataclass(frozen=True)
class Summary:
  """A `summary.json`, read; see `write_summary`."""

  benchmark: str
  label: str
  scores: Mapping[str, Score]
  settings: Mapping[str, Any]


def read_summary(folder: Path) -> Summary:
  """What a benchmark left in its folder.

  Raises:
    UserError: it is not there, or not whole.
  """
  file = folder / SUMMARY
  try:
    data = json.loads(file.read_text())
    scores = {k: Score(**v) for k, v in data['scores'].items()}
    return Summary(**{**data, 'scores': scores})
  except OSError:
    raise UserError(f'{file} is missing: run tools.evaluate first') from None
  except (ValueError, TypeError, KeyError, AttributeError):
    raise UserError(f'{file} is no summary of tools.evaluate') from None
