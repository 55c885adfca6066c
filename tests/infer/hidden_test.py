"""Images redrawn from hidden states, by the model in the package."""

import jax
import numpy as np
import pytest

from uae_jax.data.pipeline import SceneSource
from uae_jax.errors import UserError
from uae_jax.infer.hidden import load_redrawer
from uae_jax.infer.load import load
from uae_jax.sharding.mesh import make_mesh
from uae_jax.types import Batch


@pytest.fixture(scope='module')
def made():
  """Sources, the redrawer, and what it makes of them."""
  source = SceneSource('heldout')
  images = [source[i]['image'] for i in range(3)]
  redraw = load_redrawer('bundled:umm1', make_mesh(-1, 1), {})
  return images, redraw, redraw(images, jax.random.key(5))


def test_captions_are_those_of_the_text_path(made):
  images, redraw, (texts, drawn) = made
  model = load('bundled:umm1', make_mesh(-1, 1), {})
  words, noise = jax.random.split(jax.random.key(5))
  assert texts == model.describe(images, words)
  assert drawn.shape == (3, 32, 32, 3) and drawn.dtype == np.uint8
  # The same noise and decoder, from what the caption alone says.
  assert (drawn != model.draw(texts, noise)).any()


def test_drawings_come_from_states_at_the_caption(made):
  images, redraw, (texts, drawn) = made
  d = redraw.describer
  umm = d.umm
  words, noise = jax.random.split(jax.random.key(5))
  rows = [d.example(image) for image in images]
  rows += [rows[-1]] * (d.batch - len(rows))
  arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
  batch = Batch(image=None, **arrays)
  policy = {'params': d.policy}
  prefix = umm.vlm.apply(policy, batch, method='prefill')
  captions = umm.describe(d.policy, prefix, words, 1)
  hidden = umm.vlm.apply(
    policy, prefix, captions.tokens, captions.mask, method='after'
  )
  context, pooled = umm.connector.apply(
    {'params': redraw.frozen['connector']}, hidden, captions.mask
  )
  x = umm.painter.noise(noise, d.batch)
  first = lambda y: y.reshape(d.batch, *y.shape[2:])
  want = umm.painter(
    redraw.frozen, first(x[:, None]),
    dict(context=first(context), pooled=first(pooled),
         mask=first(captions.mask)),
  )  # fmt: skip
  want = np.round(np.asarray(want)[:3] * 255)
  assert np.abs(drawn - want).max() <= 1


@pytest.mark.parametrize('name', ['bundled:umm2', 'bundled:umm1/decoder'])
def test_other_folders_are_user_errors(name):
  with pytest.raises(UserError):
    load_redrawer(name, make_mesh(-1, 1), {})
