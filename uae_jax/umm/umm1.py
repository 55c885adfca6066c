"""UMM-1: an autoregressive LLM captions, a frozen MM-DiT draws.

What this architecture plugs into the loop of `umm.base`: `draw`, text ->
image. UniWorld, MetaQuery and Qwen2.5-VL + SD3.5 have this shape; see
"Unified Multimodal Models as Auto-Encoders", section on UMM-1.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from uae_jax.errors import UserError
from uae_jax.models.connector import Connector
from uae_jax.models.metaquery import QueryConnector
from uae_jax.models.vlm import VLM
from uae_jax.rewards.features import Tower
from uae_jax.rewards.terms import Terms
from uae_jax.rollout import caption
from uae_jax.rollout.sampler import Sampler
from uae_jax.rollout.walk import Trajectory
from uae_jax.types import Batch, Captions, Prefix, Rollout
from uae_jax.umm.base import UMM, Params, reference
from uae_jax.umm.painter import Painter


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Special ids and the text-to-image template around a caption.

  Attributes:
    negative: what guidance leads away from, in the caption's place; () is
      the empty caption.
  """

  draw_before: tuple[int, ...]
  draw_after: tuple[int, ...]
  eos: int
  pad: int
  negative: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class UMM1(UMM):
  """Modules and options; parameters travel separately.

  Frozen parameters are a dict: `policy` (the untrained rest, or all of it
  beside adapters), `reference` (trained leaves before training, only where a
  term needs them), `reader` (a policy that re-encodes captions, where an
  earlier run has trained the one here), `connector`, `decoder`, `vae` (where
  the painter has one), `reward` and `judges` (by tower name).

  Attributes:
    painter: what draws; its guidance is against `tokens.negative`.
    length: caption budget L, EOS included.
    bottleneck: 'text' re-encodes the caption alone, 'hidden' hands over the
      captioning pass's own states, which have seen the image.
    environment: 'policy' or 'reference' re-encodes the caption.
    share_noise: the G drawings of one image start from the same noise.
    weights: reward weight by tower name.
    terms: what the reward is made of.
    chunk: tokens whose logits exist at once when they are scored; 0 is all.
    size: drawings of a data shard that exist at once; 0 is all.
    one_caption: a group is one caption, drawn several times by chance.
  """

  vlm: VLM
  connector: Connector | QueryConnector
  painter: Painter
  towers: Mapping[str, Tower]
  judges: Mapping[str, Tower]
  tokens: Tokens
  sampler: Sampler
  length: int
  bottleneck: str
  environment: str
  share_noise: bool
  weights: Mapping[str, float]
  terms: Terms = Terms()
  chunk: int = 0
  size: int = 0
  one_caption: bool = False

  def __post_init__(self):
    if self.bottleneck == 'hidden' and isinstance(
      self.connector, QueryConnector
    ):
      raise UserError('learned queries follow text: set bottleneck=text')

  def sized(self, height: int, width: int) -> 'UMM1':
    """Draws in this size, which `painter` can be of.

    Raises:
      UserError: it cannot.
    """
    painter = dataclasses.replace(self.painter, height=height, width=width)
    return dataclasses.replace(self, painter=painter)

  def condition(
    self,
    policy: Params,
    connector: Params,
    captions: Captions,
    prefix: Prefix | None = None,
  ) -> dict[str, Array]:
    """Captions -> the decoder's conditioning, leading axes [B G]."""
    variables = {'params': connector}
    if self.bottleneck == 'hidden' and prefix is not None:
      hidden = self.vlm.apply(
        {'params': policy}, prefix, captions.tokens, captions.mask,
        method='after',
      )  # fmt: skip
      mask = captions.mask
    else:
      t = self.tokens
      ids, mask = caption.in_template(
        captions, t.draw_before, t.draw_after, eos=t.eos, pad=t.pad
      )
      if isinstance(self.connector, QueryConnector):
        queries = self.connector.apply(variables, method='learned')
        hidden = self.vlm.apply(
          {'params': policy}, ids, mask, queries, method='ask'
        )
        context, pooled = self.connector.apply(variables, hidden)
        return dict(context=context, pooled=pooled)
      hidden = self.vlm.apply({'params': policy}, ids, mask, method='read')
    context, pooled = self.connector.apply(variables, hidden, mask)
    return dict(context=context, pooled=pooled, mask=mask)

  def draw(
    self,
    policy: Params,
    frozen: Params,
    captions: Captions,
    prefix: Prefix | None,
    rng: Key[Array, ''],
  ) -> Float[Array, 'B G R Q 3']:
    """Draws every caption with the frozen decoder; pixels in [0, 1]."""
    return self._draw(policy, frozen, captions, prefix, rng)[0]

  def _draw(self, policy, frozen, captions, prefix, rng):
    """Images, and how they came about where that is by chance."""
    if 'reader' in frozen:
      policy = frozen['reader']
    elif self.environment == 'reference':
      policy = reference(frozen, policy)
    with jax.named_scope('condition'):
      cond = self.condition(policy, frozen['connector'], captions, prefix)
    b, g, _ = captions.tokens.shape
    painter = self.painter
    noise = painter.noise(rng, b, 1 if self.share_noise else g)
    noise = jnp.broadcast_to(noise, (b, g, *noise.shape[2:]))
    flat = lambda x: x.reshape(b * g, *x.shape[2:])
    unconditional = None
    if painter.guidance != 1.0:
      negative = self.negative(captions)
      unconditional = jax.tree.map(
        flat, self.condition(policy, frozen['connector'], negative)
      )
    inputs = (frozen, flat(noise), jax.tree.map(flat, cond), unconditional)
    if painter.walk is None:
      drawn = painter(*inputs), None
    else:
      first, eps = jax.random.split(jax.random.fold_in(rng, 1))
      last = painter.schedule.steps - 1 - painter.walk.window
      start = jax.random.randint(first, (b, 1), 0, last + 1)
      start = flat(jnp.broadcast_to(start, (b, g)))
      drawn = painter.by_chance(*inputs, start, eps)
    return jax.tree.map(lambda x: x.reshape(b, g, *x.shape[1:]), drawn)

  def rollout(
    self,
    policy: Params,
    frozen: Params,
    batch: Batch,
    rng: Key[Array, ''],
    group: int,
  ) -> Rollout:
    """image -> G captions -> G images -> G rewards."""
    words, noise = jax.random.split(rng)
    prefix = self.prefill(policy, batch)
    n = 1 if self.one_caption else group
    captions = jax.tree.map(
      lambda x: jnp.broadcast_to(x, (len(x), group, *x.shape[2:])),
      self.describe(policy, prefix, words, n),
    )
    images = path = None
    if self.terms.looks:
      images, path = self._draw(policy, frozen, captions, prefix, noise)
    reward, scores = self.reward(frozen, batch.image, images, captions)
    return Rollout(captions, images, reward, scores=scores, path=path)

  def score_path(
    self, decoder: Params, path: Trajectory
  ) -> tuple[Float[Array, 'B G W'], Float[Array, 'B G W h w C']]:
    """Log-probability of each step of the decoder; see `Painter.score`."""
    b, g = path.logp.shape[:2]
    flat = lambda x: x.reshape(b * g, *x.shape[2:])
    found = self.painter.score({'decoder': decoder}, jax.tree.map(flat, path))
    return jax.tree.map(lambda x: x.reshape(b, g, *x.shape[1:]), found)

  def negative(self, captions: Captions) -> Captions:
    """What guidance leads away from, in the shape of `captions`.

    Raises:
      ValueError: it is longer than the captions may be.
    """
    ids = jnp.array(self.tokens.negative, jnp.int32)
    length = captions.tokens.shape[-1]
    if len(ids) > length:
      raise ValueError(
        f'the negative prompt has {len(ids)} tokens, captions have {length}'
      )
    row = jnp.full(length, self.tokens.pad, jnp.int32).at[: len(ids)].set(ids)
    return captions.replace(
      tokens=jnp.broadcast_to(row, captions.tokens.shape),
      mask=jnp.broadcast_to(
        jnp.arange(length) < len(ids), captions.tokens.shape
      ),
    )

  def draw_from_text(
    self,
    policy: Params,
    frozen: Params,
    captions: Captions,
    rng: Key[Array, ''],
  ) -> Float[Array, 'B G R Q 3']:
    """Plain text-to-image: `draw` with no image anywhere behind it."""
    return self.draw(policy, frozen, captions, None, rng)
