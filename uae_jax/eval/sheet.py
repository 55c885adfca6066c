"""sheet.html: source, caption, drawing and scores of a folder of results."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from uae_jax.data import preprocess
from uae_jax.eval import report

SHOWN = 500  # items on the page, evenly spaced where there are more


def write(folder: Path, sources: Path, towers: Sequence[str]) -> Path:
  """Writes the page of what `tools.reconstruct` left; returns its path.

  Args:
    folder: with results.jsonl and the drawings.
    sources: folder of the images.
    towers: keys of the scores.
  """
  lines = (folder / 'results.jsonl').read_text('utf-8').splitlines()
  rows = [row for row in map(json.loads, lines) if 'error' not in row]
  mean = {t: float(np.mean([row[t] for row in rows])) for t in towers if rows}
  some = rows[:: -(-len(rows) // SHOWN)] if rows else []
  settings = json.loads((folder / 'settings.json').read_text())
  items = [
    dict(
      source=report.data_uri(preprocess.read_image(sources / row['name'])),
      images=[report.data_uri(np.asarray(Image.open(drawing(folder, row))))],
      captions=[row['caption']],
      scores=[[row[tower] for tower in towers]],
    )
    for row in some
  ]
  data = dict(
    title=folder.name,
    intro='Images redrawn from their captions alone.',
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
  """Where an item's drawing is."""
  return folder / f'{row["name"]}.png'
