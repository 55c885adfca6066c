"""Every kind of storage gives what was written, to any number of hosts."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import stores
from uae_jax.data import pipeline
from uae_jax.data.sources import files, mixture
from uae_jax.errors import UserError

N = 13
BATCH = 24
KINDS = tuple(stores.WRITERS)


def png(i):
  """Sizes and pixels that tell items apart."""
  return np.random.default_rng(i).integers(0, 256, (9 + i, 12, 3), np.uint8)


def items(n=N):
  out = []
  for i in range(n):
    file = io.BytesIO()
    Image.fromarray(png(i)).save(file, 'PNG')
    out.append(stores.Item(f'{i:04d}.png', file.getvalue(), f'item {i}'))
  return out


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  """Kind -> URI, and the cache folder."""
  root = tmp_path_factory.mktemp('stores')
  uris = {k: stores.write(k, root / k, items(), shard=4) for k in KINDS}
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('TFDS_DATA_DIR', str(root / 'tfds'))
    yield uris, str(root / 'cache')


def open_source(written, kind, **kwargs):
  uris, cache = written
  return pipeline.make_source(uris[kind], cache=cache, **kwargs)


def number(record):
  return int(record['caption'].split()[1])


def identity(record, rng):
  """In the place of MakeExample: which item it is."""
  del rng
  return dict(id=np.int32(number(record)))


def ids(loader, batches):
  return np.concatenate([next(loader)['id'] for _ in range(batches)])


def make_mix(written):
  uris, cache = written
  text = f'mix:0.5*{uris["webdataset"]}, 0.3*{uris["parquet"]},0.2*'
  return pipeline.make_source(text + uris['images'], cache=cache)


def tfds_order(written):
  """Items in the order of tensorflow_datasets' own reader and decoder."""
  import tensorflow_datasets as tfds

  folder = written[0]['arrow'].removeprefix('arrow:')[: -len('arrow')] + 'tfds'
  builder = tfds.builder_from_directory(f'{folder}/pairs/1.0.0')
  rows = list(builder.as_data_source(split='train'))
  for row in rows:
    i = int(row['captions']['id'][0])
    np.testing.assert_array_equal(row['image'], png(i))
  return [int(row['captions']['id'][0]) for row in rows]


@pytest.mark.parametrize('kind', KINDS)
def test_images_and_captions_are_what_was_written(written, kind):
  source = open_source(written, kind, captions=True)
  order = tfds_order(written) if kind == 'tfds' else range(N)
  assert len(source) == N
  for i, item in enumerate(order):
    record = source[i]
    assert record['caption'] == f'item {item}'
    np.testing.assert_array_equal(record['image'], png(item))
    assert record.keys() == {'image', 'caption'}
  assert not source.bad
  assert len({source.name(i) for i in range(N)}) == N


@pytest.mark.parametrize('kind', KINDS)
def test_epochs_are_whole_and_in_orders_of_their_own(written, kind):
  source = open_source(written, kind)
  make = lambda **kw: pipeline.make_loader(source, identity, batch=N, **kw)
  loader = make(seed=3)
  epochs = [tuple(next(loader)['id']) for _ in range(3)]
  assert all(sorted(epoch) == [*range(N)] for epoch in epochs)
  assert len(set(epochs)) == 3
  again = make(seed=3, threads=7)
  assert epochs == [tuple(next(again)['id']) for _ in range(3)]
  assert tuple(next(make(seed=4))['id']) not in epochs
  plain = next(make(seed=3, shuffle=False))['id'].tolist()
  assert plain == (tfds_order(written) if kind == 'tfds' else [*range(N)])


