"""Drawing and scoring with one distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.errors import UserError
from uae_jax.rollout.sampler import EXCLUDED, Sampler

LOGITS = jnp.log(jnp.array([0.4, 0.25, 0.2, 0.1, 0.05]))[
  jnp.array([3, 0, 4, 1, 2])
]
PROBS = np.exp(LOGITS)
SAMPLERS = [
  Sampler(),
  Sampler(0.7),
  Sampler(1.3, top_k=3),
  Sampler(1.0, top_p=0.7),
  Sampler(0.9, top_k=4, top_p=0.8),
  Sampler(0.0),
]


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_sums_to_one(sampler):
  logits = 3 * jax.random.normal(jax.random.key(0), (2, 3, 50))
  total = jnp.exp(sampler.log_probs(logits)).sum(-1)
  np.testing.assert_allclose(total, 1, rtol=1e-5)


def kept(sampler):
  return set(np.flatnonzero(sampler.log_probs(LOGITS) > EXCLUDED / 2))


def test_closed_forms():
  np.testing.assert_allclose(Sampler().log_probs(LOGITS), LOGITS, rtol=1e-6)
  want = PROBS**2 / (PROBS**2).sum()
  np.testing.assert_allclose(
    jnp.exp(Sampler(0.5).log_probs(LOGITS)), want, rtol=1e-5
  )
  # Position 1 holds .4, 3 holds .25, 4 holds .2, 0 holds .1, 2 holds .05.
  assert kept(Sampler(top_k=2)) == {1, 3}
  assert kept(Sampler(top_k=99)) == {0, 1, 2, 3, 4}
  # The token that crosses the mass is the last one kept.
  assert kept(Sampler(top_p=0.39)) == {1}
  assert kept(Sampler(top_p=0.41)) == {1, 3}
  assert kept(Sampler(top_p=0.66)) == {1, 3, 4}
  assert kept(Sampler(top_p=1e-6)) == {1}
  # top_p counts the mass that is left by top_k: .4 / .65 < .62.
  assert kept(Sampler(top_k=2, top_p=0.61)) == {1}
  assert kept(Sampler(top_k=2, top_p=0.62)) == {1, 3}
  # Temperature comes first: it spreads the mass over more tokens.
  assert kept(Sampler(5.0, top_p=0.41)) == {1, 3}
  assert kept(Sampler(5.0, top_p=0.66)) == {1, 3, 4}
  assert kept(Sampler(0.2, top_p=0.66)) == {1}
  np.testing.assert_allclose(
    jnp.exp(Sampler(top_k=2).log_probs(LOGITS))[jnp.array([1, 3])],
    [0.4 / 0.65, 0.25 / 0.65],
    rtol=1e-5,
  )


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_draws_follow_log_probs_and_report_their_score(sampler):
  n = 20_000
  logits = jnp.broadcast_to(LOGITS, (n, 5))
  tokens, logp = sampler.draw(jax.random.key(1), logits)
  np.testing.assert_array_equal(logp, sampler.score(logits, tokens))
  frequency = np.bincount(tokens, minlength=5) / n
  want = np.exp(sampler.log_probs(LOGITS))
  # Five standard deviations of a frequency, and never a cut token.
  assert (np.abs(frequency - want) <= 5 * np.sqrt(want * (1 - want) / n)).all()


def test_greedy_takes_one_of_two_equal_logits():
  token, logp = Sampler(0.0).draw(jax.random.key(0), jnp.array([1.0, 5, 5, 2]))
  assert token == 1 and logp == 0


@pytest.mark.parametrize('sampler', SAMPLERS[:-1], ids=str)
def test_entropy_is_of_the_distribution_drawn_from(sampler):
  p = np.exp(np.asarray(sampler.log_probs(LOGITS), np.float64))
  want = -sum(x * np.log(x) for x in p if x > 0)
  np.testing.assert_allclose(sampler.entropy(LOGITS), want, rtol=1e-5)
  assert Sampler(0.0).entropy(LOGITS) == 0


@pytest.mark.parametrize('sampler', SAMPLERS, ids=str)
def test_gradients_are_finite_for_kept_and_cut_tokens(sampler):
  lp = np.asarray(sampler.log_probs(LOGITS))
  for token in range(5):
    value, got = jax.value_and_grad(sampler.score)(LOGITS, jnp.int32(token))
    assert np.isfinite(value) and np.isfinite(got).all()
    if lp[token] <= EXCLUDED or sampler.temperature == 0:
      want = np.zeros(5)
    else:
      want = (np.eye(5)[token] - np.exp(lp)) / sampler.temperature
    np.testing.assert_allclose(got, want, atol=1e-6)
  assert np.isfinite(jax.grad(sampler.entropy)(LOGITS)).all()


def test_bfloat16_logits_are_scored_in_fp32():
  got = Sampler(0.7).log_probs(LOGITS.astype(jnp.bfloat16))
  assert got.dtype == jnp.float32


@pytest.mark.parametrize(
  'bad', [dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0), dict(top_p=2)]
)
def test_impossible_options_are_user_errors(bad):
  with pytest.raises(UserError, match='top_p'):
    Sampler(**bad)


@pytest.mark.parametrize('cut', [dict(top_k=20), dict(top_p=0.9)])
def test_what_is_cut_does_not_hang_on_the_last_bit(cut):
  x = jax.random.normal(jax.random.key(0), (500, 50))
  edge = Sampler(**cut)._edge(x)
  stays = x >= edge
  for nudge in (1 - 1e-7, 1 + 1e-7):
    np.testing.assert_array_equal(x * nudge >= edge, stays)
  kept = Sampler(**cut).log_probs(x) > EXCLUDED
  np.testing.assert_array_equal(kept, stays)
  if 'top_k' in cut:
    assert (stays.sum(-1) == 20).all()
