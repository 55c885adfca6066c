"""SigLIP and SigLIP 2: an image tower with attention pooling, a text tower.

Zhai et al. 2023, https://arxiv.org/abs/2303.15343; Tschannen et al. 2025,
https://arxiv.org/abs/2502.14786; numerics follow transformers
`modeling_siglip.py` and, for the towers of any aspect ratio (NaFlex),
`modeling_siglip2.py`. Letters: B images, L caption tokens, P patches, D
width, N heads, H head dim, R image side in pixels, E embedding width.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uae_jax.models.clip import Block
from uae_jax.models.vit import whole_patches
from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm
from uae_jax.nn.stack import Stack

_TOWER = dict(act='gelu_tanh', eps=1e-6)
_B = dict(width=768, layers=12, heads=12, mlp=3072, **_TOWER)
_L = dict(width=1024, layers=24, heads=16, mlp=4096, **_TOWER)
_SO = dict(width=1152, layers=27, heads=16, mlp=4304, **_TOWER)
_G = dict(width=1536, layers=40, heads=16, mlp=6144, **_TOWER)


def _sizes(vision, patch, size, vocab, text=None, ctx=64, naflex=False):
  """Fields of a `SigLIP`; the text tower is the image tower's twin."""
  language = dict(text or vision, ctx=ctx, vocab=vocab)
  return dict(
    vision=dict(vision, patch=patch, size=size, naflex=naflex),
    language=dict(language, projection=vision['width']),
  )


VARIANTS = {
  **{
    f'siglip-{name}-{patch}-{size}': _sizes(tower, patch, size, 32000)
    for name, tower, patch, size in (
      ('b', _B, 16, 224), ('b', _B, 16, 256), ('b', _B, 16, 384),
      ('b', _B, 16, 512), ('l', _L, 16, 256), ('l', _L, 16, 384),
      ('so400m', _SO, 14, 384),
    )
  },
  'siglip-so400m-14-224': _sizes(_SO, 14, 224, 32000, ctx=16),
  **{
    f'siglip2-{name}-{patch}-{size}': _sizes(tower, patch, size, 256000)
    for name, tower, patch, size in (
      ('b', _B, 32, 256), ('b', _B, 16, 224), ('b', _B, 16, 256),
      ('b', _B, 16, 384), ('b', _B, 16, 512), ('l', _L, 16, 256),
      ('l', _L, 16, 384), ('l', _L, 16, 512), ('so400m', _SO, 14, 224),
      ('so400m', _SO, 14, 384), ('so400m', _SO, 16, 256),
      ('so400m', _SO, 16, 384), ('so400m', _SO, 16, 512),
    )
  },
  'siglip2-giant-16-256': _sizes(_G, 16, 256, 256000, _SO),
  'siglip2-giant-16-384': _sizes(_G, 16, 384, 256000, _SO),
  'siglip2-b-16-naflex': _sizes(_B, 16, 256, 256000, naflex=True),
  'siglip2-so400m-16-naflex': _sizes(_SO, 16, 256, 256000, naflex=True),
  'tiny': _sizes(
    dict(width=96, layers=3, heads=3, mlp=160, **_TOWER), 4, 32, 64
  ),
}  # fmt: skip


class VisionOut(NamedTuple):
  """What the image tower knows of an image.

  Attributes:
    pooled: the attention-pooled embedding.
    hidden: states of all patches after the last norm.
  """

  pooled: Float[Array, 'B D']
  hidden: Float[Array, 'B P D']


