"""Y copies of a block over stacked parameters: the only scan and remat."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# What a layer keeps for its backward pass: everything; matmul outputs;
# nothing but its input.
REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class Stack(nn.Module):
  """Scans `block(**kwargs)` over `layers` stacked copies.

  The block is called as `block(carry, xs, *shared) -> (carry, ys)`; `xs` and
  `ys` are trees with a leading layer axis outside, one layer inside (`xs`
  may be None), `shared` is the same for every layer. Parameters get a leading
  axis Y.
  """

  block: type[nn.Module]
  kwargs: Mapping[str, Any]
  layers: int
  remat: str = 'none'

  @nn.compact
  def __call__(self, carry, xs, *shared):
    block = self.block
    if self.remat != 'none':
      block = nn.remat(block, policy=REMAT[self.remat], prevent_cse=False)
    scanned = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, *[nn.broadcast] * len(shared)),
      length=self.layers,
      unroll=self.layers if self.layers <= 4 else 1,
    )
    return scanned(**self.kwargs, name='block')(carry, xs, *shared)


def by_chunks(fn: Callable[..., Any], chunk: int, *arrays: jax.Array) -> Any:
  """`fn` of pieces along the third axis, put together again.

  What `fn` makes on the way exists for one piece at a time, in the backward
  pass too, where it is computed again.

  Args:
    fn: arrays [B G chunk ...] -> a tree of arrays [B G chunk ...].
    chunk: length of a piece; 0 is all of it.
    *arrays: [B G L ...]; B and G may differ between them.
  """
  length = arrays[0].shape[2]
  if not chunk or length <= chunk:
    return fn(*arrays)
  n = -(-length // chunk)

  def cut(x):
    pad = [(0, 0)] * x.ndim
    pad[2] = (0, n * chunk - length)
    x = jnp.pad(x, pad)
    x = x.reshape(*x.shape[:2], n, chunk, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0)

  def join(x):
    x = jnp.moveaxis(x, 0, 2)
    return x.reshape(*x.shape[:2], n * chunk, *x.shape[4:])[:, :, :length]

  pieces = tuple(map(cut, arrays))
  out = jax.lax.map(jax.checkpoint(lambda piece: fn(*piece)), pieces)
  return jax.tree.map(join, out)
