"""Pieces of a batch: put together again they are the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from uae_jax.sharding import chunks
from uae_jax.sharding.mesh import make_mesh, put_batch

ROWS = {'a': np.arange(24.0).reshape(8, 3), 'b': np.arange(8)}


def test_the_fewest_equal_pieces_that_are_small_enough():
  assert [chunks.pieces(12, size) for size in (0, 12, 11, 5, 4, 1)] == [
    1, 1, 2, 3, 3, 12,
  ]  # fmt: skip


def test_pieces_take_an_equal_share_of_every_shard():
  with jax.set_mesh(make_mesh(4, 2)):
    split = jax.jit(lambda x: chunks.split(x, 2))(ROWS)
    np.testing.assert_array_equal(split['b'], [[0, 2, 4, 6], [1, 3, 5, 7]])
    back = jax.jit(chunks.join)(split)
  jax.tree.map(np.testing.assert_array_equal, back, ROWS)


@pytest.mark.parametrize('size', [0, 1, 2])
def test_mapping_pieces_is_mapping_the_whole(size):
  mesh = make_mesh(2, 4)
  with jax.set_mesh(mesh):
    rows = put_batch(ROWS, mesh)
    fn = lambda _, x: {'out': x['a'].sum(1) + x['b']}
    out = jax.jit(lambda x: chunks.map_pieces(fn, size, x))(rows)
  np.testing.assert_array_equal(out['out'], ROWS['a'].sum(1) + ROWS['b'])


def test_cutting_and_joining_stay_on_their_devices():
  mesh = make_mesh(8, 1)
  with jax.set_mesh(mesh):
    rows = put_batch({'x': np.zeros((32, 5), np.float32)}, mesh)
    fn = lambda _, x: {'y': jnp.sin(x['x'])}
    program = jax.jit(lambda x: chunks.map_pieces(fn, 2, x)).lower(rows)
    text = program.compile().as_text()
  assert 'while(' in text
  for name in ('all-reduce', 'all-gather', 'all-to-all', 'collective-permute'):
    assert name not in text
