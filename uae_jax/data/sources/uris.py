"""KIND:WHERE -> a stored source."""

import os

from uae_jax.data.sources import files
from uae_jax.data.sources.bad import BadItems
from uae_jax.data.sources.images import ImageSource
from uae_jax.data.sources.records import array_record_source, tfds_source
from uae_jax.data.sources.stored import StoredSource
from uae_jax.data.sources.tables import arrow_source, parquet_source
from uae_jax.data.sources.webdataset import WebDatasetSource

STORED = ('images', 'webdataset', 'parquet', 'arrow', 'array_record', 'tfds')


def stored(
  kind: str,
  where: str,
  *,
  cache: str = files.CACHE,
  bad: BadItems | None = None,
  captions: bool = False,
) -> StoredSource:
  """The source of one of the kinds `STORED`.

  Args:
    kind: the URI up to its colon.
    where: what follows.
    cache: folder of indices and of copies that can be read at random.
    bad: where items go that cannot be used.
    captions: an item without a caption cannot be used.

  Raises:
    UserError: there is no such data.
  """
  if kind == 'images':
    return ImageSource(os.path.expanduser(where), bad, captions)
  if kind == 'webdataset':
    return WebDatasetSource(where, cache, bad, captions)
  if kind == 'parquet':
    return parquet_source(where, cache, bad, captions)
  if kind == 'arrow':
    return arrow_source(where, bad, captions)
  if kind == 'array_record':
    return array_record_source(where, bad, captions)
  return tfds_source(where, bad, captions)
