"""Unified-Bench: pairs, scores, rows and the official files."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from uae_jax.data.pipeline import ImageSource
from uae_jax.errors import UserError
from uae_jax.eval import sheet, unified_bench
from uae_jax.eval.unified_bench import FolderBench, UnifiedBench, pair


def test_backbones_are_known_by_their_folders_names():
  names = {
    'clip-vit-large-patch14': 'CLIP',
    'LongCLIP-L': 'LongCLIP',
    'dinov2-large': 'DINO-v2',
    'dinov3-vitl16-pretrain-lvd1689m': 'DINO-v3',
    'judge_clip': None,
    'siglip-base': None,
  }
  assert {name: unified_bench.backbone(name) for name in names} == names


def test_images_are_the_unit_of_the_overall_interval():
  # Towers that disagree cancel within every image.
  rows = {str(i): dict(name=str(i), a=i / 100, b=-i / 100) for i in range(50)}
  rows['bad'] = dict(name='bad', error='cannot be read')
  scores = unified_bench.scores(rows, ['a', 'b'])
  s = scores['unified_score']
  assert (s.value, s.n, s.low, s.high) == (0, 50, 0, 0)
  assert scores['a'].value == pytest.approx(24.5)
  # 1.96 standard errors, about.
  half = 1.96 * np.std(np.arange(50.0)) / np.sqrt(50)
  assert scores['a'].high - 24.5 == pytest.approx(half, rel=0.1)
  assert scores['b'].low == pytest.approx(-scores['a'].high, rel=0.1)
  bad = {'bad': rows['bad']}
  assert unified_bench.scores(bad, ['a']) == {}


def test_the_official_files_field_by_field(tmp_path):
  rows = {
    '0.jpg': dict(name='0.jpg', clip=0.5, dinov2=0.25),
    '1.jpg': dict(name='1.jpg', error='image cannot be read'),
    '2.jpg': dict(name='2.jpg', clip=1.0, dinov2=-0.25),
  }
  unified_bench.write_official(tmp_path, rows, ['clip', 'dinov2'])
  clip = {'0.jpg': 0.5, '2.jpg': 1.0, 'average': 0.75, 'min': 0.5, 'max': 1.0}
  dino = {'0.jpg': 0.25, '2.jpg': -0.25, 'average': 0, 'min': -0.25,
          'max': 0.25}  # fmt: skip
  read = lambda name: json.loads((tmp_path / name).read_text())
  assert list(read('cosines/clip.json').items()) == list(clip.items())
  assert read('cosines/dinov2.json') == dino
  assert read('cosines.json') == {'clip': clip, 'dinov2': dino}
  assert not [*tmp_path.rglob('*.part')]
  with pytest.raises(UserError, match='none of 1 images'):
    unified_bench.write_official(tmp_path, {'1': rows['1.jpg']}, ['clip'])


def picture(file, value=0):
  file.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (4, 4), (value,) * 3).save(file)


def sources(*folders):
  return [ImageSource(str(folder)) for folder in folders]


def test_pairs_are_found_by_path_without_extension(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  for name in ('0.jpg', '1.JPG', 'x/0.png', 'lost.png', 'whole.jpg'):
    picture(a / name)
  for name in ('0.PNG', '1.webp', 'x/0.jpeg', 'x/1.png', 'whole.jpg.png'):
    picture(b / name)
  pairs = pair(*sources(a, b))
  images = unified_bench.names(pairs.images)
  assert {name: images[j] for name, (_, j) in pairs.at.items()} == {
    '0.jpg': '0.PNG', '1.JPG': '1.webp', 'whole.jpg': 'whole.jpg.png',
    'x/0.png': 'x/0.jpeg',
  }  # fmt: skip
  assert pairs.missing == ['lost.png'] and pairs.extra == ['x/1.png']


def test_pairs_that_cannot_be_are_refused(tmp_path):
  a, b, c = (tmp_path / name for name in 'abc')
  picture(a / '0.jpg')
  picture(a / '0.png')
  picture(b / '0.jpg')
  picture(c / 'deep/0.jpg')
  with pytest.raises(UserError, match='0.jpg and 0.png .* extension'):
    pair(*sources(a, b))
  with pytest.raises(UserError, match='no names in common.*deep/0.jpg'):
    pair(*sources(b, c))
  picture(tmp_path / 'd/0.png')
  picture(tmp_path / 'd/0.jpg.png')
  with pytest.raises(UserError, match='both go with 0.jpg'):
    pair(*sources(b, tmp_path / 'd'))


def same(first, second):
  """1 where means are equal, less the further they are apart."""
  return np.array(
    [1 - abs(np.mean(a) / 1 - np.mean(b)) / 255 for a, b in zip(first, second)]
  )


def test_unreadable_sides_are_rows_of_their_own(tmp_path):
  a, b = tmp_path / 'a', tmp_path / 'b'
  for i in range(3):
    picture(a / f'{i}.png', 10)
    picture(b / f'{i}.png', 61)
  (a / '1.png').write_bytes(b'no image')
  (b / '2.png').write_bytes(b'no image')
  bench = FolderBench(pair(*sources(a, b)), {'same': same})
  rows = bench.run(bench.items, tmp_path)
  assert rows == [
    dict(name='0.png', image='0.png', same=pytest.approx(0.8)),
    dict(name='1.png', image='1.png', error='reference cannot be read'),
    dict(name='2.png', image='2.png', error='image cannot be read'),
  ]
  scores = bench.scores({row['name']: row for row in rows})
  assert scores['same'].value == pytest.approx(80) and scores['same'].n == 1


def describe(images, rng):
  return [f'{int(np.mean(image))}' for image in images]


def draw(texts, rng):
  noise = int(jax.random.randint(rng, (), 0, 2))
  return np.stack([np.full((4, 6, 3), int(t) + noise, np.uint8) for t in texts])


def test_a_model_redraws_a_folder(tmp_path):
  for i, name in enumerate(('0.jpg', '1.png', 'x/2.png')):
    picture(tmp_path / 'a' / name, 20 * i)
  (tmp_path / 'a/1.png').write_bytes(b'no image')
  bench = UnifiedBench(
    *sources(tmp_path / 'a'),
    unified_bench.from_captions(describe, draw),
    {'same': same},
  )
  assert bench.items == ['0.jpg', '1.png', 'x/2.png']
  assert bench.settings == dict(conditioning='caption', towers=['same'])
  rng = jax.random.key(3)
  rows = bench.run(bench.items, tmp_path / 'out', rng)
  assert rows == bench.run(bench.items, tmp_path / 'again', rng)
  noise = int(draw(['0'], jax.random.split(rng)[1])[0, 0, 0, 0])
  score = pytest.approx(1 - noise / 255)
  assert rows == [
    dict(name='0.jpg', caption='0', image='images/0.png', same=score),
    dict(name='1.png', error='cannot be read'),
    dict(name='x/2.png', caption='40', image='images/x/2.png', same=score),
  ]
  drawn = np.asarray(Image.open(tmp_path / 'out/images/x/2.png'))
  np.testing.assert_array_equal(drawn, np.full((4, 6, 3), 40 + noise))
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (tmp_path / 'out/results.jsonl').write_text(lines)
  (tmp_path / 'out/settings.json').write_text('{}')
  page = sheet.write(tmp_path / 'out', tmp_path / 'a', ['same']).read_text()
  assert page.count('data:image/png') == 4
  # What it left pairs with the sources, and scores the same.
  left = FolderBench(
    pair(*sources(tmp_path / 'a', tmp_path / 'out/images')), {'same': same}
  )
  again = left.run(left.items, tmp_path)
  assert [row['same'] for row in again] == [score, score]


def test_benches_that_cannot_be_are_refused(tmp_path):
  picture(tmp_path / '0.png')
  make = lambda compares, **kw: UnifiedBench(
    *sources(tmp_path), unified_bench.from_captions(describe, draw), compares,
    **kw,
  )  # fmt: skip
  with pytest.raises(UserError, match='conditioning'):
    make({'same': same}, conditioning='words')
  with pytest.raises(UserError, match="called 'caption'"):
    make({'caption': same})
  with pytest.raises(UserError, match='one tower'):
    make({})
  picture(tmp_path / '0.jpg')
  with pytest.raises(UserError, match='extension'):
    make({'same': same})
