"""MM-DiT, the diffusion decoder of Stable Diffusion 3 and 3.5.

Esser et al. 2024, https://arxiv.org/abs/2403.03206; numerics follow diffusers
`transformer_sd3.py`. Image and text tokens have weights of their own and meet
in one attention, image first. Letters: B images, P image tokens, L text
tokens, D width, N heads, H head dim, C channels, E context width, F pooled
width; h, w sides of the latent.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm, RMSNorm, modulate
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain

_SD3 = dict(
  sample_size=128,
  patch_size=2,
  in_channels=16,
  out_channels=16,
  attention_head_dim=64,
  joint_attention_dim=4096,
  pooled_projection_dim=2048,
)

VARIANTS = {
  'sd3-medium': dict(
    num_layers=24,
    num_attention_heads=24,
    pos_embed_max_size=192,
    dual_layers=0,
    qk_norm=False,
    **_SD3,
  ),
  'sd3.5-medium': dict(
    num_layers=24,
    num_attention_heads=24,
    pos_embed_max_size=384,
    dual_layers=13,
    qk_norm=True,
    **_SD3,
  ),
  'sd3.5-large': dict(
    num_layers=38,
    num_attention_heads=38,
    pos_embed_max_size=192,
    dual_layers=0,
    qk_norm=True,
    **_SD3,
  ),
  'tiny': dict(
    sample_size=32,
    patch_size=4,
    in_channels=3,
    out_channels=3,
    num_layers=4,
    num_attention_heads=3,
    attention_head_dim=32,
    joint_attention_dim=96,
    pooled_projection_dim=96,
    pos_embed_max_size=8,
    dual_layers=0,
    qk_norm=True,
  ),
}

TIME_WIDTH = 256  # of the sinusoid that enters the timestep MLP


class PatchEmbed(nn.Module):
  """Latents [B h w C] -> tokens [B P D] with fixed 2-D positions.

  Positions are a buffer of the checkpoint, of which the centre is used. It
  is a parameter so that it loads and saves, and gets no gradient.
  """

  width: int
  patch: int
  base: int
  max_size: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, high, wide, c = x.shape
    p, most = self.patch, self.max_size
    rows, cols = high // p, wide // p
    if high % p or wide % p or rows > most or cols > most:
      raise ValueError(
        f'latents of {high} x {wide}: each side must be a multiple of {p} and '
        f'at most {p * most}'
      )
    x = x.reshape(b, rows, p, cols, p, c).transpose(0, 1, 3, 5, 2, 4)
    x = Linear(self.width, name='proj')(x.reshape(b, rows * cols, -1))
    table = self.param(
      'table', lambda _: sincos_2d(self.width, most, self.base)
    )
    table = jax.lax.stop_gradient(table).reshape(most, most, -1)
    top, left = (most - rows) // 2, (most - cols) // 2
    table = table[top : top + rows, left : left + cols]
    return (x + table.reshape(rows * cols, -1)).astype(x.dtype)


class QKV(nn.Module):
  """Queries, keys, values [B L N H] of one stream, q and k normed or not."""

  heads: int
  head_dim: int
  qk_norm: bool

  @nn.compact
  def __call__(self, x):
    q, k, v = (Linear((self.heads, self.head_dim), name=n)(x) for n in 'qkv')
    if self.qk_norm:
      q = RMSNorm(1e-6, name='q_norm')(q)
      k = RMSNorm(1e-6, name='k_norm')(k)
    return q, k, v


class Block(nn.Module):
  """Joint attention and one MLP per stream; carry (image, text).

  Attributes:
    dual: a second attention, among image tokens alone (SD3.5-medium).
    last: text is read and not updated.
  """

  heads: int
  head_dim: int
  qk_norm: bool
  dual: bool
  last: bool

  @nn.compact
  def __call__(self, carry, xs, cond, mask):
    image, text = carry
    width = image.shape[-1]
    qkv = dict(heads=self.heads, head_dim=self.head_dim, qk_norm=self.qk_norm)
    norm = LayerNorm(affine=False)
    out = lambda name: Linear(width, n_in=2, name=name)
    mlp = lambda name: MLP(4 * width, width, 'gelu_tanh', name=name)

    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate, *second = adaln(
      9 if self.dual else 6, 'image_mod', cond
    )
    normed = norm(image)
    with jax.named_scope('joint_attention'):
      if self.last:  # the continuous AdaLN of diffusers: scale first
        text_scale, text_shift = adaln(2, 'text_mod', cond)
      else:
        text_shift, text_scale, *text_rest = adaln(6, 'text_mod', cond)
      ours = QKV(**qkv, name='image')(modulate(normed, shift, scale))
      theirs = QKV(**qkv, name='text')(
        modulate(norm(text), text_shift, text_scale)
      )
      q, k, v = (jnp.concatenate(z, 1) for z in zip(ours, theirs))
      # Nobody reads what the last block's text would have asked for.
      mixed = attend(ours[0] if self.last else q, k, v, mask)
      tokens = image.shape[1]
      image = image + gate[:, None] * out('image_out')(mixed[:, :tokens])
    if self.dual:
      with jax.named_scope('image_attention'):
        shift, scale, gate = second
        again = QKV(**qkv, name='image2')(modulate(normed, shift, scale))
        image = image + gate[:, None] * out('image2_out')(attend(*again))
    with jax.named_scope('mlp'):
      h = modulate(norm(image), mlp_shift, mlp_scale)
      image = image + mlp_gate[:, None] * mlp('image_mlp')(h)
      if not self.last:
        gate, mlp_shift, mlp_scale, mlp_gate = text_rest
        text = text + gate[:, None] * out('text_out')(mixed[:, tokens:])
        h = modulate(norm(text), mlp_shift, mlp_scale)
        text = text + mlp_gate[:, None] * mlp('text_mlp')(h)
    image = constrain(image, 'batch', 'len', 'emb')
    return (image, constrain(text, 'batch', 'len', 'emb')), None


class MMDiT(nn.Module):
  """SD3's velocity model; fields carry the names of its config.json.

  Attributes:
    sample_size: side of the training latents; scales the positions.
    pos_embed_max_size: side, in tokens, of the table of positions.
    dual_layers: number of leading blocks with a second image attention.
    qk_norm: RMSNorm over the head dim of queries and keys.
    remat: what a block keeps for its backward pass, see `nn.stack.REMAT`.
  """

  sample_size: int
  patch_size: int
  in_channels: int
  out_channels: int
  num_layers: int
  num_attention_heads: int
  attention_head_dim: int
  joint_attention_dim: int
  pooled_projection_dim: int
  pos_embed_max_size: int
  dual_layers: int
  qk_norm: bool
  remat: str = 'none'

  @nn.compact
  def __call__(
    self,
    x: Float[Array, 'B h w C'],
    t: Float[Array, 'B'],
    context: Float[Array, 'B L E'],
    pooled: Float[Array, 'B F'],
    context_mask: Bool[Array, 'B L'] | None = None,
  ) -> Float[Array, 'B h w c']:
    """Velocity at time t of the noisy latents x, in the dtype of x.

    Args:
      x: latents.
      t: times in 0..1000.
      context: states of the caption's tokens.
      pooled: one state for the caption.
      context_mask: True where a text token may be attended to; None attends
        to all of them, as diffusers does.
    """
    width = self.num_attention_heads * self.attention_head_dim
    dtype, shape = x.dtype, x.shape
    image = PatchEmbed(
      width,
      self.patch_size,
      self.sample_size // self.patch_size,
      self.pos_embed_max_size,
      name='pos_embed',
    )(x)
    wave = timestep_wave(t, TIME_WIDTH).astype(dtype)
    cond = MLP(width, width, 'silu', name='time')(wave)
    cond += MLP(width, width, 'silu', name='pooled')(pooled.astype(dtype))
    cond = jax.nn.silu(cond)
    text = Linear(width, name='context')(context.astype(dtype))
    mask = None
    if context_mask is not None:
      seen = jnp.ones(image.shape[:2], bool)
      mask = jnp.concatenate([seen, context_mask], 1)
    for name, layers, dual, last in self.segments():
      kwargs = dict(
        heads=self.num_attention_heads,
        head_dim=self.attention_head_dim,
        qk_norm=self.qk_norm,
        dual=dual,
        last=last,
      )
      stack = Stack(Block, kwargs, layers, remat=self.remat, name=name)
      (image, text), _ = stack((image, text), None, cond, mask)
    scale, shift = adaln(2, 'final_mod', cond)
    image = modulate(LayerNorm(affine=False)(image), shift, scale)
    out = self.patch_size**2 * self.out_channels
    image = Linear(out, zero=True, name='proj_out')(image)
    return unpatchify(image, self.patch_size, shape[1], shape[2])

  @nn.nowrap
  def segments(self) -> list[tuple[str, int, bool, bool]]:
    """(name, layers, dual, last) of each run of equal blocks that is built."""
    before = self.num_layers - 1
    dual = min(self.dual_layers, before)
    runs = [
      ('dual_blocks', dual, True, False),
      ('joint_blocks', before - dual, False, False),
      ('last_block', 1, self.dual_layers > before, True),
    ]
    return [run for run in runs if run[1]]


def adaln(n: int, name: str, cond: jax.Array) -> list[jax.Array]:
  """AdaLN: silu(condition) [B D] -> n vectors [B D], zero at the start."""
  mod = Linear((n, cond.shape[-1]), zero=True, name=name)(cond)
  return [mod[:, i] for i in range(n)]


def timestep_wave(t: Float[Array, 'B'], width: int) -> Float[Array, 'B W']:
  """fp32 [cos | sin] of t at `width` / 2 frequencies."""
  half = width // 2
  freq = np.exp(-np.log(10000) * np.arange(half, dtype=np.float32) / half)
  angle = t.astype(jnp.float32)[:, None] * freq
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def sincos_2d(width: int, grid: int, base: int) -> Float[Array, '1 S D']:
  """Fixed positions of a grid x grid table, S = grid squared.

  The first half of D turns with the column, the second with the row, each
  as [sin | cos]; coordinates run over 0..base. Angles are in float64 on the
  host, per axis, so the table itself is only ever made on the device.
  """
  quarter = width // 4
  omega = 1 / 10000 ** (np.arange(quarter) / quarter)
  place = np.arange(grid, dtype=np.float32) / np.float32(grid / base)
  angle = np.outer(place.astype(np.float64), omega)
  axis = np.concatenate([np.sin(angle), np.cos(angle)], -1)
  axis = jnp.asarray(axis.astype(np.float32))
  shape = (grid, grid, axis.shape[-1])
  cols = jnp.broadcast_to(axis[None], shape)
  rows = jnp.broadcast_to(axis[:, None], shape)
  return jnp.concatenate([cols, rows], -1).reshape(1, grid * grid, width)


def unpatchify(
  tokens: Float[Array, 'B P pqC'], patch: int, high: int, wide: int
) -> Float[Array, 'B h w C']:
  """Tokens flattened as (p, q, c), unlike those that came in, -> latents."""
  b, p = len(tokens), patch
  x = tokens.reshape(b, high // p, wide // p, p, p, -1)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, high, wide, -1)
