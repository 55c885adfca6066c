"""Working through a batch in pieces, so that less exists at once.

A batch is spread over the data axis. A piece takes an equal share of every
shard's rows, so that cutting and joining move nothing between devices.
Letters: N rows, n pieces.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P


def pieces(rows: int, size: int) -> int:
  """The fewest equal pieces with at most `size` rows a shard; 0 is one."""
  here = rows // _shards(rows)
  if not size:
    return 1
  return next(
    n for n in range(1, here + 1) if here % n == 0 and here / n <= size
  )


def split(tree: Any, n: int) -> Any:
  """[N ...] -> [n N/n ...] in every leaf."""

  def one(x):
    shards = _shards(len(x))
    x = x.reshape(shards, n, len(x) // (shards * n), *x.shape[1:])
    x = jnp.moveaxis(x, 1, 0)
    return _pin(x.reshape(n, -1, *x.shape[3:]), 1)

  return jax.tree.map(one, tree)


def join(tree: Any) -> Any:
  """Inverse of `split`."""

  def one(x):
    n, rows = x.shape[:2]
    shards = _shards(n * rows)
    x = x.reshape(n, shards, rows // shards, *x.shape[2:])
    x = jnp.moveaxis(x, 0, 1)
    return _pin(x.reshape(n * rows, *x.shape[3:]), 0)

  return jax.tree.map(one, tree)


def map_pieces(fn: Callable[..., Any], size: int, *trees: Any) -> Any:
  """`fn` of one piece after the other, put together again.

  Args:
    fn: (number of the piece, trees of [N/n ...]) -> tree of [N/n ...].
    size: rows of a shard at once; 0 is all of them.
    *trees: of arrays [N ...].
  """
  n = pieces(len(jax.tree.leaves(trees)[0]), size)
  if n == 1:
    return fn(jnp.int32(0), *trees)
  out = jax.lax.map(
    lambda args: fn(args[0], *args[1:]), (jnp.arange(n), *split(trees, n))
  )
  return join(out)


def _shards(rows: int) -> int:
  """Shards of the data axis that rows are spread over."""
  mesh = jax.sharding.get_abstract_mesh()
  size = 1 if mesh.empty else mesh.shape['data']
  return size if rows % size == 0 else 1


def _pin(x: jax.Array, axis: int) -> jax.Array:
  """Rows stay with their shard; other axes as the compiler likes."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or x.shape[axis] % mesh.shape['data']:
    return x
  spec = [P.UNCONSTRAINED] * x.ndim
  spec[:axis] = [None] * axis
  spec[axis] = 'data'
  return jax.lax.with_sharding_constraint(x, P(*spec))
