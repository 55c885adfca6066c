"""Strings: drawn as told, read back exactly, and nothing else is disturbed."""

import dataclasses
import itertools
import zlib

import numpy as np
import pytest

from uae_jax.data import pipeline
from uae_jax.data.scenes import detect, draw, glyphs, grammar, score

SCENE = np.array([(1, 2, 1, 0, 1), (3, 6, 0, 0, 2)])
SAID = 'medium blue square top center , small orange cross top right'
STRING = np.array([1, 0, 0, 1, 7])
TEXT = 'text g h z middle left'
NONE = np.full(5, -1)
BLANK = np.zeros((0, 5), int)


@pytest.fixture(scope='module', params=[32, 48])
def every(request):
  """Every string in every cell, and its image."""
  kinds = itertools.product(range(8), repeat=3)
  cells = itertools.product(range(3), repeat=2)
  strings = np.array([c + k for c, k in itertools.product(cells, kinds)])
  blank = draw.render(BLANK, request.param)
  return strings, np.stack([glyphs.render(blank, s) for s in strings])


def _right(found, strings):
  return np.mean(np.all(found == strings, -1))


def test_every_string_is_read_back_in_every_cell(every):
  strings, images = every
  assert len(strings) == 9 * 8**3
  assert _right(detect.read_strings(images), strings) == 1


def test_strings_are_read_through_noise(every):
  strings, images = every
  noise = np.random.default_rng(0).normal(0, 0.1, images.shape)
  assert _right(detect.read_strings(images / 255 + noise), strings) >= 0.98


def test_letters_are_drawn_as_bitmaps():
  image = glyphs.render(draw.render(BLANK), np.array([1, 1, 0, 1, 7]))
  white = np.all(image == glyphs._INK, -1)
  assert np.all(image[~white] == draw.BACKGROUND)
  lines = [''.join('.#'[int(x)] for x in line[11:22]) for line in white[14:19]]
  assert lines == [
    '.##.#.#.###',
    '#...#.#...#',
    '#.#.###..#.',
    '#.#.#.#.#..',
    '.##.#.#.###',
  ]
  assert white.sum() == ''.join(lines).count('#')


def test_letters_differ_in_five_pixels_or_more():
  flat = glyphs.BITMAPS.reshape(len(glyphs.LETTERS), -1)
  gaps = abs(flat[:, None] - flat[None]).sum(-1)
  assert gaps[~np.eye(len(gaps), dtype=bool)].min() == 5


@pytest.mark.parametrize('side', [32, 48])
def test_scenes_without_a_string_have_none(side):
  source = pipeline.make_source('scenes:crowded', side=side)
  records = [source[i] for i in range(1000)]
  images = np.stack([r['image'] for r in records])
  assert np.all(detect.read_strings(images) == -1)
  scenes = detect.detect_batch(images, text=True)
  for scene, record in zip(scenes, records, strict=True):
    np.testing.assert_array_equal(scene, record['truth'])


@pytest.mark.parametrize('side', [32, 48])
def test_shapes_beside_a_string_are_still_read(side):
  source = pipeline.make_source('glyphs:crowded', side=side)
  records = [source[i] for i in range(1000)]
  images = np.stack([r['image'] for r in records])
  strings = np.stack([r['glyphs'] for r in records])
  noise = np.random.default_rng(1).normal(0, 12 / 255, images.shape)
  assert _right(detect.read_strings(images), strings) == 1
  for seen in (images, images / 255 + noise):
    scenes = detect.detect_batch(seen, text=True)
    same = [
      np.array_equal(a, r['truth'])
      for a, r in zip(scenes, records, strict=True)
    ]
    assert np.mean(same) >= (1 if seen is images else 0.999)


def test_an_empty_image_has_no_string():
  image = draw.render(BLANK)
  assert glyphs.render(image, NONE) is image
  np.testing.assert_array_equal(detect.read_strings(image[None]), NONE[None])
  assert detect.detect(image, text=True).shape == (0, 5)


def test_a_string_is_put_where_nothing_is():
  rng = np.random.default_rng(0)
  scene = np.array([(0, 0, 0, *divmod(cell, 3)) for cell in range(8)])
  strings = np.stack([glyphs.sample(rng, scene) for _ in range(200)])
  assert np.all(strings[:, :2] == 2)
  assert all(set(column) == set(range(8)) for column in strings[:, 2:].T)
  assert len({tuple(glyphs.sample(rng, SCENE)[:2]) for _ in range(200)}) == 7


def test_captions_tell_the_string_last():
  assert grammar.describe(SCENE, string=STRING) == f'{SAID} , {TEXT}'
  assert grammar.describe(SCENE, string=NONE) == SAID
  rng = np.random.default_rng(0)
  detail = dataclasses.replace(grammar.FULL, order='random')
  for _ in range(10):
    caption = grammar.describe(SCENE, rng, detail, STRING)
    assert caption.endswith(f' , {TEXT}')


