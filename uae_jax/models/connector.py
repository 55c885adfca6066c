"""Connector: states of the language model -> conditioning of the MM-DiT.

The token projector is the one of the UAE release (`projector.0`,
`projector.2`: Linear, exact GELU, Linear on the final hidden state of every
token). The pooled vector, where UAE feeds a constant, is an MLP of the mean
state. Letters: L tokens, D width of the language model, E context width, F
pooled width; any axes may lead.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from uae_jax.nn.mlp import MLP

VARIANTS = {
  # Qwen2.5-VL-3B -> SD3 and SD3.5, sizes of the release.
  'uae': dict(hidden=8192, context_dim=4096, pooled_dim=2048),
  'tiny': dict(hidden=192, context_dim=96, pooled_dim=96),
}


class Connector(nn.Module):
  """Two MLPs, one per token and one for the masked mean.

  Attributes:
    hidden: width between the two linear maps of each MLP.
    context_dim: `joint_attention_dim` E of the MM-DiT.
    pooled_dim: `pooled_projection_dim` F of the MM-DiT.
  """

  hidden: int
  context_dim: int
  pooled_dim: int

  @nn.compact
  def __call__(
    self, states: Float[Array, '*b L D'], mask: Bool[Array, '*b L']
  ) -> tuple[Float[Array, '*b L E'], Float[Array, '*b F']]:
    """(context, pooled); the mean is over the tokens of `mask`."""
    context = MLP(self.hidden, self.context_dim, 'gelu', name='sequence')
    pooled = MLP(self.hidden, self.pooled_dim, 'gelu', name='pooled')
    return context(states), pooled(masked_mean(states, mask))


def masked_mean(
  states: Float[Array, '*b L D'], mask: Bool[Array, '*b L']
) -> Float[Array, '*b D']:
  """Mean over the tokens where `mask`, in fp32; zero where there are none."""
  weight = mask[..., None].astype(jnp.float32)
  total = jnp.sum(states.astype(jnp.float32) * weight, -2)
  count = jnp.maximum(jnp.sum(weight, -2), 1.0)
  return (total / count).astype(states.dtype)
