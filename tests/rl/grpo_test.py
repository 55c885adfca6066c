"""The clipped objective: each option, by its closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rl import grpo
from uae_jax.rl.advantage import group_advantage
from uae_jax.rl.grpo import GRPO, grpo_loss

B, G, L = 2, 3, 5
LENGTHS = np.array([[5, 1, 3], [2, 5, 4]])
MASK = np.arange(L) < LENGTHS[..., None]


def draws(seed=0, gap=0.3):
  """(logp, old_logp, ref_logp, adv), the first three fp32 [B G L]."""
  rng = np.random.default_rng(seed)
  old = -rng.uniform(0.1, 3, (B, G, L))
  logp = old + gap * rng.normal(size=old.shape)
  ref = old + gap * rng.normal(size=old.shape)
  adv = rng.normal(size=(B, G))
  return tuple(jnp.float32(x) for x in (logp, old, ref, adv))


def gradient(options, logp, old, ref, adv, mask=MASK):
  return jax.grad(
    lambda x: grpo_loss(x, old, ref, adv, jnp.asarray(mask), options)[0]
  )(logp)


def test_first_update_is_the_policy_gradient():
  """At r = 1 the loss is -mean A and its gradient -A / (captions * length)."""
  _, old, _, adv = draws()
  loss, metrics = grpo_loss(old, old, None, adv, MASK, GRPO())
  np.testing.assert_allclose(loss, -adv.mean(), rtol=1e-5)
  got = gradient(GRPO(), old, old, None, adv)
  want = -adv[..., None] / LENGTHS[..., None] / (B * G) * MASK
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)
  assert metrics['policy/ratio_max'] == 1 and metrics['policy/ratio_gap'] == 0
  assert 'policy/kl' not in metrics


@pytest.mark.parametrize('ratio', grpo.RATIOS)
@pytest.mark.parametrize('aggregation', grpo.AGGREGATIONS)
def test_zero_variance_groups_have_exactly_zero_gradient(ratio, aggregation):
  logp, old, _, _ = draws()
  reward = jnp.array([[0.73, 0.73, 0.73], [0.1, 0.5, 0.9]])
  adv, _, _ = group_advantage(reward, np.ones(B, bool))
  options = GRPO(ratio=ratio, aggregation=aggregation)
  got = gradient(options, logp, old, None, adv)
  assert (np.asarray(got[0]) == 0).all() and np.abs(got[1]).max() > 0


def test_clip_bounds_are_asymmetric():
  ratio = jnp.array([0.5, 0.85, 1.0, 1.25, 1.5])
  up = grpo.clipped_gain(ratio, jnp.ones(5), 0.2, 0.28)
  np.testing.assert_allclose(up, [0.5, 0.85, 1, 1.25, 1.28], rtol=1e-6)
  down = grpo.clipped_gain(ratio, -jnp.ones(5), 0.2, 0.28)
  np.testing.assert_allclose(down, [-0.8, -0.85, -1, -1.25, -1.5], rtol=1e-6)


def test_clipped_tokens_have_no_gradient_and_are_counted():
  log_ratio = jnp.log(jnp.array([[[0.7, 1.4, 1.0]] * 2]))
  adv, mask = jnp.array([[1.0, -1.0]]), np.ones((1, 2, 3), bool)
  old = jnp.full((1, 2, 3), -1.0)
  options = GRPO(clip_low=0.2, clip_high=0.3)
  got = gradient(options, old + log_ratio, old, None, adv, mask)
  np.testing.assert_array_equal(
    np.asarray(got) != 0, [[[True, False, True], [False, True, True]]]
  )
  _, metrics = grpo_loss(old + log_ratio, old, None, adv, mask, options)
  np.testing.assert_allclose(metrics['policy/clip_frac_low'], 1 / 6)
  np.testing.assert_allclose(metrics['policy/clip_frac_high'], 1 / 6)
  np.testing.assert_allclose(metrics['policy/ratio_max'], 1.4, rtol=1e-6)
  np.testing.assert_allclose(metrics['policy/ratio_gap'], 0.4, rtol=1e-5)


def test_kl_estimators_have_their_closed_form_and_expectation():
  policy = jnp.array([0.5, 0.3, 0.2])
  ref = jnp.array([0.4, 0.4, 0.2])
  logp, ref_logp = jnp.log(policy), jnp.log(ref)
  exact = jnp.sum(policy * (logp - ref_logp))
  k1, k2, k3 = (grpo.kl_estimate(logp, ref_logp, k) for k in grpo.KLS)
  np.testing.assert_allclose(jnp.sum(policy * k1), exact, rtol=1e-5)
  np.testing.assert_allclose(jnp.sum(policy * k3), exact, rtol=1e-5)
  np.testing.assert_allclose(k2, (logp - ref_logp) ** 2 / 2, rtol=1e-6)
  np.testing.assert_allclose(
    k3, ref / policy - (ref_logp - logp) - 1, rtol=1e-4, atol=1e-7
  )
  assert (np.asarray(k3) >= 0).all() and np.asarray(k1).min() < 0
  with pytest.raises(ValueError, match='k4'):
    grpo.kl_estimate(logp, ref_logp, 'k4')


@pytest.mark.parametrize('kl', grpo.KLS)
def test_beta_adds_the_kl_to_the_loss(kl):
  logp, old, ref, adv = draws()
  loss = lambda beta, ref: grpo_loss(
    logp, old, ref, adv, MASK, GRPO(beta=beta, kl=kl, aggregation='token')
  )
  without, _ = loss(0.0, None)
  with_kl, metrics = loss(0.5, ref)
  want = np.asarray(grpo.kl_estimate(logp, ref, kl))[MASK].mean()
  np.testing.assert_allclose(metrics['policy/kl'], want, rtol=1e-5)
  np.testing.assert_allclose(with_kl - without, 0.5 * want, rtol=1e-3)
  with pytest.raises(ValueError, match='reference'):
    loss(0.5, None)


def test_aggregations_differ_on_unequal_lengths():
  values = jnp.array([[[1.0, 1, 1, 1], [5, 9, 9, 9]]])
  mask = jnp.array([[[True] * 4, [True, False, False, False]]])
  at = lambda how: float(grpo.aggregate(values, mask, how, 4))
  np.testing.assert_allclose(at('sequence'), (1 + 5) / 2)
  np.testing.assert_allclose(at('token'), (4 + 5) / 5, rtol=1e-6)
  np.testing.assert_allclose(at('constant'), (4 + 5) / (2 * 4))
  with pytest.raises(ValueError, match='mean'):
    at('mean')


@pytest.mark.parametrize('aggregation', grpo.AGGREGATIONS)
def test_a_caption_left_out_is_in_no_denominator(aggregation):
  logp, old, ref, adv = draws()
  mask = MASK.copy()
  mask[0] = False
  options = GRPO(beta=0.1, aggregation=aggregation)
  loss, metrics = grpo_loss(logp, old, ref, adv, mask, options)
  want, want_metrics = grpo_loss(
    logp[1:], old[1:], ref[1:], adv[1:], MASK[1:], options
  )
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  for name, value in metrics.items():
    np.testing.assert_allclose(value, want_metrics[name], rtol=1e-6)


def test_sequence_ratio_is_the_geometric_mean():
  logp, old, _, adv = draws()
  got = grpo.sequence_ratio(logp, old, MASK)
  for b, g in np.ndindex(B, G):
    n = LENGTHS[b, g]
    want = np.exp(np.mean(np.asarray(logp - old)[b, g, :n]))
    np.testing.assert_allclose(got[b, g, :n], want, rtol=1e-5)
    np.testing.assert_array_equal(got[b, g, n:], 1)
  options = GRPO(ratio='sequence', clip_low=0.02, clip_high=0.05)
  loss, _ = grpo_loss(logp, old, None, adv, MASK, options)
  s = got[..., 0]
  gain = jnp.minimum(s * adv, jnp.clip(s, 0.98, 1.05) * adv)
  np.testing.assert_allclose(loss, -gain.mean(), rtol=1e-5)


@pytest.mark.parametrize('garbage', [np.nan, np.inf, -np.inf, -1e30, 1e30])
@pytest.mark.parametrize('ratio', grpo.RATIOS)
@pytest.mark.parametrize('aggregation', grpo.AGGREGATIONS)
@pytest.mark.parametrize('kl', grpo.KLS)
def test_masked_garbage_changes_nothing(garbage, ratio, aggregation, kl):
  logp, old, ref, adv = draws()
  options = GRPO(beta=0.3, ratio=ratio, aggregation=aggregation, kl=kl)
  want = gradient(options, logp, old, ref, adv)
  spoil = lambda x: jnp.where(MASK, x, garbage)
  got = gradient(options, spoil(logp), spoil(old), spoil(ref), adv)
  np.testing.assert_array_equal(got, want)
  assert (np.asarray(got)[~MASK] == 0).all()
  np.testing.assert_array_equal(
    grpo_loss(spoil(logp), old, spoil(ref), adv, MASK, options)[0],
    grpo_loss(logp, old, ref, adv, MASK, options)[0],
  )


@pytest.mark.parametrize('kl', grpo.KLS)
@pytest.mark.parametrize('ratio', grpo.RATIOS)
def test_a_token_outside_the_kept_set_stays_finite(kl, ratio):
  logp, old, ref, adv = draws()
  options = GRPO(beta=0.1, kl=kl, ratio=ratio)
  logp, ref = logp.at[0, 0, 0].set(-1e30), ref.at[1, 1, 1].set(-1e30)
  loss, metrics = grpo_loss(logp, old, ref, adv, MASK, options)
  assert np.isfinite(loss) and all(np.isfinite(x) for x in metrics.values())
  got = gradient(options, logp, old, ref, adv)
  assert np.isfinite(got).all() and got[0, 0, 0] == 0


def test_everything_masked_is_zero():
  logp, old, ref, adv = draws()
  loss, metrics = grpo_loss(logp, old, ref, adv, ~MASK & MASK, GRPO(beta=1.0))
  assert loss == 0 and all(np.isfinite(x) for x in metrics.values())


def test_unknown_options_are_refused_and_options_are_static():
  wrong = dict(
    kl='k4',
    aggregation='mean',
    ratio='word',
    clip_low=1.5,
    clip_high=-1.0,
    beta=-1.0,
  )
  for name, value in wrong.items():
    with pytest.raises(ValueError, match=name):
      dataclasses.replace(GRPO(), **{name: value})
  assert hash(GRPO()) == hash(GRPO())
