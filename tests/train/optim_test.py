"""Groups, accumulation, averages: against the arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.train.loop_test import config
from uae_jax.errors import UserError
from uae_jax.sharding.mesh import make_mesh
from uae_jax.train import optim
from uae_jax.train.state import create
from uae_jax.train.update import apply_gradient, averaged

PLAIN = {'optim.warmup': 0, 'optim.schedule': 'constant', 'train.lr': 0.1}


def params():
  return {
    'lm': {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)},
    'vision': {'kernel': jnp.ones((2, 2))},
  }


def loss(p, batch):
  total = sum(jnp.sum(x * batch.mean()) for x in jax.tree.leaves(p))
  return total, {}


def trained(steps, batches, ema=0.0, **changes):
  """The state after some updates of a linear loss."""
  c = config(**{**PLAIN, **changes})
  optim.check(c)
  optimizer = optim.ByPart({'policy': optim.make(c)})
  mesh = make_mesh(1, 1, jax.devices()[:1])
  whole = {'policy': jax.device_put(params(), jax.devices()[0])}
  with jax.set_mesh(mesh):
    whole = jax.device_put(
      whole, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    state = create(whole, {}, optimizer, mesh, averages=bool(ema))
    for i in range(steps):
      state, _ = apply_gradient(
        state, lambda p, b: loss(p['policy'], b), optimizer, batches[i],
        ema=ema,
      )  # fmt: skip
  return state


def moved(state):
  gap = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))),
                     state.params['policy'], params())  # fmt: skip
  return gap


ONES = [jnp.ones(4)] * 4


def test_a_group_has_a_rate_of_its_own():
  gap = moved(trained(1, ONES))
  assert gap['lm']['kernel'] == pytest.approx(0.1, rel=1e-3)
  slow = moved(trained(1, ONES, **{'optim.groups': ('vision/.*=0.25',)}))
  assert slow['vision']['kernel'] == pytest.approx(0.025, rel=1e-3)
  assert slow['lm'] == gap['lm']
  # The last '=' parts the rate from the pattern.
  frozen = moved(trained(1, ONES, **{'optim.groups': ('(?=lm).*=0',)}))
  assert frozen['lm'] == {'kernel': 0.0, 'bias': 0.0}
  assert frozen['vision'] == gap['vision']


def test_accumulated_steps_are_one_update_of_their_mean():
  batches = [jnp.full(4, x) for x in (1.0, 3.0, 0.5, 0.5)]
  twice = {'optim.accumulate': 2, 'optim.clip_norm': 1e9}
  one = trained(1, batches, **twice)
  assert max(jax.tree.leaves(moved(one))) == 0
  got = trained(4, batches, **twice)
  want = trained(
    2, [jnp.full(4, 2.0), jnp.full(4, 0.5)], **{'optim.clip_norm': 1e9}
  )
  for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(want.params)):
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_averages_follow_and_are_what_is_shown():
  state = trained(3, ONES, ema=0.5)
  want = params()
  for i in range(3):
    want = averaged(want, trained(i + 1, ONES).params['policy'], 0.5)
  for a, b in zip(
    jax.tree.leaves(state.shown().params), jax.tree.leaves({'policy': want})
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  plain = trained(1, ONES)
  assert plain.ema is None and plain.shown() is plain


def test_a_schedule_counts_updates():
  c = config(**{'train.steps': 40, 'optim.warmup': 0, 'train.lr': 1.0})
  assert float(optim.schedule(c, 1.0, 1.0)(20)) == pytest.approx(0.5)
  c.optim.accumulate = 2
  assert float(optim.schedule(c, 1.0, 1.0)(10)) == pytest.approx(0.5)
  c.optim.accumulate = 1
  assert float(optim.schedule(c, 1.0, 0.5)(10)) == pytest.approx(0.5)


@pytest.mark.parametrize(
  'change',
  [
    {'optim.groups': ('lm/.*',)},
    {'optim.groups': ('lm/(=1',)},
    {'optim.groups': ('lm/.*=-1',)},
    {'optim.accumulate': 0},
    {'optim.ema': 1.0},
  ],
)
def test_what_cannot_be_an_optimizer_is_one_line(change):
  with pytest.raises(UserError, match=next(iter(change))):
    optim.check(config(**change))


def test_the_parts_change_by_themselves():
  optimizer = optim.ByPart({k: optax.sgd(1.0) for k in 'ab'})
  both = {'a': jnp.ones(2), 'b': jnp.ones(2)}
  state = optimizer.init(both)
  updates, after = optimizer.update({'a': jnp.ones(2)}, state, both)
  assert [*updates] == ['a'] and after['b'] is state['b']
