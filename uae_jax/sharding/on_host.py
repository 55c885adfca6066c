"""Python in the middle of a program: every device asks about its own rows.

Rows are not moved to be asked about: on several hosts each answers for what
its devices hold, and where devices hold the same rows one of them asks, once,
and tells the others. Nothing is asked twice, and no two devices can get
different answers. Letters: B rows.
"""

import math
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

# A CPU client copies what is larger in a thread of its pool. Where several
# CPU devices wait for each other, all of its threads may be waiting.
COPIED = 2**16  # bytes
_ONE = threading.Lock()  # what is asked need not be safe among threads

# numpy arrays [b ...], each of the same rows -> [b ...]
Ask = Callable[..., np.ndarray]


def call_rows(
  fn: Ask, shape: tuple[int, ...], dtype: Any, *rows: Array
) -> Array:
  """What `fn` says of all rows.

  Args:
    fn: runs on the host, on some of the rows at a time, and must not raise.
    shape: of what it says of one row.
    dtype: of that.
    *rows: arrays [B ...], spread over the data axis.

  Returns:
    [B *shape], spread likewise.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return _call(fn, shape, dtype, rows)
  spread = len(rows[0]) % mesh.shape['data'] == 0
  place, same = (P('data'), ['model']) if spread else (P(), [*mesh.axis_names])

  def local(*rows):
    asks = sum(jax.lax.axis_index(axis) for axis in same) == 0
    nothing = lambda: jnp.zeros((len(rows[0]), *shape), dtype)
    said = jax.lax.cond(asks, lambda: _call(fn, shape, dtype, rows), nothing)
    return jax.lax.psum(said, same)

  return jax.shard_map(
    local, in_specs=(place,) * len(rows), out_specs=place, check_vma=False
  )(*rows)


def _call(fn, shape, dtype, rows):
  """Asks about the rows of one device."""
  shapes = [x.shape for x in rows]
  sent = [_cut(x) for x in rows]

  def ask(sent):
    whole = [
      np.concatenate([np.asarray(piece) for piece in pieces]).reshape(shape)
      for pieces, shape in zip(sent, shapes)
    ]
    with _ONE:
      return np.asarray(fn(*whole), dtype)

  out = jax.ShapeDtypeStruct((len(rows[0]), *shape), dtype)
  return io_callback(ask, out, sent)


def _cut(x: Array) -> list[Array]:
  """The elements of x, in pieces that no thread has to wait for."""
  flat = x.reshape(-1)
  if jax.default_backend() != 'cpu' or jax.local_device_count() == 1:
    return [flat]
  size = COPIED // x.dtype.itemsize
  n = math.ceil(flat.size / size)
  return [flat[i * size : (i + 1) * size] for i in range(n)]
