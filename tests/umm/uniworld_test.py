"""Reference images are spliced where UniWorld puts them."""

import jax
import numpy as np
import pytest

from uae_jax.umm.uniworld import join, splice

END, PAD = 9, 0
ROWS = [  # tokens, of which some close an image
  [4, 5, END, 6],
  [4, END, 7, 7, END, 2, 3],
  [4, 5, 6],
  [END, END],
]
IMAGES, PATCHES, WIDTH = 2, 3, 5


def inputs(length=7):
  """Rows padded on the right, with states and blocks of random numbers."""
  rng = np.random.default_rng(0)
  ids = np.full((len(ROWS), length), PAD)
  mask = np.zeros(ids.shape, bool)
  for row, tokens in enumerate(ROWS):
    ids[row, : len(tokens)] = tokens
    mask[row, : len(tokens)] = True
  # What stands in the padding must not matter.
  ids[~mask] = END
  context = rng.normal(size=(*ids.shape, WIDTH)).astype(np.float32)
  blocks = rng.normal(size=(len(ROWS), IMAGES, PATCHES, WIDTH))
  return context, mask, ids, blocks.astype(np.float32)


def stated(context, ids, blocks):
  """The rule, token by token, for one row without padding."""
  out, images = [], iter(blocks)
  for state, token in zip(context, ids):
    if token == END:
      out += list(next(images))
    out.append(state)
  return np.stack(out)


@pytest.mark.parametrize('length', [7, 11])
def test_blocks_stand_before_the_end_of_their_image(length):
  context, mask, ids, blocks = inputs(length)
  got, seen = jax.jit(splice, static_argnums=4)(context, mask, ids, blocks, END)
  assert got.shape == (len(ROWS), length + IMAGES * PATCHES, WIDTH)
  for row, tokens in enumerate(ROWS):
    n = len(tokens)
    want = stated(context[row, :n], ids[row, :n], blocks[row])
    np.testing.assert_array_equal(np.asarray(got[row])[seen[row]], want)


def test_images_that_are_not_given_are_no_tokens():
  context, mask, ids, blocks = inputs()
  got, seen = splice(context, mask, ids, blocks[:, :1], END)
  n = len(ROWS[1])
  first = ROWS[1].index(END)
  want = np.concatenate([context[1, :first], blocks[1, 0], context[1, first:n]])
  np.testing.assert_array_equal(np.asarray(got[1])[seen[1]], want)


def test_the_prompt_follows_and_its_padding_is_seen():
  context, mask, _, _ = inputs()
  ones = np.ones((len(ROWS), 4, WIDTH), np.float32)
  cond = dict(context=context, mask=mask, pooled=np.zeros((len(ROWS), 2)))
  out = join(cond, dict(context=ones, pooled=np.ones((len(ROWS), 2))))
  assert out['pooled'].min() == 1
  np.testing.assert_array_equal(out['context'][:, :7], context)
  np.testing.assert_array_equal(out['context'][:, 7:], ones)
  np.testing.assert_array_equal(out['mask'][:, :7], mask)
  assert out['mask'][:, 7:].all()
