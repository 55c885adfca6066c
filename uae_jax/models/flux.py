"""FLUX.1, the decoder of UniWorld: double-stream, then single-stream blocks.

Black Forest Labs 2024; numerics follow diffusers `transformer_flux.py`. The
call is that of `models.mmdit.MMDiT`: latents in and out, packed 2 x 2 inside.
Letters: B images, P image tokens, L text tokens, D width, N heads, H head
dim, C channels, E context width, F pooled width; h, w sides of the latent.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from uae_jax.models.mmdit import QKV, TIME_WIDTH, adaln, timestep_wave
from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm, modulate
from uae_jax.nn.rope import rotate_pairs
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain

_REAL = dict(
  in_channels=64,
  num_layers=19,
  num_single_layers=38,
  attention_head_dim=128,
  num_attention_heads=24,
  joint_attention_dim=4096,
  pooled_projection_dim=768,
  axes_dims_rope=(16, 56, 56),
)
VARIANTS = {
  'flux-dev': dict(**_REAL, guidance_embeds=True),
  'flux-schnell': dict(**_REAL, guidance_embeds=False),
  'tiny': dict(
    in_channels=16,
    num_layers=2,
    num_single_layers=2,
    attention_head_dim=16,
    num_attention_heads=4,
    joint_attention_dim=96,
    pooled_projection_dim=32,
    axes_dims_rope=(4, 6, 6),
    guidance_embeds=True,
  ),
}
PACK = 2  # sides of the latent patch that is one token
THETA = 10000.0


class Double(nn.Module):
  """Joint attention, text first, and one MLP per stream; (image, text)."""

  heads: int
  head_dim: int

  @nn.compact
  def __call__(self, carry, xs, cond, turn, mask):
    image, text = carry
    width, length = image.shape[-1], text.shape[1]
    norm = LayerNorm(affine=False)
    shared = dict(heads=self.heads, head_dim=self.head_dim, qk_norm=True)
    mods = {name: adaln(6, f'{name}_mod', cond) for name in ('text', 'image')}
    qkv = []
    for name, x in (('text', text), ('image', image)):
      shift, scale = mods[name][:2]
      qkv.append(QKV(**shared, name=name)(modulate(norm(x), shift, scale)))
    q, k, v = (jnp.concatenate(z, 1) for z in zip(*qkv))
    with jax.named_scope('joint_attention'):
      mixed = attend(rotate_pairs(q, *turn), rotate_pairs(k, *turn), v, mask)
    out = []
    for name, x, part in (
      ('text', text, mixed[:, :length]),
      ('image', image, mixed[:, length:]),
    ):
      _, _, gate, shift, scale, mlp_gate = mods[name]
      x = x + gate[:, None] * Linear(width, n_in=2, name=f'{name}_out')(part)
      h = modulate(norm(x), shift, scale)
      h = MLP(4 * width, width, 'gelu_tanh', name=f'{name}_mlp')(h)
      x = x + mlp_gate[:, None] * h
      out.append(constrain(x, 'batch', 'len', 'emb'))
    return (out[1], out[0]), None


class Single(nn.Module):
  """Attention and MLP side by side over text and image together."""

  heads: int
  head_dim: int

  @nn.compact
  def __call__(self, x, xs, cond, turn, mask):
    width = x.shape[-1]
    shift, scale, gate = adaln(3, 'mod', cond)
    normed = modulate(LayerNorm(affine=False)(x), shift, scale)
    q, k, v = QKV(self.heads, self.head_dim, True, name='all')(normed)
    mixed = attend(rotate_pairs(q, *turn), rotate_pairs(k, *turn), v, mask)
    hidden = Linear(4 * width, name='mlp')(normed)
    hidden = constrain(
      jax.nn.gelu(hidden, approximate=True), 'batch', 'len', 'ffn'
    )
    both = jnp.concatenate([mixed.reshape(x.shape), hidden], -1)
    x = x + gate[:, None] * Linear(width, name='out')(both)
    return constrain(x, 'batch', 'len', 'emb'), None


class Flux(nn.Module):
  """FLUX's velocity model; fields carry the names of its config.json.

  Attributes:
    in_channels: of a packed token: latent channels x 4.
    axes_dims_rope: head dims that turn with (0, row, column).
    guidance_embeds: whether the distilled guidance is an input (dev).
    distilled_guidance: its value.
    remat: what a block keeps for its backward pass, see `nn.stack.REMAT`.
    out_channels: fewer than come in where channels lie beside the latents
      (Fill, Control); 0 is as many.
  """

  in_channels: int
  num_layers: int
  num_single_layers: int
  attention_head_dim: int
  num_attention_heads: int
  joint_attention_dim: int
  pooled_projection_dim: int
  axes_dims_rope: Sequence[int]
  guidance_embeds: bool
  distilled_guidance: float = 3.5
  remat: str = 'none'
  out_channels: int = 0

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B h w C'],
    t: Float[Array, 'B'],
    context: Float[Array, 'B L E'],
    pooled: Float[Array, 'B F'],
    context_mask: Bool[Array, 'B L'] | None = None,
  ) -> Float[Array, 'B h w C']:
    """Velocity at time t of the noisy latents x, in the dtype of x.

    Args:
      x: latents; h and w are even.
      t: times in 0..1000.
      context: states of the caption's tokens (no positions of their own).
      pooled: one state for the caption.
      context_mask: True where a text token may be attended to; None attends
        to all of them, as diffusers does.
    """
    heads, head_dim = self.num_attention_heads, self.attention_head_dim
    width, dtype = heads * head_dim, x.dtype
    high, wide = x.shape[1:3]
    if high % PACK or wide % PACK:
      raise ValueError(f'latents of {high} x {wide}: sides must be even')
    image = Linear(width, name='x')(pack(x))
    text = Linear(width, name='context')(context.astype(dtype))
    cond = self._condition(t, pooled, width, dtype)
    length = text.shape[1]
    turn = rotations(length, high // PACK, wide // PACK, self.axes_dims_rope)
    mask = None
    if context_mask is not None:
      seen = jnp.ones(image.shape[:2], bool)
      mask = jnp.concatenate([context_mask, seen], 1)
    kwargs = dict(heads=heads, head_dim=head_dim)
    stack = lambda block, layers, name: Stack(
      block, kwargs, layers, remat=self.remat, name=name
    )
    (image, text), _ = stack(Double, self.num_layers, 'double_blocks')(
      (image, text), None, cond, turn, mask
    )
    both = jnp.concatenate([text, image], 1)
    both, _ = stack(Single, self.num_single_layers, 'single_blocks')(
      both, None, cond, turn, mask
    )
    scale, shift = adaln(2, 'final_mod', cond)
    image = modulate(LayerNorm(affine=False)(both[:, length:]), shift, scale)
    out = self.out_channels or self.in_channels
    image = Linear(out, zero=True, name='proj_out')(image)
    return unpack(image, high, wide)

  def _condition(self, t, pooled, width, dtype):
    """silu of the summed embeddings of time, guidance and pooled text."""
    waves = {'time': timestep_wave(t, TIME_WIDTH)}
    if self.guidance_embeds:
      strength = jnp.full_like(t, self.distilled_guidance * 1000, jnp.float32)
      waves['guidance'] = timestep_wave(strength, TIME_WIDTH)
    cond = MLP(width, width, 'silu', name='pooled')(pooled.astype(dtype))
    for name, wave in waves.items():
      cond += MLP(width, width, 'silu', name=name)(wave.astype(dtype))
    return jax.nn.silu(cond)


def pack(x: Float[Array, 'B h w C']) -> Float[Array, 'B P E']:
  """2 x 2 latents -> one token, channel first: E = (C, row, column)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // PACK, PACK, w // PACK, PACK, c)
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, h * w // PACK**2, -1)


def unpack(tokens: Float[Array, 'B P E'], high: int, wide: int):
  """Inverse of `pack`: latents [B h w C]."""
  b = len(tokens)
  x = tokens.reshape(b, high // PACK, wide // PACK, -1, PACK, PACK)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, high, wide, -1)


def rotations(length: int, rows: int, cols: int, dims: Sequence[int]):
  """cos and sin [1 L+P H/2]: text at the origin, images at (0, row, col).

  Angles are in float64 on the host.
  """
  place = np.zeros((length + rows * cols, 3))
  place[length:, 1] = np.repeat(np.arange(rows), cols)
  place[length:, 2] = np.tile(np.arange(cols), rows)
  angles = [
    np.outer(place[:, axis], THETA ** (-np.arange(0, dim, 2) / dim))
    for axis, dim in enumerate(dims)
  ]
  angles = np.concatenate(angles, -1)[None]
  return tuple(jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin))
