"""Long axes by pieces, layers one by one: the same numbers, less at once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.nn.linear import Linear
from uae_jax.nn.stack import Stack, apart, by_chunks

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


class Layer(nn.Module):
  """Adds what is its own to the carry, and tells it."""

  @nn.compact
  def __call__(self, x, own, shared):
    x = jnp.tanh(Linear(4, name='map')(x) + own * shared)
    return x, {'seen': x}


@pytest.mark.parametrize('layers', [3, 6])
def test_layers_apart_are_the_stack(layers):
  stack = Stack(Layer, {}, layers, name='layers')
  xs = RNG.normal(size=(layers, 2, 4)).astype(np.float32)
  args = jnp.ones((2, 4)), xs, 0.3
  params = stack.init(jax.random.key(0), *args)['params']
  cut = apart({'lm': {'layers': params, 'norm': {'scale': 1}}})['lm']
  assert set(cut['layers']) == {f'layer_{i}' for i in range(layers)}
  assert cut['norm'] == {'scale': 1}
  want = stack.apply({'params': params}, *args)
  got = stack.apply({'params': cut['layers']}, *args)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), want, got
  )
  assert got[1]['seen'].shape == (layers, 2, 4)
