"""A benchmark's folder filled as the command does, and what can happen."""

import jax
import numpy as np

from uae_jax.infer.results import Results
from uae_jax.tools import cli


def fill(benchmark, folder, size, stop=None):
  """Rows of all items; after `stop` batches comes the power cut."""
  results = Results(folder, benchmark.settings)
  names = list(benchmark.items)
  batches = cli.batches(names, size, results.rows)
  for n, (i, part) in enumerate(batches):
    if n == stop:
      break
    rng = jax.random.fold_in(jax.random.key(0), i)
    rows = benchmark.run(part, results.folder, rng)
    assert [row['name'] for row in rows] == part
    results.add([row for row in rows if row['name'] not in results.rows])
  return Results(folder, benchmark.settings).rows


class Painter:
  """Draws noise of the key; remembers the texts of every call."""

  def __init__(self, limit=3, shape=(6, 8)):
    self.limit, self.shape, self.calls = limit, shape, []

  def __call__(self, texts, rng):
    assert 1 <= len(texts) <= self.limit
    self.calls.append(list(texts))
    shape = (len(texts), *self.shape, 3)
    return np.asarray(jax.random.randint(rng, shape, 0, 256)).astype(np.uint8)

  @property
  def texts(self):
    return [text for call in self.calls for text in call]


def files(folder):
  """Contents of all files, by path."""
  return {
    str(f.relative_to(folder)): f.read_bytes()
    for f in sorted(folder.rglob('*'))
    if f.is_file()
  }
