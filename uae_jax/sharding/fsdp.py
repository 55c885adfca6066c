"""Trained matrices that are spread over the data axis, and their gradients.

A matrix is put together where it is multiplied, and its gradient is summed
and spread again, by the collectives that are written here. Left to itself the
TPU compiler sums whole gradients on every device where a torus has two or
three dimensions, twice the traffic: it only scatters along lines. So both
ways go along one line of the torus after the other.

    for whom    local [D/64, F]
    gather      along y [D/8, F], along x [D, F], multiply
    scatter     along x [D/8, F], along y [D/64, F]
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from uae_jax import trees
from uae_jax.sharding.mesh import lines


@flax.struct.dataclass
class Spread:
  """A matrix that a `Linear` puts together by itself.

  Attributes:
    value: as stored; of one layer where layers are scanned.
    spec: of the mesh axes along its last dims.
    steps: lines that make up the data axis, the outermost first.
    slices: the first line leaves the slice, and is crossed with the least.
  """

  value: Array
  spec: tuple[str | None, ...] = flax.struct.field(pytree_node=False)
  steps: tuple[int, ...] = flax.struct.field(pytree_node=False)
  slices: bool = flax.struct.field(pytree_node=False, default=False)

  @property
  def placed(self) -> P:
    """Where one layer's matrix lies."""
    return P(*self.spec[-self.value.ndim :])

  def put_together(self, w: Array) -> Array:
    """The local part -> all rows of the data axis, within `shard_map`."""
    axis = self.placed.index('data')
    first = int(self.slices)
    if self.slices:
      w = self._gather(w, 0, axis, tiled=False)
      axis += 1
    for i in reversed(range(first, len(self.steps))):
      w = self._gather(w, i, axis, tiled=True)
    return self._flat(w, axis - 1) if self.slices else w

  def everywhere(self, mesh: Mesh, dtype: Any) -> Array:
    """The matrix in `dtype`, whole on every device of the data axis."""
    kept = [None if axis == 'data' else axis for axis in self.spec]
    return jax.shard_map(
      lambda w: self.put_together(w.astype(dtype)), mesh=mesh,
      in_specs=P(*self.spec), out_specs=P(*kept), check_vma=False,
    )(self.value)  # fmt: skip

  def take_apart(self, grad: Array) -> Array:
    """Sums over the data axis and keeps the local part: the way back."""
    axis = self.placed.index('data')
    first = int(self.slices)
    if self.slices:
      shape = grad.shape
      slices = self.steps[0]
      grad = grad.reshape(
        *shape[:axis], slices, shape[axis] // slices, *shape[axis + 1 :]
      )
      axis += 1
    for i in range(first, len(self.steps)):
      grad = self._scatter(grad, i, axis, tiled=True)
    if self.slices:
      grad = self._scatter(grad, 0, axis - 1, tiled=False)
    return grad

  def _flat(self, w, axis):
    return w.reshape(*w.shape[:axis], -1, *w.shape[axis + 2 :])

  def _groups(self, i: int) -> list[list[int]] | None:
    if len(self.steps) == 1:
      return None
    place = np.arange(np.prod(self.steps)).reshape(self.steps)
    return np.moveaxis(place, i, -1).reshape(-1, self.steps[i]).tolist()

  def _gather(self, w, i, axis, *, tiled):
    return jax.lax.all_gather(
      w, 'data', axis=axis, tiled=tiled, axis_index_groups=self._groups(i)
    )

  def _scatter(self, w, i, axis, *, tiled):
    return jax.lax.psum_scatter(
      w, 'data', scatter_dimension=axis, tiled=tiled,
      axis_index_groups=self._groups(i),
    )  # fmt: skip


