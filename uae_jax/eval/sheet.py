"""sheet.html: source, caption, drawing and scores of a folder of results."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from uae_jax.data import preprocess
from uae_jax.eval import report

INTRO = 'Images redrawn from their captions alone.'
SHOWN = 500  # items on the page, evenly spaced where there are more


def write(
  folder: Path,
  sources: Path,
  towers: Sequence[str],
  drawings: Path | None = None,
  intro: str = INTRO,
) -> Path:
  """Writes the page of what `tools.reconstruct` left; returns its path.

  Args:
    folder: with results.jsonl.
    sources: folder of the images.
    towers: keys of the scores.
    drawings: folder that a row's `image` is in; None is `folder`.
    intro: what the page says first.
  """
  lines = (folder / 'results.jsonl').read_text('utf-8').splitlines()
  rows = [row for row in map(json.loads, lines) if 'error' not in row]
  mean = {t: float(np.mean([row[t] for row in rows])) for t in towers if rows}
  some = rows[:: -(-len(rows) // SHOWN)] if rows else []
  settings = json.loads((folder / 'settings.json').read_text())
  at = drawings or folder
  items = [
    dict(
      source=report.data_uri(preprocess.read_image(sources / row['name'])),
      images=[report.data_uri(preprocess.read_image(drawing(at, row)))],
      captions=[row['caption'] if 'caption' in row else row['name']],
      scores=[[row[tower] for tower in towers]],
    )
    for row in some
  ]
  data = dict(
    title=folder.name,
    intro=intro,
    config=[
      *[[f'{tower}, mean of {len(rows)}', f'{mean[tower]:.4f}', '']
        for tower in mean],
      *[[key, str(value), ''] for key, value in settings.items()],
    ],
    table=None,
    curves=[],
    gallery=dict(labels=[''], columns=list(towers), items=items),
  )  # fmt: skip
  return report.write_page(folder / 'sheet.html', data)


def drawing(folder: Path, row) -> Path:
  """Where an item's drawing is: where it says, or beside its name."""
  if 'image' in row:
    return folder / row['image']
  return folder / f'{row["name"]}.png'
