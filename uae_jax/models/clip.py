"""CLIP: an image tower and a caption tower that meet in one space.

Radford et al. 2021, https://arxiv.org/abs/2103.00020; numerics follow
transformers `modeling_clip.py`. LongCLIP is the same model with 248 text
positions. Letters: B images, L caption tokens, P patches, D width, N heads,
H head dim, R image side in pixels, E embedding width, Y layers.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from uae_jax.nn.attention import attend
from uae_jax.nn.linear import Linear
from uae_jax.nn.mlp import MLP
from uae_jax.nn.norms import LayerNorm
from uae_jax.nn.stack import Stack
from uae_jax.sharding.rules import constrain

# Checkpoints older than the fix of their eos id carry 2 and mean "the end is
# the largest id of the caption". A tokenizer of one's own must therefore not
# give its end token the id 2.
LEGACY_EOS = 2

_TOWER = dict(act='quick_gelu', eps=1e-5)
_VISION_L = dict(width=1024, layers=24, heads=16, mlp=4096, **_TOWER)
_VISION_B = dict(width=768, layers=12, heads=12, mlp=3072, **_TOWER)
_WORDS = dict(ctx=77, vocab=49408, eos=LEGACY_EOS, **_TOWER)
_TEXT_L = dict(width=768, layers=12, heads=12, mlp=3072, **_WORDS)
_TEXT_B = dict(width=512, layers=12, heads=8, mlp=2048, **_WORDS)

VARIANTS = {
  'vit-l-14': dict(
    projection=768,
    vision=dict(size=224, patch=14, **_VISION_L),
    language=_TEXT_L,
  ),
  'vit-l-14-336': dict(
    projection=768,
    vision=dict(size=336, patch=14, **_VISION_L),
    language=_TEXT_L,
  ),
  'vit-b-16': dict(
    projection=512,
    vision=dict(size=224, patch=16, **_VISION_B),
    language=_TEXT_B,
  ),
  'vit-b-32': dict(
    projection=512,
    vision=dict(size=224, patch=32, **_VISION_B),
    language=_TEXT_B,
  ),
  'longclip-b-16': dict(
    projection=512,
    vision=dict(size=224, patch=16, **_VISION_B),
    language={**_TEXT_B, 'ctx': 248},
  ),
  'longclip-l-14': dict(
    projection=768,
    vision=dict(size=224, patch=14, **_VISION_L),
    language={**_TEXT_L, 'ctx': 248},
  ),
  'tiny': dict(
    projection=64,
    vision=dict(
      size=32, patch=4, width=96, layers=3, heads=3, mlp=288, **_TOWER
    ),
    language=dict(
      width=96,
      layers=2,
      heads=3,
      mlp=288,
      ctx=24,
      vocab=64,
      eos=63,
      **_TOWER,
    ),
  ),
}


# The text towers that decoders read prompts with, as `TextTower` fields.
TEXT_VARIANTS = {
  'sd3-clip-l': dict(_TEXT_L, projection=768),
  'sd3-clip-g': dict(
    width=1280,
    layers=32,
    heads=20,
    mlp=5120,
    projection=1280,
    **{**_WORDS, 'act': 'gelu'},
  ),
  'flux-clip-l': dict(_TEXT_L, projection=0),
}


class TextOut(NamedTuple):
  """What the text tower knows of a caption.

  Attributes:
    embed: projected embedding, not normalised; `pooled` where the tower has
      no projection.
    pooled: final-norm hidden state at the end of the caption.
    hidden: final-norm hidden states of all positions.
    penultimate: input of the last block, without the final norm (what SD3
      conditions on; HF `hidden_states[-2]`).
  """

  embed: Float[Array, 'B E']
  pooled: Float[Array, 'B D']
  hidden: Float[Array, 'B L D']
  penultimate: Float[Array, 'B L D']


class Block(nn.Module):
  """Pre-norm attention and MLP; emits its own input as `ys`."""

  heads: int
  mlp: int
  act: str
  eps: float
  causal: bool = False

  @nn.compact
  def __call__(self, x, xs):
    width = x.shape[-1]
    heads = (self.heads, width // self.heads)
    inputs = x
    h = LayerNorm(self.eps, name='norm1')(x)
    q, k, v = (Linear(heads, name=n)(h) for n in 'qkv')
    x = x + Linear(width, n_in=2, name='o')(attend(q, k, v, causal=self.causal))
    h = LayerNorm(self.eps, name='norm2')(x)
    x = x + MLP(self.mlp, width, self.act, name='mlp')(h)
    return constrain(x, 'batch', 'len', 'emb'), inputs


class VisionTower(nn.Module):
  """Normalised pixels [B R R 3] -> projected embedding [B E] of the CLS."""

  size: int
  patch: int
  width: int
  layers: int
  heads: int
  mlp: int
  act: str
  eps: float
  projection: int

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    x = Linear(self.width, bias=False, name='patch_embed')(
      patches(pixels, self.patch)
    )
    cls = self.param(
      'cls', nn.initializers.normal(self.width**-0.5), (self.width,)
    )
    table = self.param(
      'positions',
      nn.initializers.normal(0.02),
      (1 + (self.size // self.patch) ** 2, self.width),
    )
    cls = jnp.broadcast_to(cls.astype(x.dtype), (len(x), 1, self.width))
    x = jnp.concatenate([cls, x], 1) + table.astype(x.dtype)
    x = LayerNorm(self.eps, name='pre_norm')(x)
    kwargs = dict(heads=self.heads, mlp=self.mlp, act=self.act, eps=self.eps)
    x, _ = Stack(Block, kwargs, self.layers, name='layers')(x, None)
    x = LayerNorm(self.eps, name='post_norm')(x[:, 0])
    return Linear(self.projection, bias=False, name='projection')(x)


class TextTower(nn.Module):
  """Token ids [B L], L <= ctx -> `TextOut`; causal, padding is attended.

  On its own it is an encoder of SD3 and, with `projection` 0, of FLUX.
  """

  width: int
  layers: int
  heads: int
  mlp: int
  ctx: int
  vocab: int
  eos: int
  act: str
  eps: float
  projection: int

  @nn.compact
  def __call__(self, ids: jax.Array, dtype: Any = jnp.float32) -> TextOut:
    length = ids.shape[1]
    init = nn.initializers.normal(0.02)
    words = self.param('words', init, (self.vocab, self.width))
    table = self.param('positions', init, (self.ctx, self.width))
    x = words.astype(dtype)[ids] + table[:length].astype(dtype)
    kwargs = dict(
      heads=self.heads, mlp=self.mlp, act=self.act, eps=self.eps, causal=True
    )
    stack = Stack(Block, kwargs, self.layers, name='layers')
    x, inputs = stack(x, None)
    hidden = LayerNorm(self.eps, name='final_norm')(x)
    pooled = hidden[jnp.arange(len(ids)), end_of_caption(ids, self.eos)]
    embed = pooled
    if self.projection:
      embed = Linear(self.projection, bias=False, name='projection')(pooled)
    return TextOut(embed, pooled, hidden, inputs[-1])


class CLIP(nn.Module):
  """Both towers and the temperature.

  Attributes:
    projection: width E of the shared space.
    vision: fields of `VisionTower` but the projection.
    language: fields of `TextTower` but the projection.
  """

  projection: int
  vision: Mapping[str, Any]
  language: Mapping[str, Any]

  def setup(self):
    self.vision_tower = VisionTower(**self.vision, projection=self.projection)
    self.text_tower = TextTower(**self.language, projection=self.projection)
    # exp(2.6592) = 1 / 0.07, the paper's starting temperature.
    self.logit_scale = self.param(
      'logit_scale', nn.initializers.constant(2.6592), ()
    )

  def image(self, pixels: Float[Array, 'B R R 3']) -> Float[Array, 'B E']:
    """Normalised pixels -> embedding, not unit length."""
    return self.vision_tower(pixels)

  def text(
    self, ids: Int[Array, 'B L'], dtype: Any = jnp.float32
  ) -> Float[Array, 'B E']:
    """Token ids -> embedding, not unit length, computed in `dtype`."""
    return self.text_tower(ids, dtype).embed

  def text_states(
    self, ids: Int[Array, 'B L'], dtype: Any = jnp.float32
  ) -> TextOut:
    """Token ids -> everything the text tower offers."""
    return self.text_tower(ids, dtype)

  def __call__(
    self, pixels: Float[Array, 'B R R 3'], ids: Int[Array, 'B L']
  ) -> tuple[Float[Array, 'B E'], Float[Array, 'B E'], Float[Array, '']]:
    """(image embeddings, text embeddings, log of the inverse temperature)."""
    image = self.image(pixels)
    return image, self.text(ids, pixels.dtype), self.logit_scale


def patches(
  pixels: Float[Array, 'B R R C'], patch: int
) -> Float[Array, 'B P F']:
  """Row-major patches, each flattened as (C, ph, pw) like a torch kernel."""
  b, rows, cols, c = pixels.shape
  x = pixels.reshape(b, rows // patch, patch, cols // patch, patch, c)
  x = x.transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, -1, c * patch * patch)


def end_of_caption(ids: Int[Array, 'B L'], eos: int) -> Int[Array, 'B']:
  """Where a caption ends: first `eos`, or the largest id when eos is 2.

  A caption without `eos` is pooled at position 0, as in transformers.
  """
  if eos == LEGACY_EOS:
    return jnp.argmax(ids, -1)
  return jnp.argmax(ids == eos, -1)
