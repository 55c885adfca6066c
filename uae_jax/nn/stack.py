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
    if self.has_variable('params', layer_name(0)):
      return self._one_by_one(carry, xs, *shared)
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

  def _one_by_one(self, carry, xs, *shared):
    """The same layers, of parameters that are `apart`."""
    out = []
    for i in range(self.layers):
      layer = self.block(**self.kwargs, name=layer_name(i))
      own = jax.tree.map(lambda x, i=i: x[i], xs)
      carry, ys = layer(carry, own, *shared)
      out.append(ys)
    return carry, jax.tree.map(lambda *ys: jnp.stack(ys), *out)


def layer_name(i: int) -> str:
  """Where the parameters of a layer are, once they are `apart`."""
  return f'layer_{i}'


def apart(params: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters whose stacks are cut into layers, for a loop over tokens.

  Where slicing is a copy, as on a CPU, a scan inside of such a loop would copy
  every layer for every token.
  """
  if set(params) == {'block'}:
    layers = len(jax.tree.leaves(params)[0])
    one = lambda i: jax.tree.map(lambda x: x[i], params['block'])
    return {layer_name(i): one(i) for i in range(layers)}
  return {
    key: apart(value) if isinstance(value, Mapping) else value
    for key, value in params.items()
  }


def recomputed(fn: Callable[..., Any]) -> Callable[..., Any]:
  """`fn`, of which a gradient keeps the arguments alone."""
  return jax.checkpoint(fn)


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
  out = jax.lax.map(recomputed(lambda piece: fn(*piece)), pieces)
  return jax.tree.map(join, out)
