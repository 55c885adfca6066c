"""WebDataset shards, read at random: tars with an index of their members.

A sample is the members that share a path up to the first dot of the file
name (https://github.com/webdataset/webdataset).
"""

import json
import tarfile
from pathlib import Path

import numpy as np

from uae_jax.data.sources import files
from uae_jax.data.sources.bad import BadItems
from uae_jax.data.sources.stored import CAPTIONS, EXTENSIONS, StoredSource
from uae_jax.errors import UserError

TEXTS = ('txt', 'json')


class WebDatasetSource(StoredSource):
  """Samples of tars in the order they lie there.

  The image is a sample's first member with an image's extension, the caption
  its .txt, or the `caption` or `text` of its .json.
  """

  def __init__(
    self,
    pattern: str,
    cache: str = files.CACHE,
    bad: BadItems | None = None,
    captions: bool = False,
  ):
    """Indexes the tars, where that has not been done.

    Raises:
      UserError: a tar is missing, compressed or cut short, or none has an
        image.
    """
    super().__init__(pattern, bad, captions)
    self._files = files.files_of(pattern)
    self._tables = []
    for file in files.kept(self._files, cache, '.npz', write_index):
      with np.load(file) as arrays:
        self._tables.append((arrays['names'], arrays['spans']))
    self._ends = np.cumsum([len(names) for names, _ in self._tables])
    if not len(self):
      raise UserError(f'no image ({" ".join(EXTENSIONS)}) in {pattern}')

  def __len__(self) -> int:
    return int(self._ends[-1])

  def _place(self, index: int) -> tuple[int, int]:
    which = int(np.searchsorted(self._ends, index, 'right'))
    return which, index - int(self._ends[which - 1] if which else 0)

  def name(self, index: int) -> str:
    which, row = self._place(index)
    name = self._tables[which][0][row].decode()
    return f'{self._files[which]}/{name}'

  def fetch(self, index: int) -> tuple[bytes, str | None]:
    which, row = self._place(index)
    at, size, text_at, text_size, is_json = self._tables[which][1][row]
    with self._files[which].open('rb') as f:
      f.seek(at)
      data = f.read(size)
      f.seek(text_at)
      text = f.read(text_size).decode(errors='replace')
    return data, caption_of(text) if is_json else text


def caption_of(text: str) -> str | None:
  """The caption that a sample's JSON holds."""
  try:
    row = json.loads(text)
  except ValueError:
    return None
  if not isinstance(row, dict):
    return None
  found = (row[key] for key in CAPTIONS if isinstance(row.get(key), str))
  return next(found, None)


def write_index(file: Path, to: Path) -> None:
  """Writes the `names` of a tar's images and `spans` [n, 5].

  A span is the image's place and size, the caption's, and whether that is
  JSON; a size is 0 where there is no caption.

  Raises:
    UserError: it is no tar that can be read at random.
  """
  samples = {}
  try:
    with tarfile.open(file, 'r:') as tar:
      for member in tar:
        if member.isfile():
          folder, slash, name = member.name.rpartition('/')
          stem, _, kind = name.partition('.')
          span = (member.offset_data, member.size)
          kinds = samples.setdefault(folder + slash + stem, {})
          kinds[kind.lower()] = (member.name, span)
  except tarfile.TarError as e:
    raise UserError(
      f'{file} is compressed, cut short or no tar ({e}): unpack or fetch it '
      'anew'
    ) from None
  names, spans = [], []
  for kinds in samples.values():
    image = next((k for k in kinds if f'.{k}' in EXTENSIONS), None)
    if image is None:
      continue
    text = next((k for k in TEXTS if k in kinds), None)
    names.append(kinds[image][0].encode())
    where = kinds[text][1] if text else (0, 0)
    spans.append((*kinds[image][1], *where, text == 'json'))
  spans = np.array(spans, np.int64).reshape(-1, 5)
  with to.open('wb') as f:
    np.savez(f, names=np.array(names, np.bytes_), spans=spans)
