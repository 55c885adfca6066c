"""VQ-16, the image tokenizer of Janus-Pro: 16 x 16 pixels are one code.

LlamaGen, Sun et al. 2024, https://arxiv.org/abs/2406.06525; numerics follow
its `vq_model.py` as Janus-Pro ships it. Codes are compared and read at unit
length; transformers' port normalises only when it reads. Letters: B images,
C channels, I codes of an image, K codebook size; h, w sides of the code grid,
R and Q of the image.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uae_jax.nn.conv_blocks import (
  AttnBlock,
  Conv,
  Down,
  GroupNorm,
  ResBlock,
  Up,
)

_VQ_16 = dict(
  codes=16384,
  code_dim=8,
  latent=256,
  channels=(128, 128, 256, 256, 512),
  layers=2,
  groups=32,
)
VARIANTS = {
  'janus-pro-1b': _VQ_16,
  'janus-pro-7b': _VQ_16,
  'tiny': dict(
    codes=512,
    code_dim=8,
    latent=32,
    channels=(32, 32, 64),
    layers=1,
    groups=32,
  ),
}


def _middle(x, groups: int):
  width = x.shape[-1]
  x = ResBlock(width, groups, name='mid_res0')(x)
  x = AttnBlock(groups, name='mid_attn')(x)
  return ResBlock(width, groups, name='mid_res1')(x)


class Encoder(nn.Module):
  """Pixels -> latents; attention at the deepest level only."""

  channels: Sequence[int]
  layers: int
  latent: int
  groups: int

  @nn.compact
  def __call__(self, x):
    last = len(self.channels) - 1
    x = Conv(self.channels[0], name='conv_in')(x)
    for i, width in enumerate(self.channels):
      for j in range(self.layers):
        x = ResBlock(width, self.groups, name=f'level{i}_res{j}')(x)
        if i == last:
          x = AttnBlock(self.groups, name=f'level{i}_attn{j}')(x)
      if i < last:
        x = Down(name=f'level{i}_move')(x)
    x = _middle(x, self.groups)
    x = jax.nn.silu(GroupNorm(self.groups, name='norm_out')(x))
    return Conv(self.latent, name='conv_out')(x)


class Decoder(nn.Module):
  """Latents -> pixels; level 0 is the deepest."""

  channels: Sequence[int]
  layers: int
  groups: int

  @nn.compact
  def __call__(self, x):
    widths = self.channels[::-1]
    x = Conv(widths[0], name='conv_in')(x)
    x = _middle(x, self.groups)
    for i, width in enumerate(widths):
      for j in range(self.layers + 1):
        x = ResBlock(width, self.groups, name=f'level{i}_res{j}')(x)
        if i == 0:
          x = AttnBlock(self.groups, name=f'level{i}_attn{j}')(x)
      if i + 1 < len(widths):
        x = Up(name=f'level{i}_move')(x)
    x = jax.nn.silu(GroupNorm(self.groups, name='norm_out')(x))
    return Conv(3, name='conv_out')(x)


class VQ(nn.Module):
  """Pixels <-> codes.

  Attributes:
    codes: codebook size K.
    code_dim: width of a code.
    latent: channels before they are projected to `code_dim`.
    channels: width of each level, from the largest image.
    layers: residual blocks a level of the encoder.
    groups: of the group norms.
  """

  codes: int
  code_dim: int
  latent: int
  channels: Sequence[int]
  layers: int
  groups: int

  def setup(self):
    sizes = dict(channels=self.channels, layers=self.layers, groups=self.groups)
    self.encoder = Encoder(**sizes, latent=self.latent)
    self.decoder = Decoder(**sizes)
    self.quant_conv = Conv(self.code_dim, 1)
    self.post_quant_conv = Conv(self.latent, 1)
    self.codebook = self.param(
      'codebook', nn.initializers.normal(1.0), (self.codes, self.code_dim)
    )

  @property
  def factor(self) -> int:
    """Side of the image over side of the code grid."""
    return 2 ** (len(self.channels) - 1)

  def latents(self, pixels: Float[Array, 'B R Q 3']) -> Float[Array, 'B h w C']:
    """Pixels in [-1, 1] -> what is compared with the codebook."""
    return self.quant_conv(self.encoder(pixels))

  def encode(self, pixels: Float[Array, 'B R Q 3']) -> Int[Array, 'B I']:
    """Pixels in [-1, 1] -> codes, row by row: the largest cosine."""
    z = unit(self.latents(pixels).astype(jnp.float32))
    z = z.reshape(len(z), -1, self.code_dim)
    scores = z @ unit(self.codebook.astype(jnp.float32)).T
    return jnp.argmax(scores, -1).astype(jnp.int32)

  def decode(
    self, codes: Int[Array, 'B I'], rows: int, dtype=jnp.float32
  ) -> Float[Array, 'B R Q 3']:
    """Codes of a grid with `rows` rows -> pixels, about [-1, 1]."""
    z = self.vectors(codes).astype(dtype)
    return self.render(z.reshape(len(codes), rows, -1, self.code_dim))

  def vectors(self, codes: Int[Array, 'B I']) -> Float[Array, 'B I C']:
    """What codes stand for, at unit length, fp32."""
    return unit(self.codebook.astype(jnp.float32))[codes]

  def render(self, z: Float[Array, 'B h w C']) -> Float[Array, 'B R Q 3']:
    """Quantised latents -> pixels."""
    return self.decoder(self.post_quant_conv(z))

  def __call__(self, pixels: Float[Array, 'B R Q 3']):
    """Reconstruction (and creates every parameter)."""
    codes = self.encode(pixels)
    return self.decode(codes, pixels.shape[1] // self.factor, pixels.dtype)


def unit(x: Float[Array, '*b C']) -> Float[Array, '*b C']:
  """x / |x| over the last axis."""
  norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
  return x / jnp.maximum(norm, 1e-12)
