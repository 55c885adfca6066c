"""Convolutional blocks of the image tokenizers: AutoencoderKL and VQ-16.

Both descend from VQGAN (Esser et al. 2021, https://arxiv.org/abs/2012.09841);
numerics follow diffusers `resnet.py` and LlamaGen `vq_model.py`. Images are
[B h w C].
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.sharding.rules import constrain

GROUPS, EPS = 32, 1e-6


class Conv(nn.Module):
  """A convolution with bias; kernel [k k C out], in the dtype of x."""

  out: int
  size: int = 3
  stride: int = 1
  padding: str | tuple = 'SAME'

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w C']) -> Float[Array, 'B i j D']:
    shape = (self.size, self.size, x.shape[-1], self.out)
    kernel = self.param('kernel', nn.initializers.lecun_normal(), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.out,))
    y = jax.lax.conv_general_dilated(
      x,
      kernel.astype(x.dtype),
      (self.stride, self.stride),
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    y = y + bias.astype(x.dtype)
    return constrain(y, 'batch', 'len', 'len', 'emb')


class GroupNorm(nn.Module):
  """Normalises groups of channels over the whole image, in fp32."""

  groups: int = GROUPS

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w C']) -> Float[Array, 'B h w C']:
    b, h, w, c = x.shape
    f = x.astype(jnp.float32).reshape(b, h * w, self.groups, -1)
    f = f - jnp.mean(f, (1, 3), keepdims=True)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, (1, 3), keepdims=True) + EPS)
    f = f.reshape(b, h, w, c)
    scale = self.param('scale', nn.initializers.ones, (c,))
    bias = self.param('bias', nn.initializers.zeros, (c,))
    return (f * scale + bias).astype(x.dtype)


class ResBlock(nn.Module):
  """x + conv(act(norm(conv(act(norm(x)))))); 1x1 shortcut if widths differ."""

  out: int
  groups: int = GROUPS

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w C']) -> Float[Array, 'B h w D']:
    h = Conv(self.out, name='conv1')(
      jax.nn.silu(GroupNorm(self.groups, name='norm1')(x))
    )
    h = Conv(self.out, name='conv2')(
      jax.nn.silu(GroupNorm(self.groups, name='norm2')(h))
    )
    if x.shape[-1] != self.out:
      x = Conv(self.out, 1, name='shortcut')(x)
    return x + h


class AttnBlock(nn.Module):
  """x + one head of attention among all pixels."""

  groups: int = GROUPS

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w C']) -> Float[Array, 'B h w C']:
    b, h, w, c = x.shape
    tokens = GroupNorm(self.groups, name='norm')(x).reshape(b, h * w, c)
    q, k, v = (Linear((1, c), name=name)(tokens) for name in 'qkv')
    out = Linear(c, n_in=2, name='out')(attend(q, k, v))
    return x + out.reshape(b, h, w, c)


class Down(nn.Module):
  """Halves the sides: a stride of 2, padded at the bottom and right only."""

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w C']) -> Float[Array, 'B i j C']:
    pad = ((0, 1), (0, 1))
    return Conv(x.shape[-1], stride=2, padding=pad, name='conv')(x)


class Up(nn.Module):
  """Doubles the sides: nearest neighbour, then a convolution."""

  @nn.compact
  def __call__(self, x: Float[Array, 'B h w C']) -> Float[Array, 'B i j C']:
    x = jnp.repeat(jnp.repeat(x, 2, 1), 2, 2)
    return Conv(x.shape[-1], name='conv')(x)
