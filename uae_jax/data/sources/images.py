"""Folders of image files, with captions beside them or in one file."""

import json
import os
from pathlib import Path

from uae_jax.data import preprocess
from uae_jax.data.preprocess import BadItem
from uae_jax.data.sources.bad import BadItems
from uae_jax.data.sources.stored import CAPTIONS, EXTENSIONS, StoredSource
from uae_jax.errors import UserError

# Rows have `file_name` and `text`; the second is what datasets' imagefolder
# calls it.
TABLES = ('captions.jsonl', 'metadata.jsonl')


class ImageSource(StoredSource):
  """Image files below a folder, by index in sorted order.

  A caption is in NAME.txt beside the image NAME.jpg, or in the folder's
  captions.jsonl, which counts where it names the image.
  """

  def __init__(
    self, folder: str, bad: BadItems | None = None, captions: bool = False
  ):
    """Lists the files.

    Raises:
      UserError: the folder is missing or has no image, or its captions.jsonl
        cannot be read.
    """
    super().__init__(folder, bad, captions)
    if not os.path.isdir(folder):
      raise UserError(f'no folder {folder}; give images:DIR one that exists')
    self.paths = sorted(
      os.path.join(parent, name)
      for parent, _, names in os.walk(folder)
      for name in names
      if name.lower().endswith(EXTENSIONS)
    )
    if not self.paths:
      raise UserError(f'no image ({" ".join(EXTENSIONS)}) below {folder}')
    self.folder = folder
    self._captions = {}
    for table in TABLES:
      self._captions |= read_captions(Path(folder) / table)

  def __len__(self) -> int:
    return len(self.paths)

  def name(self, index: int) -> str:
    return self.paths[index]

  def size(self, index: int) -> tuple[int, int]:
    try:  # the file is read no further than its header
      return preprocess.image_size(self.paths[index])
    except (BadItem, OSError):
      return 1, 1

  def fetch(self, index: int) -> tuple[bytes, str | None]:
    path = self.paths[index]
    caption = self._captions.get(os.path.relpath(path, self.folder))
    if caption is None:
      beside = Path(path).with_suffix('.txt')
      if beside.is_file():
        caption = beside.read_text('utf-8', errors='replace')
    return Path(path).read_bytes(), caption


def read_captions(file: Path) -> dict[str, str]:
  """Path below the file's folder -> caption; nothing where there is no file.

  Raises:
    UserError: a line is no JSON object with `file_name` and `text`.
  """
  out = {}
  if not file.is_file():
    return out
  for i, line in enumerate(file.read_text('utf-8').splitlines()):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      name = os.path.normpath(row['file_name'])
      out[name] = str(next(row[key] for key in CAPTIONS if key in row))
    except (ValueError, KeyError, TypeError, StopIteration):
      raise UserError(
        f'{file}:{i + 1} is not {{"file_name": …, "text": …}}'
      ) from None
  return out
