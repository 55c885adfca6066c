"""Group-relative advantages."""

import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.rewards.reconstruction import finite_groups
from uae_jax.rl.advantage import group_advantage

REWARD = np.random.default_rng(0).uniform(0.5, 0.9, (4, 8)).astype(np.float32)
VALID = np.ones(4, bool)


def test_mean_zero_and_unit_std():
  adv, keep, metrics = group_advantage(REWARD, VALID)
  np.testing.assert_allclose(adv.mean(-1), 0, atol=1e-6)
  np.testing.assert_allclose(adv.std(-1), 1, rtol=1e-4)
  assert keep.all()
  np.testing.assert_allclose(metrics['reward/mean'], REWARD.mean(), rtol=1e-6)
  std = REWARD.std(-1).mean()
  np.testing.assert_allclose(metrics['reward/std'], std, rtol=1e-5)
  assert metrics['reward/zero_std'] == metrics['reward/invalid'] == 0


def test_scale_none_keeps_the_units_of_the_reward():
  adv, _, _ = group_advantage(REWARD, VALID, 'none')
  want = REWARD - REWARD.mean(-1, keepdims=True)
  np.testing.assert_allclose(adv, want, atol=1e-6)
  with pytest.raises(ValueError, match='scale'):
    group_advantage(REWARD, VALID, 'mad')


@pytest.mark.parametrize('scale', ['std', 'none'])
@pytest.mark.parametrize('value', [0.0, 0.7310586, -3.3, 90.1])
def test_equal_rewards_give_exactly_zero_despite_rounding(scale, value):
  reward = REWARD.copy()
  reward[1] = value
  # One unit in the last place is not a signal.
  reward[1, 0] = np.nextafter(np.float32(value), np.float32(100))
  adv, keep, metrics = group_advantage(reward, VALID, scale)
  assert (np.asarray(adv[1]) == 0).all()
  assert np.abs(adv[0]).max() > 0 and keep.all()
  np.testing.assert_allclose(metrics['reward/zero_std'], 0.25)


def test_a_small_true_difference_still_counts():
  reward = np.full((1, 8), 0.8, np.float32)
  reward[0, 3] += 1e-3
  adv, _, _ = group_advantage(reward, VALID[:1])
  np.testing.assert_allclose(adv[0, 3], 7**0.5, rtol=1e-2)


def test_filter_drops_zero_variance_groups_from_the_mask():
  reward = REWARD.copy()
  reward[2] = 0.5
  _, keep, _ = group_advantage(reward, VALID, filter_zero_std=True)
  np.testing.assert_array_equal(keep, [True, True, False, True])


def test_nan_masks_its_group_and_leaves_the_others_alone():
  reward = jnp.asarray(REWARD).at[1, 5].set(jnp.nan)
  adv, keep, metrics = group_advantage(*finite_groups(reward))
  rest = np.array([0, 2, 3])
  want, _, want_metrics = group_advantage(REWARD[rest], VALID[:3])
  np.testing.assert_array_equal(adv[rest], want)
  assert (np.asarray(adv[1]) == 0).all()
  np.testing.assert_array_equal(keep, [True, False, True, True])
  assert metrics.pop('reward/invalid') == 1
  for name, value in metrics.items():
    np.testing.assert_allclose(value, want_metrics[name], rtol=1e-6)


def test_no_valid_group_is_finite():
  adv, keep, metrics = group_advantage(REWARD, ~VALID)
  assert (np.asarray(adv) == 0).all() and not keep.any()
  assert all(np.isfinite(x) for x in metrics.values())
