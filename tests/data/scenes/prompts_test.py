"""Short prompts of a scene, and when a drawing of one is right."""

import numpy as np
import pytest

from uae_jax.data.scenes import draw, prompts

# large red circle top left, small blue square middle center, and its twin
SCENE = np.array([[0, 0, 2, 0, 0], [1, 2, 0, 1, 1], [1, 2, 1, 2, 2]])


def test_every_scene_asks_one_question_of_each_kind():
  padded = np.vstack([SCENE, [[-1] * 5]])
  assert prompts.prompts(padded) == (
    'red circle , red circle , red circle',
    'red circle',
    'red circle top left',
    'red circle , blue square',
  )


@pytest.mark.parametrize(
  'task, prompt, want',
  [
    ('colour', 'red circle', True),
    ('colour', 'red square', False),
    ('position', 'red circle top left', True),
    ('position', 'red circle top right', False),
    ('colour_attribution', 'red circle , blue square', True),
    ('colour_attribution', 'blue circle , red square', False),
    ('colour_attribution', 'blue square , blue square', True),
    ('colour_attribution', 'red circle , red circle', False),
    ('count', 'red circle , red circle', False),
    ('count', 'red circle', False),
    ('count', 'blue square , red circle , blue square', True),
    ('count', 'blue square , blue square', False),
  ],
)
def test_mentions_need_objects_of_their_own(task, prompt, want):
  assert prompts.right(task, prompt, SCENE) == want
  assert not prompts.right(task, prompt, SCENE[:0])


def test_scores_are_read_from_drawings():
  one = SCENE[:1]
  three = np.array([[0, 0, 1, r, 1] for r in range(3)])
  images = np.stack([
    np.stack([draw.render(s) for s in (three, one, one, SCENE)]),
    np.stack([draw.render(s) for s in (one, SCENE[1:], one, SCENE[1:])]),
  ]) / 255  # fmt: skip
  got = prompts.prompt_scores(images, [SCENE, SCENE])
  assert got == dict(
    count=0.5, colour=0.5, position=1.0, colour_attribution=0.5, overall=0.625
  )