class AttentionPool(nn.Module):
  """A learned probe attends to all tokens, then an MLP; x [B P D] -> [B D]."""

  heads: int
  mlp: int
  act: str
  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    b, _, width = x.shape
    init = nn.initializers.normal(width**-0.5)
    probe = self.param('probe', init, (width,)).astype(x.dtype)
    probe = jnp.broadcast_to(probe, (b, 1, width))
    # One fused map, as the hub stores it; the probe only asks, the tokens
    # only answer.
    heads = (3, self.heads, width // self.heads)
    qkv = Linear(heads, name='qkv')(jnp.concatenate([probe, x], 1))
    q, k, v = qkv[:, :1, 0], qkv[:, 1:, 1], qkv[:, 1:, 2]
    x = Linear(width, n_in=2, name='o')(attend(q, k, v))
    h = LayerNorm(self.eps, name='norm')(x)
    return (x + MLP(self.mlp, width, self.act, name='mlp')(h))[:, 0]


class VisionTower(nn.Module):
  """Normalised pixels -> `VisionOut`.

  Attributes:
    size: side in pixels of the images that the position table is for.
    naflex: any height and width; the table is resized to the patch grid.
      The padding that the hub adds and masks is never made here.
  """

  size: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp: int
  act: str
  eps: float
  naflex: bool

  @nn.compact
  def __call__(self, pixels: Float[Array, 'B h w 3']) -> VisionOut:
    rows, cols = (n // self.patch for n in pixels.shape[1:3])
    side = self.size // self.patch
    init = nn.initializers.normal(self.width**-0.5)
    table = self.param('positions', init, (side**2, self.width))
    x = whole_patches(pixels, self.patch)
    if self.naflex:
      # The hub's kernel reads a patch as (ph, pw, C), not (C, ph, pw).
      x = x.reshape(*x.shape[:2], 3, -1).swapaxes(-1, -2).reshape(x.shape)
      table = table.astype(jnp.float32).reshape(side, side, self.width)
      shape = (rows, cols, self.width)
      table = jax.image.resize(table, shape, 'linear', antialias=True)
      table = table.reshape(-1, self.width)
    x = Linear(self.width, name='patch_embed')(x) + table.astype(x.dtype)
    kwargs = dict(heads=self.heads, mlp=self.mlp, act=self.act, eps=self.eps)
    x, _ = Stack(Block, kwargs, self.layers, name='layers')(x, None)
    x = LayerNorm(self.eps, name='post_norm')(x)
    return VisionOut(AttentionPool(**kwargs, name='head')(x), x)


class TextTower(nn.Module):
  """Token ids [B L] -> embedding [B E] of the last token; not causal.

  Captions are padded to `ctx` tokens, as in training: the padding is
  attended and the last position is the pooled one.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  ctx: int
  vocab: int
  act: str
  eps: float
  projection: int

  @nn.compact
  def __call__(self, ids: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    init = nn.initializers.normal(0.02)
    words = self.param('words', init, (self.vocab, self.width))
    table = self.param('positions', init, (self.ctx, self.width))
    x = words.astype(dtype)[ids] + table[: ids.shape[1]].astype(dtype)
    kwargs = dict(heads=self.heads, mlp=self.mlp, act=self.act, eps=self.eps)
    x, _ = Stack(Block, kwargs, self.layers, name='layers')(x, None)
    x = LayerNorm(self.eps, name='final_norm')(x)[:, -1]
    return Linear(self.projection, name='head')(x)


class SigLIP(nn.Module):
  """The image tower and, unless `language` is None, the text tower.

  Attributes:
    vision: fields of `VisionTower`.
    language: fields of `TextTower`; None leaves out everything of captions.
  """

  vision: Mapping[str, Any]
  language: Mapping[str, Any] | None = None

  def setup(self):
    self.vision_tower = VisionTower(**self.vision)
    if self.language is not None:
      self.text_tower = TextTower(**self.language)
      self.logit_scale = self.param(
        'logit_scale', nn.initializers.constant(2.3026), (1,)
      )
      self.logit_bias = self.param(
        'logit_bias', nn.initializers.constant(-10.0), (1,)
      )

  def image(self, pixels: Float[Array, 'B h w 3']) -> Float[Array, 'B D']:
    """Normalised pixels -> embedding, not unit length."""
    return self.vision_tower(pixels).pooled

  def image_states(self, pixels: Float[Array, 'B h w 3']) -> VisionOut:
    """Normalised pixels -> everything the image tower offers."""
    return self.vision_tower(pixels)

  def text(
    self, ids: Int[Array, 'B L'], dtype: Any = jnp.float32
  ) -> Float[Array, 'B E']:
    """Token ids, padded to `ctx` -> embedding, not unit length."""
    return self.text_tower(ids, dtype)

  def __call__(
    self, pixels: Float[Array, 'B h w 3'], ids: Int[Array, 'B L'] | None = None
  ) -> tuple[Float[Array, 'B E'], ...]:
    """(image embeddings,) or, with `ids`, all that the loss needs.

    Then (image embeddings, text embeddings, log of the inverse temperature,
    bias of the logits).
    """
    image = self.image(pixels)
    if self.language is None:
      return (image,)
    text = self.text(ids, pixels.dtype)
    return image, text, self.logit_scale, self.logit_bias
