"""The same images and captions in every storage that a source reads."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

SHARD = 100  # items in a file


class Item(NamedTuple):
  """An image's file and its caption, '' for none."""

  name: str  # with an extension
  data: bytes
  caption: str


def write(kind: str, folder: Path, items: Sequence[Item], shard=SHARD) -> str:
  """Writes items below a folder that is not there yet; returns their URI.

  Args:
    kind: of `WRITERS`.
    folder: to be made.
    items: in the order in which they are read, but for TFDS's own.
    shard: items in a file.
  """
  folder.mkdir(parents=True)
  shards = [items[i : i + shard] for i in range(0, len(items), shard)]
  return WRITERS[kind](folder, shards)


def _images(folder, shards):
  """Captions beside the even shards' images, those of the odd in a table."""
  rows = []
  for i, shard in enumerate(shards):
    for name, data, caption in shard:
      (folder / name).parent.mkdir(exist_ok=True)
      (folder / name).write_bytes(data)
      if caption and i % 2:
        rows.append(json.dumps({'file_name': name, 'text': caption}))
      elif caption:
        (folder / name).with_suffix('.txt').write_text(caption)
  (folder / 'captions.jsonl').write_text('\n'.join(rows))
  return f'images:{folder}'


def _webdataset(folder, shards):
  """Captions as text in the even shards, as JSON in the odd."""
  for i, shard in enumerate(shards):
    with tarfile.open(folder / f'{i:03d}.tar', 'w') as tar:
      for name, data, caption in shard:
        stem = name.rpartition('.')[0]
        parts = [(name, data), (f'{stem}.cls', b'7')]
        text = json.dumps({'caption': caption}) if i % 2 else caption
        if caption:
          parts.append((f'{stem}.{"json" if i % 2 else "txt"}', text.encode()))
        for part, content in parts:
          member = tarfile.TarInfo(part)
          member.size = len(content)
          tar.addfile(member, io.BytesIO(content))
  return f'webdataset:{folder}/{{000..{len(shards) - 1:03d}}}.tar'


def _table(shard):
  import pyarrow as pa

  images = [{'bytes': data, 'path': name} for name, data, _ in shard]
  image = pa.struct({'bytes': pa.binary(), 'path': pa.string()})
  texts = [caption or None for _, _, caption in shard]
  return pa.table(
    {
      'id': pa.array(range(len(shard))),
      'image': pa.array(images, image),
      'text': pa.array(texts, pa.string()),
    }
  )


def _parquet(folder, shards):
  import pyarrow.parquet

  for i, shard in enumerate(shards):
    file = folder / f'part-{i:03d}.parquet'
    pyarrow.parquet.write_table(_table(shard), file)
  return f'parquet:{folder}/*.parquet'


def _arrow(folder, shards):
  import pyarrow as pa

  names = [
    f'data-{i:05d}-of-{len(shards):05d}.arrow' for i in range(len(shards))
  ]
  for name, shard in zip(names, shards):
    table = _table(shard)
    with pa.ipc.new_stream(str(folder / name), table.schema) as out:
      out.write_table(table, max_chunksize=3)
  state = {'_data_files': [{'filename': name} for name in names]}
  (folder / 'state.json').write_text(json.dumps(state))
  return f'arrow:{folder}'


def example(item: Item) -> bytes:
  """A serialized tf.train.Example."""
  from tensorflow_datasets.proto import tf_example_generated_pb2 as protos

  record = protos.Example()
  features = record.features.feature
  features['image'].bytes_list.value.append(item.data)
  if item.caption:
    features['caption'].bytes_list.value.append(item.caption.encode())
  return record.SerializeToString()


def _array_record(folder, shards):
  from array_record.python.array_record_module import ArrayRecordWriter

  for i, shard in enumerate(shards):
    path = f'{folder}/{i:03d}.array_record'
    writer = ArrayRecordWriter(path, 'group_size:1')
    for item in shard:
      writer.write(example(item))
    writer.close()
  return f'array_record:{folder}/*.array_record'


def _tfds(folder, shards):
  """A dataset as COCO's is, in the order that TFDS shuffles it into."""
  import tensorflow_datasets as tfds

  features = tfds.features.FeaturesDict(
    {
      'image': tfds.features.Image(),
      'captions': tfds.features.Sequence(
        {'id': np.int64, 'text': tfds.features.Text()}
      ),
    }
  )

  class Pairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      return {'train': self._generate_examples()}

    def _generate_examples(self):
      for i, item in enumerate(sum(map(list, shards), [])):
        texts = [item.caption, 'another'] if item.caption else []
        rows = [{'id': i, 'text': text} for text in texts]
        yield i, {'image': io.BytesIO(item.data), 'captions': rows}

  tfds.disable_progress_bar()
  Pairs(data_dir=folder, file_format='array_record').download_and_prepare()
  return 'tfds:pairs'  # below TFDS_DATA_DIR


WRITERS = dict(
  images=_images, webdataset=_webdataset, parquet=_parquet, arrow=_arrow,
  array_record=_array_record, tfds=_tfds,
)  # fmt: skip
