"""Tables with a column of images: Parquet, and datasets' `save_to_disk`.

Both are read as memory-mapped Arrow files. Parquet cannot be read row by row,
so its two columns are copied to the cache folder once.
"""

import bisect
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uae_jax.data.preprocess import BadItem
from uae_jax.data.sources import files
from uae_jax.data.sources.bad import BadItems
from uae_jax.data.sources.stored import CAPTIONS, IMAGES, StoredSource
from uae_jax.errors import UserError

ROWS = 100  # of a copied batch


class TableSource(StoredSource):
  """Rows of Arrow files.

  The image is a file's bytes, or datasets' struct of `bytes` and `path`; a
  list of captions stands for its first.
  """

  def __init__(
    self,
    where: str,
    arrows: Sequence[Path],
    shown: Sequence[Path],
    bad: BadItems | None = None,
    captions: bool = False,
  ):
    """Maps the files.

    Args:
      where: see `StoredSource`.
      arrows: Arrow streams.
      shown: the files that items are said to be in.
      bad: see `StoredSource`.
      captions: see `StoredSource`.

    Raises:
      UserError: a file is no Arrow stream or lacks a column, or there is no
        row.
    """
    super().__init__(where, bad, captions)
    self._parts = []  # first row in its file, images, captions, file
    for file, name in zip(arrows, shown, strict=True):
      row = 0
      for images, texts in _batches(file, captions):
        self._parts.append((row, images, texts, name))
        row += len(images)
    sizes = (len(images) for _, images, _, _ in self._parts)
    self._ends = list(itertools.accumulate(sizes))
    if not self._ends:
      raise UserError(f'no row in {where}')

  def __len__(self) -> int:
    return self._ends[-1]

  def _place(self, index: int) -> tuple[Any, int]:
    which = bisect.bisect_right(self._ends, index)
    return self._parts[which], index - (self._ends[which - 1] if which else 0)

  def name(self, index: int) -> str:
    (first, _, _, file), row = self._place(index)
    return f'{file}#{first + row}'

  def fetch(self, index: int) -> tuple[bytes, str | None]:
    (_, images, texts, file), row = self._place(index)
    image = images[row].as_py()
    caption = None if texts is None else texts[row].as_py()
    if isinstance(caption, list):
      caption = caption[0] if caption else None
    if isinstance(image, dict):
      path, image = image['path'], image['bytes']
      if image is None and path:
        image = (file.parent / path).read_bytes()
    if image is None:
      raise BadItem('missing', f'{self.name(index)} has no image')
    return image, caption


def parquet_source(
  pattern: str,
  cache: str = files.CACHE,
  bad: BadItems | None = None,
  captions: bool = False,
) -> TableSource:
  """Rows of Parquet files; copies their columns where that is not done.

  Raises:
    UserError: see `TableSource`.
  """
  found = files.files_of(pattern)
  arrows = files.kept(found, cache, '.arrow', copy_columns)
  return TableSource(pattern, arrows, found, bad, captions)


def arrow_source(
  folder: str, bad: BadItems | None = None, captions: bool = False
) -> TableSource:
  """Rows of a dataset that `save_to_disk` has written.

  Raises:
    UserError: see `TableSource`; or the folder holds several splits.
  """
  at = Path(folder).expanduser()
  splits = at / 'dataset_dict.json'
  try:
    if splits.is_file():
      named = json.loads(splits.read_text())['splits']
      raise UserError(f'{folder} has splits: use one of arrow:{folder}/{named}')
    rows = json.loads((at / 'state.json').read_text())['_data_files']
    found = [at / row['filename'] for row in rows]
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(
      f'{folder} is no folder that save_to_disk has written: {e!r}'
    ) from None
  return TableSource(folder, found, found, bad, captions)


def copy_columns(file: Path, to: Path) -> None:
  """Copies the columns of images and captions into an Arrow stream.

  Raises:
    UserError: it is no Parquet file or has no image column.
  """
  pa = _pyarrow()
  try:
    table = pa.parquet.ParquetFile(file)
    columns = [_column(table.schema_arrow, IMAGES, file)]
    columns += [k for k in CAPTIONS if k in table.schema_arrow.names][:1]
    schema = pa.schema([table.schema_arrow.field(k) for k in columns])
    with pa.OSFile(str(to), 'wb') as sink:
      with pa.ipc.new_stream(sink, schema) as out:
        for batch in table.iter_batches(ROWS, columns=columns):
          out.write_batch(batch.select(columns))
  except pa.ArrowInvalid as e:
    raise UserError(f'{file} is no Parquet file: {_line(e)}') from None


def _batches(file: Path, captions: bool):
  """Arrays of images and of captions (or None) of each batch of a stream."""
  pa = _pyarrow()
  try:
    with pa.memory_map(str(file)) as mapped:
      table = pa.ipc.open_stream(mapped).read_all()
  except (pa.ArrowInvalid, OSError) as e:
    raise UserError(f'{file} is no Arrow stream: {_line(e)}') from None
  image = _column(table.schema, IMAGES, file)
  text = next((k for k in CAPTIONS if k in table.schema.names), None)
  if captions and text is None:
    _column(table.schema, CAPTIONS, file)
  for batch in table.to_batches():
    yield batch.column(image), batch.column(text) if text else None


def _column(schema: Any, known: Sequence[str], file: Path) -> str:
  """The first known name among a table's columns."""
  for name in known:
    if name in schema.names:
      return name
  raise UserError(
    f'{file} has columns {schema.names}: rename one to {known[0]}'
  )


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet
  except ImportError:
    raise UserError(
      "parquet: and arrow: need pyarrow: pip install 'uae_jax[data]'"
    ) from None
  return pyarrow


def _line(e: BaseException) -> str:
  return str(e).splitlines()[0] if str(e) else type(e).__name__
