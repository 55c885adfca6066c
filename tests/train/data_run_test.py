"""Runs on data that is not drawn: mixtures, captions, and what is broken."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import stores
from tests.train.loop_test import config, rows
from uae_jax.data import tokenize
from uae_jax.errors import UserError
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import loop, tasks, workdir
from uae_jax.train.parts import Loader
from uae_jax.umm.painter import Painter

CAPTION = 'small red circle top left'


def items(n, bad=0, caption=CAPTION):
  out = []
  for i in range(n):
    file = io.BytesIO()
    Image.new('RGB', (40, 30 + i % 7), (i, 0, 0)).save(file, 'PNG')
    data = b'none' if i < bad else file.getvalue()
    out.append(stores.Item(f'{i:03d}.png', data, caption))
  return out


@pytest.mark.slow
def test_a_run_counts_what_it_leaves_out_and_goes_on(tmp_path):
  one = stores.write('images', tmp_path / 'a', items(12, bad=2))
  two = stores.write('webdataset', tmp_path / 'b', items(12, bad=1))
  c = config(**{
    'data.source': f'mix:0.5*{one},0.5*{two}', 'data.heldout': one,
    'data.cache': str(tmp_path / 'cache'), 'train.steps': 2,
  })  # fmt: skip
  folder = tmp_path / 'run'
  assert loop.run(c, folder) == 0
  listed = (folder / 'bad_items.jsonl').read_text().splitlines()
  listed = [json.loads(line) for line in listed]
  assert {row['reason'] for row in listed} == {'not_an_image'}
  names = {row['name'] for row in listed}
  assert {f'{tmp_path}/a/000.png', f'{tmp_path}/a/001.png'} <= names
  assert len(names) == len(listed) <= 3
  last = rows(folder, 'reward/')[-1]
  assert 2 <= last['data/bad/not_an_image'] <= 3


def shaped(folder, n=64):
  """Wide and tall images with captions; URI."""
  out = []
  for i in range(n):
    file = io.BytesIO()
    size = (48, 36) if i % 2 else (36, 48)
    Image.new('RGB', size, (4 * i, 0, 0)).save(file, 'PNG')
    out.append(stores.Item(f'{i:03d}.png', file.getvalue(), CAPTION))
  return stores.write('images', folder, out)


@pytest.fixture
def shapes(monkeypatch):
  """Shapes of batches that were read, and of what a painter has met."""
  seen = dict(read=set(), met=set())
  to_batch, encode, decode = loop.to_batch, Painter.encode, Painter.decode

  def reads(host, mesh):
    seen['read'].add(host['image'].shape[1:3])
    return to_batch(host, mesh)

  def encodes(self, params, images):
    seen['met'].add(images.shape[1:3])
    return encode(self, params, images)

  def decodes(self, params, x):
    images = decode(self, params, x)
    seen['met'].add(images.shape[1:3])
    return images

  monkeypatch.setattr(loop, 'to_batch', reads)
  monkeypatch.setattr(Painter, 'encode', encodes)
  monkeypatch.setattr(Painter, 'decode', decodes)
  return seen


@pytest.mark.parametrize(
  'name, part',
  [
    ('umm1', ''),
    pytest.param('umm1', 'decoder', marks=pytest.mark.slow),
    pytest.param('pretrain', 'longcap', marks=pytest.mark.slow),
  ],
)
def test_a_run_draws_in_the_shape_of_its_batch(name, part, tmp_path, shapes):
  uri = shaped(tmp_path / 'a')
  c = config(name, part, **{
    'data.source': uri, 'data.heldout': uri, 'train.steps': 3,
    'data.buckets': ('24x32', '32x24'), 'ckpt.every': 8, 'eval.every': 8,
  })  # fmt: skip
  folder = tmp_path / 'run'
  assert loop.run(c, folder) == 0
  found = rows(folder, 'optim/loss')
  assert len(found) == 3 and all(np.isfinite(r['optim/loss']) for r in found)
  assert shapes['read'] == {(24, 32), (32, 24)}
  assert shapes['met'] == {(32, 32), *shapes['read']}  # evaluation is square


@pytest.mark.parametrize(
  'bucket, why',
  [
    ('24x30', 'multiples of 4'),
    ('32x36', 'beyond 32 pixels'),
    ('24', 'HEIGHT'),
  ],
)
def test_a_bucket_that_cannot_be_drawn_is_refused(bucket, why, tmp_path):
  c = config(**{'data.buckets': (bucket,)})
  with pytest.raises(UserError, match=why):
    loop.run(c, tmp_path / 'run')
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_too_many_broken_images_end_a_run_with_one_line(tmp_path):
  uri = stores.write('images', tmp_path / 'a', items(160, bad=40))
  c = config(**{'data.heldout': uri, 'eval.images': 160})
  folder = tmp_path / 'run'
  with pytest.raises(UserError) as e:
    loop.run(c, folder)
  line = str(e.value)
  assert '\n' not in line and f'{folder}/bad_items.jsonl' in line
  assert 'data.max_bad=0.1' in line
  assert len((folder / 'bad_items.jsonl').read_text().splitlines()) == 40


def test_hosts_keep_lists_of_their_own(tmp_path):
  files = [workdir.bad_items(tmp_path, i).name for i in (0, 1, 12)]
  assert files == ['bad_items.jsonl', 'bad_items.1.jsonl', 'bad_items.12.jsonl']


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """Parts of a supervised run, and URI -> its first batch."""
  c = config('coldstart', 'decoder', **{'rollout.length': 24})
  c.data.cache = str(tmp_path_factory.mktemp('cache'))
  mesh = make_mesh(1, 1, jax.devices()[:1])
  parts = tasks.load(c, Loader(c, mesh))

  def first(uri):
    c.data.source = uri
    return next(parts.train_data(c, mesh))

  return parts, first


def test_supervised_captions_are_those_of_the_data(tmp_path, loaded):
  mixed = items(6) + [
    x._replace(name=f'b{x.name}', caption='') for x in items(3)
  ]
  uri = stores.write('parquet', tmp_path / 'a', mixed)
  parts, first = loaded
  batch = first(uri)
  ids, mask = tokenize.encode_caption(parts.tokenizer, CAPTION, 24)
  for key in ('full', 'caption'):
    np.testing.assert_array_equal(batch[f'{key}_ids'], [ids] * 8)
    np.testing.assert_array_equal(batch[f'{key}_mask'], [mask] * 8)
  assert set(parts.bad.counts) <= {'no_caption'}


def test_drawn_and_stored_captions_mix(tmp_path, loaded):
  uri = stores.write('images', tmp_path / 'a', items(6))
  parts, first = loaded
  batch = first(f'mix:1*{uri},1*scenes:train')
  texts = [parts.decode(ids) for ids in batch['full_ids']]
  assert texts.count(CAPTION) == 4
  assert all(text for text in texts) and 'truth' not in batch
