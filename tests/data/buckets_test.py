"""Batches of one shape: what is in them, and that nothing is lost."""

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks import stores
from uae_jax.data import buckets, pipeline
from uae_jax.data.preprocess import fitted_view
from uae_jax.errors import UserError

SHAPES = ((32, 32), (24, 48), (48, 24))
BATCH = 4


def item(i, w, h, turned=False):
  """An image of one colour, the number of which is i."""
  file, image = io.BytesIO(), Image.new('RGB', (w, h), (i, 0, 0))
  exif = Image.Exif()
  if turned:
    exif[0x0112] = 6
  image.save(file, 'PNG', exif=exif)
  return stores.Item(f'{i:03d}.png', file.getvalue(), 'red')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """As many wide, tall and square images; URI."""
  sides = [(60, 30), (30, 60), (40, 40)]
  items = [item(i, *sides[i % 3]) for i in range(96)]
  return stores.write(
    'images', tmp_path_factory.mktemp('data') / 'images', items
  )


def source(uri, cache=''):
  return pipeline.make_source(uri, cache=str(cache))


def loader(uri, **kw):
  example = pipeline.MakeExample(lambda image: {}, 32, keep_truth=False)
  kw = dict(batch=BATCH, seed=0, shapes=SHAPES) | kw
  return pipeline.make_loader(source(uri), example, **kw)


def colours(batch):
  return np.round(batch['image'][:, 0, 0, 0] * 255).astype(int).tolist()


def test_a_batch_has_one_shape_and_images_like_it(folder):
  batches = loader(folder)
  seen = []
  for _ in range(24):  # an epoch, three windows
    batch = next(batches)
    h, w = batch['image'].shape[1:3]
    seen.append((h, w))
    # 96 images in windows of 32: a batch in between has two kinds.
    kinds = {[(24, 48), (48, 24), (32, 32)][i % 3] for i in colours(batch)}
    assert (h, w) in kinds
  assert set(seen) == set(SHAPES)
  apart = [a for a, b in zip(seen, seen[1:]) if a != b]
  assert len(apart) > 3  # and not from tall to wide


def test_nothing_is_lost_or_repeated(folder):
  batches = loader(folder)
  epoch = sum([colours(next(batches)) for _ in range(24)], [])
  assert sorted(epoch) == list(range(96))


def test_two_processes_read_what_one_would(folder):
  whole = loader(folder)
  shares = [loader(folder, mine=mine) for mine in ((0, 1), (2, 3))]
  for _ in range(10):
    want, got = next(whole), [next(share) for share in shares]
    np.testing.assert_array_equal(
      want['image'], np.concatenate([x['image'] for x in got])
    )


def test_it_goes_on_where_it_was(folder):
  first = loader(folder)
  for _ in range(5):
    next(first)
  state = first.get_state()
  want = [next(first)['image'] for _ in range(6)]
  again = loader(folder)
  again.set_state(state)
  for x in want:
    np.testing.assert_array_equal(next(again)['image'], x)


def test_a_mixture_is_bucketed_as_a_whole(folder):
  batches = loader(f'mix:0.5*{folder},0.5*scenes:train')
  shapes = [next(batches)['image'].shape[1:3] for _ in range(32)]
  assert set(shapes) == set(SHAPES)
  assert shapes.count((32, 32)) > 16  # scenes are square


@pytest.mark.parametrize(
  'kind', ['images', 'webdataset', 'parquet', 'array_record']
)
def test_sizes_are_those_of_upright_images(kind, tmp_path):
  items = [item(0, 50, 20), item(1, 50, 20, turned=True)]
  items.append(stores.Item('002.png', b'none', 'red'))
  uri = stores.write(kind, tmp_path / 'data', items)
  found = source(uri, tmp_path / 'cache')
  sizes = {found.size(i) for i in range(3)}
  assert sizes == {(20, 50), (50, 20), (1, 1)}
  for i in range(3):
    record = found.read(i)
    assert record is None or record['image'].shape[:2] == found.size(i)


@pytest.mark.parametrize('name', ['', '32', 'x32', '0x8', '8x8x8', '-8x8', 8])
def test_what_is_no_shape_is_refused(name):
  with pytest.raises(UserError, match='HEIGHTxWIDTH'):
    buckets.parse((name,))


def test_shapes_are_height_first():
  assert buckets.parse(('448x576', '8X8')) == ((448, 576), (8, 8))


@pytest.mark.parametrize('w, h', [(90, 30), (30, 90), (33, 31), (7, 5)])
@pytest.mark.parametrize('shape', SHAPES)
def test_a_fitted_view_is_the_middle_and_covers(w, h, shape):
  image = np.zeros((h, w, 3), np.uint8)
  image[h // 2 - 1 : h // 2 + 2, w // 2 - 1 : w // 2 + 2] = 255
  out = fitted_view(image, *shape).astype(float)
  assert out.shape == (*shape, 3)
  rows, cols = np.indices(shape)
  weight = out[..., 0] / out[..., 0].sum()
  middle = [(weight * x).sum() for x in (rows, cols)]
  np.testing.assert_allclose(middle, [(x - 1) / 2 for x in shape], atol=4)
