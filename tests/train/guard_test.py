"""Which updates are made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.loop_test import config
from uae_jax import zoo
from uae_jax.errors import UserError
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import guard, optim, reinforce, tasks
from uae_jax.train.guard import Guard
from uae_jax.train.parts import Loader
from uae_jax.train.step import steered
from uae_jax.train.update import apply_gradient, supervised_step
from uae_jax.types import TrainState

SGD = optax.sgd(1.0)


def start(spike=4.0):
  """A state of one number, and the guard that watches it."""
  params = {'w': jax.device_put(jnp.float32(0))}
  state = TrainState(
    jnp.int32(0), params, SGD.init(params), jax.device_put(jnp.int32(0)), {}
  )
  watch = Guard(spike)
  return watch.watch(state, [guard.turn(None)]), watch


def descend(state, watch, slopes):
  """A step down each slope, by one program: (state, rows of metrics)."""
  compiled = []

  def loss(params, frozen, batch, rng):
    del frozen, rng
    compiled.append(1)
    return params['w'] * batch[0], {}

  step = jax.jit(
    lambda state, batch: supervised_step(
      state, batch, jax.random.key(0), loss_fn=loss, optimizer=SGD, guard=watch
    )
  )
  rows = []
  for slope in slopes:
    state, metrics = step(state, jnp.float32([slope]))
    rows.append({k: float(v) for k, v in metrics.items()})
  assert len(compiled) == 1
  return state, rows


def test_spikes_and_what_is_not_finite_are_skipped_and_counted():
  state, watch = start()
  slopes = [1.0] * 12 + [9.0, np.nan, np.inf, 1.0]
  state, rows = descend(state, watch, slopes)
  assert float(state.params['w']) == -13
  assert [r['guard/spike'] for r in rows] == [0] * 12 + [1, 0, 0, 0]
  assert [r['guard/not_finite'] for r in rows] == [0] * 13 + [1, 1, 0]
  assert [r['optim/skipped'] for r in rows[12:]] == [1, 2, 3, 0]
  norms = state.norms['all']
  assert int(norms.count) == 14
  assert 1 < float(norms.mean) < 1.3


def test_nothing_is_a_spike_before_there_is_an_average():
  _, rows = descend(*start(), [1.0, 50.0, 1.0])
  assert not any(r['optim/skipped'] for r in rows)


def test_gradients_that_stay_large_are_let_through():
  _, rows = descend(*start(), [1.0] * 10 + [10.0] * 20)
  skipped = [r['optim/skipped'] for r in rows]
  assert skipped[10] == 1 and 3 < max(skipped) < 12
  assert skipped[-5:] == [0] * 5


def test_steps_without_any_gradient_say_nothing_of_what_is_usual():
  state, rows = descend(*start(), [1.0] * 10 + [0.0] * 30 + [1.0])
  assert not any(r['optim/skipped'] for r in rows)
  assert float(state.norms['all'].mean) == 1


def test_without_spikes_there_is_nothing_to_count():
  state, watch = start(spike=0.0)
  assert state.norms is None
  state, rows = descend(state, watch, [1.0] * 12 + [1e6, np.nan])
  assert state.norms is None and float(state.params['w']) == -12 - 1e6
  assert [r['guard/not_finite'] for r in rows[-2:]] == [0, 1]


def test_each_turn_is_watched_by_itself():
  number = lambda: jax.device_put(jnp.float32(0))
  params = {'policy': number(), 'decoder': number()}
  state = TrainState(
    jnp.int32(0), params, SGD.init(params), jax.device_put(jnp.int32(0)), {}
  )
  watch = Guard(4.0)
  state = watch.watch(state, ['policy', 'policy+decoder'])
  loss = lambda params, batch: (sum(params.values()) * batch[0], {})
  for parts in (('policy',), ('policy',), ('policy', 'decoder')):
    sgd = optim.ByPart({'policy': SGD, 'decoder': SGD})
    state = state.replace(opt_state=sgd.init(params))
    state, _ = apply_gradient(
      state, loss, sgd, jnp.float32([3]), chosen=parts, guard=watch
    )
  norms = state.norms
  assert int(norms['policy'].count) == 2 and float(norms['policy'].mean) == 3
  assert int(norms['policy+decoder'].count) == 1
  np.testing.assert_allclose(norms['policy+decoder'].mean, 18**0.5, rtol=1e-6)
  assert float(state.params['policy']) == -9


def test_the_config_reaches_the_step():
  c = config(**{'guard.spike': 7.0})
  assert reinforce.step_options(c, ('policy',)).guard == Guard(7.0)


def test_a_kl_that_is_not_finite_leaves_its_weight():
  for kl in (np.nan, np.inf):
    assert float(steered(jnp.float32(2), jnp.float32(kl), 0.1)) == 2


@pytest.mark.parametrize('spike', [0.5, 1.0, -1.0, np.nan])
def test_a_spike_below_the_average_is_refused(spike):
  with pytest.raises(UserError, match='guard.spike'):
    guard.check(config(**{'guard.spike': spike}))


@pytest.mark.parametrize(
  'name, part, turns',
  [
    ('umm1', 'alternate', {'policy', 'decoder'}),
    ('umm1', 'joint', {'policy+decoder'}),
    ('umm2', '', {'policy'}),
  ],
)
def test_every_architecture_and_stage_is_watched(name, part, turns):
  c = config(name, part, **{'guard.spike': 5.0})
  mesh = make_mesh(-1, 1)
  with jax.set_mesh(mesh):
    parts = tasks.load(c, Loader(c, mesh, zoo.structs))
    steps, _, state = reinforce.build(c, parts, mesh)
  assert set(state.norms) == turns
  assert all(options.guard == Guard(5.0) for _, options in steps)
