"""Qwen2.5-VL vision tower (transformers qwen2_5_vl, visual).

Patches arrive in merge-group-major order, so that four consecutive rows are
one merged token. Most blocks attend inside 112-pixel windows, a few over the
whole image; both are masks over segment ids, so the order of the patches
need not change and images of different sizes share one row:

  patch    a a a a b b b b c c -      (- is padding)
  image    0 0 0 0 0 0 0 0 1 1 -1     full blocks: equal image ids attend
  window   0 0 0 0 1 1 1 1 2 2 -1     the others: equal window ids attend
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uae_jax.nn import rope
from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP, GatedMLP
from uae_jax.nn.norms import RMSNorm
from uae_jax.nn.stack import Stack

VARIANTS = {
  'qwen2.5-vl-3b': dict(
    width=1280, layers=32, heads=16, mlp=3420, out=2048, patch=14, merge=2,
    window=112, full=(7, 15, 23, 31),
  ),
  'qwen2.5-vl-7b': dict(
    width=1280, layers=32, heads=16, mlp=3420, out=3584, patch=14, merge=2,
    window=112, full=(7, 15, 23, 31),
  ),
  'tiny': dict(
    width=128, layers=2, heads=4, mlp=256, out=128, patch=4, merge=2,
    window=16, full=(1,),
  ),
}  # fmt: skip


class Block(nn.Module):
  """Pre-norm attention over a window or an image, then a gated MLP."""

  heads: int
  mlp: int

  @nn.compact
  def __call__(self, x, is_full, angles, image, window):
    b, p, d = x.shape
    h = RMSNorm(name='norm1')(x)
    qkv = Linear((3, self.heads, d // self.heads), name='qkv')(h)
    q, k, v = (qkv[:, :, i] for i in range(3))
    cos, sin = angles
    q = rope.rotate(q.astype(jnp.float32), cos, sin).astype(x.dtype)
    k = rope.rotate(k.astype(jnp.float32), cos, sin).astype(x.dtype)
    out = attend(q, k, v, ids=jnp.where(is_full, image, window))
    x = x + Linear(d, n_in=2, name='proj')(out)
    h = RMSNorm(name='norm2')(x)
    return x + GatedMLP(self.mlp, bias=True, name='mlp')(h), None


class QwenVision(nn.Module):
  """Patches -> merged image tokens in the width of the language model."""

  width: int
  layers: int
  heads: int
  mlp: int
  out: int
  patch: int
  merge: int
  window: int
  full: tuple[int, ...]
  theta: float = 1e4
  remat: str = 'none'

  @nn.compact
  def __call__(
    self,
    patches: Float[Array, 'B P E'],
    hw: Int[Array, 'B P 2'],
    window: Int[Array, 'B P'],
    image: Int[Array, 'B P'],
  ) -> Float[Array, 'B M D']:
    """Returns M = P / merge^2 tokens; padded patches give unused tokens."""
    x = Linear(self.width, bias=False, name='patch_embed')(patches)
    angles = rope.angles_2d(hw, self.width // self.heads, self.theta)
    angles = (jnp.cos(angles), jnp.sin(angles))
    is_full = jnp.isin(jnp.arange(self.layers), jnp.array(self.full))
    block = Stack(
      Block,
      dict(heads=self.heads, mlp=self.mlp),
      self.layers,
      self.remat,
      name='blocks',
    )
    with jax.named_scope('vision'):
      x, _ = block(x, is_full, angles, image, window)
      x = RMSNorm(name='merger_norm')(x)
      b, p, d = x.shape
      x = x.reshape(b, p // self.merge**2, d * self.merge**2)
      return MLP(x.shape[-1], self.out, 'gelu', name='merger')(x)
