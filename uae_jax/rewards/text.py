"""Text and image in a CLIP: how well a caption fits an image.

CLIPScore (Hessel et al. 2021, https://arxiv.org/abs/2104.08718) is a cosine;
PickScore and HPS (https://arxiv.org/abs/2305.01569, .../2306.09341) are logits
of a CLIP that was tuned on what people prefer. Captions are ids of the
policy's vocabulary; the tower has one of its own. Letters as in `types`; C
context of the tower, E embedding.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from uae_jax.rewards.features import Tower, unit

IMAGES = ('', 'drawn', 'source')
HEADS = ('cosine', 'logit')


@dataclasses.dataclass(frozen=True)
class WordTable:
  """Words of one vocabulary -> those of another, on the device.

  Attributes:
    ids: of the tower, by the policy's; -1 where there is no word.
    eos: ends a caption for the tower.
    pad: fills it.
    length: C.
  """

  ids: tuple[int, ...]
  eos: int
  pad: int
  length: int

  def __call__(
    self, tokens: Int[Array, 'B G L'], mask: Bool[Array, 'B G L'], _: Any
  ) -> Int[Array, 'B G C']:
    """Captions as the tower reads them, cut and padded to its context."""
    table = jnp.array(self.ids, jnp.int32)
    known = mask & (tokens < len(self.ids))
    ids = jnp.where(known, table[jnp.where(known, tokens, 0)], -1)
    order = jnp.argsort(ids < 0, axis=-1, stable=True)  # words first
    ids = jnp.take_along_axis(ids, order, -1)[..., : self.length - 1]
    room = self.length - ids.shape[-1]
    ids = jnp.pad(ids, ((0, 0), (0, 0), (0, room)), constant_values=-1)
    n = jnp.sum(ids >= 0, -1, keepdims=True)
    end = jnp.where(jnp.arange(self.length) == n, self.eos, self.pad)
    return jnp.where(ids >= 0, ids, end)


@dataclasses.dataclass(frozen=True)
class HostTokens:
  """Any vocabulary -> any other, by way of the text, on the host.

  Attributes:
    decode: caption ids -> text.
    encode: texts -> ids [N C].
    length: C.
  """

  decode: Callable[[np.ndarray], str]
  encode: Callable[[Sequence[str]], np.ndarray]
  length: int

  def __call__(
    self,
    tokens: Int[Array, 'B G L'],
    mask: Bool[Array, 'B G L'],
    call_rows: Callable[..., Array],
  ) -> Int[Array, 'B G C']:
    """Captions as the tower reads them; `call_rows` of `sharding.on_host`."""
    shape = tokens.shape[1], self.length
    return call_rows(self.read, shape, jnp.int32, tokens, mask)

  def read(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same, on the host."""
    flat = lambda x: x.reshape(-1, x.shape[-1])
    rows = zip(flat(tokens), flat(mask))
    ids = self.encode([self.decode(ids[there]) for ids, there in rows])
    return np.asarray(ids).reshape(*tokens.shape[:2], self.length)


@dataclasses.dataclass(frozen=True)
class TextTerm:
  """A CLIP that looks at an image and reads its captions.

  Attributes:
    tower: with an image and a text tower.
    params: its name among the parameters of rewards.
    image: 'drawn' or 'source', what captions are compared with.
    head: 'cosine', or 'logit' for the cosine times the tower's own scale.
    retokenise: tokens, mask and `call_rows` -> the tower's ids.
    weight: in the reward.
  """

  tower: Tower
  params: str
  image: str
  head: str
  retokenise: WordTable | HostTokens
  weight: float = 1.0

  def score(
    self,
    params: Any,
    images: Float[Array, 'B #G E'],
    texts: Float[Array, 'B G E'],
  ) -> Float[Array, 'B G']:
    """Embeddings -> how well they fit, in fp32.

    Args:
      params: of the tower.
      images: of the drawings, or of each source.
      texts: of the captions.
    """
    cosine = jnp.sum(unit(images) * unit(texts), -1)
    if self.head == 'cosine':
      return cosine
    return cosine * jnp.exp(params['logit_scale'].astype(jnp.float32))
