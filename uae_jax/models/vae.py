"""AutoencoderKL, the image autoencoder of SD3, SD3.5 and FLUX.

Rombach et al. 2022, https://arxiv.org/abs/2112.10752; numerics follow
diffusers `autoencoder_kl.py`. Letters: B images, C channels; h, w sides of the
latent, R and Q of the image, 8 times as large at the real sizes.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uae_jax.nn.conv_blocks import (
  AttnBlock,
  Conv,
  Down,
  GroupNorm,
  ResBlock,
  Up,
)

_REAL = dict(
  channels=(128, 256, 512, 512), layers=2, latent=16, groups=32, quant=False
)
VARIANTS = {
  'sd3': dict(**_REAL, scaling=1.5305, shift=0.0609),
  'flux': dict(**_REAL, scaling=0.3611, shift=0.1159),
  'tiny': dict(
    channels=(16, 32),
    layers=1,
    latent=4,
    groups=8,
    quant=False,
    scaling=1.5305,
    shift=0.0609,
  ),
}


class Middle(nn.Module):
  """Residual, attention, residual."""

  groups: int

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    x = ResBlock(width, self.groups, name='res0')(x)
    x = AttnBlock(self.groups, name='attn')(x)
    return ResBlock(width, self.groups, name='res1')(x)


class Encoder(nn.Module):
  """Pixels -> mean and log variance, side by side in the channels."""

  channels: Sequence[int]
  layers: int
  out: int
  groups: int

  @nn.compact
  def __call__(self, x):
    x = Conv(self.channels[0], name='conv_in')(x)
    for i, width in enumerate(self.channels):
      for j in range(self.layers):
        x = ResBlock(width, self.groups, name=f'down{i}_res{j}')(x)
      if i + 1 < len(self.channels):
        x = Down(name=f'down{i}')(x)
    x = Middle(self.groups, name='mid')(x)
    x = jax.nn.silu(GroupNorm(self.groups, name='norm_out')(x))
    return Conv(self.out, name='conv_out')(x)


class Decoder(nn.Module):
  """Latents -> pixels; one more residual block a level than the encoder."""

  channels: Sequence[int]
  layers: int
  groups: int

  @nn.compact
  def __call__(self, x):
    widths = self.channels[::-1]
    x = Conv(widths[0], name='conv_in')(x)
    x = Middle(self.groups, name='mid')(x)
    for i, width in enumerate(widths):
      for j in range(self.layers + 1):
        x = ResBlock(width, self.groups, name=f'up{i}_res{j}')(x)
      if i + 1 < len(widths):
        x = Up(name=f'up{i}')(x)
    x = jax.nn.silu(GroupNorm(self.groups, name='norm_out')(x))
    return Conv(3, name='conv_out')(x)


class VAE(nn.Module):
  """The autoencoder. Latents go in and out in the diffusion model's units.

  Attributes:
    channels: width of each level, from the largest image.
    layers: residual blocks a level of the encoder.
    latent: channels of the latent.
    groups: of the group norms.
    quant: 1x1 convolutions around the latent (older checkpoints).
    scaling: latents of the diffusion model are (z - shift) * scaling.
    shift: see `scaling`.
  """

  channels: Sequence[int]
  layers: int
  latent: int
  groups: int
  quant: bool
  scaling: float
  shift: float

  def setup(self):
    sizes = dict(channels=self.channels, layers=self.layers, groups=self.groups)
    self.encoder = Encoder(**sizes, out=2 * self.latent)
    self.decoder = Decoder(**sizes)
    if self.quant:
      self.quant_conv = Conv(2 * self.latent, 1)
      self.post_quant_conv = Conv(self.latent, 1)

  @property
  def factor(self) -> int:
    """Side of the image over side of the latent."""
    return 2 ** (len(self.channels) - 1)

  def moments(
    self, pixels: Float[Array, 'B R Q 3']
  ) -> tuple[Float[Array, 'B h w C'], Float[Array, 'B h w C']]:
    """Pixels in [-1, 1] -> mean and log variance, the latter in [-30, 20]."""
    x = self.encoder(pixels)
    if self.quant:
      x = self.quant_conv(x)
    mean, logvar = jnp.split(x, 2, -1)
    return mean, jnp.clip(logvar, -30, 20)

  def encode(self, pixels: Float[Array, 'B R Q 3']) -> Float[Array, 'B h w C']:
    """Pixels in [-1, 1] -> the mean latent, scaled for the diffusion model."""
    return (self.moments(pixels)[0] - self.shift) * self.scaling

  def decode(self, latents: Float[Array, 'B h w C']) -> Float[Array, 'B R Q 3']:
    """Scaled latents -> pixels, about [-1, 1]."""
    z = latents / self.scaling + self.shift
    if self.quant:
      z = self.post_quant_conv(z)
    return self.decoder(z)

  def __call__(self, pixels):
    """Reconstruction (and creates every parameter)."""
    return self.decode(self.encode(pixels))
