"""DINOv2, with and without register tokens: images only, no captions.

Oquab et al. 2023, https://arxiv.org/abs/2304.07193; registers, Darcet et al.
2023, https://arxiv.org/abs/2309.16588; numerics follow transformers
`modeling_dinov2.py` and `modeling_dinov2_with_registers.py`. Letters: B
images, P patches, D width, N heads, H head dim, F mlp, R image side in
pixels.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from uae_jax.models.vit import LayerScale, whole_patches
from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain

_ALL = dict(size=518, patch=14, mlp_ratio=4, act='gelu', eps=1e-6)
_PLAIN = dict(gated=False, qkv_bias=True, **_ALL)
_GATED = dict(gated=True, qkv_bias=True, **_ALL)
_SIZES = {
  's': dict(width=384, layers=12, heads=6, **_PLAIN),
  'b': dict(width=768, layers=12, heads=12, **_PLAIN),
  'l': dict(width=1024, layers=24, heads=16, **_PLAIN),
  'g': dict(width=1536, layers=40, heads=24, **_GATED),
}
_BARE = dict(registers=0, antialias=False, mask_token=True)
_REGISTERS = dict(registers=4, antialias=True, mask_token=True)

VARIANTS = {
  **{f'dinov2-{k}': dict(v, **_BARE) for k, v in _SIZES.items()},
  **{f'dinov2-{k}-reg': dict(v, **_REGISTERS) for k, v in _SIZES.items()},
  'tiny': dict(
    width=96, layers=3, heads=3, **{**_PLAIN, 'size': 32, 'patch': 4}, **_BARE
  ),
}


def gated_width(width: int, mlp_ratio: int) -> int:
  """Hidden width F of the gated MLP: two thirds, in steps of 8."""
  return (int(int(width * mlp_ratio) * 2 / 3) + 7) // 8 * 8


class FusedGatedMLP(nn.Module):
  """down(silu(gate(x)) * up(x)); gate and up are one map, as on the hub."""

  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    h = Linear((2, self.hidden), name='gate_up')(x)
    h = jax.nn.silu(h[..., 0, :]) * h[..., 1, :]
    h = constrain(h, 'batch', *['len'] * (h.ndim - 2), 'ffn')
    return Linear(x.shape[-1], name='down')(h)


class Block(nn.Module):
  """Pre-norm attention and MLP, each branch with a gain per channel."""

  heads: int
  mlp_ratio: int
  gated: bool
  qkv_bias: bool
  act: str
  eps: float

  @nn.compact
  def __call__(self, x, xs):
    width = x.shape[-1]
    heads = (self.heads, width // self.heads)
    h = LayerNorm(self.eps, name='norm1')(x)
    q, k, v = (Linear(heads, bias=self.qkv_bias, name=n)(h) for n in 'qkv')
    h = Linear(width, n_in=2, name='o')(attend(q, k, v))
    x = x + LayerScale(name='scale1')(h)
    h = LayerNorm(self.eps, name='norm2')(x)
    if self.gated:
      hidden = gated_width(width, self.mlp_ratio)
      h = FusedGatedMLP(hidden, name='mlp')(h)
    else:
      hidden = int(width * self.mlp_ratio)
      h = MLP(hidden, width, self.act, name='mlp')(h)
    x = x + LayerScale(name='scale2')(h)
    return constrain(x, 'batch', 'len', 'emb'), None


class DINOv2(nn.Module):
  """Normalised pixels -> states [CLS | registers | patches] after the norm.

  Attributes:
    size: side in pixels of the images that the position table is for; at
      other sizes it is resized to the patch grid.
    gated: SwiGLU in place of the MLP.
    registers: tokens after the CLS that have no position; 0 for none.
    antialias: how the table is resized: the model with registers applies an
      antialiased filter, the one without a plain one.
    mask_token: the checkpoint has the token that stands for a hidden patch
      in pre-training; kept so that an export is whole, never read.
  """

  size: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp_ratio: int
  gated: bool
  qkv_bias: bool
  act: str
  eps: float
  registers: int
  antialias: bool
  mask_token: bool

  @nn.compact
  def __call__(self, pixels: Float[Array, 'B h w 3']) -> Float[Array, 'B L D']:
    """States of all tokens."""
    side = self.size // self.patch
    init = nn.initializers.normal(0.02)
    x = Linear(self.width, name='patch_embed')(
      whole_patches(pixels, self.patch)
    )
    cls = self.param('cls', init, (1, self.width))
    table = self.param('positions', init, (1 + side**2, self.width))
    if self.mask_token:
      self.param('mask_token', nn.initializers.zeros, (self.width,))
    grid = tuple(n // self.patch for n in pixels.shape[1:3])
    table = table.astype(jnp.float32)
    patches = resize_table(table[1:], grid, self.antialias)
    prefix = cls + table[:1]
    if self.registers:
      registers = self.param('registers', init, (self.registers, self.width))
      prefix = jnp.concatenate([prefix, registers])
    prefix = jnp.broadcast_to(prefix.astype(x.dtype), (len(x), *prefix.shape))
    x = jnp.concatenate([prefix, x + patches.astype(x.dtype)], 1)
    kwargs = dict(
      heads=self.heads,
      mlp_ratio=self.mlp_ratio,
      gated=self.gated,
      qkv_bias=self.qkv_bias,
      act=self.act,
      eps=self.eps,
    )
    x, _ = Stack(Block, kwargs, self.layers, name='layers')(x, None)
    return LayerNorm(self.eps, name='final_norm')(x)

  def image(self, pixels: Float[Array, 'B h w 3']) -> Float[Array, 'B D']:
    """Normalised pixels -> state of the CLS, not unit length."""
    return self(pixels)[:, 0]


def resize_table(
  table: Float[Array, 'P D'], grid: tuple[int, int], antialias: bool
) -> Float[Array, 'p D']:
  """A square table of positions -> one for a grid of rows x columns.

  Bicubic as torch interpolates: with `antialias` the filter of PIL
  (a = -1/2, widened when shrinking); without, a = -3/4 and always four taps.
  """
  side, width = round(len(table) ** 0.5), table.shape[-1]
  table = table.reshape(side, side, width)
  if antialias:
    table = jax.image.resize(table, (*grid, width), 'cubic', antialias=True)
  else:
    down, across = (bicubic_matrix(side, n) for n in grid)
    highest = jax.lax.Precision.HIGHEST
    table = jnp.einsum('ih,hwd->iwd', down, table, precision=highest)
    table = jnp.einsum('jw,iwd->ijd', across, table, precision=highest)
  return table.reshape(-1, width)


def bicubic_matrix(size: int, out: int) -> Float[np.ndarray, 'o n']:
  """Weights of `size` samples in each of `out`: a = -3/4, edges repeated."""
  a = -0.75
  # In fp32, as torch finds the centres.
  steps = np.arange(out, dtype=np.float32) + np.float32(0.5)
  centre = np.float32(size / out) * steps - np.float32(0.5)
  first = np.floor(centre).astype(int)
  weights = np.zeros((out, size))
  for tap in range(-1, 3):
    d = np.abs(centre - (first + tap))
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    at = np.clip(first + tap, 0, size - 1)
    np.add.at(weights, (np.arange(out), at), np.where(d <= 1, near, far))
  return weights.astype(np.float32)
