"""Caption and image scores on cases counted by hand."""

import numpy as np
import pytest

from uae_jax.data.scenes import draw, grammar, score

# medium blue square top center, small orange cross top right
SCENE = np.array([(1, 2, 1, 0, 1), (3, 6, 0, 0, 2)])


def _scores(*captions, scene=SCENE):
  return score.caption_scores(captions, [scene] * len(captions))


def test_a_complete_caption_is_perfect_in_any_order():
  caption = grammar.describe(SCENE)
  turned = ' , '.join(caption.split(' , ')[::-1])
  for text in (caption, turned):
    scores = _scores(text)
    assert scores.pop('mentions') == 2
    said = {k: v for k, v in scores.items() if k.startswith('said_')}
    assert said == dict(
      said_circle=0, said_square=0.5, said_triangle=0, said_cross=0.5
    )
    assert {v for k, v in scores.items() if k not in said} == {1.0}


def test_a_captioner_that_calls_everything_a_cross_is_seen():
  scores = _scores('blue cross top center , small orange cross')
  assert scores['shape_precision'] == 0.5
  assert scores['colour_precision'] == scores['size_precision'] == 1
  assert scores['said_cross'] == 1 and scores['said_square'] == 0


def test_short_and_true():
  scores = _scores('blue square')
  assert scores['attribute_recall'] == pytest.approx(2 / 10)
  assert scores['attribute_precision'] == 1
  assert scores['object_precision'] == 1
  assert scores['small_object_recall'] == scores['exact_caption'] == 0


def test_a_wrong_word_costs_both_precisions():
  scores = _scores('blue circle top center')
  assert scores['attribute_recall'] == pytest.approx(3 / 10)
  assert scores['attribute_precision'] == pytest.approx(3 / 4)
  assert scores['object_precision'] == 0


def test_repetition_counts_as_wrong():
  scores = _scores(', '.join(['blue square'] * 3))
  # The second has no object of its own; one "blue square" may not even
  # borrow the orange cross, with which it shares nothing.
  assert scores['attribute_recall'] == pytest.approx(2 / 10)
  assert scores['attribute_precision'] == pytest.approx(2 / 6)
  assert scores['object_precision'] == pytest.approx(1 / 3)
  assert scores['mentions'] == 3


def test_matching_is_optimal_not_greedy():
  # Greedy would give the first mention the square (3 of 3) and leave 1 word
  # of the second; swapped they have 2 + 3.
  scene = np.array([(1, 2, 1, 0, 1), (1, 2, 0, 2, 2)])
  text = 'blue square, medium blue square'
  assert _scores(text, scene=scene)['attribute_precision'] == 1


def test_small_object_needs_everything_but_size_in_one_mention():
  recall = lambda text: _scores(text)['small_object_recall']
  assert recall('orange cross top right') == 1
  assert recall('large orange cross top right') == 1
  assert recall('orange cross, top right') == 0
  assert recall('orange cross top left right') == 0


def test_surplus_words_are_not_exact():
  caption = grammar.describe(SCENE) + ' left'
  scores = _scores(caption)
  assert scores['exact_caption'] == 0
  assert scores['attribute_precision'] == pytest.approx(10 / 11)
  assert scores['object_precision'] == pytest.approx(1 / 2)


def test_nothing_said_and_nothing_small():
  assert set(_scores('', 'lorem').values()) == {0.0}
  assert _scores('x', scene=SCENE[:1])['small_object_recall'] == 0


def test_sums_run_over_captions_and_padding_is_left_out():
  padded = np.concatenate([SCENE, -np.ones((2, 5), int)])
  scores = score.caption_scores([grammar.describe(SCENE), ''], [padded, padded])
  assert scores['attribute_recall'] == scores['exact_caption'] == 0.5
  assert scores['mentions'] == 1


def test_scene_scores():
  right, lost, extra = SCENE, SCENE[:1], np.vstack([SCENE, (0, 0, 0, 2, 2)])
  images = np.stack([draw.render(s) for s in (right, lost, extra)])
  scores = score.scene_scores(images, [SCENE] * 3)
  assert scores['exact_scene'] == pytest.approx(1 / 3)
  assert scores['object_recall'] == pytest.approx(5 / 6)
  assert scores['small_object_redrawn'] == pytest.approx(2 / 3)
