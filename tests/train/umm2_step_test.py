"""The fused step of UMM-2: one advantage, two trajectories, one model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_umm2
from tests.tiny_umm import change
from tests.tiny_umm2 import GROUP, OPTIONS, moved, setup
from uae_jax import trees
from uae_jax.rl.grpo import GRPO
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding.mesh import make_mesh, put_batch, put_tree
from uae_jax.sharding.rules import shardings

RNG = jax.random.key(11)
FREE = GRPO(beta=0.0)


def weighted(caption, image, **kw):
  return dataclasses.replace(
    OPTIONS, caption_weight=caption, image_weight=image, loss=FREE,
    image_loss=FREE, **kw,
  )  # fmt: skip


def policy_of(state):
  return trees.merge(state.frozen['policy'], state.params['policy'])


def update(options, **umm):
  _, step, state, batch = setup(options=options, **umm)
  before = state()
  after, metrics = step(before, batch, RNG)
  ends = (state.params['policy'] for state in (before, after))
  return jax.tree.map(lambda a, b: np.asarray(b - a), *ends), metrics


@pytest.mark.parametrize(
  'sampler, guidance',
  [(Sampler(), 1.0), (Sampler(1.0, top_k=9, top_p=0.8), 5.0)],
  ids=['plain', 'guided_and_cut'],
)
def test_first_update_has_ratio_one_for_words_and_codes(sampler, guidance):
  _, step, state, batch = setup(
    sampler=sampler, code_sampler=sampler, guidance=guidance
  )
  _, metrics = step(state(), batch, RNG)
  for half in ('policy', 'image'):
    assert float(metrics[f'{half}/ratio_gap']) < 1e-5
    assert float(metrics[f'{half}/kl']) < 1e-6
    assert float(metrics[f'{half}/entropy']) > 0.1
  assert float(metrics['rollout/train_gap']) < 1e-5
  assert float(metrics['reward/std']) > 0


def test_a_step_raises_the_probability_of_better_captions_and_images():
  umm, step, state, batch = setup(options=weighted(1, 1), lr=0.05)
  before = state()
  draw, _ = jax.random.split(RNG)
  rollout = jax.jit(umm.rollout, static_argnums=4)(
    policy_of(before), before.frozen, batch, draw, GROUP
  )
  after, _ = step(state(), batch, RNG)
  reward = rollout.reward - rollout.reward.mean(-1, keepdims=True)
  words = lambda s: umm.score(policy_of(s), batch, rollout.captions)[0]
  codes = lambda s: umm.score_codes(
    policy_of(s), rollout.captions, rollout.codes.tokens
  )[0]
  for score in map(jax.jit, (words, codes)):
    gain = (score(after) - score(before)).sum(-1)
    assert float(jnp.sum(gain * reward)) > 0


def test_each_half_trains_what_only_it_uses():
  words, metrics = update(weighted(1, 0))
  assert 'image/ratio_max' not in metrics
  none = moved(jax.tree.map(np.zeros_like, words), words)
  assert none['lm/head/kernel'] > 0
  assert none['code_head/fc1/kernel'] == none['code_embed/embedding'] == 0
  codes, metrics = update(weighted(0, 1))
  assert 'policy/ratio_max' not in metrics
  none = moved(jax.tree.map(np.zeros_like, codes), codes)
  assert none['lm/head/kernel'] == 0
  assert none['code_head/fc1/kernel'] > 0 < none['code_embed/embedding']


def test_the_update_is_the_weighted_sum_of_the_halves():
  words, codes = update(weighted(1, 0))[0], update(weighted(0, 1))[0]
  both = update(weighted(1, 0.25))[0]
  want = jax.tree.map(lambda a, b: a + 0.25 * b, words, codes)
  scale = max(np.abs(x).max() for x in jax.tree.leaves(both))
  assert change(want, both) < 1e-4 * scale
  assert change(words, both) > 1e-2 * scale


def test_a_penalty_on_codes_pulls_back_to_the_reference():
  options = dataclasses.replace(
    OPTIONS, caption_weight=0.0, image_loss=GRPO(beta=5.0)
  )
  _, step, state, batch = setup(options=options, weights={'clip': 0.0}, lr=0.02)
  now = state()
  now = now.replace(params=tiny_umm2.redraw(now.params, 5))
  kl = []
  for i in range(6):
    now, metrics = step(now, batch, jax.random.fold_in(RNG, i))
    kl.append(float(metrics['image/kl']))
  assert kl[-1] < 0.8 * kl[0]


def test_a_nan_reward_masks_its_group_in_both_halves():
  _, step, state, batch = setup(options=weighted(1, 1))
  broken = batch.replace(image=batch.image.at[2].set(jnp.nan))
  before = state()
  after, metrics = step(before, broken, RNG)
  assert float(metrics['reward/invalid']) == 1
  assert np.isfinite(float(metrics['optim/loss']))
  assert 0 < change(before.params, after.params) < np.inf


def test_equal_rewards_give_exactly_no_gradient():
  _, step, state, batch = setup(options=weighted(1, 1), weights={'clip': 0.0})
  before = state()
  after, metrics = step(before, batch, RNG)
  assert change(before.params, after.params) == 0
  assert float(metrics['reward/zero_std']) == 1


def test_inner_epochs_and_minibatches_make_that_many_updates():
  options = dataclasses.replace(OPTIONS, inner_epochs=2, minibatches=4)
  _, step, state, batch = setup(options=options)
  before = state()
  after, metrics = step(before, batch, RNG)
  assert change(before.params, after.params) > 0
  assert float(metrics['rollout/train_gap']) < 1e-5
  assert float(metrics['image/ratio_gap']) > 1e-4


def test_data4_model2_mesh_gives_the_loss_of_one_device():
  _, step, state, batch = setup(guidance=5.0)
  alone, metrics = step(state(), batch, RNG)
  mesh, start = make_mesh(4, 2), state()
  whole = shardings(tiny_umm2.parts()[3].shapes(), tiny_umm2.parts()[3].rules,
                    mesh)  # fmt: skip
  home, _ = trees.split(whole['policy'], tiny_umm2.TRAINED)
  with jax.set_mesh(mesh):
    start = start.replace(params=put_tree(start.params, {'policy': home}))
    kernel = start.params['policy']['lm']['layers']['block']['q']['kernel']
    assert not kernel.sharding.is_fully_replicated
    _, sharded, _, _ = setup(guidance=5.0)
    spread, other = sharded(start, put_batch(batch, mesh), RNG)
  assert abs(float(other['optim/loss']) - float(metrics['optim/loss'])) < 1e-5
  for name in ('reward/mean', 'image/entropy', 'optim/grad_norm'):
    np.testing.assert_allclose(other[name], metrics[name], rtol=1e-4)
  assert change(alone.params, jax.device_get(spread.params)) < 1e-5


def test_scoring_by_chunks_is_the_same_step():
  _, whole, state, batch = setup(guidance=5.0)
  _, pieces, _, _ = setup(guidance=5.0, chunk=5)
  one, first = whole(state(), batch, RNG)
  two, second = pieces(state(), batch, RNG)
  assert change(one.params, two.params) < 1e-6
  for name in ('policy/entropy', 'image/entropy', 'optim/grad_norm'):
    np.testing.assert_allclose(first[name], second[name], rtol=1e-5)
