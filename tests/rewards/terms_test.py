"""The sum of the terms, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.errors import UserError
from uae_jax.rewards.captions import length
from uae_jax.rewards.features import Tower
from uae_jax.rewards.mine import Mine
from uae_jax.rewards.reconstruction import ensemble, mean_of_valid, standardised
from uae_jax.rewards.terms import Terms
from uae_jax.rewards.text import TextTerm
from uae_jax.types import Captions

ONE = jnp.array([[0.1, 0.3], [0.5, 0.5]])
TWO = jnp.array([[8.0, 4.0], [1.0, 3.0]])
OTHER = jnp.array([[1.0, 2.0], [3.0, 4.0]])
TOWERS = {'one': 1.0, 'two': 0.5}
MINE = Mine('a:b', None, True, None, weight=2.0)
TOWER = Tower(None, 1, (0, 0, 0), (1, 1, 1))


def text(image='drawn', weight=3.0):
  return TextTerm(TOWER, 'text', image, 'cosine', None, weight)


def test_the_default_is_the_weighted_ensemble_and_no_other_number():
  scores = {'one': ONE, 'two': TWO}
  got = Terms().total(scores, TOWERS)
  np.testing.assert_array_equal(got, ensemble(scores, TOWERS))
  np.testing.assert_allclose(got, [[4.1, 2.3], [1.0, 2.0]], rtol=1e-6)


def test_terms_are_added_with_their_weights():
  terms = Terms(
    0.1, length=0.5, length_target=3, repetition=4.0, text=text(), mine=MINE
  )
  scores = dict(
    one=ONE, two=TWO, text=OTHER, length=-OTHER, repetition=-ONE, mine=TWO
  )
  want = 0.1 * (ONE + 0.5 * TWO) + 3 * OTHER - 0.5 * OTHER - 4 * ONE + 2 * TWO
  np.testing.assert_allclose(terms.total(scores, TOWERS), want, rtol=1e-5)


def test_standardised_is_zero_where_a_group_has_no_variance():
  x = jnp.array([[1.0, 2.0, 3.0], [0.7, 0.7, 0.7], [0.0, 0.0, 0.0]])
  root = np.sqrt(1.5)
  want = [[-root, 0, root], [0, 0, 0], [0, 0, 0]]
  np.testing.assert_allclose(standardised(x), want, rtol=1e-6)
  rounding = jnp.array([[0.7, 0.7 + 1e-7]])
  np.testing.assert_array_equal(standardised(rounding), [[0, 0]])
  assert np.isnan(standardised(jnp.array([[1.0, jnp.nan, 2.0]]))).all()


def test_standardised_towers_count_by_their_weight_whatever_their_spread():
  terms = Terms(standardise='group', mine=MINE)
  scores = {'one': ONE, 'two': TWO, 'mine': OTHER}
  # 'one' says -1, 1 of the first group, 'two' 1, -1; mine stays as it is.
  want = np.array([[-1 + 0.5, 1 - 0.5], [-0.5, 0.5]]) + 2 * np.asarray(OTHER)
  np.testing.assert_allclose(terms.total(scores, TOWERS), want, rtol=1e-5)
  wide = terms.total(scores | {'two': 100 * TWO}, TOWERS)
  np.testing.assert_allclose(wide, want, rtol=1e-5)


def test_the_cosine_of_a_text_is_standardised_too():
  terms = Terms(0.0, standardise='group', text=text())
  got = terms.total({'text': OTHER}, {})
  np.testing.assert_allclose(got, [[-3, 3], [-3, 3]], rtol=1e-5)


def test_a_caption_without_a_group_keeps_its_cosines():
  terms = Terms(standardise='group')
  got = terms.total({'one': ONE[:, :1], 'two': TWO[:, :1]}, TOWERS)
  np.testing.assert_allclose(got, [[4.1], [1.0]], rtol=1e-6)


def test_a_failed_term_is_a_failed_reward():
  broken = OTHER.at[1, 0].set(jnp.nan)
  got = Terms(mine=MINE).total({'one': ONE, 'two': TWO, 'mine': broken}, TOWERS)
  np.testing.assert_array_equal(np.isnan(got), [[0, 0], [1, 0]])


def test_towers_need_their_weights():
  with pytest.raises(UserError, match='weight'):
    Terms().total({'one': ONE}, TOWERS)


def test_only_what_looks_needs_a_drawing():
  assert Terms().looks and Terms(0.0, mine=MINE).looks
  assert Terms(0.0, text=text('drawn')).looks
  assert not Terms(0.0, text=text('source')).looks
  assert not Terms(0.0, length=1.0).looks
  assert Terms(0.0, length=1.0).some and not Terms(0.0).some


def test_the_terms_of_tokens_leave_eos_out_of_repetitions():
  tokens = jnp.array([[[7, 7, 5, 0], [7, 8, 9, 5]]])
  captions = Captions(tokens, tokens != 0, jnp.zeros(tokens.shape))
  terms = Terms(length=1.0, length_target=3, repetition=1.0, ngram=1)
  got = terms.of_tokens(captions, 5)
  np.testing.assert_array_equal(got['length'], length(captions.mask, 3))
  np.testing.assert_array_equal(got['length'], [[0, -1]])
  np.testing.assert_array_equal(got['repetition'], [[-0.5, 0]])
  assert Terms().of_tokens(captions, 5) == {}


def test_means_leave_groups_out_that_are_not_valid():
  x = jnp.array([[1.0, 3.0], [jnp.nan, 7.0]])
  assert float(mean_of_valid(x, jnp.array([True, False]))) == 2
  assert float(mean_of_valid(x, jnp.array([False, False]))) == 0