def spreader(params: Any, matrices: Sequence[str]) -> Any:
  """What wraps the spread matrices of a tree like `params`.

  Args:
    params: placed parameters (arrays or shapes).
    matrices: regexes of those that are only ever multiplied.

  Returns:
    A function from a tree to one with `Spread` in the place of matrices.
  """
  chosen = trees.flatten(trees.mask(params, matrices))
  flat = trees.flatten(params)
  homes = {path: x.sharding for path, x in flat.items() if chosen[path]}

  def wrap(path, x):
    if path not in homes:
      return x
    home = homes[path]
    spec = (*home.spec, *[None] * (x.ndim - len(home.spec)))
    if home.mesh.shape['data'] == 1 or 'data' not in spec:
      return x
    steps, slices = lines(home.mesh)
    return Spread(x, spec, steps, slices)

  return lambda tree: trees.map_with_path(wrap, tree)


def whole(w: Array | Spread) -> Array:
  """The matrix itself, for what is no product."""
  return w.value if isinstance(w, Spread) else w


def product(x: Array, w: Array | Spread, inner: tuple[int, ...]) -> Array:
  """`x` times a matrix, in the dtype of `x`.

  Args:
    x: [B ... *inner]; the rows B lie along the data axis, or on every device
      where they do not divide over it.
    w: the matrix.
    inner: its axes that the last ones of x meet, ascending.

  Returns:
    [B ... *outer], the other axes of the matrix in their order.
  """
  if not isinstance(w, Spread):
    return _dot(x, w.astype(x.dtype), inner)
  if jax.sharding.get_abstract_mesh().empty:
    return _dot(x, w.value.astype(x.dtype), inner)
  return _spread_product(x, w.value, w.replace(value=None), inner)


def _dot(x: Array, w: Array, inner: tuple[int, ...]) -> Array:
  last = tuple(range(x.ndim - len(inner), x.ndim))
  return jax.lax.dot_general(x, w, ((last, inner), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _spread_product(x, value, how, inner):
  return _forward(x, value, how, inner)[0]


def _specs(x, value, how, inner):
  """Where x, the matrix and the product lie."""
  w = P(*how.spec[-value.ndim :])
  outer = [a for i, a in enumerate(w) if i not in inner]
  meets = [w[i] for i in inner]
  clean = lambda axes: [None if a == 'data' else a for a in axes]
  rows = [_rows(x), *[None] * (x.ndim - len(inner) - 1)]
  return P(*rows, *clean(meets)), w, P(*rows, *clean(outer))


def _rows(x: Array) -> str | None:
  """The mesh axis of the rows of x."""
  data = jax.sharding.get_abstract_mesh().shape['data']
  return None if x.shape[0] % data else 'data'


def _mapped(fn, specs, out):
  return jax.shard_map(fn, in_specs=specs, out_specs=out, check_vma=False)


def _forward(x, value, how, inner):
  x_spec, w_spec, y_spec = _specs(x, value, how, inner)

  def multiply(x, w):
    w = how.replace(value=w)
    y = _dot(x, w.put_together(w.value.astype(x.dtype)), inner)
    return jax.lax.psum(y, 'model') if 'model' in x_spec else y

  y = _mapped(multiply, (x_spec, w_spec), y_spec)(x, value)
  return y, (x, value)


def _backward(how, inner, kept, dy):
  x, value = kept
  x_spec, w_spec, y_spec = _specs(x, value, how, inner)
  outer = tuple(i for i in range(value.ndim) if i not in inner)
  order = np.argsort([*inner, *outer])
  copies = 1 if _rows(x) else np.prod(how.steps)  # of the same gradient

  def slopes(x, w, dy):
    w = how.replace(value=w)
    dx = _dot(dy, w.put_together(w.value.astype(x.dtype)), outer)
    dx = jax.lax.psum(dx, 'model') if 'model' in y_spec else dx
    rows = tuple(range(x.ndim - len(inner)))
    dw = jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    dw = w.take_apart(jnp.transpose(dw, order)).astype(value.dtype)
    return dx, dw / copies

  specs = (x_spec, w_spec, y_spec)
  return _mapped(slopes, specs, (x_spec, w_spec))(x, value, dy)


_spread_product.defvjp(_forward, _backward)
