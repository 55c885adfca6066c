"""Connector: states of the language model -> conditioning of the decoder.

The token projector is a two-layer MLP on the final hidden state of every
token: UAE's release (`projector.0`, `projector.2`, exact GELU) and UniWorld's
(`denoise_projector`, SiLU). The pooled vector is an MLP of the mean state, or
a constant, as in both releases, where it is what the decoder's own text
encoders say of the empty prompt; UniWorld's `siglip_projector` has none.
Letters: L tokens, D width of the language
model, E context width, F pooled width; any axes may lead.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from uae_jax.nn.mlp import MLP

POOLED = ('mean', 'constant', 'none')

VARIANTS = {
  # Qwen2.5-VL-3B -> SD3.5-large, sizes of the release.
  'uae': dict(
    hidden=8192,
    context_dim=4096,
    pooled_dim=2048,
    act='gelu',
    pooled='constant',
  ),
  # Qwen2.5-VL-7B -> FLUX.1-dev.
  'uniworld': dict(
    hidden=12288,
    context_dim=4096,
    pooled_dim=768,
    act='silu',
    pooled='constant',
  ),
  # SigLIP2-so400m -> FLUX.1-dev.
  'uniworld-siglip': dict(
    hidden=12288,
    context_dim=4096,
    pooled_dim=768,
    act='silu',
    pooled='none',
  ),
  'tiny': dict(
    hidden=192, context_dim=96, pooled_dim=96, act='gelu', pooled='mean'
  ),
}


class Connector(nn.Module):
  """One MLP per token, and a pooled vector.

  Attributes:
    hidden: width between the two linear maps of an MLP.
    context_dim: `joint_attention_dim` E of the decoder.
    pooled_dim: `pooled_projection_dim` F of the decoder.
    act: activation, a key of `nn.mlp.ACTIVATIONS`.
    pooled: 'mean', an MLP of the masked mean; 'constant', one vector;
      'none'.
  """

  hidden: int
  context_dim: int
  pooled_dim: int
  act: str
  pooled: str

  @nn.compact
  def __call__(
    self, states: Float[Array, '*b L D'], mask: Bool[Array, '*b L']
  ) -> tuple[Float[Array, '*b L E'], Float[Array, '*b F'] | None]:
    """(context, pooled); the mean is over the tokens of `mask`."""
    context = MLP(self.hidden, self.context_dim, self.act, name='sequence')
    if self.pooled == 'none':
      return context(states), None
    if self.pooled == 'constant':
      vector = self.param('constant', nn.initializers.zeros, (self.pooled_dim,))
      shape = (*states.shape[:-2], self.pooled_dim)
      return context(states), jnp.broadcast_to(
        vector.astype(states.dtype), shape
      )
    pooled = MLP(self.hidden, self.pooled_dim, self.act, name='pooled')
    return context(states), pooled(masked_mean(states, mask))


def masked_mean(
  states: Float[Array, '*b L D'], mask: Bool[Array, '*b L']
) -> Float[Array, '*b D']:
  """Mean over the tokens where `mask`, in fp32; zero where there are none."""
  weight = mask[..., None].astype(jnp.float32)
  total = jnp.sum(states.astype(jnp.float32) * weight, -2)
  count = jnp.maximum(jnp.sum(weight, -2), 1.0)
  return (total / count).astype(states.dtype)
