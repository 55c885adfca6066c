"""Steps that train the decoder: ratios, directions, KL, turns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny_umm
from tests.tiny_umm import GROUP, IMAGES, OPTIONS
from uae_jax import trees
from uae_jax.rl.grpo import GRPO
from uae_jax.rollout.flow import FlowSchedule
from uae_jax.rollout.walk import Walk
from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.train.optim import ByPart
from uae_jax.train.step import roll_out, train_step
from uae_jax.types import TrainState

RNG = jax.random.key(5)
PATH = GRPO(clip_low=0.1, clip_high=0.1, aggregation='token')
DECODER = dataclasses.replace(
  OPTIONS, caption_weight=0.0, path_weight=1.0, path_loss=PATH
)
JOINT = dataclasses.replace(DECODER, caption_weight=1.0)
WALK = Walk(0.7, 2)


def architecture(one_caption=True, guidance=1.0, steps=4):
  umm = tiny_umm.parts()[0]
  painter = dataclasses.replace(
    umm.painter, schedule=FlowSchedule(steps), walk=WALK, guidance=guidance
  )
  tokens = dataclasses.replace(umm.tokens, negative=(7,))
  return dataclasses.replace(
    umm, painter=painter, one_caption=one_caption, tokens=tokens
  )


@functools.cache
def compiled(options, lr=0.05, **kw):
  optimizer = ByPart({part: optax.sgd(lr) for part in ('policy', 'decoder')})
  step = functools.partial(
    train_step, umm=architecture(**kw), optimizer=optimizer, options=options
  )
  return jax.jit(step), optimizer


def start(optimizer):
  _, frozen, batch = tiny_umm.parts()
  copy = lambda tree: jax.tree.map(jnp.copy, tree)
  trained, rest = trees.split(frozen['policy'], ['lm/.*'])
  params = {'policy': copy(trained), 'decoder': copy(frozen['decoder'])}
  state = TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    skipped=jnp.int32(0),
    frozen={
      **frozen,
      'policy': rest,
      'decoder': {},
      'reference': copy(trained),
      'reference_decoder': copy(frozen['decoder']),
    },
  )
  return state, batch


def change(a, b):
  gaps = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), a, b)
  return float(max(jax.tree.leaves(gaps), default=0.0))


@pytest.mark.parametrize('guidance', [1.0, 3.0])
def test_the_first_ratio_of_the_decoder_is_one(guidance):
  step, optimizer = compiled(DECODER, guidance=guidance)
  state, batch = start(optimizer)
  after, metrics = step(state, batch, RNG)
  assert float(metrics['rollout/train_gap']) < 1e-5
  assert float(metrics['reward/std']) > 0
  assert 'policy/kl' not in metrics and 'decoder/ratio_max' in metrics
  assert change(state.params['policy'], after.params['policy']) == 0
  assert change(state.params['decoder'], after.params['decoder']) > 0


def test_a_step_makes_better_drawings_likelier():
  step, optimizer = compiled(DECODER, lr=1.0)
  state, batch = start(optimizer)
  umm = architecture()
  draw, _ = jax.random.split(RNG)
  rollout = roll_out(state, batch, draw, umm=umm, options=DECODER)
  after, _ = step(state, batch, RNG)
  score = lambda s: umm.score_path(s.params['decoder'], rollout.path)[0]
  np.testing.assert_allclose(score(state), rollout.path.logp, atol=1e-5)
  gain = (score(after) - score(state)).sum(-1)
  better = rollout.reward - rollout.reward.mean(-1, keepdims=True)
  assert float(jnp.sum(gain * better)) > 0


def test_a_group_is_one_caption_or_many():
  state, batch = start(compiled(DECODER)[1])
  for one in (True, False):
    umm = architecture(one)
    rollout = roll_out(state, batch, RNG, umm=umm, options=DECODER)
    tokens = np.asarray(rollout.captions.tokens)
    assert (tokens == tokens[:, :1]).all() == one
    assert rollout.path.x.shape == (IMAGES, GROUP, 3, 32, 32, 3)
    assert np.ptp(np.asarray(rollout.images), axis=1).max() > 0
    starts = np.asarray(rollout.path.start)
    assert (starts == starts[:, :1]).all()  # of an image's group
    assert set(starts.ravel()) == {0, 1}


@pytest.mark.slow
def test_a_penalty_pulls_the_decoder_back():
  pulled = dataclasses.replace(PATH, beta=50.0)
  options = dataclasses.replace(DECODER, path_loss=pulled)
  optimizer = ByPart({part: optax.sgd(0.05) for part in ('policy', 'decoder')})
  umm = dataclasses.replace(architecture(), weights={'clip': 0.0})
  step = jax.jit(
    functools.partial(train_step, umm=umm, optimizer=optimizer, options=options)
  )
  state, batch = start(optimizer)
  _, metrics = step(state, batch, RNG)
  assert float(metrics['decoder/kl']) < 1e-9
  moved = tiny_umm.redraw(state.params['decoder'], 9)
  state = state.replace(params={**state.params, 'decoder': moved})
  kl = []
  for i in range(5):
    state, metrics = step(state, batch, jax.random.fold_in(RNG, i))
    kl.append(float(metrics['decoder/kl']))
  assert kl[-1] < 0.8 * kl[0], kl


def test_joint_steps_change_both_and_their_sum_is_the_loss():
  step, optimizer = compiled(JOINT, one_caption=False)
  state, batch = start(optimizer)
  after, metrics = step(state, batch, RNG)
  for part in ('policy', 'decoder'):
    assert change(state.params[part], after.params[part]) > 0
    assert f'{part}/ratio_max' in metrics
  assert float(metrics['rollout/train_gap']) < 1e-5
  alone, other = compiled(DECODER, one_caption=False)
  only, _ = alone(state, batch, RNG)
  assert change(only.params['decoder'], after.params['decoder']) < 1e-6


@pytest.mark.slow
def test_pieces_add_up_to_the_whole():
  step, optimizer = compiled(DECODER)
  state, batch = start(optimizer)
  cut, _ = compiled(dataclasses.replace(DECODER, update_size=2))
  one, whole = step(state, batch, RNG)
  two, pieces = cut(state, batch, RNG)
  assert change(one.params, two.params) < 1e-6
  np.testing.assert_allclose(
    pieces['optim/loss'], whole['optim/loss'], atol=1e-6
  )


def test_eight_devices_take_the_step_of_one():
  step, optimizer = compiled(DECODER)
  state, batch = start(optimizer)
  one, alone = step(state, batch, RNG)
  mesh = make_mesh(8, 1)
  with jax.set_mesh(mesh):
    sharded = jax.jit(step.__wrapped__)
    many, metrics = sharded(state, put_batch(batch, mesh), RNG)
  assert change(one.params, jax.device_get(many.params)) < 1e-5
  for name in ('reward/mean', 'optim/grad_norm'):
    np.testing.assert_allclose(metrics[name], alone[name], rtol=1e-4)
