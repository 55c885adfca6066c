"""Sources and loaders: deterministic, checkpointable, robust to bad files."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest
from PIL import Image

from uae_jax.data import pipeline, preprocess, tokenize
from uae_jax.data.scenes import detect, grammar
from uae_jax.errors import UserError


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp('tokenizer'))
  tokenize.build_word_tokenizer(folder)
  return tokenize.load_tokenizer(folder)


@pytest.fixture(scope='module')
def example(tok):
  view = preprocess.PolicyView(
    patch=4, merge=2, window=16, min_pixels=1024, max_pixels=1024
  )
  template = tokenize.Template.from_tokenizer(tok, tokenize.PROMPT)
  return pipeline.MakeExample(
    lambda image: preprocess.prefix_of(image, view, template),
    image_side=32,
    caption_length=24,
    tokenizer=tok,
    detail=grammar.PARTIAL,
  )


@pytest.fixture
def plain(example):
  return pipeline.MakeExample(example.read, image_side=32)


def _folder(tmp_path, n, bad=()):
  for i in range(n):
    inside = tmp_path / 'sub' if i % 2 else tmp_path
    inside.mkdir(exist_ok=True)
    path = inside / f'{i}.PNG'
    Image.new('RGB', (20 + i, 30), (i * 20, 0, 0)).save(path)
    if i in bad:
      path.write_bytes(b'not an image')
  (tmp_path / 'notes.txt').write_text('ignored')
  return f'images:{tmp_path}'


def _equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_scene_batches_have_the_documented_layout(example, tok):
  source = pipeline.make_source('scenes:train')
  batch = next(pipeline.make_loader(source, example, batch=3, seed=0))
  template = tokenize.Template.from_tokenizer(tok, tokenize.PROMPT)
  prefix = 16 + template.overhead  # 8 x 8 patches, merged 2 x 2
  want = dict(
    patches=((3, 64, 96), 'float32'),
    patch_hw=((3, 64, 2), 'int32'),
    patch_window=((3, 64), 'int32'),
    patch_image=((3, 64), 'int32'),
    prefix_ids=((3, prefix), 'int32'),
    prefix_positions=((3, 3, prefix), 'int32'),
    prefix_mask=((3, prefix), 'bool'),
    image=((3, 32, 32, 3), 'float32'),
    truth=((3, 4, 5), 'int32'),
    caption_ids=((3, 24), 'int32'),
    caption_mask=((3, 24), 'bool'),
    full_ids=((3, 24), 'int32'),
    full_mask=((3, 24), 'bool'),
  )
  assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == want
  for row in range(3):
    scene = batch['truth'][row]
    scene = scene[scene[:, 0] >= 0]
    np.testing.assert_array_equal(detect.detect(batch['image'][row]), scene)
    full = tokenize.decode(tok, batch['full_ids'][row])
    assert full == grammar.describe(scene)
    assert grammar.parse(tokenize.decode(tok, batch['caption_ids'][row]))
  assert 0 <= batch['image'].min() and batch['image'].max() <= 1


def test_pairs_are_images_and_full_captions(tok):
  source = pipeline.make_source('scenes:train', side=48)
  pair = pipeline.PairExample(tok, 24)
  batch = next(pipeline.make_loader(source, pair, batch=2, seed=0))
  assert batch['image'].shape == (2, 48, 48, 3)
  found = [detect.detect(image) for image in batch['image']]
  said = [tokenize.decode(tok, ids) for ids in batch['full_ids']]
  assert said == [grammar.describe(scene) for scene in found]


def test_strings_travel_with_their_scenes(example, tok):
  longer = dataclasses.replace(example, caption_length=28)
  source = pipeline.make_source('glyphs:train')
  batch = next(pipeline.make_loader(source, longer, batch=16, seed=0))
  assert batch['glyphs'].shape == (16, 5)
  assert batch['glyphs'].dtype == np.int32
  strings = detect.read_strings(batch['image'])
  np.testing.assert_array_equal(strings, batch['glyphs'])
  scenes = detect.detect_batch(batch['image'], text=True)
  for i, (scene, string) in enumerate(zip(scenes, strings, strict=True)):
    assert 1 <= len(scene) <= pipeline.MAX_BESIDE_TEXT
    truth = batch['truth'][i]
    np.testing.assert_array_equal(truth[truth[:, 0] >= 0], scene)
    full = tokenize.decode(tok, batch['full_ids'][i])
    assert full == grammar.describe(scene, string=string)
  partial = [tokenize.decode(tok, ids) for ids in batch['caption_ids']]
  assert 0 < sum(len(grammar.parse_text(text)) for text in partial) < 16
  pair = pipeline.PairExample(tok, 28)(source[0], np.random.default_rng(0))
  told = grammar.parse_text(tokenize.decode(tok, pair['full_ids']))
  assert [t.values() for t in told] == [tuple(source[0]['glyphs'])]


def test_no_string_is_spelled_in_two_splits():
  seen = {}
  for split in ('train', 'crowded', 'validation', 'heldout'):
    source = pipeline.make_source(f'glyphs:{split}')
    records = [source[i] for i in range(1000)]
    seen[split] = {tuple(r['glyphs'][2:].tolist()) for r in records}
    owner = split if split in pipeline.KEPT else 'train'
    assert {pipeline.split_of(r['truth']) for r in records} == {owner}
  assert len(seen['validation']) == len(seen['heldout']) == 8**3 // 16
  for kept in ('validation', 'heldout'):
    assert not seen[kept] & (seen['train'] | seen['crowded'])
    # Every letter is seen at every place, so that reading is all it takes.
    assert all(set(column) == set(range(8)) for column in zip(*seen[kept]))
  assert not seen['validation'] & seen['heldout']


def test_unshuffled_loader_reads_in_order(tmp_path, plain):
  source = pipeline.make_source(_folder(tmp_path, 3))
  loader = pipeline.make_loader(source, plain, batch=5, seed=0, shuffle=False)
  want = [source[i % 3]['image'][0, 0, 0] / 255 for i in range(5)]
  got = next(loader)['image'][:, 0, 0, 0]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_no_scene_is_in_two_splits():
  seen = {}
  for split in pipeline.SPLITS:
    source = pipeline.make_source(f'scenes:{split}', max_objects=1)
    seen[split] = {source[i]['truth'].tobytes() for i in range(3000)}
  kept = ('train', 'validation', 'heldout')
  for one, other in itertools.combinations(kept, 2):
    assert len(seen[other]) > 40
    assert not seen[one] & seen[other]
  kept = seen['validation'] | seen['heldout']
  assert not kept & (seen['edits'] | seen['crowded'])


def test_crowded_scenes_hold_more_objects():
  count = {}
  for split in ('train', 'crowded'):
    source = pipeline.make_source(f'scenes:{split}')
    sizes = [len(source[i]['truth']) for i in range(400)]
    count[split] = np.bincount(sizes, minlength=5)[1:] / 400
  np.testing.assert_allclose(count['train'], 1 / 4, atol=0.08)
  want = np.array([1, 3, 5, 7]) / 16
  np.testing.assert_allclose(count['crowded'], want, atol=0.08)


def test_scenes_depend_on_seed_and_index_alone():
  one, two = (pipeline.make_source('scenes:train', seed=3) for _ in range(2))
  two[0]
  _equal(one[17], two[17])
  other = pipeline.make_source('scenes:train', seed=4)
  assert not np.array_equal(one[17]['image'], other[17]['image'])


def test_loader_restores_its_place(example):
  source = pipeline.make_source('scenes:train')
  make = lambda seed: pipeline.make_loader(source, example, batch=2, seed=seed)
  loader = make(5)
  for _ in range(3):
    next(loader)
  state = loader.get_state()
  rest = [next(loader) for _ in range(2)]
  again = make(5)
  again.set_state(state)
  for batch in rest:
    _equal(batch, next(again))
  assert not np.array_equal(next(make(6))['image'], next(make(5))['image'])


@pytest.mark.parametrize('count', [2, 4])
def test_processes_share_the_batch_of_one(tmp_path, plain, count):
  source = pipeline.make_source(_folder(tmp_path, 8))
  make = lambda **kw: pipeline.make_loader(source, plain, batch=8, seed=0, **kw)
  whole = make()
  mine = [range(i, 8, count) for i in range(count)]  # as devices may lie
  shares = [make(mine=rows) for rows in mine]
  for _ in range(3):
    want = next(whole)
    for rows, share in zip(mine, shares, strict=True):
      _equal({k: v[list(rows)] for k, v in want.items()}, next(share))
  # A place in the order is the same to any number of processes.
  place = shares[0].get_state()
  whole = make()
  whole.set_state(place)
  want, got = next(whole), next(shares[-1])
  _equal({k: v[list(mine[-1])] for k, v in want.items()}, got)


def test_small_folders_continue_across_epochs(tmp_path, plain):
  source = pipeline.make_source(_folder(tmp_path, 3))
  loader = pipeline.make_loader(source, plain, batch=7, seed=0)
  rows = np.concatenate([next(loader)['image'][:, 0, 0, 0] for _ in range(3)])
  _, counts = np.unique(rows, return_counts=True)
  assert counts.tolist() == [7, 7, 7]
  orders = {tuple(rows[i : i + 3]) for i in range(0, 21, 3)}
  assert len(orders) > 1  # epochs are shuffled anew


def test_noisy_captions_differ_between_epochs(example):
  source = pipeline.SceneSource('train', length=1)
  loader = pipeline.make_loader(source, example, batch=16, seed=0)
  batch = next(loader)
  assert len(np.unique(batch['truth'], axis=0)) == 1
  assert len(np.unique(batch['caption_ids'], axis=0)) > 1


def test_corrupt_images_are_replaced_and_reported_once(tmp_path, plain, caplog):
  source = pipeline.make_source(_folder(tmp_path, 4, bad=(0, 3)))
  with caplog.at_level(logging.WARNING):
    loader = pipeline.make_loader(source, plain, batch=8, seed=0)
    for _ in range(2):
      batch = next(loader)
  assert len(source.bad) == 2
  assert sum('cannot read' in line for line in caplog.messages) == 2
  assert len(np.unique(batch['image'][:, 0, 0, 0])) == 2


def test_nothing_readable(tmp_path, plain):
  source = pipeline.make_source(_folder(tmp_path, 2, bad=(0, 1)))
  with pytest.raises(UserError, match='none of 2 items'):
    next(pipeline.make_loader(source, plain, batch=2, seed=0))


def test_photographs_have_no_captions(tmp_path, example, plain):
  source = pipeline.make_source(_folder(tmp_path, 1))
  with pytest.raises(UserError, match='no reference caption'):
    example(source[0], np.random.default_rng(0))
  out = plain(source[0], np.random.default_rng(0))
  assert 'truth' not in out and 'caption_ids' not in out
  with pytest.raises(UserError, match='scenes:edits'):
    pipeline.PairExample(example.tokenizer, 24)(source[0], None)


@pytest.mark.parametrize(
  'uri', ['', 'scenes', 'scenes:test', 'video:x', 'glyphs:edits']
)
def test_unknown_sources(uri):
  with pytest.raises(UserError, match='scenes:train'):
    pipeline.make_source(uri)


def test_missing_and_empty_folders(tmp_path):
  with pytest.raises(UserError, match='no folder'):
    pipeline.make_source(f'images:{tmp_path}/none')
  with pytest.raises(UserError, match='no image'):
    pipeline.make_source(f'images:{tmp_path}')


def test_take_reads_in_order_once(tmp_path, plain):
  source = pipeline.make_source(_folder(tmp_path, 5, bad=(2,)))
  reds, batches = [], 0
  for batch, real in pipeline.take(source, plain, n=99, batch=2):
    assert batch['image'].shape[0] == len(real) == 2
    reds += np.round(batch['image'][real][:, 0, 0, 0] * 255).tolist()
    batches += 1
  order = [int(path[-5]) for path in source.paths if path[-5] != '2']
  assert reds == [20 * i for i in order]
  assert batches == 3


def test_a_batch_or_a_share_may_be_one_row(tmp_path, plain):
  source = pipeline.make_source(_folder(tmp_path, 4))
  make = lambda **kw: pipeline.make_loader(source, plain, seed=0, **kw)
  alone, first, second = (
    make(batch=1), make(batch=2, mine=(0,)), make(batch=2, mine=(1,))
  )  # fmt: skip
  for want in itertools.islice(make(batch=2), 3):
    for i, share in enumerate((first, second)):
      row = {k: v[i : i + 1] for k, v in want.items()}
      _equal(row, next(share))
      _equal(row, next(alone))
