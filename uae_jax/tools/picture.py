"""Bands of source, redrawn before and redrawn after, from a run's gallery.

`python -m uae_jax.tools.picture --run=runs/umm1 --out=docs/umm1.png`
"""

from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image

from uae_jax.errors import UserError

RUN = flags.DEFINE_string('run', None, 'A workdir.', required=True)
OUT = flags.DEFINE_string('out', None, 'A PNG file.', required=True)
COLUMNS = flags.DEFINE_integer('columns', 12, 'Pictures in a row.')
ZOOM = flags.DEFINE_integer('zoom', 2, 'Pixels a side for each pixel.')
GAP = 2  # pixels between pictures


def bands(run: Path, columns: int) -> np.ndarray:
  """uint8 [rows, columns, 3]: per band a row each of the three pictures.

  Raises:
    UserError: when the run has fewer than two evaluations.
  """
  files = sorted((run / 'gallery').glob('step_*.npz'))
  if len(files) < 2:
    raise UserError(f'{run} has no evaluation before and after training')
  before, after = np.load(files[0]), np.load(files[-1])
  rows = []
  for start in range(0, len(before['source']), columns):
    part = slice(start, start + columns)
    for images in (
      before['source'],
      before['reconstruction'],
      after['reconstruction'],
    ):
      row = images[part]
      if len(row) < columns:
        break
      frame = ((0, 0), (GAP, GAP), (GAP, GAP), (0, 0))
      row = np.pad(row, frame, constant_values=255)
      rows.append(np.concatenate(list(row), 1))
  return np.concatenate(rows)


def main(argv: list[str]) -> None:
  """Writes the picture."""
  del argv
  image = Image.fromarray(bands(Path(RUN.value), COLUMNS.value))
  size = (image.width * ZOOM.value, image.height * ZOOM.value)
  out = Path(OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  image.resize(size, Image.NEAREST).save(out, optimize=True)
  print(out)


if __name__ == '__main__':
  app.run(main)
