"""What UniWorld-V1 adds to UMM-1: reference images, T5 beside the caption.

A reference image reaches the decoder twice: as part of the user's turn, which
the language model reads, and as SigLIP's states of its patches, which stand
immediately before the `<|vision_end|>` that closes the image ("UniWorld-V1",
arXiv:2506.03147). Contexts are masked here and not padded with zeros, so that
rows of unequal length are drawn as each would be alone. Letters: B rows, S
tokens, E context width, F pooled width, I images of a row, P patches.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uae_jax.models.connector import Connector
from uae_jax.models.siglip import SigLIP
from uae_jax.types import Batch
from uae_jax.umm.painter import Conditioning
from uae_jax.umm.umm1 import UMM1

IMAGE_END = '<|vision_end|>'


def splice(
  context: Float[Array, 'B S E'],
  mask: Bool[Array, 'B S'],
  ids: Int[Array, 'B S'],
  blocks: Float[Array, 'B I P E'],
  end: int,
) -> tuple[Float[Array, 'B T E'], Bool[Array, 'B T']]:
  """Puts block k of a row immediately before its k-th `end`, counted from 0.

  Args:
    context: states of the row's tokens.
    mask: which tokens there are.
    ids: of the tokens.
    blocks: what is inserted; those without an `end` are masked.
    end: id that closes an image.

  Returns:
    Context and mask of T = S + I P tokens.
  """
  b, s, width = context.shape
  n, p = blocks.shape[1:3]
  nth = jnp.cumsum((ids == end) & mask, -1)
  token = jnp.arange(s) + p * jnp.minimum(nth, n)
  # Where the k-th `end` is; s where there is none.
  start = jnp.sum(nth[:, None] <= jnp.arange(n)[:, None], -1)
  block = start[..., None] + p * jnp.arange(n)[:, None] + jnp.arange(p)
  order = jnp.argsort(jnp.concatenate([token, block.reshape(b, -1)], 1), -1)
  flat = blocks.reshape(b, n * p, width).astype(context.dtype)
  out = jnp.concatenate([context, flat], 1)
  there = jnp.concatenate([mask, jnp.repeat(start < s, p, -1)], 1)
  return (
    jnp.take_along_axis(out, order[..., None], 1),
    jnp.take_along_axis(there, order, 1),
  )


@dataclasses.dataclass(frozen=True)
class Reference:
  """Prompts with reference images -> conditioning.

  Attributes:
    tower: SigLIP, whose states go through `projector`.
    projector: without a pooled vector.
    end: id of `IMAGE_END`.
  """

  tower: SigLIP
  projector: Connector
  end: int

  def __call__(
    self,
    umm: UMM1,
    params: Mapping[str, Any],
    batch: Batch,
    pixels: Float[Array, 'B I h w 3'],
  ) -> Conditioning:
    """What the decoder reads.

    Args:
      umm: has the language model and the connector.
      params: `policy`, `connector`, `siglip` and `siglip_projector`.
      batch: the prompts with their images, as for `prefill`.
      pixels: the images as `tower` sees them.
    """
    run = lambda module, name, *a, **kw: module.apply(
      {'params': params[name]}, *a, **kw
    )
    hidden, _ = run(umm.vlm, 'policy', batch, method='run_prefix')
    mask = batch.prefix_mask
    context, pooled = run(umm.connector, 'connector', hidden, mask)
    b, n = pixels.shape[:2]
    flat = pixels.reshape(b * n, *pixels.shape[2:]).astype(hidden.dtype)
    states = run(self.tower, 'siglip', flat, method='image_states').hidden
    every = jnp.ones(states.shape[:2], bool)
    blocks, _ = run(self.projector, 'siglip_projector', states, every)
    blocks = blocks.reshape(b, n, *blocks.shape[1:])
    context, mask = splice(context, mask, batch.prefix_ids, blocks, self.end)
    return dict(context=context, pooled=pooled, mask=mask)


def join(cond: Conditioning, prompt: Conditioning) -> Conditioning:
  """Adds what the decoder's own text encoders read of the prompt.

  Their context, padding included, follows that of `cond`; their pooled vector
  takes the place of its.
  """
  first, more = cond['context'], prompt['context']
  every = lambda x: jnp.ones(x.shape[:2], bool)
  mask = cond['mask'] if 'mask' in cond else every(first)
  return dict(
    context=jnp.concatenate([first, more.astype(first.dtype)], 1),
    pooled=prompt['pooled'],
    mask=jnp.concatenate([mask, every(more)], 1),
  )
