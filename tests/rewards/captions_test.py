"""Length and repetition, counted by hand."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rewards.captions import length, repetition

A, B, C, EOS, PAD = 7, 8, 9, 5, 0


def padded(*captions):
  """tokens, mask and words [1 G 8] of captions without their EOS."""
  rows = [[*c, EOS, *[PAD] * (7 - len(c))] for c in captions]
  at = np.arange(8)
  mask = [at <= len(c) for c in captions]
  words = [at < len(c) for c in captions]
  return jnp.array([rows]), jnp.array([mask]), jnp.array([words])


def test_length_is_free_up_to_the_target_then_linear():
  _, mask, _ = padded([A] * 2, [A] * 3, [A] * 4, [A] * 7)
  # Three, four, five and eight tokens with EOS.
  np.testing.assert_array_equal(length(mask, 4), [[0, 0, -1, -4]])


def test_repetition_is_the_share_of_ngrams_that_came_before():
  tokens, _, words = padded(
    [A, B, A, B, A],  # ab ba ab ba
    [A, B, C],
    [A, A, A, A],  # aa aa aa
    [A],
    [],
  )
  got = repetition(tokens, words, 2)
  np.testing.assert_allclose(got, [[-1 / 2, 0, -2 / 3, 0, 0]], rtol=1e-6)
  got = repetition(tokens, words, 1)
  np.testing.assert_allclose(got, [[-3 / 5, 0, -3 / 4, 0, 0]], rtol=1e-6)


def test_grams_longer_than_the_budget_repeat_nothing():
  tokens, _, words = padded([A] * 7)
  assert float(repetition(tokens, words, 9)[0, 0]) == 0


@pytest.mark.parametrize('n', [1, 2, 3])
def test_repetition_of_random_captions_is_that_of_sets(n):
  rng = np.random.default_rng(n)
  captions = [
    rng.integers(6, 9, rng.integers(0, 8)).tolist() for _ in range(99)
  ]
  tokens, _, words = padded(*captions)
  got = repetition(tokens, words, n)[0]
  for value, caption in zip(got, captions):
    shifted = [itertools.islice(caption, i, None) for i in range(n)]
    grams = [*zip(*shifted)]
    want = (len(set(grams)) - len(grams)) / max(len(grams), 1)
    assert abs(float(value) - want) < 1e-6, caption
