"""Low-rank adapters as a tree of their own beside frozen parameters.

`W + alpha / rank * A B` ("LoRA: Low-Rank Adaptation of Large Language
Models", arXiv:2106.09685). Kernels keep their axes: [Y, *in, *out] has `a`
[Y, *in, R] and `b` [Y, R, *out], Y only where layers are stacked, R the
rank. The tree is nested like the parameters, `{path of a kernel: {a, b}}`,
and says by its shapes alone where `in` ends. Modules know nothing of it: they
are applied to `merge(params, tree, scale)` inside the jitted function, and
the unadapted model is the same modules applied to `params`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from uae_jax import trees
from uae_jax.errors import UserError

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LoRA:
  """Which kernels are adapted, and how.

  Attributes:
    rank: R.
    alpha: the update is scaled by alpha / rank.
    targets: regexes; a kernel whose whole path matches one is adapted.
  """

  rank: int
  alpha: float
  targets: tuple[str, ...]

  @property
  def scale(self) -> float:
    """What A B is multiplied by."""
    return self.alpha / self.rank

  def init(self, key: Key[Array, ''], shapes: Params, table: Sequence[Any]):
    """Draws a tree that changes nothing yet: A as PEFT does, B zero.

    Args:
      key: for A, uniform within 1 / sqrt(fan in).
      shapes: tree of the parameters (anything with `.shape`).
      table: the model's checkpoint rows; those of op 'linear' can be adapted.

    Returns:
      The fp32 tree.

    Raises:
      UserError: from `rows`.
    """
    flat, out = trees.flatten(shapes), {}
    rows = self.rows(table)
    for one, row in zip(jax.random.split(key, len(rows)), rows):
      a, b = row.factors(tuple(flat[row.path].shape), self.rank)
      fan_in = math.prod(a[bool(row.layers) : -1])
      bound = fan_in**-0.5
      draw = jax.random.uniform(one, a, jnp.float32, -bound, bound)
      out[row.path] = {'a': draw, 'b': jnp.zeros(b, jnp.float32)}
    return trees.unflatten(out)

  def rows(self, table: Sequence[Any]) -> list[Any]:
    """The rows of the adapted kernels.

    Raises:
      UserError: for a rank below 1 or a target that matches no kernel.
    """
    if self.rank < 1:
      raise UserError(f'LoRA rank {self.rank} must be at least 1')
    kernels = [row for row in table if row.op == 'linear']
    hits = {
      target: {r.path for r in kernels if re.fullmatch(target, r.path)}
      for target in self.targets
    }
    empty = [target for target, paths in hits.items() if not paths]
    if empty or not hits:
      raise UserError(
        f'LoRA targets {empty} match no kernel; kernels are '
        f'{[row.path for row in kernels]}'
      )
    chosen = set().union(*hits.values())
    return [row for row in kernels if row.path in chosen]

  def apply(self, params: Params, tree: Params) -> dict[str, Any]:
    """The adapted parameters."""
    return merge(params, tree, self.scale)


def whole(
  frozen: Params, trained: Params, adapters: Mapping[str, LoRA]
) -> dict[str, Any]:
  """Trained parts with their frozen rest, or the adapted whole.

  Args:
    frozen: by part: what is not trained; all of it beside adapters.
    trained: by part: leaves, or a tree of adapters; {} adapts nothing.
    adapters: of the parts that have them.
  """
  out = {}
  for part, leaves in trained.items():
    out[part] = trees.merge(frozen[part], {} if part in adapters else leaves)
    if part in adapters and leaves:
      out[part] = adapters[part].apply(out[part], leaves)
  return out


def merge(params: Params, tree: Params, scale: float) -> dict[str, Any]:
  """Parameters with `scale * A B` added; each keeps its dtype.

  Args:
    params: the base; no gradient is taken where they are closed over.
    tree: `{path: {a, b}}`, nested like `params`.
    scale: alpha / rank.

  Raises:
    KeyError: when the tree adapts a parameter that is not there.
  """
  flat = trees.flatten(params)
  for path, (a, b) in pairs(tree).items():
    flat[path] = update(flat[path], a, b, scale)
  return trees.unflatten(flat)


def pairs(tree: Params) -> dict[str, tuple[Any, Any]]:
  """Path of a kernel -> (a, b)."""
  flat = trees.flatten(tree)
  paths = sorted({leaf.rpartition('/')[0] for leaf in flat})
  return {path: (flat[f'{path}/a'], flat[f'{path}/b']) for path in paths}


def update(w: Array, a: Array, b: Array, scale: float) -> Array:
  """One adapted kernel, added up in the wider dtype and cast back."""
  stack = w.shape[: _stacked(w, a, b)]
  rank = a.shape[-1]
  delta = jnp.matmul(
    a.reshape(*stack, -1, rank),
    b.reshape(*stack, rank, -1),
    precision='highest',
  )
  return (w + scale * delta.reshape(w.shape)).astype(w.dtype)


def _stacked(w, a, b) -> int:
  """Number of layer axes: a and b have one rank axis each beside w's own."""
  return a.ndim + b.ndim - 2 - w.ndim


def shardings(tree: Params, params: Params, placed: Params) -> dict[str, Any]:
  """NamedShardings of a LoRA tree: `in` and `out` lie as in the kernel.

  Args:
    tree: the LoRA tree (arrays or shape structs).
    params: the base (arrays or shape structs).
    placed: the NamedShardings of the base.
  """
  kernels, homes, out = trees.flatten(params), trees.flatten(placed), {}
  for path, (a, b) in pairs(tree).items():
    home, w = homes[path], kernels[path]
    spec = (*home.spec, *[None] * (w.ndim - len(home.spec)))
    y, cut = _stacked(w, a, b), a.ndim - 1
    out[path] = {
      'a': NamedSharding(home.mesh, P(*spec[:cut], None)),
      'b': NamedSharding(home.mesh, P(*spec[:y], None, *spec[cut:])),
    }
  return trees.unflatten(out)