@pytest.mark.parametrize('kind', (*KINDS, 'mix'))
def test_hosts_lose_and_repeat_nothing(written, kind):
  mix = kind == 'mix'
  source = make_mix(written) if mix else open_source(written, kind)
  make = lambda mine=None: pipeline.make_loader(
    source, identity, batch=BATCH, seed=1, mine=mine
  )
  whole = ids(make(), 3).reshape(3, BATCH)
  for hosts in (1, 2, 3, 4, 8):
    shares = [range(i, BATCH, hosts) for i in range(hosts)]
    got = np.full((3, BATCH), -1)
    for share in shares:
      got[:, list(share)] = ids(make(share), 3).reshape(3, -1)
    np.testing.assert_array_equal(got, whole)
  if not mix:  # 72 places: five epochs, and part of a sixth
    counts = np.bincount(whole.ravel(), minlength=N)
    assert set(counts) <= {5, 6} and counts.sum() == 3 * BATCH


@pytest.mark.parametrize('kind', (*KINDS, 'mix'))
def test_a_saved_place_goes_on_on_any_number_of_hosts(written, kind):
  source = make_mix(written) if kind == 'mix' else open_source(written, kind)
  make = lambda mine=None: pipeline.make_loader(
    source, identity, batch=BATCH, seed=1, mine=mine
  )
  one = make()
  ids(one, 2)
  place = json.loads(json.dumps(one.get_state()))  # as a checkpoint keeps it
  want = ids(one, 2).reshape(2, -1)
  for hosts in (1, 3):
    for i in range(hosts):
      share = make(range(i, BATCH, hosts))
      share.set_state(place)
      got = ids(share, 2).reshape(2, -1)
      np.testing.assert_array_equal(got, want[:, i::hosts])


def test_a_mixture_keeps_its_proportions(tmp_path):
  uris = []
  for i in range(3):  # captions 'item 0', 'item 1', …: one of each folder
    one = [x._replace(caption=f'item {i}') for x in items(5)]
    uris.append(stores.write('images', tmp_path / str(i), one))
  text = f'mix:6*{uris[0]},3*{uris[1]},1*{uris[2]}'
  source = pipeline.make_source(text)
  loader = pipeline.make_loader(source, identity, batch=10, seed=0)
  batches = ids(loader, 20).reshape(20, 10)
  counts = np.stack([np.bincount(b, minlength=3) for b in batches])
  np.testing.assert_array_equal(counts.sum(0), [120, 60, 20])
  assert np.abs(np.cumsum(counts, 0) - np.arange(1, 21)[:, None] * [6, 3, 1]
                ).max() <= 1  # fmt: skip
  again = pipeline.make_loader(
    pipeline.make_source(text), identity, batch=10, seed=0
  )
  np.testing.assert_array_equal(ids(again, 20).reshape(20, 10), batches)


def test_a_mixture_reads_every_item_of_a_part_before_any_again(written):
  uris, cache = written
  text = f'mix:1*{uris["arrow"]},1*scenes:train'
  source = pipeline.make_source(text, cache=cache)

  def which(record, rng):
    return dict(id=np.int32(-1 if 'truth' in record else number(record)))

  loader = pipeline.make_loader(source, which, batch=2 * N, seed=0)
  for _ in range(2):
    batch = next(loader)['id']
    assert sorted(batch[batch >= 0]) == [*range(N)]
    assert np.sum(batch < 0) == N


def test_a_mixture_is_evaluated_in_order(written):
  uris, cache = written
  source = pipeline.make_source(
    f'mix:1*{uris["arrow"]},1*{uris["images"]}', cache=cache
  )
  rows = list(pipeline.take(source, identity, n=8, batch=4))
  assert np.concatenate([b['id'] for b, _ in rows]).tolist() == [
    0, 0, 1, 1, 2, 2, 3, 3,
  ]  # fmt: skip
  assert len(source) == 2 * N


def test_mixtures_are_parsed():
  parts = mixture.parse('0.7*webdataset:a/{x,y}.tar, .3 * images:b,c')
  assert parts == [(0.7, 'webdataset:a/{x,y}.tar'), (0.3, 'images:b,c')]
  for bad in ('', 'images:a', '0*images:a', '1.2.3*images:a', '1*mix:1*a:b'):
    with pytest.raises(UserError, match='WEIGHT'):
      mixture.parse(bad)


