"""Image codes -> conditioning of a flow-matching decoder.

X-Omni draws by codes of an autoregressive model and lets a diffusion
transformer turn them into pixels, in place of a VQ decoder (Geng et al. 2025,
https://arxiv.org/abs/2507.22058). Here the code vectors are channels beside
the noise, where they belong (`umm.painter`), and every one, with a learned
place, is a token of the transformer's context. Letters as in `types`; E the
context width, F the pooled width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP

VARIANTS = {
  # 24 x 24 codes of VQ-16; FLUX.1's context.
  'janus-flux': dict(codes=576, code_dim=8, context_dim=4096, pooled_dim=768),
  'tiny': dict(codes=64, code_dim=8, context_dim=96, pooled_dim=96),
}


class CodeConnector(nn.Module):
  """Code vectors -> context and pooled vector.

  Attributes:
    codes: I of an image, each with a place of its own.
    code_dim: C of the codebook.
    context_dim: `joint_attention_dim` E of the decoder.
    pooled_dim: `pooled_projection_dim` F of the decoder.
  """

  codes: int
  code_dim: int
  context_dim: int
  pooled_dim: int

  @nn.compact
  def __call__(
    self, vectors: Float[Array, 'B I C']
  ) -> tuple[Float[Array, 'B I E'], Float[Array, 'B F']]:
    """(context, pooled) of the quantised vectors of B images."""
    init = nn.initializers.normal(0.02)
    places = self.param('places', init, (self.codes, self.context_dim))
    x = Linear(self.context_dim, name='code')(vectors)
    x = x + places.astype(x.dtype)
    context = MLP(self.context_dim, self.context_dim, 'gelu', name='sequence')(
      x
    )
    mean = jnp.mean(context.astype(jnp.float32), 1).astype(x.dtype)
    pooled = MLP(self.context_dim, self.pooled_dim, 'gelu', name='pooled')(mean)
    return context, pooled
