"""The reconstruction reward."""

import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.errors import UserError
from uae_jax.rewards.reconstruction import ensemble, finite_groups, similarity


def test_similarity_is_the_cosine_with_the_own_source():
  rng = np.random.default_rng(0)
  source, recon = rng.normal(size=(3, 16)), rng.normal(size=(3, 4, 16))
  recon[1, 2] = 5 * source[1]
  got = similarity(jnp.float32(source), jnp.float32(recon))
  norms = np.linalg.norm(source, axis=-1)[:, None]
  want = np.einsum('be,bge->bg', source, recon) / norms
  want = want / np.linalg.norm(recon, axis=-1)
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_allclose(got[1, 2], 1, rtol=1e-6)


def test_similarity_of_bfloat16_embeddings_is_fp32():
  x = jnp.ones((1, 768), jnp.bfloat16)
  got = similarity(x, x[:, None])
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 1, rtol=1e-6)


def test_ensemble_weighs_towers_by_name():
  scores = {'clip': jnp.array([[1.0, 2.0]]), 'dino': jnp.array([[10.0, 0.0]])}
  got = ensemble(scores, {'dino': 0.5, 'clip': 2.0})
  np.testing.assert_allclose(got, [[7.0, 4.0]])


@pytest.mark.parametrize('weights', [{}, {'dino': 1.0}, {'clip': 1, 'a': 1}])
def test_ensemble_refuses_other_names(weights):
  with pytest.raises(UserError, match='weight'):
    ensemble({'clip': jnp.ones((1, 2))}, weights)


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_masks_its_group_only(bad):
  reward = jnp.array([[1.0, 2.0], [3.0, bad], [5.0, 6.0]])
  got, valid = finite_groups(reward)
  np.testing.assert_array_equal(got, [[1, 2], [0, 0], [5, 6]])
  np.testing.assert_array_equal(valid, [True, False, True])
