"""Named paths over nested dicts of arrays: flatten, map, select, count."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts -> one dict keyed by 'a/b/c', in sorted order."""
  out = {}
  for key in sorted(tree):
    path = f'{prefix}/{key}' if prefix else key
    if isinstance(tree[key], Mapping):
      out.update(flatten(tree[key], path))
    else:
      out[path] = tree[key]
  return out


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Inverse of `flatten`."""
  out: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split('/')
    node = out
    for parent in parents:
      node = node.setdefault(parent, {})
    node[name] = leaf
  return out


def map_with_path(fn: Callable[[str, Any], Any], tree: Mapping[str, Any]):
  """Applies `fn(path, leaf)` to every leaf; keeps the nesting."""
  return unflatten({p: fn(p, x) for p, x in flatten(tree).items()})


def mask(tree: Mapping[str, Any], patterns: Iterable[str]):
  """A tree of bools: True where any regex matches the whole path."""
  regexes = [re.compile(p) for p in patterns]
  return map_with_path(
    lambda path, _: any(r.fullmatch(path) for r in regexes), tree
  )


def count(tree: Any) -> int:
  """Number of scalars in a tree of arrays or shape structs."""
  return sum(x.size for x in jax.tree.leaves(tree))


def cast(tree: Any, dtype: Any):
  """Casts the floating leaves; leaves integers alone."""
  return jax.tree.map(
    lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
    tree,
  )


def all_finite(tree: Any) -> jax.Array:
  """Scalar bool: no leaf holds a NaN or an infinity."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)])
  )


def select(pred: jax.Array, on_true: Any, on_false: Any):
  """Leaf-wise `where` with one scalar condition."""
  return jax.tree.map(lambda a, b: jnp.where(pred, a, b), on_true, on_false)


def merge(*parts: Mapping[str, Any]) -> dict[str, Any]:
  """Joins trees that hold different leaves of one nesting."""
  out: dict[str, Any] = {}
  for part in parts:
    out.update(flatten(part))
  return unflatten(out)


def split(tree: Mapping[str, Any], patterns: Iterable[str]):
  """(leaves whose path matches a regex, the others), both nested."""
  chosen = flatten(mask(tree, patterns))
  flat = flatten(tree)
  yes = {p: x for p, x in flat.items() if chosen[p]}
  no = {p: x for p, x in flat.items() if not chosen[p]}
  return unflatten(yes), unflatten(no)
