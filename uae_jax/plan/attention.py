"""Which attention each family of models gets on the devices that are here.

`nn.kernels` is asked, with the shapes that the real sizes have.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from uae_jax.models import clip, flux, janus, mmdit, qwen_vision, vae, vlm
from uae_jax.nn import kernels
from uae_jax.nn.attention import Segment

# An image and its prompt, a caption, the group; tokens of a 512 x 512 drawing.
PREFIX, CAPTION, GROUP, TOKENS = 1000, 256, 8, 1024


def chosen() -> dict[str, str]:
  """{what attends: 'splash', 'cudnn' or 'products'}.

  Under `nn.kernels.use`, for the devices of the mesh or else the default ones.
  Products that a CPU works out image by image are 'products, in pieces'.
  """
  return {name: _name(q, segments) for name, q, segments in _uses()}


def _name(q, segments) -> str:
  kernel = kernels.choose(q, segments)
  if kernel is None:
    return 'products, in pieces' if kernels.in_pieces() else 'products'
  return 'splash' if kernel is kernels.splash else kernel.keywords[
    'implementation'
  ]  # fmt: skip


def _uses() -> Iterator[tuple[str, Any, list[Segment]]]:
  """(what attends, queries [B G L N H], segments), of shapes."""
  qwen, pro = vlm.VARIANTS['qwen2.5-vl-3b'], janus.VARIANTS['janus-pro-7b']
  eyes = qwen_vision.VARIANTS['qwen2.5-vl-3b']
  yield alone(
    'Qwen2.5-VL-3B, image', 4 * PREFIX, eyes['heads'],
    eyes['width'] // eyes['heads'],
  )  # fmt: skip
  yield from captioner('Qwen2.5-VL-3B', qwen['lm'])
  yield from captioner('Janus-Pro-7B', pro['lm'])
  for name, fields in (
    ('SD3.5-medium', mmdit.VARIANTS['sd3.5-medium']),
    ('FLUX.1-dev', flux.VARIANTS['flux-dev']),
  ):
    heads, size = fields['num_attention_heads'], fields['attention_head_dim']
    yield alone(name, TOKENS + CAPTION, heads, size)
  wide = vae.VARIANTS['sd3']['channels'][-1]
  yield alone('VAE of SD3', 4 * TOKENS, 1, wide)
  eye = clip.VARIANTS['vit-l-14']['vision']
  tokens = (eye['size'] // eye['patch']) ** 2 + 1
  size = eye['width'] // eye['heads']
  yield alone('CLIP ViT-L/14', tokens, eye['heads'], size, jnp.float32)


def alone(name, tokens, heads, size, dtype=jnp.bfloat16):
  """Tokens that see each other."""
  q = jax.ShapeDtypeStruct((1, 1, tokens, heads, size), dtype)
  k = jax.ShapeDtypeStruct((1, tokens, heads, size), dtype)
  return name, q, [Segment(k, k)]


def captioner(name, lm):
  """A language model: its prefix, captions as sampled, captions as scored."""
  heads, few, size = lm['heads'], lm['kv_heads'], lm['head_dim']
  array = lambda *shape: jax.ShapeDtypeStruct((1, *shape, size), jnp.bfloat16)
  there = jax.ShapeDtypeStruct((1, PREFIX), bool)
  k = array(PREFIX, few)
  before = Segment(k, k, there)
  yield (
    f'{name}, prompt', array(1, PREFIX, heads),
    [before._replace(causal=True)],
  )  # fmt: skip
  for what, length in (('sampled', 1), ('scored', CAPTION)):
    own = array(GROUP, CAPTION, few)
    yield (
      f'{name}, captions {what}', array(GROUP, length, heads),
      [before, Segment(own, own, causal=True)],
    )  # fmt: skip