def test_patterns_keep_the_order_of_braces(tmp_path):
  for name in ('b.tar', 'a.tar', '08.tar', '09.tar', '10.tar'):
    (tmp_path / name).touch()
  names = lambda text: [p.name for p in files.files_of(f'{tmp_path}/{text}')]
  assert names('{b,a}.tar') == ['b.tar', 'a.tar']
  assert names('{08..10}.tar') == ['08.tar', '09.tar', '10.tar']
  assert names('?.tar') == ['a.tar', 'b.tar']
  assert files.expand('{0..1}/{a,b}') == ['0/a', '0/b', '1/a', '1/b']
  with pytest.raises(UserError, match='11.tar'):
    names('{08..11}.tar')


def test_an_index_is_made_once_and_anew_when_a_tar_changes(tmp_path):
  cache = tmp_path / 'cache'
  uri = stores.write('webdataset', tmp_path / 'a', items(6), shard=3)
  read = lambda: pipeline.make_source(uri, cache=str(cache))
  read()
  kept = {p: p.stat().st_mtime_ns for p in cache.iterdir()}
  assert len(kept) == 2
  read()
  assert {p: p.stat().st_mtime_ns for p in cache.iterdir()} == kept
  stores.write('webdataset', tmp_path / 'b', items(5), shard=2)
  (tmp_path / 'b' / '000.tar').replace(tmp_path / 'a' / '000.tar')
  assert len(read()) == 2 + 3
  assert len([*cache.iterdir()]) == 3


def test_samples_of_a_tar_are_told_apart_by_folder_and_first_dot(tmp_path):
  images = [x._replace(name=name) for x, name in
            zip(items(3), ('a/0.png', 'b/0.png', 'b/0.1.png'))]  # fmt: skip
  uri = stores.write('webdataset', tmp_path / 'x', images)
  source = pipeline.make_source(uri, cache=str(tmp_path))
  assert len(source) == 2  # 0.1.png is 1.png of the sample 0
  assert [source.name(i)[-7:] for i in range(2)] == ['a/0.png', 'b/0.png']


def test_folders_that_datasets_has_saved(tmp_path):
  datasets = pytest.importorskip('datasets')
  rows = {
    'image': [Image.fromarray(png(i)) for i in range(N)],
    'caption': [f'item {i}' for i in range(N)],
  }
  saved = datasets.Dataset.from_dict(
    rows,
    features=datasets.Features(
      {'image': datasets.Image(), 'caption': datasets.Value('string')}
    ),
  )
  kept = saved.select(range(N - 1, -1, -1))  # an order of its own
  kept.save_to_disk(str(tmp_path / 'one'), num_shards=3)
  kept.to_parquet(str(tmp_path / 'one.parquet'))
  both = datasets.DatasetDict(train=saved, test=saved)
  both.save_to_disk(str(tmp_path / 'two'))
  for uri in (f'arrow:{tmp_path}/one', f'parquet:{tmp_path}/one.parquet'):
    source = pipeline.make_source(uri, cache=str(tmp_path / 'cache'))
    for i in range(N):
      record = source[N - 1 - i]
      assert record['caption'] == f'item {i}'
      np.testing.assert_array_equal(record['image'], png(i))
  with pytest.raises(UserError, match='train'):
    pipeline.make_source(f'arrow:{tmp_path}/two')
  assert len(pipeline.make_source(f'arrow:{tmp_path}/two/test')) == N


