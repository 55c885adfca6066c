"""Captioners: what every one can do, and Qwen2.5-VL.

`prefill` runs image and prompt once per image; `decode` adds one token to
each of the G captions; `teach` runs whole captions; `read` runs text alone.
All four share the weights and the decoder's one `__call__`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from uae_jax.models import lm, qwen_vision
from uae_jax.types import KV, Batch, Prefix

VARIANTS = {
  name: dict(vision=qwen_vision.VARIANTS[name], lm=lm.VARIANTS[name])
  for name in ('qwen2.5-vl-3b', 'qwen2.5-vl-7b', 'tiny')
}


class Captioner(nn.Module):
  """The calls of the loop, for a decoder that reads images as tokens.

  A subclass sets up `decoder` (a `models.lm.LM`) and gives `image_tokens`;
  its fields hold those below.

  Attributes:
    lm: fields of the decoder.
    image_pad: the id that image tokens replace.
    dtype: of the activations.
  """

  DECODES = (r'lm/.*',)  # parameters that every sampled token reads
  MATRICES = (r'.*/kernel', r'lm/embed/embedding')  # of products
  SEES = (r'vision/.*',)  # parameters that image tokens are made with

  def embed(self, ids: Int[Array, '*b']) -> Float[Array, '*b D']:
    return self.decoder.embed(ids).astype(self.dtype)

  def logits(self, hidden: Float[Array, '*b D']) -> Float[Array, '*b V']:
    return self.decoder.logits(hidden)

  def see(self, batch: Batch) -> Batch:
    """The batch with its image tokens, which then are not computed again."""
    return batch.replace(image_tokens=self.image_tokens(batch))

  def run_prefix(self, batch: Batch) -> tuple[Float[Array, 'B S D'], KV]:
    """Hidden states of image + prompt, and their KV [Y B S K H]."""
    ids = batch.prefix_ids
    x = self.embed(ids)
    image_tokens = batch.image_tokens
    if image_tokens is None:
      image_tokens = self.image_tokens(batch)
    is_image = ids == self.image_pad
    nth = jnp.maximum(jnp.cumsum(is_image, -1) - 1, 0)
    merged = jnp.take_along_axis(image_tokens, nth[..., None], axis=1)
    x = jnp.where(is_image[..., None], merged, x)
    hidden, kv = self.decoder(
      x[:, None],
      batch.prefix_positions[:, :, None],
      batch.prefix_mask[:, None],
    )
    return hidden[:, 0], KV(kv.k[:, :, 0], kv.v[:, :, 0])

  def prefill(self, batch: Batch) -> Prefix:
    """Image + prompt, once per image."""
    hidden, kv = self.run_prefix(batch)
    last = jnp.sum(batch.prefix_mask, -1) - 1
    valid = batch.prefix_mask[:, None]
    positions = jnp.where(valid, batch.prefix_positions, 0)
    return Prefix(
      kv=kv,
      mask=batch.prefix_mask,
      hidden=jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0],
      position=jnp.max(positions, (1, 2)) + 1,
    )

  def _after(self, prefix: Prefix, ids, t, mask, past=()):
    """Runs caption tokens `ids` [B G L] that start at caption index t."""
    b, g, l = ids.shape
    at = prefix.position[:, None] + t + jnp.arange(l)
    at = jnp.broadcast_to(at[:, None, None], (b, 3, g, l))
    shared = (prefix.kv, prefix.mask)
    return self.decoder(self.embed(ids), at, mask, (shared, *past))

  def decode(
    self,
    prefix: Prefix,
    cache: KV,
    ids: Int[Array, 'B G'],
    t: Int[Array, ''],
  ) -> tuple[Float[Array, 'B G V'], KV]:
    """Feeds caption token t, returns the logits of token t + 1.

    Args:
      prefix: the shared image prefix.
      cache: KV [Y B G L K H] of caption tokens 0..t-1.
      ids: caption token t.
      t: its index.

    Returns:
      fp32 logits and the cache with token t written in place.
    """
    size = cache.k.shape[3]
    seen = (jnp.arange(size) < t)[None, None]
    hidden, new = self._after(
      prefix, ids[..., None], t, jnp.ones((*ids.shape, 1), bool),
      ((cache, seen),),
    )  # fmt: skip
    at = (0, 0, 0, t, 0, 0)
    put = lambda old, one: jax.lax.dynamic_update_slice(
      old, one.astype(old.dtype), at
    )
    cache = KV(put(cache.k, new.k), put(cache.v, new.v))
    return self.logits(hidden[:, :, 0]), cache

  def teach(
    self,
    prefix: Prefix,
    ids: Int[Array, 'B G L'],
    mask: Bool[Array, 'B G L'],
  ) -> Float[Array, 'B G L V']:
    """Teacher-forced logits of every caption token given the ones before."""
    return self.logits(self.states(prefix, ids, mask))

  def states(self, prefix: Prefix, ids, mask) -> Float[Array, 'B G L D']:
    """Hidden states that predict caption tokens 0..L-1."""
    first = jnp.broadcast_to(
      prefix.hidden[:, None, None], (*ids.shape[:2], 1, prefix.hidden.shape[-1])
    )
    hidden, _ = self._after(prefix, ids[..., :-1], 0, mask[..., :-1])
    return jnp.concatenate([first, hidden], 2)

  def after(self, prefix: Prefix, ids, mask) -> Float[Array, 'B G L D']:
    """Hidden states at the caption tokens themselves, image seen."""
    return self._after(prefix, ids, 0, mask)[0]

  def read(
    self, ids: Int[Array, 'B G L'], mask: Bool[Array, 'B G L']
  ) -> Float[Array, 'B G L D']:
    """Hidden states of text alone: no image, no prefix."""
    b, g, l = ids.shape
    positions = jnp.broadcast_to(jnp.arange(l), (b, 3, g, l))
    return self.decoder(self.embed(ids), positions, mask)[0]

  def ask(
    self,
    ids: Int[Array, 'B G L'],
    mask: Bool[Array, 'B G L'],
    queries: Float[Array, 'Q D'],
  ) -> Float[Array, 'B G Q D']:
    """Hidden states at `queries`, embeddings that follow each row's text."""
    b, g, l = ids.shape
    n, d = queries.shape
    words = jnp.broadcast_to(jnp.arange(l), (b, g, l))
    after = jnp.sum(mask, -1, keepdims=True) + jnp.arange(n)
    at = jnp.concatenate([words, after], -1)
    at = jnp.broadcast_to(at[:, None], (b, 3, g, l + n))
    rows = jnp.broadcast_to(queries.astype(self.dtype), (b, g, n, d))
    x = jnp.concatenate([self.embed(ids), rows], 2)
    seen = jnp.concatenate([mask, jnp.ones((b, g, n), bool)], -1)
    return self.decoder(x, at, seen)[0][:, :, l:]

  def empty_cache(self, b: int, g: int, length: int) -> KV:
    """A zero cache [Y B G L K H]."""
    c = self.lm
    shape = (c['layers'], b, g, length, c['kv_heads'], c['head_dim'])
    return KV(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype))

  def __call__(self, batch: Batch) -> Float[Array, 'B S V']:
    """Logits at every prefix token (and creates every parameter)."""
    return self.logits(self.run_prefix(batch)[0])


class VLM(Captioner):
  """Qwen2.5-VL.

  Attributes:
    vision: fields of `models.qwen_vision.QwenVision`.
  """

  vision: dict
  lm: dict
  image_pad: int
  remat: str = 'none'
  dtype: str = 'float32'

  def setup(self):
    self.vision_tower = qwen_vision.QwenVision(
      **self.vision, remat=self.remat, name='vision'
    )
    self.decoder = lm.LM(**self.lm, remat=self.remat, name='lm')

  def image_tokens(self, batch: Batch) -> Float[Array, 'B I D']:
    """The merged patches of every image, in the order of the prefix."""
    return self.vision_tower(
      batch.patches.astype(self.dtype),
      batch.patch_hw,
      batch.patch_window,
      batch.patch_image,
    )
