"""Long axes by pieces: the same numbers and gradients, less at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.nn.stack import by_chunks

RNG = np.random.default_rng(0)
X, W = RNG.normal(size=(2, 6, 10, 4)), RNG.normal(size=(4, 50))
T = RNG.integers(0, 50, (2, 3, 10))


def score(chunk, w, x):
  def piece(x, tokens):  # two rows of x for one of tokens
    logp = jax.nn.log_softmax(sum(jnp.split(x @ w, 2, 1)))
    return jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0]

  return by_chunks(piece, chunk, x, jnp.asarray(T))


@pytest.mark.parametrize('chunk', [1, 3, 5, 10, 99])
def test_pieces_equal_the_whole(chunk):
  whole, pieces = score(0, W, X), score(chunk, W, X)
  assert pieces.shape == (2, 3, 10)
  np.testing.assert_allclose(pieces, whole, atol=1e-6)
  grad = lambda chunk: jax.grad(
    lambda w, x: jnp.sum(score(chunk, w, x) ** 2), (0, 1)
  )(W, X)
  for a, b in zip(grad(0), grad(chunk)):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_logits_of_the_whole_length_never_exist():
  def text(chunk):
    loss = lambda w, x: jnp.sum(score(chunk, w, x))
    return jax.jit(jax.grad(loss)).lower(W, X).as_text()

  assert '2x6x10x50x' in text(0)
  assert '2x6x10x50x' not in text(5) and '2x6x5x50x' in text(5)
