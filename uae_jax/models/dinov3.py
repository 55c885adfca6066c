"""DINOv3 ViT: rotary positions, register tokens, no captions.

Siméoni et al. 2025, https://arxiv.org/abs/2508.10104; numerics follow
transformers `modeling_dinov3_vit.py` at inference (no jitter of positions).
Letters: B images, P patches, D width, N heads, H head dim, R image side in
pixels.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uae_jax.models.vit import LayerScale, whole_patches
from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP, GatedMLP
from uae_jax.nn.norms import LayerNorm
from uae_jax.nn.rope import rotate
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain

_ALL = dict(size=224, patch=16, registers=4, theta=100.0, eps=1e-5)
_BIAS = dict(q_bias=True, k_bias=False, v_bias=True, o_bias=True)
_PLAIN = dict(gated=False, act='gelu', **_BIAS, **_ALL)
_GATED = dict(gated=True, act='silu', **_BIAS, **_ALL)

VARIANTS = {
  'dinov3-s': dict(width=384, layers=12, heads=6, mlp=1536, **_PLAIN),
  'dinov3-s-plus': dict(width=384, layers=12, heads=6, mlp=1536, **_GATED),
  'dinov3-b': dict(width=768, layers=12, heads=12, mlp=3072, **_PLAIN),
  'dinov3-l': dict(width=1024, layers=24, heads=16, mlp=4096, **_PLAIN),
  'dinov3-h-plus': dict(width=1280, layers=32, heads=20, mlp=5120, **_GATED),
  'dinov3-7b': dict(
    width=4096,
    layers=40,
    heads=32,
    mlp=8192,
    **{**_GATED, 'q_bias': False, 'v_bias': False},
  ),
  'tiny': dict(
    width=96,
    layers=3,
    heads=3,
    mlp=160,
    **{**_PLAIN, 'size': 32, 'patch': 4},
  ),
}


class Block(nn.Module):
  """Pre-norm rotary attention and MLP, each branch with a gain per channel."""

  heads: int
  mlp: int
  gated: bool
  act: str
  q_bias: bool
  k_bias: bool
  v_bias: bool
  o_bias: bool
  eps: float

  @nn.compact
  def __call__(self, x, xs, cos, sin):
    width = x.shape[-1]
    heads = (self.heads, width // self.heads)
    h = LayerNorm(self.eps, name='norm1')(x)
    q = Linear(heads, bias=self.q_bias, name='q')(h)
    k = Linear(heads, bias=self.k_bias, name='k')(h)
    v = Linear(heads, bias=self.v_bias, name='v')(h)
    h = attend(rotate(q, cos, sin), rotate(k, cos, sin), v)
    h = Linear(width, n_in=2, bias=self.o_bias, name='o')(h)
    x = x + LayerScale(name='scale1')(h)
    h = LayerNorm(self.eps, name='norm2')(x)
    if self.gated:
      h = GatedMLP(self.mlp, bias=True, act=self.act, name='mlp')(h)
    else:
      h = MLP(self.mlp, width, self.act, name='mlp')(h)
    x = x + LayerScale(name='scale2')(h)
    return constrain(x, 'batch', 'len', 'emb'), None


class DINOv3(nn.Module):
  """Normalised pixels -> states [CLS | registers | patches] after the norm.

  Attributes:
    size: side in pixels that the checkpoint names; any size is accepted.
    registers: tokens after the CLS; neither they nor the CLS are rotated.
    theta: base of the rotary frequencies.
    gated: gated MLP in place of the plain one.
  """

  size: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp: int
  gated: bool
  act: str
  q_bias: bool
  k_bias: bool
  v_bias: bool
  o_bias: bool
  registers: int
  theta: float
  eps: float

  @nn.compact
  def __call__(self, pixels: Float[Array, 'B h w 3']) -> Float[Array, 'B L D']:
    """States of all tokens."""
    init = nn.initializers.normal(0.02)
    x = Linear(self.width, name='patch_embed')(
      whole_patches(pixels, self.patch)
    )
    cls = self.param('cls', init, (1, self.width))
    registers = self.param('registers', init, (self.registers, self.width))
    # Stands for a hidden patch in pre-training; kept so that an export is
    # whole, never read.
    self.param('mask_token', nn.initializers.zeros, (self.width,))
    prefix = jnp.concatenate([cls, registers]).astype(x.dtype)
    prefix = jnp.broadcast_to(prefix, (len(x), *prefix.shape))
    x = jnp.concatenate([prefix, x], 1)
    rows, cols = (n // self.patch for n in pixels.shape[1:3])
    angles = patch_angles(rows, cols, self.width // self.heads, self.theta)
    # An angle of zero leaves the CLS and the registers as they are.
    angles = np.pad(angles, ((1 + self.registers, 0), (0, 0)))
    cos, sin = (f(angles).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    kwargs = dict(
      heads=self.heads,
      mlp=self.mlp,
      gated=self.gated,
      act=self.act,
      q_bias=self.q_bias,
      k_bias=self.k_bias,
      v_bias=self.v_bias,
      o_bias=self.o_bias,
      eps=self.eps,
    )
    stack = Stack(Block, kwargs, self.layers, name='layers')
    x, _ = stack(x, None, cos, sin)
    return LayerNorm(self.eps, name='final_norm')(x)

  def image(self, pixels: Float[Array, 'B h w 3']) -> Float[Array, 'B D']:
    """Normalised pixels -> state of the CLS, not unit length."""
    return self(pixels)[:, 0]


def patch_angles(
  rows: int, cols: int, head_dim: int, theta: float
) -> Float[np.ndarray, 'P h']:
  """Angles [y-frequencies | x-frequencies], head_dim / 2 in all.

  A patch lies at its centre, in [-1, 1] of the image's own height and width.
  """
  inv = 1 / theta ** np.arange(0, 1, 4 / head_dim, dtype=np.float32)
  centre = lambda n: 2 * ((np.arange(n, dtype=np.float32) + 0.5) / n) - 1
  at = np.stack(np.meshgrid(centre(rows), centre(cols), indexing='ij'), -1)
  angles = np.float32(2 * np.pi) * at.reshape(-1, 2, 1) * inv
  return angles.reshape(rows * cols, -1).astype(np.float32)
