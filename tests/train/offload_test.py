"""Moments and reference in the host's memory: the same step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests import tiny_umm
from tests.tiny_umm import OPTIONS, change
from uae_jax import trees
from uae_jax.errors import UserError
from uae_jax.sharding import offload
from uae_jax.sharding.mesh import make_mesh, put_batch
from uae_jax.train.state import create
from uae_jax.train.step import learn


def step(offloaded):
  """(state before, after, metrics) of one AdamW update."""
  umm, frozen, batch = tiny_umm.parts()
  mesh = make_mesh(8, 1)
  optimizer = optax.adamw(1e-2)
  with jax.set_mesh(mesh):
    frozen = jax.device_put(frozen, NamedSharding(mesh, P()))
    start, rest = trees.split(frozen['policy'], ['lm/norm/.*'])
    params = {'policy': jax.tree.map(jnp.copy, start)}
    reference = jax.tree.map(lambda x: x * 1.1, start)
    if offloaded:
      reference = offload.put(reference)
    state = create(
      params,
      {**frozen, 'policy': rest, 'reference': reference},
      optimizer,
      mesh,
      offloaded,
    )
    homes = jax.tree.map(lambda x: x.sharding, state)
    kinds = jax.tree.map(lambda x: x.memory_kind, homes)
    fn = functools.partial(learn, umm=umm, optimizer=optimizer, options=OPTIONS)
    run = jax.jit(fn, out_shardings=(homes, None))
    rollout = put_batch(tiny_umm.random_rollout(), mesh)
    after, metrics = run(
      state, put_batch(batch, mesh), rollout, jax.random.key(3)
    )
  assert jax.tree.map(lambda x: x.sharding.memory_kind, after) == kinds
  return kinds, after, metrics


def test_an_update_is_the_same_wherever_its_trees_wait():
  _, want, expected = step(False)
  kinds, got, metrics = step(True)
  moments = {*jax.tree.leaves(kinds.opt_state[0].mu)}
  assert moments == {*jax.tree.leaves(kinds.frozen['reference'])}
  assert moments == {'pinned_host'}
  assert {*jax.tree.leaves(kinds.params)} == {'device'}
  assert change(want.params, got.params) == 0
  here = lambda tree: jax.device_get(tree)
  assert change(here(want.opt_state), here(got.opt_state)) == 0
  np.testing.assert_array_equal(metrics['policy/kl'], expected['policy/kl'])


def test_what_can_wait_is_known():
  assert offload.parse('optimizer,reference') == ('optimizer', 'reference')
  assert offload.parse('') == ()
  with pytest.raises(UserError, match='judges'):
    offload.parse('judges')
