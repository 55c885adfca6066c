"""What each option of the objective changes in the update of a step.

The arithmetic of each is in tests/rl; here it has to arrive in the
parameters, from rollouts made up for the purpose.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_umm
from tests.tiny_umm import OPTIONS, change, learned, random_rollout


def options(*, filter_zero_std=False, mask_truncated=False, **loss):
  return dataclasses.replace(
    OPTIONS,
    filter_zero_std=filter_zero_std,
    mask_truncated=mask_truncated,
    loss=dataclasses.replace(OPTIONS.loss, **{'beta': 0.0, **loss}),
  )


def update(rollout, opts):
  before, after, _ = learned(rollout, opts)
  return jax.tree.map(lambda a, b: np.asarray(b - a), before, after)


def test_filtering_divides_by_the_groups_with_variance():
  """Three of eight groups are flat: what is left counts 8 / 5 as much."""
  rollout = random_rollout()
  reward = rollout.reward.at[jnp.array([0, 3, 6])].set(0.5)
  rollout = rollout.replace(reward=reward)
  plain = update(rollout, options())
  filtered = update(rollout, options(filter_zero_std=True))
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(filtered))
  more = jax.tree.map(lambda x: 8 / 5 * x, plain)
  assert change(more, filtered) < 1e-4 * scale
  assert change(plain, filtered) > 0.1 * scale


@pytest.mark.parametrize('masked', [True, False])
def test_truncated_captions_are_left_out_only_when_asked(masked):
  """Other words in the captions that have no EOS change nothing then."""
  ended = np.arange(tiny_umm.GROUP) % 2 == 0
  one = random_rollout(ended=ended)
  tokens = one.captions.tokens
  other_words = jnp.where(ended[None, :, None], tokens, 6 + (tokens - 5) % 32)
  other = one.replace(captions=one.captions.replace(tokens=other_words))
  opts = options(mask_truncated=masked)
  gap = change(update(one, opts), update(other, opts))
  assert (gap == 0) if masked else (gap > 1e-6)
  before, after, metrics = learned(one, opts)
  assert float(metrics['caption/truncated']) == 0.5
  assert change(before, after) > 0


@pytest.mark.parametrize(
  'changed',
  [
    dict(clip_low=0.01),
    dict(clip_high=0.01),
    dict(aggregation='token'),
    dict(aggregation='constant'),
    dict(ratio='sequence'),
    dict(beta=0.3),
    dict(beta=0.3, kl='k1'),
    dict(beta=0.3, kl='k2'),
  ],
  ids=str,
)
def test_every_choice_of_the_loss_reaches_the_update(changed):
  base = dict(beta=0.3) if 'kl' in changed else {}
  rollout = random_rollout()
  plain = update(rollout, options(**base))
  assert change(plain, update(rollout, options(**changed))) > 1e-7


def test_without_scale_the_advantage_is_the_centred_reward():
  rollout = random_rollout()
  none = dataclasses.replace(options(), scale='none')
  plain, doubled = (
    update(rollout.replace(reward=k * rollout.reward), none) for k in (1, 2)
  )
  scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(doubled))
  twice = jax.tree.map(lambda x: 2 * x, plain)
  assert change(twice, doubled) < 1e-4 * scale
