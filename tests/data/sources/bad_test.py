"""Files as folders have them: converted where that means something, or left
out, named, and counted."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from benchmarks import stores
from uae_jax.data import pipeline, preprocess
from uae_jax.data.sources.bad import BadItems
from uae_jax.errors import UserError

RED = (255, 0, 0)


def encoded(image, kind, **kwargs):
  file = io.BytesIO()
  image.save(file, kind, **kwargs)
  return file.getvalue()


def noise(w=40, h=30):
  pixels = np.random.default_rng(0).integers(0, 256, (h, w, 3), np.uint8)
  return Image.fromarray(pixels)


def bomb():
  """A PNG that says it has 20000 x 20000 pixels."""
  chunk = lambda kind, data: (
    struct.pack('>I', len(data)) + kind + data
    + struct.pack('>I', zlib.crc32(kind + data))
  )  # fmt: skip
  header = struct.pack('>IIBBBBB', 20000, 20000, 8, 2, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')
  )  # fmt: skip


def flipped():
  """A PNG with a wrong byte in the middle of its pixels."""
  data = bytearray(encoded(noise(), 'PNG'))
  data[len(data) // 2] ^= 255
  return bytes(data)


def turned():
  exif = Image.Exif()
  exif[0x0112] = 6  # by 90 degrees
  return encoded(noise(), 'JPEG', exif=exif)


def palette():
  """Index 0 is clear, index 1 red."""
  image = Image.new('P', (8, 6), 0)
  image.putpalette([0, 0, 0, *RED])
  image.paste(1, (0, 0, 4, 6))
  return encoded(image, 'PNG', transparency=0)


def moving():
  frames = [Image.new('RGB', (8, 6), c) for c in (RED, (0, 255, 0))]
  return encoded(frames[0], 'GIF', save_all=True, append_images=frames[1:])


def deep():
  return encoded(Image.fromarray(np.full((6, 8), 32896, np.uint16)), 'PNG')


def near(value):
  return lambda image: np.abs(image.astype(int) - value).max() <= 3


CONVERTED = {
  'cmyk.jpg': (encoded(Image.new('CMYK', (8, 6), (0, 255, 255, 0)), 'JPEG'),
               (6, 8), near(RED)),
  'deep.png': (deep(), (6, 8), near(128)),
  'palette.png': (palette(), (6, 8), lambda x: (
    near(RED)(x[:, :4]) and near(255)(x[:, 4:]))),
  'turned.jpg': (turned(), (40, 30), lambda x: x.std() > 0),
  'one.png': (encoded(Image.new('RGB', (1, 1), RED), 'PNG'), (1, 1),
              near(RED)),
  'moving.gif': (moving(), (6, 8), near(RED)),
}  # fmt: skip
SKIPPED = {
  'cut.jpg': (encoded(noise(), 'JPEG')[:-300], 'truncated'),
  'half.png': (encoded(noise(), 'PNG')[:2000], 'truncated'),
  'flipped.png': (flipped(), 'corrupt'),
  'long.png': (encoded(Image.new('RGB', (20000, 3)), 'PNG'), 'too_thin'),
  'empty.jpg': (b'', 'empty'),
  'text.jpg': (b'<html>404: not found</html>', 'not_an_image'),
  'bomb.png': (bomb(), 'too_large'),
}
KINDS = [k for k in stores.WRITERS if k != 'tfds']  # it refuses to write them


def items(files, caption='a'):
  return [stores.Item(name, data, caption) for name, data in files.items()]


def good(n):
  return {f'good{i}.png': encoded(noise(), 'PNG') for i in range(n)}


@pytest.mark.parametrize('name', CONVERTED)
def test_odd_files_are_converted(tmp_path, name):
  data, shape, right = CONVERTED[name]
  source = pipeline.make_source(
    stores.write('images', tmp_path / 'x', items({name: data}))
  )
  image = source[0]['image']
  assert image.shape == (*shape, 3) and image.dtype == np.uint8
  assert right(image)
  view = preprocess.PolicyView(14, 2, 112, 784, 784)
  assert view(image)['patches'].shape == (4, 1176)
  assert preprocess.fitted_view(image, 32, 32).shape == (32, 32, 3)


@pytest.mark.parametrize('kind', KINDS)
def test_what_cannot_be_used_is_left_out_and_listed_once(tmp_path, kind):
  files = {k: v for k, (v, _) in SKIPPED.items()} | good(2)
  uri = stores.write(kind, tmp_path / 'x', items(files))
  listed = tmp_path / 'run' / 'bad_items.jsonl'
  bad = BadItems()
  bad.keep(listed, 1.0)
  make = lambda bad: pipeline.make_source(
    uri, cache=str(tmp_path / 'cache'), bad=bad
  )
  source = make(bad)
  for _ in range(3):
    records = [source.read(i) for i in range(len(source))]
    assert sum(r is not None for r in records) == 2
  rows = [json.loads(line) for line in listed.read_text().splitlines()]
  assert len(rows) == len({row['name'] for row in rows}) == len(SKIPPED)
  assert {row['name'] for row in rows} == {
    source.name(i) for i, r in enumerate(records) if r is None
  }
  assert sorted(row['reason'] for row in rows) == sorted(
    reason for _, reason in SKIPPED.values()
  )
  if kind in ('images', 'webdataset'):
    for row in rows:
      name = row['name'].rpartition('/')[2]
      assert row['reason'] == SKIPPED[name][1]
      assert name in row['why']
  assert bad.metrics() == {
    'data/bad/truncated': 2, 'data/bad/corrupt': 1, 'data/bad/too_thin': 1,
    'data/bad/empty': 1, 'data/bad/not_an_image': 1, 'data/bad/too_large': 1,
  }  # fmt: skip

  later = BadItems()  # the same run, resumed
  later.keep(listed, 1.0)
  assert later.metrics() == bad.metrics() and not len(later)
  source = make(later)
  for i in range(len(source)):
    source.read(i)
  assert len(later) == len(SKIPPED)
  assert len(listed.read_text().splitlines()) == len(SKIPPED)


@pytest.mark.parametrize('kind', stores.WRITERS)
def test_missing_captions_are_bad_only_where_one_is_needed(
  tmp_path, kind, monkeypatch
):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'x'))
  both = items(good(3)) + [
    x._replace(name=f'bare{x.name}', caption='') for x in items(good(2))
  ]
  uri = stores.write(kind, tmp_path / 'x', both)
  count = {}
  for needed in (False, True):
    source = pipeline.make_source(
      uri, cache=str(tmp_path / 'cache'), captions=needed
    )
    records = [source.read(i) for i in range(5)]
    count[needed] = sum(r is not None for r in records), source.bad.counts
    assert sum('caption' in r for r in records if r) == 3
  assert count == {False: (5, {}), True: (3, {'no_caption': 2})}


def test_rows_without_an_image_and_files_that_went_away(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet

  (data,) = good(1).values()
  (tmp_path / 'there.png').write_bytes(data)
  image = pa.struct({'bytes': pa.binary(), 'path': pa.string()})
  rows = [
    {'bytes': data, 'path': None},
    {'bytes': None, 'path': 'there.png'},
    {'bytes': None, 'path': 'gone.png'},
    {'bytes': None, 'path': None},
    None,
  ]
  table = pa.table({'image': pa.array(rows, image)})
  pyarrow.parquet.write_table(table, tmp_path / 'x.parquet')
  source = pipeline.make_source(
    f'parquet:{tmp_path}/x.parquet', cache=str(tmp_path / 'cache')
  )
  there = [source.read(i) is not None for i in range(5)]
  assert there == [True, True, False, False, False]
  assert source.bad.counts == {'missing': 2, 'unreadable': 1}


def test_the_item_that_stands_in_is_always_the_same(tmp_path):
  files = good(20) | {f'bad{i}.jpg': b'x' for i in range(20)}
  folder = tmp_path / 'x'
  uri = stores.write('images', folder, items(files))
  for i, path in enumerate(sorted(folder.glob('good*.png'))):
    image = Image.new('RGB', (5 + i, 5))
    image.save(path)

  def width(record, rng):
    del rng
    return dict(width=np.int32(record['image'].shape[1]))

  make = lambda **kw: pipeline.make_loader(
    pipeline.make_source(uri), width, batch=8, seed=0, **kw
  )
  one = make()
  batches = [next(one)['width'] for _ in range(15)]
  other = make(threads=5)
  for _ in range(3):
    next(other)
  place = other.get_state()
  resumed = make(mine=range(1, 8, 2))  # starts at bad items, on another host
  resumed.set_state(place)
  for want in batches[3:]:
    np.testing.assert_array_equal(next(resumed)['width'], want[1::2])
  # A run of bad items in the list does not fall upon one good one.
  counts = np.bincount(np.concatenate(batches))[5:]
  assert counts.sum() == 120 and counts.max() <= 15 and len(counts) == 20


def test_too_many_bad_items_stop_the_run_with_one_line(tmp_path):
  files = good(170) | {f'bad{i}.jpg': b'x' for i in range(30)}
  uri = stores.write('images', tmp_path / 'x', items(files))
  read = lambda record, rng: dict(x=np.zeros(1))

  def loader(max_share):
    bad = BadItems()
    bad.keep(tmp_path / f'{max_share}' / 'bad_items.jsonl', max_share)
    source = pipeline.make_source(uri, bad=bad)
    return pipeline.make_loader(source, read, batch=20, seed=0), bad

  plenty, bad = loader(0.2)
  for _ in range(30):
    next(plenty)
  assert bad.counts == {'not_an_image': 30}
  few, bad = loader(0.1)
  with pytest.raises(UserError) as e:
    for _ in range(30):
      next(few)
  line = str(e.value)
  assert '\n' not in line and 'data.max_bad=0.1' in line
  assert str(tmp_path / '0.1' / 'bad_items.jsonl') in line


def test_a_share_is_judged_after_a_hundred_items(tmp_path):
  bad = BadItems()
  bad.keep(tmp_path / 'bad_items.jsonl', 0.1)
  for i in range(50):
    bad.add(f'{i}', 'empty', 'x')
  for _ in range(49):
    bad.good()
  with pytest.raises(UserError, match='50 of 100 items .*empty 50'):
    bad.good()


def test_nothing_usable_says_why(tmp_path):
  uri = stores.write(
    'images', tmp_path / 'x', items({'a.jpg': b'', 'b.jpg': b'x'})
  )
  with pytest.raises(UserError, match=r'none of 2 .*empty 1, not_an_image 1'):
    pipeline.make_source(uri)[0]


def test_a_torn_list_is_gone_on_with(tmp_path):
  file = tmp_path / 'bad_items.jsonl'
  file.write_text('{"name": "a", "reason": "empty", "why": ""}\n{"name": "b", ')
  bad = BadItems()
  bad.keep(file, 1.0)
  bad.add('a', 'empty', '')
  bad.add('c', 'corrupt', '')
  lines = file.read_text().splitlines()
  assert json.loads(lines[-1])['name'] == 'c' and len(lines) == 3
  assert bad.metrics() == {'data/bad/empty': 1, 'data/bad/corrupt': 1}
