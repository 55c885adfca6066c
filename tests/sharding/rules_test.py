"""Placement tables: complete, without leftovers, and really in the program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from uae_jax.errors import UserError
from uae_jax.sharding import mesh as mesh_lib
from uae_jax.sharding import rules

SHAPES = {
  'a': {'kernel': jax.ShapeDtypeStruct((8, 6), jnp.float32)},
  'b': {'bias': jax.ShapeDtypeStruct((6,), jnp.float32)},
}


def test_unmatched_parameters_and_unused_rules_raise():
  with pytest.raises(ValueError, match='b/bias'):
    rules.specs(SHAPES, ((r'a/kernel', P('data')),))
  table = ((r'a/kernel', P('data')), (r'b/bias', P()), (r'ghost', P()))
  with pytest.raises(ValueError, match='ghost'):
    rules.specs(SHAPES, table)


def test_an_axis_that_does_not_divide_is_replicated():
  mesh = mesh_lib.make_mesh(4, 2)
  table = ((r'a/kernel', P('model', 'data')), (r'b/bias', P('model')))
  placed = rules.shardings(SHAPES, table, mesh)
  assert placed['a']['kernel'].spec == P('model', None)  # 6 over 4
  assert placed['b']['bias'].spec == P('model')


def test_constraints_are_lowered_under_a_mesh_and_absent_without():
  f = lambda x: rules.constrain(x, 'batch', 'len', 'emb') * 2
  x = jax.ShapeDtypeStruct((8, 4, 6), jnp.float32)
  assert 'sharding_constraint' not in str(jax.make_jaxpr(f)(x))
  with jax.set_mesh(mesh_lib.make_mesh(4, 2)):
    assert 'sharding_constraint' in str(jax.make_jaxpr(f)(x))


def test_a_mesh_that_does_not_cover_the_devices_is_refused():
  with pytest.raises(UserError, match=r'mesh\.data=3'):
    mesh_lib.make_mesh(3, 2)
  with pytest.raises(UserError, match='do not divide'):
    mesh_lib.check_batch(6, mesh_lib.make_mesh(4, 2))
