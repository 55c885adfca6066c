"""The fused step: what the algorithm promises, on the real classes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_umm
from tests.tiny_umm import OPTIONS, change, setup
from uae_jax import trees
from uae_jax.plan import model_flops
from uae_jax.rl.grpo import GRPO, grpo_loss
from uae_jax.rollout.sampler import Sampler
from uae_jax.sharding.mesh import make_mesh, put_batch, put_tree
from uae_jax.sharding.rules import shardings
from uae_jax.train import step as step_lib
from uae_jax.types import Captions
from uae_jax.umm import base

RNG = jax.random.key(11)


def with_loss(**kw):
  return dataclasses.replace(
    OPTIONS, loss=dataclasses.replace(OPTIONS.loss, **kw)
  )


def policy_of(state):
  return trees.merge(state.frozen['policy'], state.params['policy'])


@pytest.mark.parametrize(
  'sampler',
  [Sampler(), Sampler(0.7, top_k=9), Sampler(1.3, top_p=0.8)],
  ids=['plain', 'top_k', 'top_p'],
)
def test_first_update_has_ratio_one(sampler):
  _, step, state, batch = setup(sampler=sampler)
  _, metrics = step(state(), batch, RNG)
  assert float(metrics['rollout/train_gap']) < 1e-5
  assert float(metrics['policy/kl']) < 1e-6
  assert float(metrics['reward/std']) > 0


def test_a_step_raises_the_probability_of_better_captions():
  umm, step, state, batch = setup(lr=0.05, options=with_loss(beta=0.0))
  before = state()
  draw, _ = jax.random.split(RNG)
  rollout = umm.rollout(
    policy_of(before), before.frozen, batch, draw, tiny_umm.GROUP
  )
  after, _ = step(state(), batch, RNG)
  score = lambda s: umm.score(policy_of(s), batch, rollout.captions)[0]
  gain = (score(after) - score(before)).sum(-1)
  reward = rollout.reward - rollout.reward.mean(-1, keepdims=True)
  assert float(jnp.sum(gain * reward)) > 0


def test_only_the_trained_leaves_change():
  _, step, state, batch = setup()
  before = state()
  after, _ = step(before, batch, RNG)
  assert change(before.params, after.params) > 0
  assert change(before.frozen, after.frozen) == 0
  assert int(after.step) == 1


def test_a_later_token_leaves_earlier_log_probs_alone():
  umm, _, state, batch = setup()
  state = state()
  rng = np.random.default_rng(0)
  shape = (tiny_umm.IMAGES, tiny_umm.GROUP, tiny_umm.LENGTH)
  tokens = rng.integers(6, 38, shape).astype(np.int32)
  mask = np.ones(shape, bool)
  other = tokens.copy()
  other[..., 5] = (other[..., 5] + 1) % 30
  score = lambda ids: np.asarray(
    umm.score(policy_of(state), batch, Captions(ids, mask, 0.0 * mask))[0]
  )
  first, second = score(jnp.asarray(tokens)), score(jnp.asarray(other))
  np.testing.assert_array_equal(first[..., :5], second[..., :5])
  assert np.abs(first[..., 5:] - second[..., 5:]).max() > 1e-3


def test_a_group_equals_separate_rollouts():
  """Scoring G captions on a shared prefix equals one caption at a time."""
  umm, _, state, batch = setup()
  policy = policy_of(state())
  captions = umm.describe(policy, umm.prefill(policy, batch), RNG, 3)
  together = umm.score(policy, batch, captions)[0]
  for g in range(3):
    one = jax.tree.map(lambda x, g=g: x[:, g : g + 1], captions)
    alone = umm.score(policy, batch, one)[0]
    np.testing.assert_allclose(alone[:, 0], together[:, g], atol=1e-5)


def test_gradient_through_the_shared_prefix_equals_the_repeated_one():
  umm, _, state, batch = setup()
  state = state()
  captions = umm.describe(
    policy_of(state), umm.prefill(policy_of(state), batch), RNG, 3
  )

  def shared(params):
    policy = trees.merge(state.frozen['policy'], params)
    return jnp.sum(umm.score(policy, batch, captions)[0])

  def repeated(params):
    policy = trees.merge(state.frozen['policy'], params)
    one = lambda g: jax.tree.map(lambda x: x[:, g : g + 1], captions)
    return sum(jnp.sum(umm.score(policy, batch, one(g))[0]) for g in range(3))

  a, b = (jax.grad(loss)(state.params['policy']) for loss in (shared, repeated))
  scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))
  assert change(a, b) < 1e-5 * scale


def test_equal_rewards_give_exactly_no_gradient():
  _, step, state, batch = setup(
    options=with_loss(beta=0.0), weights={'clip': 0.0}
  )
  before = state()
  after, metrics = step(before, batch, RNG)
  assert change(before.params, after.params) == 0
  assert float(metrics['reward/zero_std']) == 1


def test_a_nan_reward_masks_its_group_only():
  options = with_loss(beta=0.0)
  _, step, state, batch = setup(options=options)
  broken = batch.replace(image=batch.image.at[2].set(jnp.nan))
  before = state()
  after, metrics = step(before, broken, RNG)
  assert float(metrics['reward/invalid']) == 1
  assert np.isfinite(float(metrics['optim/loss']))
  assert 0 < change(before.params, after.params) < np.inf
  assert int(metrics['optim/skipped']) == 0


def test_a_non_finite_update_is_skipped_and_counted():
  _, step, state, batch = setup()
  before = state()
  poisoned = before.replace(
    params=trees.map_with_path(
      lambda p, x: x * jnp.nan if p.endswith('norm/scale') else x,
      before.params,
    )
  )
  one, metrics = step(poisoned, batch, RNG)
  two, _ = step(one, batch, RNG)
  assert int(metrics['optim/skipped']) == 1 and int(two.skipped) == 2
  embed = lambda s: s.params['policy']['lm']['embed']['embedding']
  np.testing.assert_array_equal(embed(two), embed(before))


def test_beta_pulls_back_to_the_reference():
  _, step, state, batch = setup(
    options=with_loss(beta=5.0), weights={'clip': 0.0}, lr=0.02
  )
  moved = state()
  moved = moved.replace(
    params=tiny_umm.redraw(moved.params, 5),
  )
  kl = []
  for i in range(6):
    moved, metrics = step(moved, batch, jax.random.fold_in(RNG, i))
    kl.append(float(metrics['policy/kl']))
  assert kl[-1] < 0.7 * kl[0]


def test_inner_epochs_and_minibatches_make_that_many_updates():
  options = dataclasses.replace(OPTIONS, inner_epochs=2, minibatches=4)
  _, many, state, batch = setup(options=options)
  _, one, _, _ = setup()
  before = state()
  after, metrics = many(before, batch, RNG)
  single, _ = one(before, batch, RNG)
  assert change(single.params, after.params) > 0
  assert float(metrics['rollout/train_gap']) < 1e-5
  assert float(metrics['policy/ratio_gap']) > 1e-4


def test_a_batch_without_any_variance_survives_with_and_without_filtering():
  """Nothing is left to average; what filtering divides by: learn_test."""
  base = with_loss(beta=0.0)
  nan = lambda batch: batch.replace(image=batch.image.at[:4].set(jnp.nan))
  _, plain, state, batch = setup(options=base, weights={'clip': 0.0})
  _, filtered, _, _ = setup(
    options=dataclasses.replace(base, filter_zero_std=True),
    weights={'clip': 0.0},
  )
  # All groups equal: nothing is left to average, and nothing may break.
  for step in (plain, filtered):
    after, metrics = step(state(), nan(batch), RNG)
    assert float(metrics['reward/zero_std']) == 1
    assert change(state().params, after.params) == 0
    assert np.isfinite(float(metrics['optim/loss']))


@pytest.mark.parametrize('bottleneck', ['text', 'hidden'])
def test_the_bottleneck_is_text_unless_asked_otherwise(bottleneck):
  """With `text` the conditioning of a caption does not depend on the image."""
  umm, _, state, batch = setup(bottleneck=bottleneck)
  state = state()
  policy = policy_of(state)
  captions = umm.describe(policy, umm.prefill(policy, batch), RNG, 2)
  swapped = jax.tree.map(lambda x: x[::-1], batch)
  run = lambda b: umm.condition(
    policy, state.frozen['connector'], captions, umm.prefill(policy, b)
  )['context']
  gap = float(jnp.abs(run(batch) - run(swapped)).max())
  assert (gap == 0) if bottleneck == 'text' else (gap > 1e-4)


@pytest.mark.parametrize('environment', ['policy', 'reference'])
def test_the_environment_drifts_with_the_policy_or_stays(environment):
  umm, _, state, batch = setup(environment=environment)
  state = state()
  captions = umm.describe(
    policy_of(state), umm.prefill(policy_of(state), batch), RNG, 2
  )
  moved = state.replace(params=tiny_umm.redraw(state.params, 9))
  draw = lambda s: umm.draw(policy_of(s), s.frozen, captions, None, RNG)
  gap = float(jnp.abs(draw(state) - draw(moved)).max())
  assert (gap > 1e-4) if environment == 'policy' else (gap == 0)


@pytest.mark.parametrize('share', [True, False])
def test_equal_captions_get_equal_images_only_with_shared_noise(share):
  umm, _, state, batch = setup(share_noise=share)
  state = state()
  policy = policy_of(state)
  one = umm.describe(policy, umm.prefill(policy, batch), RNG, 1)
  twice = jax.tree.map(lambda x: jnp.repeat(x, 2, 1), one)
  images = umm.draw(policy, state.frozen, twice, None, RNG)
  gap = float(jnp.abs(images[:, 0] - images[:, 1]).max())
  assert (gap == 0) if share else (gap > 1e-3)


def test_guidance_moves_away_from_the_empty_caption():
  umm, _, state, batch = setup()
  state = state()
  policy = policy_of(state)
  captions = umm.describe(policy, umm.prefill(policy, batch), RNG, 1)
  plain = umm.umm
  draw = lambda u: tiny_umm.Jitted(u).draw(
    policy, state.frozen, captions, None, RNG
  )
  painter = dataclasses.replace(plain.painter, guidance=3.0)
  umm = dataclasses.replace(plain, painter=painter)
  assert float(jnp.abs(draw(umm) - draw(plain)).max()) > 1e-4
  tokens = dataclasses.replace(umm.tokens, negative=(7, 8))
  other = dataclasses.replace(umm, tokens=tokens)
  assert float(jnp.abs(draw(umm) - draw(other)).max()) > 1e-4
  tokens = dataclasses.replace(umm.tokens, negative=(7,) * 99)
  with pytest.raises(ValueError, match='negative'):
    draw(dataclasses.replace(umm, tokens=tokens))


def test_the_reference_tree_replaces_the_trained_leaves_only():
  _, _, state, _ = setup()
  state = state()
  moved = state.replace(params=tiny_umm.redraw(state.params, 9))
  back = base.reference(moved.frozen, policy_of(moved))
  assert change(back, policy_of(state)) == 0


def test_data4_model2_mesh_gives_the_loss_of_one_device():
  if jax.device_count() < 8:
    pytest.skip('needs 8 devices')
  from uae_jax.sharding import table_qwen

  _, step, state, batch = setup()
  alone, metrics = step(state(), batch, RNG)
  mesh = make_mesh(4, 2)
  with jax.set_mesh(mesh):
    start = state()
    rules = tuple(
      r for r in table_qwen.rules(tied=True) if r[0].startswith('lm/')
    )
    start = start.replace(
      params={
        'policy': put_tree(
          start.params['policy'],
          shardings(start.params['policy'], rules, mesh),
        )
      }
    )
    kernel = start.params['policy']['lm']['layers']['block']['q']['kernel']
    assert not kernel.sharding.is_fully_replicated
    _, sharded, _, _ = setup()
    spread, other = sharded(start, put_batch(batch, mesh), RNG)
  loss = float(metrics['optim/loss'])
  assert abs(float(other['optim/loss']) - loss) < 1e-5 * max(1, abs(loss))
  for name in ('reward/mean', 'policy/entropy', 'optim/grad_norm'):
    np.testing.assert_allclose(other[name], metrics[name], rtol=1e-4)
  assert change(alone.params, jax.device_get(spread.params)) < 1e-5


def test_a_step_in_pieces_is_the_whole_step():
  """Same rollout: same loss, same metrics, same parameters."""
  rollout = tiny_umm.random_rollout(ended=[True, True, True, False])
  for loss in (
    {}, dict(aggregation='token', beta=0.0), dict(aggregation='constant'),
  ):  # fmt: skip
    whole = dataclasses.replace(with_loss(**loss), minibatches=2)
    pieces = dataclasses.replace(whole, update_size=1)
    _, want, expected = tiny_umm.learned(rollout, whole)
    _, got, metrics = tiny_umm.learned(rollout, pieces)
    assert change(want, got) < 1e-6
    assert metrics.keys() == expected.keys()
    for key in metrics:
      np.testing.assert_allclose(
        metrics[key], expected[key], rtol=2e-5, atol=1e-6, err_msg=key
      )


def test_a_rollout_in_pieces_has_ratio_one():
  options = dataclasses.replace(OPTIONS, rollout_size=2)
  umm, step, state, batch = setup(options=options, size=4)
  after, metrics = step(state(), batch, RNG)
  assert float(metrics['rollout/train_gap']) < 1e-5
  assert float(metrics['reward/std']) > 0


def test_images_seen_once_make_the_same_step():
  """Rollout, reference and gradient share the tokens of the vision tower."""
  once = dataclasses.replace(OPTIONS, sees_once=True)
  steps = [setup(options=options) for options in (OPTIONS, once)]
  (want, expected), (got, metrics) = (
    step(state(), batch, RNG) for _, step, state, batch in steps
  )
  assert change(want.params, got.params) < 1e-6
  np.testing.assert_allclose(
    metrics['optim/loss'], expected['optim/loss'], atol=1e-6
  )
  _, _, state, batch = steps[0]
  seen = [
    sum(
      flops
      for scope, flops in model_flops.by_scope(
        step.__wrapped__, state(), batch, RNG, loop=1
      ).items()
      if 'image_tokens' in scope
    )
    for _, step, _, _ in steps
  ]
  assert seen[0] == 3 * seen[1] > 0


def test_images_of_groups_without_variance_are_the_first_to_go():
  """Twice as many sampled as learnt from: the useful half makes the step."""
  rollout = tiny_umm.random_rollout()
  flat = [0, 3, 4, 6]  # of eight images
  reward = rollout.reward.at[jnp.array(flat)].set(0.5)
  rollout = rollout.replace(reward=reward)
  fewer = dataclasses.replace(OPTIONS, images=4)
  want, got = (
    tiny_umm.learned(rollout, options)
    for options in (dataclasses.replace(OPTIONS, filter_zero_std=True), fewer)
  )
  assert change(want[1], got[1]) < 1e-6
  assert float(got[2]['reward/zero_std']) == 0.5
  np.testing.assert_allclose(got[2]['optim/loss'], want[2]['optim/loss'],
                             atol=1e-6)  # fmt: skip
  kept = step_lib.telling(
    jnp.arange(8), jnp.array([i not in flat for i in range(8)]), 5
  )
  assert kept.tolist() == [1, 2, 5, 7, 0]


def test_the_weight_of_the_kl_is_steered_to_its_target():
  steered = lambda kl: float(step_lib.steered(jnp.float32(2.0), kl, 0.1))
  assert steered(0.1) == 2.0
  assert steered(0.11) == pytest.approx(2.0 * 1.01)
  assert steered(5.0) == pytest.approx(2.0 * 1.02)
  assert steered(0.0) == pytest.approx(2.0 * 0.98)


def test_the_scale_of_a_kl_multiplies_its_weight():
  rng = np.random.default_rng(0)
  logp, ref, adv = (
    jnp.asarray(rng.normal(size=shape), jnp.float32)
    for shape in ((2, 3, 4), (2, 3, 4), (2, 3))
  )
  args = (logp, logp, ref, adv, jnp.ones((2, 3, 4), bool))
  scaled, _ = grpo_loss(*args, GRPO(beta=0.1), kl_scale=3.0)
  larger, _ = grpo_loss(*args, GRPO(beta=0.3))
  assert float(scaled) == pytest.approx(float(larger), rel=1e-6)


def test_an_entropy_bonus_raises_entropy():
  options = dataclasses.replace(with_loss(beta=0.0), entropy=1.0)
  _, step, state, batch = setup(options=options, weights={'clip': 0.0}, lr=0.05)
  now, seen = state(), []
  for i in range(5):
    now, metrics = step(now, batch, jax.random.fold_in(RNG, i))
    seen.append(float(metrics['policy/entropy']))
  assert seen[-1] > seen[0] + 0.01, seen
