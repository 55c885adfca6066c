"""Y copies of a block over stacked parameters: the only scan and remat."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

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
