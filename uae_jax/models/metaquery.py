"""Learned queries as connector: the language model is asked for the image.

N learned embeddings follow the prompt; the language model's states at their
places go through a bidirectional transformer and a two-layer MLP into the
decoder's context ("Transfer between Modalities with MetaQueries", Pan et al.
2025, https://arxiv.org/abs/2504.06256, whose encoder sits before the
projection, too). The released encoder is a Qwen2.5 stack; this one is of
`clip.Block`. Letters as in `types`; N here is the number of queries, E the
context width, F the pooled width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from uae_jax.models.clip import Block
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm
from uae_jax.nn.stack import Stack

VARIANTS = {
  # 64 queries, 24 layers, after Qwen2.5-VL-3B; SD3.5's context.
  'sd35': dict(
    queries=64, width=2048, layers=24, heads=16, mlp=8192, context_dim=4096,
    pooled_dim=2048,
  ),
  'tiny': dict(
    queries=8, width=128, layers=2, heads=4, mlp=256, context_dim=96,
    pooled_dim=96,
  ),
}  # fmt: skip


class QueryConnector(nn.Module):
  """States at the queries -> context and pooled vector.

  Attributes:
    queries: N.
    width: D of the language model.
    layers: of the encoder; 0 leaves it out.
    heads: of its attention.
    mlp: its hidden width.
    context_dim: `joint_attention_dim` E of the decoder.
    pooled_dim: `pooled_projection_dim` F of the decoder.
  """

  queries: int
  width: int
  layers: int
  heads: int
  mlp: int
  context_dim: int
  pooled_dim: int

  def setup(self):
    init = nn.initializers.normal(0.02)
    self.embeddings = self.param('queries', init, (self.queries, self.width))
    if self.layers:
      kwargs = dict(heads=self.heads, mlp=self.mlp, act='gelu', eps=1e-6)
      self.encoder = Stack(Block, kwargs, self.layers, name='layers')
      self.final_norm = LayerNorm(1e-6)
    self.sequence = MLP(self.context_dim, self.context_dim, 'gelu')
    self.pooled = MLP(self.context_dim, self.pooled_dim, 'gelu')

  def learned(self) -> Float[Array, 'N D']:
    """What follows the prompt into the language model."""
    return self.embeddings

  def __call__(
    self, states: Float[Array, '*b N D']
  ) -> tuple[Float[Array, '*b N E'], Float[Array, '*b F']]:
    """(context, pooled) from the states at the queries."""
    *lead, n, d = states.shape
    x = states.reshape(-1, n, d)
    if self.layers:
      x, _ = self.encoder(x, None)
      x = self.final_norm(x)
    context = self.sequence(x).reshape(*lead, n, -1)
    mean = jnp.mean(x.astype(jnp.float32), 1).astype(x.dtype)
    return context, self.pooled(mean).reshape(*lead, -1)
