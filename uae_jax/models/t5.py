"""T5 v1.1 encoder, the long-text encoder of SD3 and FLUX.

Raffel et al. 2020, https://arxiv.org/abs/1910.10683; numerics follow
transformers `modeling_t5.py`: RMS norms, no biases, scores that are not
scaled, one table of relative positions for all layers. Padding is attended,
as in the pipelines of diffusers. Letters: B texts, L tokens, D width, N
heads, H head dim.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import GatedMLP
from uae_jax.nn.norms import RMSNorm
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain

VARIANTS = {
  't5-v1.1-xxl': dict(
    vocab=32128,
    width=4096,
    layers=24,
    heads=64,
    head_dim=64,
    mlp=10240,
    buckets=32,
    max_distance=128,
  ),
  'tiny': dict(
    vocab=64,
    width=96,
    layers=2,
    heads=4,
    head_dim=16,
    mlp=128,
    buckets=32,
    max_distance=128,
  ),
}


class Block(nn.Module):
  """Pre-norm attention with a bias and a gated MLP."""

  heads: int
  head_dim: int
  mlp: int

  @nn.compact
  def __call__(self, x, xs, bias):
    width, heads = x.shape[-1], (self.heads, self.head_dim)
    h = RMSNorm(name='attn_norm')(x)
    q, k, v = (Linear(heads, bias=False, name=n)(h) for n in 'qkv')
    mixed = attend(q, k, v, bias=bias, scale=1.0)
    x = x + Linear(width, n_in=2, bias=False, name='o')(mixed)
    h = RMSNorm(name='mlp_norm')(x)
    x = x + GatedMLP(self.mlp, act='gelu_tanh', name='mlp')(h)
    return constrain(x, 'batch', 'len', 'emb'), None


class T5(nn.Module):
  """Token ids -> states.

  Attributes:
    mlp: width between the linear maps of a layer.
    buckets: rows of the table of relative positions.
    max_distance: from where on all distances share a row.
  """

  vocab: int
  width: int
  layers: int
  heads: int
  head_dim: int
  mlp: int
  buckets: int
  max_distance: int

  @nn.compact
  def __call__(
    self, ids: Int[Array, 'B L'], dtype=jnp.float32
  ) -> Float[Array, 'B L D']:
    """States of every token, padding included, computed in `dtype`."""
    words = self.param(
      'words', nn.initializers.normal(1.0), (self.vocab, self.width)
    )
    table = self.param(
      'relative', nn.initializers.normal(0.1), (self.buckets, self.heads)
    )
    place = np.arange(ids.shape[1])
    which = bucket(place - place[:, None], self.buckets, self.max_distance)
    bias = jnp.moveaxis(table.astype(dtype)[which], -1, 0)
    kwargs = dict(heads=self.heads, head_dim=self.head_dim, mlp=self.mlp)
    stack = Stack(Block, kwargs, self.layers, name='layers')
    x, _ = stack(words.astype(dtype)[ids], None, bias)
    return RMSNorm(name='final_norm')(x)


def bucket(
  distance: Int[np.ndarray, '*s'], buckets: int, max_distance: int
) -> Int[np.ndarray, '*s']:
  """Row of the table for key place - query place.

  Half of the rows are for keys behind the query; of each half, one half is
  for exact distances, the other spaced by their logarithm.
  """
  half = buckets // 2
  exact = half // 2
  far = np.abs(distance)
  ratio = np.log(np.maximum(far, 1).astype(np.float32) / exact)
  ratio = ratio / np.log(np.float32(max_distance / exact))
  coarse = exact + (ratio * (half - exact)).astype(np.int64)
  row = np.where(far < exact, far, np.minimum(coarse, half - 1))
  return row + half * (distance > 0)
