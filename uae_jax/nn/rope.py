"""Rotary position embeddings in the rotate-half layout.

Vision (Qwen2.5-VL): half of the frequencies turn with the row, half with the
column. Text M-RoPE: each frequency reads one of three position axes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """x [... L N H]; cos, sin [... L H/2], shared by the heads."""
  cos, sin = cos[..., None, :], sin[..., None, :]
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def angles_2d(
  hw: Int[Array, '*b P 2'], head_dim: int, theta: float
) -> Float[Array, '*b P h']:
  """Angles [h-frequencies | w-frequencies], head_dim / 2 in all."""
  dim = head_dim // 2
  inv = 1 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / dim)
  angles = hw.astype(jnp.float32)[..., None] * inv
  return angles.reshape(*hw.shape[:-1], dim)


def angles_mrope(
  positions: Int[Array, 'B 3 *gl'],
  head_dim: int,
  theta: float,
  sections: Sequence[int],
) -> Float[Array, 'B *gl h']:
  """Angles of M-RoPE; `sections` sum to head_dim / 2."""
  inv = 1 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
  axis = np.repeat(np.arange(3), sections)
  angles = positions.astype(jnp.float32)[:, axis]
  return jnp.moveaxis(angles, 1, -1) * inv


def rotate_pairs(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Like `rotate` for neighbouring pairs (FLUX), in fp32."""
  cos, sin = cos[..., None, :], sin[..., None, :]
  f = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
  a, b = f[..., 0], f[..., 1]
  out = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1)
  return out.reshape(x.shape).astype(x.dtype)
