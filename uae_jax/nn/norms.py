"""RMSNorm, LayerNorm and AdaLN modulation, rounding where HF rounds.

Recipe 'cast' (Qwen, Llama, T5, diffusers RMSNorm): normalise in fp32, cast
to the input dtype, multiply by the weight. LayerNorm: all in fp32, one cast.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class RMSNorm(nn.Module):
  """x / rms(x) * scale over the last axis."""

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param('scale', nn.initializers.ones, (x.shape[-1],))
    f = x.astype(jnp.float32)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, -1, keepdims=True) + self.eps)
    return f.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
  """LayerNorm over the last axis; `affine=False` has no parameters."""

  eps: float = 1e-6
  affine: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    f = x.astype(jnp.float32)
    f = f - jnp.mean(f, -1, keepdims=True)
    f = f * jax.lax.rsqrt(jnp.mean(f * f, -1, keepdims=True) + self.eps)
    if self.affine:
      width = (x.shape[-1],)
      f = f * self.param('scale', nn.initializers.ones, width)
      f = f + self.param('bias', nn.initializers.zeros, width)
    return f.astype(x.dtype)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
  """AdaLN: x * (1 + scale) + shift, per sample. x [B L D], others [B D]."""
  return x * (1 + scale[:, None]) + shift[:, None]
