"""Captions: complete ones are lossless, partial ones have the stated odds."""

import dataclasses

import numpy as np
import pytest

from uae_jax.data.scenes import draw, grammar

SCENE = np.array([(1, 2, 1, 0, 1), (3, 6, 0, 0, 2)])
CAPTION = 'medium blue square top center , small orange cross top right'


def test_full_caption_reads_as_documented():
  assert grammar.describe(SCENE) == CAPTION


def test_full_captions_are_lossless_and_short():
  rng = np.random.default_rng(0)
  for _ in range(300):
    scene = draw.sample_scene(rng)
    caption = grammar.describe(scene)
    read = [mention.values() for mention in grammar.parse(caption)]
    assert read == [tuple(row) for row in scene.tolist()]
    assert len(caption.split()) <= 23
    assert set(caption.split()) <= set(grammar.WORDS)


def test_partial_captions_have_the_stated_odds():
  rng = np.random.default_rng(1)
  small = np.array([(0, 0, 2, 0, 0), (1, 1, 0, 1, 1)])  # second one is small
  said = [
    grammar.parse(grammar.describe(small, rng, grammar.PARTIAL))
    for _ in range(4000)
  ]
  greens = [m for ms in said for m in ms if m.colour == 1]
  reds = [m for ms in said for m in ms if m.colour == 0]
  # A caption of neither names one of the two: .1 x .8 of them, half each.
  assert len(greens) / 4000 == pytest.approx(0.2 + 0.04, abs=0.03)
  assert len(reds) / 4000 == pytest.approx(0.9 + 0.04, abs=0.03)
  share = lambda test: np.mean([test(m) for m in reds])
  assert share(lambda m: m.size is None) == pytest.approx(0.57, abs=0.03)
  assert share(lambda m: m.row is None) == pytest.approx(0.47, abs=0.03)
  assert share(lambda m: m.shape != 0) == pytest.approx(0.08, abs=0.03)
  assert all(ms for ms in said)


def test_describing_leaves_the_scene_alone():
  scene = SCENE.copy()
  detail = dataclasses.replace(grammar.FULL, wrong_shape=1.0)
  caption = grammar.describe(scene, np.random.default_rng(0), detail)
  assert 'square top' not in caption
  np.testing.assert_array_equal(scene, SCENE)


def test_random_order_permutes():
  detail = dataclasses.replace(grammar.FULL, order='random')
  rng = np.random.default_rng(0)
  captions = {grammar.describe(SCENE, rng, detail) for _ in range(20)}
  assert captions == {CAPTION, ' , '.join(CAPTION.split(' , ')[::-1])}


@pytest.mark.parametrize(
  'text', ['', ',,,', 'lorem ipsum', '\x00 <unk>, é', ' , ' * 99]
)
def test_garbage_has_no_mentions(text):
  assert grammar.parse(text) == []


def test_parser_is_tolerant():
  red, blue = grammar.parse('a RED red green circle,square the blue')
  assert (red.colour, red.shape, red.surplus) == (0, 0, 2)
  assert (blue.shape, blue.colour, blue.row, blue.surplus) == (1, 2, None, 0)