def test_captions_round_trip_in_24_words():
  rng = np.random.default_rng(0)
  for _ in range(300):
    scene = draw.sample_scene(rng, 3)
    string = glyphs.sample(rng, scene)
    caption = grammar.describe(scene, string=string)
    assert set(caption.split()) <= set(grammar.WORDS)
    assert len(caption.split()) <= 24
    said = [mention.values() for mention in grammar.parse(caption)]
    assert said == [tuple(row) for row in scene.tolist()]
    (text,) = grammar.parse_text(caption)
    assert text.values() == tuple(string.tolist()) and text.surplus == 0


def test_partial_captions_tell_the_string_at_the_stated_odds():
  rng = np.random.default_rng(0)
  captions = [
    grammar.describe(SCENE, rng, grammar.PARTIAL, STRING) for _ in range(3000)
  ]
  assert np.mean([TEXT in c for c in captions]) == pytest.approx(0.7, abs=0.03)
  assert all(grammar.parse(c) for c in captions)


def test_a_string_does_not_move_the_other_words():
  for seed in range(50):
    alone, beside = (
      grammar.describe(SCENE, np.random.default_rng(seed), grammar.PARTIAL, s)
      for s in (None, STRING)
    )
    assert beside.removesuffix(f' , {TEXT}') == alone


def test_any_text_is_parsed():
  read = lambda text: [t.values() for t in grammar.parse_text(text)]
  none = (None,) * 5
  assert read('') == read('red circle top left') == read('a text') == []
  assert read('text') == [none]
  assert read('TEXT g z,text') == [(None, None, 0, 7, None), none]
  assert read('text top g left h right j s') == [(0, 0, 0, 1, 2)]
  (text,) = grammar.parse_text('text top g left h right j s red')
  assert text.surplus == 3
  assert grammar.parse('text red circle top left , blue text') == [
    grammar.Mention(colour=2)
  ]


@pytest.mark.parametrize(
  'caption, recall, exact',
  [
    (f'{SAID} , {TEXT}', 1, 1),
    (SAID, 0, 0),
    ('text g h z middle right', 1, 0),
    ('text g h z', 1, 0),
    ('text g j z middle left', 2 / 3, 0),
    ('text h g z middle left', 1 / 3, 0),
    ('text g h middle left', 2 / 3, 0),
    (f'{TEXT} small', 1, 0),
    (f'{TEXT} , {TEXT}', 1, 0),
    ('g h z middle left', 0, 0),
  ],
)
def test_what_a_caption_says_of_a_string(caption, recall, exact):
  scores = score.glyph_scores([caption, caption], [STRING, NONE])
  assert scores == dict(glyph_recall=pytest.approx(recall), glyph_exact=exact)


def test_strings_say_nothing_of_objects():
  captions = [f'{SAID} , {TEXT}', f'{SAID} , text red circle top left']
  assert score.caption_scores(captions, [SCENE] * 2) == (
    score.caption_scores([SAID] * 2, [SCENE] * 2)
  )


def test_redrawn_strings_and_the_scenes_around_them():
  wrong, moved = STRING + [0, 0, 0, 0, -1], STRING + [1, 0, 0, 0, 0]
  image = draw.render(SCENE)
  drawn = [glyphs.render(image, s) for s in (STRING, wrong, moved, NONE)]
  drawn = np.stack([*drawn, drawn[0]])
  strings = [STRING] * 4 + [NONE]
  found = score.glyphs_redrawn(drawn, strings)
  assert found == dict(glyph_redrawn=1 / 4)
  assert score.glyphs_redrawn(drawn[:1], [NONE]) == dict(glyph_redrawn=0)
  scenes = score.scene_scores(drawn, [SCENE] * 5, text=True)
  assert scenes['exact_scene'] == scenes['object_recall'] == 1


@pytest.mark.parametrize(
  'split, side, want',
  [
    ('train', 32, 489102120),
    ('train', 48, 1009770441),
    ('crowded', 32, 4028831639),
    ('heldout', 32, 1697339837),
    ('edits', 32, 896583586),
  ],
)
def test_scenes_without_strings_are_what_they_were(split, side, want):
  """Images and captions of records from before there were strings."""
  source, crc = pipeline.make_source(f'scenes:{split}', seed=3, side=side), 0
  for i in range(8):
    record, rng = source[i], np.random.default_rng(i)
    scene = record['truth']
    partial = grammar.describe(scene, rng, grammar.PARTIAL)
    for data in (
      record['image'].tobytes(),
      grammar.describe(scene).encode(),
      partial.encode(),
    ):
      crc = zlib.crc32(data, crc)
  assert crc == want