def test_parquet_of_plain_bytes_and_lists_of_captions(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet

  table = pa.table(
    {
      'caption': pa.array([[x.caption, 'other'] for x in items(3)]),
      'jpg': pa.array([x.data for x in items(3)], pa.large_binary()),
    }
  )
  pyarrow.parquet.write_table(table, tmp_path / 'x.parquet', row_group_size=2)
  source = pipeline.make_source(
    f'parquet:{tmp_path}/x.parquet', cache=str(tmp_path / 'cache')
  )
  assert [source[i]['caption'] for i in range(3)] == [
    'item 0', 'item 1', 'item 2',
  ]  # fmt: skip
  np.testing.assert_array_equal(source[2]['image'], png(2))


def test_tfds_splits_versions_and_configs(written, tmp_path, monkeypatch):
  uris, cache = written
  half = pipeline.make_source('tfds:pairs:train[:4]', cache=cache)
  assert [number(half[i]) for i in range(4)] == tfds_order(written)[:4]
  with pytest.raises(UserError, match="split 'valid'"):
    pipeline.make_source('tfds:pairs:valid')
  with pytest.raises(UserError, match='TFDS_DATA_DIR'):
    pipeline.make_source('tfds:coco_captions')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  for part in ('a/1.0.0', 'a/1.10.0', 'a/1.9.0', 'b/1.0.0'):
    folder = tmp_path / 'coco_captions' / part
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text('{}')
  from uae_jax.data.sources import records

  assert records.prepared('coco_captions/a').name == '1.10.0'
  assert records.prepared('coco_captions/a/1.9.0').name == '1.9.0'
  with pytest.raises(UserError, match='coco_captions/a, coco_captions/b'):
    records.prepared('coco_captions')


@pytest.mark.parametrize(
  'uri, what',
  [
    ('webdataset:{}/none-*.tar', 'no file'),
    ('webdataset:{}/text.txt', 'no tar'),
    ('webdataset:{}/bare.tar', 'no image'),
    ('webdataset:{}/small.tar.gz', 'compressed'),
    ('parquet:{}/text.txt', 'no Parquet'),
    ('parquet:{}/other.parquet', "'id'"),
    ('arrow:{}', 'save_to_disk'),
    ('array_record:{}/text.txt', 'ArrayRecord'),
    ('array_record:{}/raw.array_record', 'tf.train.Example'),
    ('images:{}/captions', 'captions.jsonl:2'),
    ('mix:1*images:{}/none,1*scenes:train', 'no folder'),
  ],
)
def test_what_is_not_there_is_one_line(tmp_path, uri, what):
  import tarfile

  import pyarrow as pa
  import pyarrow.parquet
  from array_record.python.array_record_module import ArrayRecordWriter

  (tmp_path / 'text.txt').write_text('hello\n' * 200)
  for name in ('bare.tar', 'small.tar.gz'):
    mode = 'w:gz' if name.endswith('gz') else 'w'
    with tarfile.open(tmp_path / name, mode) as tar:
      tar.add(tmp_path / 'text.txt', 'text.txt')
  table = pa.table({'id': [1]})
  pyarrow.parquet.write_table(table, tmp_path / 'other.parquet')
  writer = ArrayRecordWriter(f'{tmp_path}/raw.array_record', 'group_size:1')
  writer.write(b'\xff\xff\xff')
  writer.close()
  stores.write('images', tmp_path / 'captions', items(1))
  lines = '{"file_name": "0000.png", "text": "x"}\n{"file": "y"}\n'
  (tmp_path / 'captions' / 'captions.jsonl').write_text(lines)
  with pytest.raises(UserError, match=what) as e:
    pipeline.make_source(
      uri.format(tmp_path), cache=str(tmp_path / 'cache'), captions=True
    )
  assert '\n' not in str(e.value)


def test_a_missing_column_of_captions_is_said_at_once(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet

  table = pa.table({'image': [x.data for x in items(2)]})
  pyarrow.parquet.write_table(table, tmp_path / 'x.parquet')
  make = lambda **kw: pipeline.make_source(
    f'parquet:{tmp_path}/x.parquet', cache=str(tmp_path / 'cache'), **kw
  )
  assert 'caption' not in make()[0]
  with pytest.raises(UserError, match='caption'):
    make(captions=True)


def test_reading_needs_no_tensorflow_and_pyarrow_only_for_tables():
  import subprocess
  import sys

  code = (
    'import sys; import uae_jax.data.pipeline; '
    'print({"torch", "tensorflow", "pyarrow", "datasets", '
    '"tensorflow_datasets"} & set(sys.modules))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.strip() == 'set()'
