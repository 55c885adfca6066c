"""Short prompts of a scene, and when a drawing of one is right."""

import numpy as np
import pytest
from pytest import approx

from uae_jax.data.scenes import draw, prompts

# large red circle top left, small blue square middle center, and its twin
SCENE = np.array([[0, 0, 2, 0, 0], [1, 2, 0, 1, 1], [1, 2, 1, 2, 2]])


def test_every_scene_asks_one_question_of_each_kind():
  padded = np.vstack([SCENE, [[-1] * 5]])
  assert prompts.prompts(padded) == (
    'circle',
    'circle , square',
    'red circle , red circle , red circle',
    'red circle',
    'red circle top left',
    'red circle , blue square',
  )


@pytest.mark.parametrize(
  'task, prompt, want',
  [
    ('single_object', 'square', True),
    ('single_object', 'cross', False),
    ('two_object', 'square , square', True),
    ('two_object', 'circle , circle', False),
    ('colors', 'red circle', True),
    ('colors', 'red square', False),
    ('position', 'red circle top left', True),
    ('position', 'red circle top right', False),
    ('color_attr', 'red circle , blue square', True),
    ('color_attr', 'blue circle , red square', False),
    ('color_attr', 'blue square , blue square', True),
    ('color_attr', 'red circle , red circle', False),
    ('counting', 'red circle , red circle', False),
    ('counting', 'red circle', False),
    ('counting', 'blue square , red circle , blue square', True),
    ('counting', 'blue square , blue square', False),
  ],
)
def test_mentions_need_objects_of_their_own(task, prompt, want):
  assert prompts.right(task, prompt, SCENE) == want
  assert not prompts.right(task, prompt, SCENE[:0])


def test_scores_are_read_from_drawings():
  one = SCENE[:1]
  three = np.array([[0, 0, 1, r, 1] for r in range(3)])
  images = np.stack([
    np.stack([draw.render(s) for s in (one, one, three, one, one, SCENE)]),
    np.stack(
      [draw.render(s) for s in (one, SCENE, one, SCENE[1:], one, SCENE[1:])]
    ),
  ]) / 255  # fmt: skip
  got = prompts.prompt_scores(images, [SCENE, SCENE])
  assert got == dict(
    single_object=1.0,
    two_object=0.5,
    counting=0.5,
    colors=0.5,
    position=1.0,
    color_attr=0.5,
    overall=approx(4 / 6),
  )
