"""The drawn world's scores, of models whose answers are known."""

import json

import jax
import numpy as np
import pytest
from pytest import approx

from uae_jax.data.pipeline import SceneSource
from uae_jax.data.scenes import (
  detect,
  draw,
  glyphs,
  grammar,
  prompts,
  score,
)
from uae_jax.eval import scenes_suite
from uae_jax.eval.scenes_suite import ScenesSuite

SIDE, N = 48, 24


def painted(texts, rng=None):
  """Draws what mentions say; what they leave out is the first of its kind."""
  images = []
  for text in texts:
    rows = [
      [value or 0 for value in mention.values()]
      for mention in grammar.parse(text)
    ]
    free = [(r, c) for r in range(3) for c in range(3)]
    for row, mention in zip(rows, grammar.parse(text)):
      if mention.row is None:  # anywhere that is free
        row[3:] = next(
          at for at in free if list(at) not in [r[3:] for r in rows]
        )
    image = draw.render(np.array(rows), SIDE)
    for string in grammar.parse_text(text):
      image = glyphs.render(image, np.array(string.values()))
    images.append(image)
  return np.stack(images)


def told(images, rng=None):
  return [grammar.describe(detect.detect(image)) for image in images]


def read(images, rng=None):
  """Says everything, and strings too."""
  strings = detect.read_strings(np.stack(images))
  scenes = detect.detect_batch(np.stack(images), text=True)
  return [grammar.describe(s, string=t) for s, t in zip(scenes, strings)]


def silent(images, rng=None):
  """Says everything but strings."""
  return [text.split(' , text')[0] for text in read(images)]


def blind(images, rng=None):
  """Says of each scene its first object alone."""
  return [text.split(' , ')[0] for text in told(images)]


def same(first, second):
  pairs = zip(first, second, strict=True)
  return np.array([float(np.array_equal(*pair)) for pair in pairs])


def knows(images, options):
  scenes = [told([image])[0] for image in images]
  return np.array(
    [[float(o in scene) for o in row] for scene, row in zip(scenes, options)]
  )


def suite(**fields):
  whole = dict(
    describe=told, draw=painted, compares={'same': same}, choose=knows,
    side=SIDE, n=N,
  )  # fmt: skip
  return ScenesSuite(**{**whole, **fields})


def rows_of(one, folder, size=8):
  rows = {}
  for start in range(0, len(one.items), size):
    part = one.items[start : start + size]
    done = one.run(part, folder, jax.random.key(start))
    rows |= {row['name']: row for row in done}
  return rows


@pytest.fixture(scope='module')
def perfect(tmp_path_factory):
  return rows_of(suite(), tmp_path_factory.mktemp('perfect'))


def test_who_says_and_draws_everything_scores_everything(perfect):
  scores = suite().scores(perfect)
  assert [*scores][0] == 'unified_score'
  said = [len(row['caption'].split()) for row in perfect.values()]
  assert scores.pop('caption_words').value == approx(np.mean(said))
  for name, one in scores.items():
    full = 100 if name in ('unified_score', 'same') else 1
    assert one.value == full == one.low == one.high, name
  scenes = [np.array(row['scene']) for row in perfect.values()]
  small = sum((scene[:, 2] == draw.SMALL).sum() for scene in scenes)
  assert scores['small_object_recall'].n == small
  hard = sum(len(s) >= 3 for s in scenes)
  assert 0 < hard < N and scores['hard_exact_scene'].n == hard
  for name in prompts.TASKS:
    assert scores[f'prompt_{name}'].n == N


def test_who_says_one_object_scores_that(perfect, tmp_path):
  one = suite(describe=blind, choose=None)
  rows = rows_of(one, tmp_path)
  scores = one.scores(rows)
  scenes = [np.array(row['scene']) for row in rows.values()]
  single = np.mean([len(scene) == 1 for scene in scenes])
  assert 0 < single < 1
  assert scores['unified_score'].value == approx(100 * single)
  assert scores['exact_scene'].value == approx(single)
  assert scores['attribute_precision'].value == 1
  assert scores['attribute_recall'].value == approx(N / sum(map(len, scenes)))
  assert scores['full_exact_scene'].value == 1
  assert 'choice' not in scores
  table = score.caption_scores([r['caption'] for r in rows.values()], scenes)
  for name in ('attribute_recall', 'object_precision', 'small_object_recall'):
    assert scores[name].value == approx(table[name])


def test_strings_have_three_scores_of_their_own(perfect, tmp_path):
  one = suite(describe=read, world='glyphs', choose=None)
  assert one.settings['scenes'] == 'glyphs:heldout'
  (tmp_path / 'read').mkdir()
  rows = rows_of(one, tmp_path / 'read')
  assert json.loads(json.dumps(rows)) == rows
  scores = one.scores(rows)
  for name, score_ in scores.items():
    if name != 'caption_words':
      assert score_.value == (100 if name in ('unified_score', 'same') else 1)
  assert scores['glyph_recall'].n == 3 * N
  assert scores['glyph_exact'].n == scores['glyph_redrawn'].n == N
  plain = suite().scores(perfect)
  added = ['glyph_recall', 'glyph_exact', 'glyph_redrawn']
  assert [k for k in scores if k not in added] == [
    k for k in plain if k != 'choice'
  ]
  quiet = suite(describe=silent, world='glyphs', choose=None)
  scores = quiet.scores(rows_of(quiet, tmp_path))
  assert {scores[name].value for name in added} == {0}
  assert scores['exact_caption'].value == scores['exact_scene'].value == 1
  assert scores['unified_score'].value == 0


def test_one_of_four_phrases_is_true():
  source = SceneSource('heldout')
  answers = []
  for i in range(60):
    scene = source[i]['truth']
    texts, answer = scenes_suite.options(scene, i)
    assert len(set(texts)) == 4
    said = [grammar.parse(text)[0].values() for text in texts]
    there = [tuple(row) for row in scene.tolist()]
    assert [s in there for s in said] == [j == answer for j in range(4)]
    assert all(np.sum(np.array(s) != said[answer]) <= 1 for s in said)
    assert (texts, answer) == scenes_suite.options(scene, i)
    answers.append(answer)
  assert set(answers) == {0, 1, 2, 3}


def test_a_guess_is_right_one_time_in_four(tmp_path):
  guess = lambda images, options: np.random.default_rng(len(images)).random(
    (len(images), 4)
  )
  one = suite(choose=guess, n=200)
  record = SceneSource('heldout', side=SIDE)
  rows = []
  for i in range(200):
    rows.append({'name': f'{i:05d}.png', 'scene': record[i]['truth'].tolist()})
  one._ask(rows, [None] * 200, [np.array(row['scene']) for row in rows])
  right = np.mean([row['chosen'] == row['answer'] for row in rows])
  assert 0.15 < right < 0.35


def test_rows_are_json_and_drawings_are_kept(perfect, tmp_path):
  assert json.loads(json.dumps(perfect)) == perfect
  rows_of(suite(n=8), tmp_path)
  assert len([*tmp_path.glob('*.png')]) == 8


def test_settings_tell_what_was_drawn():
  settings = suite().settings
  assert settings['scenes'] == 'scenes:heldout' and settings['side'] == SIDE
  assert settings['towers'] == ['same']
