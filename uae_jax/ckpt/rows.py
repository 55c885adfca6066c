"""Rows of a checkpoint table: one hub name, one of our paths, one layout."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]  # (start, stop) of every axis


@dataclasses.dataclass(frozen=True)
class Row:
  """One kind of tensor.

  Attributes:
    path: our parameter path, such as 'layers/block/q/kernel'.
    hub: the hub's tensor name, with `{i}` where layers are stacked.
    op: 'same'; 'flat' (the hub's is one axis, a bias with heads); 'linear'
      (torch [out, in...] -> [in, out]); or 'conv' (torch [out, in, k, k] ->
      [k, k, in, out]).
    n_in: number of leading axes of our (unstacked) kernel that torch flattens
      into `in`; for 'linear' only.
    hub_shape: the hub's shape where it cannot be derived (convolutions).
    layers: the hub's layer numbers in stacking order; () when not stacked.
  """

  path: str
  hub: str
  op: str = 'same'
  n_in: int = 1
  hub_shape: Shape | None = None
  layers: tuple[int, ...] = ()

  def names(self) -> list[str]:
    """Hub names in stacking order."""
    if self.layers:
      return [self.hub.format(i=i) for i in self.layers]
    return [self.hub]

  def one(self, ours: Shape) -> Shape:
    """The shape of our parameter without its layer axis."""
    return tuple(ours[1:] if self.layers else ours)

  def shape_on_hub(self, ours: Shape) -> Shape:
    """The shape that one hub tensor must have for our parameter's shape."""
    if self.hub_shape is not None:
      return self.hub_shape
    one = self.one(ours)
    if self.op == 'same':
      return one
    if self.op == 'flat':
      return (math.prod(one),)
    if self.op == 'conv':
      return (one[3], one[2], one[0], one[1])
    return (math.prod(one[self.n_in :]), math.prod(one[: self.n_in]))

  def factors(self, ours: Shape, rank: int) -> tuple[Shape, Shape]:
    """Shapes of A [*in, R] and B [R, *out] of a 'linear' row, stacked too."""
    y = ours[: len(self.layers[:1])]
    one = self.one(ours)
    return (*y, *one[: self.n_in], rank), (*y, rank, *one[self.n_in :])

  def to_ours(self, x: np.ndarray, one: Shape) -> np.ndarray:
    """A view of hub rows as the unstacked parameter, or a region of it."""
    if self.op == 'linear':
      x = x.reshape(x.shape[0], -1).T
    if self.op == 'conv':
      x = x.transpose(2, 3, 1, 0)
    return x.reshape(one)

  def to_hub(self, x: np.ndarray, ours: Shape) -> np.ndarray:
    """One unstacked parameter -> one hub tensor."""
    shape = self.shape_on_hub(ours)
    if self.op == 'linear':
      x = x.reshape(-1, shape[0]).T
    if self.op == 'conv':
      x = x.transpose(3, 2, 0, 1)
    return np.ascontiguousarray(x).reshape(shape)  # a scalar stays one

  def pieces(self, ours: Shape, limit: int) -> Iterator[tuple[int, int, Box]]:
    """Cuts one hub tensor along its first axis.

    Args:
      ours: shape of our parameter.
      limit: numbers in a piece, exceeded where one cut is larger.

    Yields:
      (first row, last row + 1, region of the unstacked parameter).
    """
    one, hub = self.one(ours), self.shape_on_hub(ours)
    rows = hub[0] if hub else 1
    # The axis of ours along which the hub's rows run.
    axis = dict(linear=self.n_in, conv=3).get(self.op, 0)
    whole = [(0, n) for n in one]
    count = one[axis] if one else 1
    if not count or rows % count:
      yield 0, rows, tuple(whole)
      return
    unit = rows // count
    step = max(1, limit * count // max(1, math.prod(one)))
    for start in range(0, count, step):
      stop = min(start + step, count)
      if one:
        whole[axis] = (start, stop)
      yield start * unit, stop * unit, tuple(whole)


def linear(path: str, hub: str, *, bias: bool = True, **kw) -> list[Row]:
  """Rows of a Linear: `path/kernel`, `path/bias` <- `hub.weight`, `.bias`."""
  rows = [Row(f'{path}/kernel', f'{hub}.weight', 'linear', **kw)]
  if bias:
    layers = kw.get('layers', ())
    rows.append(Row(f'{path}/bias', f'{hub}.bias', 'flat', layers=layers))
  return rows


def conv(path: str, hub: str) -> list[Row]:
  """Rows of a convolution with a bias."""
  kernel = Row(f'{path}/kernel', f'{hub}.weight', 'conv')
  return [kernel, Row(f'{path}/bias', f'{hub}.bias')]


def norm(path: str, hub: str, *, bias: bool, **kw) -> list[Row]:
  """Rows of a norm: `path/scale`[, `path/bias`]."""
  rows = [Row(f'{path}/scale', f'{hub}.weight', **kw)]
  if bias:
    rows.append(Row(f'{path}/bias', f'{hub}.bias', **kw))
  return rows
