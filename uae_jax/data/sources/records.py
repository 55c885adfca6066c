"""ArrayRecord files of tf.train.Example, and TFDS datasets made of them.

TensorFlow is not needed: grain reads the records, and the Example message is
the one that tensorflow_datasets brings along. What TFDS prepares with
`--file_format=array_record` is such files.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain

from uae_jax.data.preprocess import BadItem
from uae_jax.data.sources import files
from uae_jax.data.sources.bad import BadItems
from uae_jax.data.sources.stored import CAPTIONS, IMAGES, StoredSource
from uae_jax.errors import UserError

# TFDS joins the names of nested features; COCO's are captions/text.
TEXTS = (*CAPTIONS, 'captions', 'captions/text', 'captions/caption')
PICTURES = (*IMAGES, 'image/encoded', 'image_bytes')


class ExampleSource(StoredSource):
  """Serialized tf.train.Example by index: features of bytes.

  The image is a file's bytes in the feature `image`, the caption is in
  `caption` or `text`; of several captions, the first.
  """

  def __init__(
    self,
    where: str,
    records: Sequence[bytes],
    bad: BadItems | None = None,
    captions: bool = False,
  ):
    """Looks at the first record.

    Raises:
      UserError: there is none, or it has no image.
    """
    super().__init__(where, bad, captions)
    self._records = records
    self._parse = example_parser()
    if not len(records):
      raise UserError(f'no record in {where}')
    try:
      found = self._parse(records[0])
    except ValueError as e:
      raise UserError(f'{where} holds no tf.train.Example: {e}') from None
    if _first(found, PICTURES) is None:
      raise UserError(
        f'records of {where} have {sorted(found)}: rename one to image'
      )

  def __len__(self) -> int:
    return len(self._records)

  def name(self, index: int) -> str:
    return f'{self.where}#{index}'

  def fetch(self, index: int) -> tuple[bytes, str | None]:
    try:
      found = self._parse(self._records[index])
    except ValueError as e:
      raise BadItem('corrupt', f'{self.name(index)}: {e}') from None
    image, caption = _first(found, PICTURES), _first(found, TEXTS)
    if image is None:
      raise BadItem('missing', f'{self.name(index)} has no image')
    return image, caption and caption.decode(errors='replace')


def array_record_source(
  pattern: str, bad: BadItems | None = None, captions: bool = False
) -> ExampleSource:
  """Records of ArrayRecord files, in order.

  Raises:
    UserError: see `ExampleSource`; or a file is missing or none of these.
  """
  found = [str(path) for path in files.files_of(pattern)]
  try:
    records = grain.sources.ArrayRecordDataSource(found)
    len(records)
  except Exception as e:  # the reader raises whatever it meets
    raise UserError(f'{pattern} is no ArrayRecord: {_line(e)}') from None
  return ExampleSource(pattern, records, bad, captions)


def tfds_source(
  name: str, bad: BadItems | None = None, captions: bool = False
) -> ExampleSource:
  """Examples of `NAME[/CONFIG[/VERSION]][:SPLIT]`; the split is else `train`.

  The dataset is one that TFDS has prepared below $TFDS_DATA_DIR or
  ~/tensorflow_datasets; its own code is not run.

  Raises:
    UserError: see `ExampleSource`; or it is not there, or in another format.
  """
  tfds = _tfds()
  name, _, split = name.partition(':')
  folder = prepared(name)
  try:
    builder = tfds.builder_from_directory(folder)
    records = builder.as_data_source(
      split=split or 'train',
      deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
    )
  except Exception as e:  # a subclass of nothing, by what is wrong
    raise UserError(
      f'tfds:{name} in {folder}: {_line(e)}; array_record is the format that '
      'is read'
    ) from None
  return ExampleSource(f'{folder}:{split or "train"}', records, bad, captions)


def prepared(name: str) -> Path:
  """The folder of a dataset's newest version.

  Raises:
    UserError: it is not there, or has several configs.
  """
  root = Path(os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets'))
  at = root.expanduser() / name
  found = [path.parent for path in at.rglob('dataset_info.json')]
  if not found:
    raise UserError(
      f'no dataset in {at}: set TFDS_DATA_DIR, or prepare it with '
      f'`tfds build {name} --file_format=array_record`'
    )
  configs = sorted({path.parent for path in found if path != at})
  if len(configs) > 1:
    names = ', '.join(str(path.relative_to(root)) for path in configs)
    raise UserError(f'tfds:{name} has several configs: use one of {names}')
  number = lambda path: [int(x) for x in path.name.split('.') if x.isdigit()]
  return max(found, key=number)


def example_parser() -> Callable[[bytes], Mapping[str, Sequence[bytes]]]:
  """Serialized Example -> its features of bytes; ValueError if it is none."""
  _tfds()
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_generated_pb2 as protos

  def parse(record: bytes) -> Mapping[str, Sequence[bytes]]:
    try:
      features = protos.Example.FromString(record).features.feature
    except DecodeError as e:
      raise ValueError(_line(e)) from None
    return {key: value.bytes_list.value for key, value in features.items()}

  return parse


def _first(
  found: Mapping[str, Sequence[bytes]], known: Sequence[str]
) -> bytes | None:
  """The first value of the first known feature that has one."""
  return next((found[k][0] for k in known if found.get(k)), None)


def _tfds() -> Any:
  try:
    import tensorflow_datasets
  except ImportError:
    raise UserError(
      'array_record: and tfds: need tensorflow_datasets: install it'
    ) from None
  return tensorflow_datasets


def _line(e: BaseException) -> str:
  return str(e).strip().splitlines()[0] if str(e).strip() else repr(e)
